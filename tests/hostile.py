"""Helpers for tests of hostile input: a monitor of the file system, and functions that forge documents."""

import contextlib
import functools
import json
import operator
import os
import sys
from pathlib import Path

from hypothesis import strategies as st

WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
ALLOWED = ("/dev/", "/proc/")
VALUES = (
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**30, 0.5, -1e308, 1e308, "", " ", "\x1b[31m\u202e\n", "x" * 5000),
    *("../../../etc/passwd", "/etc/passwd", "timm:resnet18@/tmp/x.py", "hf-hub:a/b", "__import__('os')", "nan", "\udcb6"),
    *([], {}, [[]], [1e308] * 9, {"a": {"b": []}}, ["x", "x"], "@NAN", "@INFINITY", "@DEEP", "@LONG"),
)
"""Forged values. Those with an @ become JSON that no writer makes."""
RAW = {"@NAN": "NaN", "@INFINITY": "-Infinity", "@DEEP": "[" * 9000 + "]" * 9000, "@LONG": "9" * 5000}

_active = []


def _audit(event, arguments):
    if not _active:
        return
    try:
        if event == "open":
            path, mode, flags = arguments
            writes = (isinstance(flags, int) and flags & WRITES) or (isinstance(mode, str) and set(mode) & set("wax+"))
            touched = [path] if writes and not isinstance(path, int) else []
        elif event in ("os.rename", "os.link", "os.symlink", "shutil.move", "shutil.copyfile"):
            touched = list(arguments[:2])
        elif event in ("os.mkdir", "os.remove", "os.rmdir", "os.truncate", "os.chmod", "shutil.rmtree"):
            touched = [arguments[0]]
        else:
            return
    except (TypeError, ValueError):
        return
    for one in touched:
        if isinstance(one, str | bytes | os.PathLike):
            _active[-1].append(os.fsdecode(one))


sys.addaudithook(_audit)


@contextlib.contextmanager
def nothing_outside(*folders):
    """Check that files are written, made, moved and removed only below ``folders``, also by names relative to an open folder."""
    touched = []
    _active.append(touched)
    try:
        yield
    finally:
        _active.pop()
    allowed = [str(folder) for folder in folders]
    for path in touched:
        # A name without a folder is relative to an open folder: dtsf's own writer.
        if "/" not in path:
            assert path.startswith(".dtsf-tmp-") or Path(path).name == path, path
        elif not path.startswith(ALLOWED) and "__pycache__" not in path:
            assert any(os.path.abspath(path).startswith(folder) for folder in allowed), path


def listing(folder):
    """Kind of each entry below a folder, and the bytes of files."""
    found = {}
    for path in sorted(Path(folder).rglob("*")):
        plain = path.is_file() and not path.is_symlink()
        found[str(path)] = path.read_bytes() if plain else os.readlink(path) if path.is_symlink() else path.stat().st_mode
    return found


def places(document, where=()):
    yield where
    inner = document.items() if isinstance(document, dict) else enumerate(document) if isinstance(document, list) else ()
    for key, value in inner:
        yield from places(value, (*where, key))


def put(document, way, value):
    *outer, last = way
    functools.reduce(operator.getitem, outer, document)[last] = value


def forged(text, data):
    """Change a value of a JSON document, remove a key or add one."""
    document = json.loads(text)
    *way, last = data.draw(st.sampled_from([place for place in places(document) if place]))
    holder = functools.reduce(operator.getitem, way, document)
    how = data.draw(st.sampled_from(["value"] * 6 + ["missing", "more"]))
    if how == "missing":
        del holder[last]
    elif how == "more" and isinstance(holder, dict):
        holder["unheard_of"] = data.draw(st.sampled_from(VALUES))
    else:
        holder[last] = data.draw(st.sampled_from(VALUES))
    text = json.dumps(document)
    for word, raw in RAW.items():
        text = text.replace(f'"{word}"', raw)
    return text.encode("utf-8", "surrogatepass")


def spoiled(content, data):
    """Change a byte, cut, double or replace bytes."""
    how = data.draw(st.sampled_from(["flip"] * 4 + ["cut", "double", "noise", "empty"]))
    if how == "flip" and content:
        changed = bytearray(content)
        changed[data.draw(st.integers(0, len(content) - 1))] ^= data.draw(st.integers(1, 255))
        return bytes(changed)
    if how == "cut" and content:
        return content[: data.draw(st.integers(0, len(content) - 1))]
    return {"double": content + content, "noise": data.draw(st.binary(max_size=300))}.get(how, b"")


def put_in_place(path, kind, victim):
    """Replace a file with a pipe, a folder, a link, or nothing."""
    path.unlink(missing_ok=True)
    if kind in ("link", "loop"):
        path.symlink_to(victim if kind == "link" else path)
    elif kind != "nothing":
        os.mkfifo(path) if kind == "pipe" else path.mkdir()
