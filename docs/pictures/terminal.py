"""Draw the moving picture of the README: run dtsf in a separate terminal and write its output as an animated SVG.

    python docs/pictures/terminal.py docs/pictures/terminal.svg

The picture shows the output of the commands in their order. Waits are shortened: a command takes at most ``LONGEST`` seconds.
"""

from __future__ import annotations

import argparse
import os
import pty
import re
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from xml.sax.saxutils import escape

if sys.platform != "win32":
    import fcntl
    import termios

COLUMNS, ROWS = 92, 26
LONGEST = 7.0
"""Maximum duration of a command in the picture, in seconds."""
FRAMES_PER_S = 8
COMMANDS = (
    "dtsf preprocess nucla --root drawn",
    "dtsf train --recipe demo --protocol cross-subject:3 --out runs/first",
    "dtsf predict drawn/multiview_action_videos/a05/v0*_s03_e00.avi --run runs/first",
)
COLOURS = ("#3b4252", "#e06c75", "#98c379", "#e5c07b", "#61afef", "#c678dd", "#56b6c2", "#d8dee9")
BRIGHT = ("#6b7280", "#ff7b86", "#b5e890", "#ffd68a", "#82c4ff", "#dd9aef", "#7fd6e2", "#ffffff")
TEXT, BACKGROUND, PROMPT = "#d8dee9", "#1b1f27", "#98c379"
ESCAPE = re.compile(r"\x1b\[([?0-9;]*)([A-Za-z])|\x1b[()][A-Z0-9]|\x1b[=>]|\x1b\][^\x07]*\x07")

Cell = tuple[str, str]
"""Character and its style: a CSS class-like string of attributes."""


class Screen:
    """Terminal with the features that rich's bars and tables need: colours, carriage returns, cursor up, erase."""

    def __init__(self) -> None:
        self.lines: list[list[Cell]] = [[]]
        self.row = self.column = 0
        self.colour, self.bold, self.dim = TEXT, False, False

    def feed(self, text: str) -> None:
        """Process the output of a program."""
        at = 0
        while at < len(text):
            if found := ESCAPE.match(text, at):
                if found.group(2):
                    self._control(found.group(1), found.group(2))
                at = found.end()
                continue
            self._put(text[at])
            at += 1

    def _put(self, character: str) -> None:
        if character == "\n":
            self.row += 1
            self.column = 0
        elif character == "\r":
            self.column = 0
        elif character >= " ":
            if self.column >= COLUMNS:
                self.row, self.column = self.row + 1, 0
            self._reach()
            line = self.lines[self.row]
            line += [(" ", TEXT)] * (self.column + 1 - len(line))
            style = self.colour + (";font-weight:bold" if self.bold else "") + (";opacity:.65" if self.dim else "")
            line[self.column] = (character, style)
            self.column += 1
        self._reach()

    def _reach(self) -> None:
        while len(self.lines) <= self.row:
            self.lines.append([])

    def _control(self, words: str, letter: str) -> None:
        numbers = [int(word) for word in words.split(";") if word.isdigit()]
        first = numbers[0] if numbers else 1
        if letter == "A":
            self.row = max(0, self.row - first)
        elif letter == "K":
            line = self.lines[self.row]
            del line[0 if numbers[:1] == [2] else self.column :]
        elif letter == "m":
            self._style(numbers or [0])

    def _style(self, numbers: list[int]) -> None:
        while numbers:
            code = numbers.pop(0)
            if code == 0:
                self.colour, self.bold, self.dim = TEXT, False, False
            elif code in (1, 2):
                self.bold, self.dim = self.bold or code == 1, self.dim or code == 2
            elif code == 22:
                self.bold = self.dim = False
            elif 30 <= code <= 37:
                self.colour = COLOURS[code - 30]
            elif 90 <= code <= 97:
                self.colour = BRIGHT[code - 90]
            elif code == 39:
                self.colour = TEXT
            elif code == 38 and numbers[:1] == [5]:
                self.colour = _palette(numbers[1])
                del numbers[:2]
            elif code == 38 and numbers[:1] == [2]:
                self.colour = "#{:02x}{:02x}{:02x}".format(*numbers[1:4])
                del numbers[:4]

    def shown(self) -> tuple[tuple[Cell, ...], ...]:
        """Return the last lines, as many as the window has."""
        lines = list(self.lines)
        while lines and not lines[-1]:
            lines.pop()
        return tuple(tuple(line) for line in lines[-ROWS:])


