"""Wording of code, docs and help: the field's words, in simple English.

``python tests/test_words.py [PATH...]`` lists the findings of these files or folders; without a path, of all.
"""

import ast
import functools
import io
import re
import sys
import tokenize
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
CODE = sorted([*(ROOT / "dtsf").rglob("*.py"), *(ROOT / "benchmarks").glob("*.py"), *(ROOT / "docs").rglob("*.py")])
TOML = sorted((ROOT / "dtsf").rglob("*.toml"))
RECORDED = ROOT / "docs/pictures/terminal.svg"
"""Output of commands, recorded by docs/pictures/terminal.py."""
MARKUP = sorted([*(ROOT / "dtsf").rglob("*.html"), *({*(ROOT / "docs/pictures").glob("*.svg")} - {RECORDED})])

WORDS = {
    "anew": "again",
    "needless": "optional, not needed",
    "of others": "name the owner: external, untrusted",
    "of one's own": "your own, custom",
    "how manyth": "index",
    "as it is": "unchanged",
    "as they are": "unchanged",
    "held against": "compared with, counted as",
    "by itself": "alone, separately",
    "by themselves": "alone, separately",
    "begun": "started",
    "learnt": "trained, learned",
    "cards?": "GPU",
    "rooms?": "background (a scene); memory, space (of a disk)",
    "told": "distinguished, given",
    "asked": "evaluated, requested",
    "judged": "evaluated",
    "beliefs?": "calibration, evidence mass",
    "believed": "calibrated, trusted",
    "opinions?": "branch",
    "canvas(?:es)?": "input, feature map",
    "data sets?": "dataset",
    "seals?": "checksum",
    "sealed": "with a checksum",
    "whereof": "of which",
    "wont": "usual",
    "model-facts": "docs/paper.md, or VideoMamba's file",
}
"""Words that are not used, as regular expressions, each with the word to use."""
FOUND = {word: re.compile(rf"\b{word}\b", re.IGNORECASE) for word in WORDS}
ROOMS = ("dtsf/pipeline/datasets/synth", "dtsf/pipeline/datasets/synthetic_scene.py")
"""Files that draw rooms."""
FIRST = re.compile(r"(?:What|Whether|How|Which|Where|Of|By)\b")
"""First words that a docstring must not have."""
ROLE = re.compile(r":(?:func|class|mod|data|meth|attr):`~?([\w.]+)`")
LONGEST = 130
"""Characters of a line of Markdown outside tables and code."""


def docstrings(tree):
    """Yield the line and text of every docstring, also of attributes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


def prose(path):
    """Yield the line and text of a file's prose."""
    text = path.read_text("utf-8")
    if path.suffix == ".py":
        for token in tokenize.generate_tokens(io.StringIO(text).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.string
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                yield from enumerate(node.value.splitlines(), node.lineno)
    for number, line in enumerate(text.splitlines(), 1):
        if path.suffix in (".html", ".svg"):
            yield number, re.sub(r"<[^>]*>|\{[{%].*?[%}]\}", " ", line)
        elif path.suffix == ".toml":
            yield number, line.partition("#")[2]
        # Tables of CHANGELOG list old names.
        elif path.suffix == ".md" and not (path.name == "CHANGELOG.md" and line.startswith("|")):
            yield number, line


def unwanted_words(lines, *, rooms=False):
    """Yield line, word and text of every unwanted word."""
    for number, line in lines:
        for word, pattern in FOUND.items():
            if pattern.search(line) and not (rooms and word == "rooms?"):
                yield number, f"{pattern.search(line).group()!r} ({WORDS[word]})", line.strip()


def help_texts():
    """Yield every help text of the command line with its command."""
    import typer.main

    from dtsf.cli.app import app

    waiting = [("dtsf", typer.main.get_command(app))]
    for words, command in waiting:
        waiting += [(f"{words} {name}", child) for name, child in getattr(command, "commands", {}).items()]
        yield words, f"{command.help or ''} {command.epilog or ''}"
        yield from ((words, getattr(parameter, "help", None) or "") for parameter in command.params)


@functools.cache
def known_names():
    """Return every name that dtsf defines: modules, functions, classes, attributes, variables."""
    names = {part for path in CODE for part in path.relative_to(ROOT).with_suffix("").parts}
    for path in (ROOT / "dtsf").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef | ast.Name | ast.Attribute):
                names |= {getattr(node, field) for field in ("name", "id", "attr") if hasattr(node, field)}
    return names