def _palette(number: int) -> str:
    if number < 8:
        return COLOURS[number]
    if number < 16:
        return BRIGHT[number - 8]
    if number >= 232:
        return "#{0:02x}{0:02x}{0:02x}".format(8 + 10 * (number - 232))
    parts = [
        0 if part == 0 else 55 + 40 * part for part in ((number - 16) // 36, (number - 16) // 6 % 6, (number - 16) % 6)
    ]
    return "#{:02x}{:02x}{:02x}".format(*parts)


def run(command: str, folder: Path) -> list[tuple[float, str]]:
    """Return the output of a command on a terminal, with times."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    environment = os.environ | {"TERM": "xterm-256color", "COLORTERM": "truecolor", "OMP_NUM_THREADS": "1"}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    child = subprocess.Popen(
        ["bash", "-c", command], cwd=folder, env=environment, stdin=theirs, stdout=theirs, stderr=theirs
    )
    os.close(theirs)
    begun, parts, pending = time.monotonic(), [], b""
    while True:
        try:
            pending += os.read(ours, 65536)
        except OSError:  # the other side is closed
            break
        text = pending.decode("utf-8", "ignore")
        if text.encode() == pending:
            parts.append((time.monotonic() - begun, text))
            pending = b""
    os.close(ours)
    if child.wait():
        raise SystemExit(f"{command} failed:\n{''.join(text for _, text in parts)}")
    return parts


def film(folder: Path) -> list[tuple[float, tuple[tuple[Cell, ...], ...]]]:
    """Return the windows and their durations: commands are typed, then run."""
    screen = Screen()
    frames: list[tuple[float, tuple[tuple[Cell, ...], ...]]] = []
    for command in COMMANDS:
        screen.feed("\x1b[1;32m$\x1b[0m ")
        for k in range(0, len(command), 4):
            screen.feed(command[k : k + 4])
            frames.append((0.06, screen.shown()))
        frames.append((0.5, screen.shown()))
        screen.feed("\n")
        parts = run(command, folder)
        pace = min(1.0, LONGEST / max(parts[-1][0], 0.1))
        shown_until, clock = 0.0, 0.0
        for when, text in parts:
            clock = when * pace
            if clock - shown_until >= 1 / FRAMES_PER_S:
                frames.append((clock - shown_until, screen.shown()))
                shown_until = clock
            screen.feed(text)
        frames.append((2.2, screen.shown()))
        screen.feed("\n")
    frames.append((4.0, screen.shown()))
    return frames


def svg(frames: list[tuple[float, tuple[tuple[Cell, ...], ...]]]) -> str:
    """Return all windows below one another, moved past a window; a line that appears twice is drawn once."""
    wide, high, margin, bar = 8.4, 19, 14, 30
    width, height = round(COLUMNS * wide + 2 * margin), ROWS * high + 2 * margin + bar
    symbols: dict[tuple[Cell, ...], str] = {}
    body, stops, clock = [], [], 0.0
    total = sum(seconds for seconds, _ in frames)
    for k, (seconds, lines) in enumerate(frames):
        stops.append(f"{100 * clock / total:.2f}%{{transform:translateY({-k * height}px)}}")
        clock += seconds
        uses = []
        for row, line in enumerate(lines):
            if any(character != " " for character, _ in line):
                name = symbols.setdefault(line, f"l{len(symbols)}")
                uses.append(f'<use href="#{name}" y="{k * height + row * high}"/>')
        body.append("".join(uses))
    last = (len(frames) - 1) * height
    definitions = "".join(f'<g id="{name}">{_line(line, wide)}</g>' for line, name in symbols.items())
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" role="img" '
        f'aria-label="A terminal: {escape("; ".join(COMMANDS))}">\n<style>'
        f"text{{font:14px ui-monospace,SFMono-Regular,Menlo,Consolas,'DejaVu Sans Mono',monospace;white-space:pre}}"
        f"#film{{animation:film {total:.1f}s steps(1,end) infinite}}@keyframes film{{{''.join(stops)}}}"
        f"@media(prefers-reduced-motion:reduce){{#film{{animation:none;transform:translateY({-last}px)}}}}</style>\n"
        f'<defs>{definitions}<clipPath id="window"><rect width="{width}" height="{ROWS * high + margin}"/></clipPath></defs>\n'
        f'<rect width="{width}" height="{height}" rx="9" fill="{BACKGROUND}"/>'
        + "".join(
            f'<circle cx="{18 + 18 * k}" cy="17" r="5.5" fill="{c}"/>'
            for k, c in enumerate(("#e06c75", "#e5c07b", PROMPT))
        )
        + f'\n<g transform="translate({margin} {bar + margin})" clip-path="url(#window)">'
        f'<g id="film">{"".join(body)}</g></g></svg>\n'
    )


def _line(line: tuple[Cell, ...], wide: float) -> str:
    parts, start = [], 0
    while start < len(line):
        end = start
        while end < len(line) and line[end][1] == line[start][1]:
            end += 1
        text = "".join(character for character, _ in line[start:end])
        if text.strip():
            lead = len(text) - len(text.lstrip())
            text = text.strip()
            parts.append(
                f'<text x="{(start + lead) * wide:.0f}" y="13" textLength="{len(text) * wide:.0f}" style="fill:{line[start][1]}">'
                f"{escape(text)}</text>"
            )
        start = end
    return "".join(parts)


def main() -> None:
    """Draw a small dataset, run the commands, write the picture."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--subjects", type=int, default=3)
    words = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw = ["dtsf", "synth", "nucla", "--out", "drawn", "--subjects", str(words.subjects), "--episodes", "2", "-q"]
        subprocess.run([Path(sys.executable).with_name("dtsf"), *draw[1:]], cwd=folder, check=True)
        words.out.write_text(svg(film(folder)), "utf-8")
    print(f"{words.out}: {words.out.stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main()