def findings(path, names):
    """Yield line, fault and text of every fault of a file's wording."""
    relative = str(path.relative_to(ROOT))
    yield from unwanted_words(prose(path), rooms=relative.startswith(ROOMS))
    if path.suffix == ".py":
        tree = ast.parse(path.read_text("utf-8"))
        for number, text in docstrings(tree):
            if relative.startswith("dtsf/") and FIRST.match(text.strip()):
                yield number, "first word of a docstring", text.strip().splitlines()[0]
            for name in ROLE.findall(text):
                if name.startswith((".", "dtsf")) and not set(filter(None, name.split("."))) <= names:
                    yield number, "no such name", name
    elif path.suffix == ".md":
        yield from page_findings(path, names)


@functools.cache
def recipe_keys():
    """Return every key of a recipe, as section.key."""
    from dtsf.training.recipe import Recipe

    sections = Recipe.model_fields.items()
    return {f"{name}.{key}" for name, section in sections for key in getattr(section.annotation, "model_fields", {})}


KEY = re.compile(r"\b(?:model|loss|augment|debias|train)\.(?!py\b|safetensors)[a-z_]+\b")
FILE = re.compile(r"\b(?:benchmarks|tests|docs|dtsf)/[\w/.-]+\.(?:py|md|toml|csv|png|svg)\b")


def page_findings(path, names):
    """Yield line, fault and text: long lines, and names, files and keys that do not exist."""
    keys = set() if path.name == "CHANGELOG.md" else recipe_keys()
    fenced = False
    for number, line in enumerate(path.read_text("utf-8").splitlines(), 1):
        fenced ^= line.startswith("```")
        if len(line) > LONGEST and not fenced and not line.startswith(("|", "    ", "!")):
            yield number, f"longer than {LONGEST} characters", line
        for name in re.findall(r"\bdtsf(?:\.\w+)+", line):
            if not set(name.split(".")) <= names | {"dtsf", "json", "git"}:
                yield number, "no such name", name
        yield from ((number, "no such key", key) for key in KEY.findall(line) if keys and key not in keys)
        yield from (
            (number, "no such file", name)
            for name in FILE.findall(line)
            if keys and "mine" not in name and not any((folder / name).exists() for folder in (ROOT, ROOT / "docs"))
        )


@pytest.mark.parametrize("path", [*CODE, *TOML, *MARKUP, *PAGES], ids=lambda path: str(path.relative_to(ROOT)))
def test_text__uses_the_words_of_the_field(path):
    assert not [f"{path}:{number}: {fault}: {text}" for number, fault, text in findings(path, known_names())]


def test_help__uses_the_words_of_the_field():
    assert not list(unwanted_words(help_texts(), rooms=True))


if __name__ == "__main__":
    chosen = [Path(name).resolve() for name in sys.argv[1:]] or [ROOT]
    count: Counter[str] = Counter()
    defined = known_names()
    for file in [*CODE, *TOML, *MARKUP, *PAGES]:
        if any(file.is_relative_to(folder) for folder in chosen):
            for found_at, fault, text in sorted(findings(file, defined)):
                print(f"{file.relative_to(ROOT)}:{found_at}: {fault}: {text[:110]}")
                count[str(file.relative_to(ROOT))] += 1
    print(f"{sum(count.values())} findings in {len(count)} files")
