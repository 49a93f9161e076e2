"""Names as people see them: in tables, options and file names. Two texts that look the same are one name."""

from __future__ import annotations

import os
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from urllib.parse import unquote

from dtsf.errors import DataError

BLANKS = re.compile(r"[\s\u2800\u3164\uffa0]+")
# Letters that are never seen: variation selectors, fillers. Others have the Unicode categories Cc and Cf.
UNSEEN = re.compile(r"[\u034f\u115f\u1160\u17b4\u17b5\ufe00-\ufe0f]")
# Cyrillic and Greek letters, and the Latin ones that look the same, in small letters.
LOOK_ALIKE = str.maketrans("авекмнорстухіјѕԁԛԝαικνορτυχ’‘`", "abekmhopctyxijsdqwaikvoptux'''")
MAX_DEPTH = 250  # folders of a path: the system allows 4,096 bytes
DASHES = re.compile(r"[\s_\-\u2010-\u2015\u2212]+")
NUMBER = re.compile(r"[+-]?(\d{1,15})([.,]\d{0,15})?")

ADDRESS = re.compile(
    r"([A-Za-z][A-Za-z0-9+.-]+):(/*)(.*)", re.DOTALL
)  # Path makes one slash of two, and removes the last
# What to do with an address, by its kind.
_WEB, _STREAM = "download it, and give the file", "record it to a file, and give the file"
_STORE = "copy it to a disk, and give the file: only a cache can be on an object store"
KINDS = dict.fromkeys(("http", "https", "ftp", "ftps", "sftp"), _WEB)
KINDS |= dict.fromkeys(("rtsp", "rtsps", "rtmp", "rtp", "srt", "udp", "tcp", "mms", "hls"), _STREAM)
KINDS |= dict.fromkeys(("s3", "s3a", "gs", "gcs", "az", "abfs", "abfss", "memory", "hdfs", "smb", "webdav"), _STORE)


def tidy(text: str) -> str:
    """Return a name in Unicode's form NFC, with single blanks between words, and without invisible characters."""
    if text.isascii() and text.isprintable() and "  " not in text:
        return text.strip()
    text = BLANKS.sub(" ", unicodedata.normalize("NFC", text))
    return BLANKS.sub(" ", "".join(letter for letter in text if not _is_unseen(letter))).strip()


def has_unseen(text: str) -> bool:
    """Return whether a text has invisible characters, which :func:`tidy` leaves out."""
    return not (text.isascii() and text.isprintable()) and any(_is_unseen(letter) for letter in BLANKS.sub(" ", text))


def persons(*subjects: str | None) -> list[str]:
    """Return the persons of subjects, in order: ``3+4`` are two, an empty subject is none."""
    return [person for subject in subjects if subject for person in subject.split("+")]


def by_number(name: str) -> tuple[int, str]:
    """Return the place of a name in a sorted list: numbers first, in order."""
    return (int(name), "") if name.isdecimal() else (10**9, name)


def counted(number: int, one: str, many: str = "") -> str:
    """Return a number with its noun, and the verb if there is one: ``1 clip``. ``many``: by default ``one`` with an s."""
    return f"{number} {one if number == 1 else many or f'{one}s'}"


def similar_names(names: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the sets of different names that people read as the same: ``Run`` and ``run``, ``1`` and ``1.0``."""
    found: dict[str, list[str]] = {}
    for name in dict.fromkeys(names):
        found.setdefault(_as_read(name), []).append(name)
    return [tuple(same) for same in found.values() if len(same) > 1]


def split_address(text: str) -> tuple[str, str] | None:
    """Return the kind of an address (``s3``, ``http``) and the rest; None for a path. A file of this name is a path."""
    match = ADDRESS.fullmatch(text)
    if match is None or os.path.lexists(text) or not (match[2] or (not match[3] and match[1].lower() in KINDS)):
        return None
    return match[1].lower(), match[3]


def local_path(text: str, where: str = "") -> str:
    """Return a path of this machine: ``~`` is the home folder, and ``file:///`` a path. Raises DataError: another address.

    ``where``: start of the message.
    """
    if text.startswith("~") and not os.path.lexists(text):
        return os.path.expanduser(text)
    address = split_address(text)
    if address is None:
        return text
    kind, rest = address
    if kind == "file":
        return f"/{unquote(rest.removeprefix('localhost/'))}"
    advice = KINDS.get(kind, "give a file or a folder")
    raise DataError(f"{where}{kind}://{rest} is an address, and dtsf reads files of this machine: {advice}")


def user_path(path: str | Path) -> Path:
    """Return a path of the user as :func:`local_path` and :func:`find_path` do."""
    return Path(find_path(local_path(str(path))))


def find_path(path: str, listings: dict[str, dict[str, str]] | None = None) -> str:
    """Return the path on the disk whose names look the same; the given path if it exists, or if there is none or several.

    ``listings``: names in each folder that was read; give the same dictionary for many paths.
    """
    listings = {} if listings is None else listings
    folder, name = os.path.split(path)
    if not name or path.count("/") > MAX_DEPTH or os.path.lexists(path):
        return path
    folder = find_path(folder, listings)
    if folder not in listings:
        try:
            present = os.listdir(folder or ".")
        except (OSError, ValueError):
            present = []
        pairs = [(tidy(one), one) for one in present]
        counts = Counter(key for key, _ in pairs)
        listings[folder] = {key: one for key, one in pairs if counts[key] == 1}
    return os.path.join(folder, listings[folder].get(tidy(name), name))


def _is_unseen(letter: str) -> bool:
    return unicodedata.category(letter) in ("Cc", "Cf") or UNSEEN.match(letter) is not None


def _as_read(name: str) -> str:
    text = tidy(unicodedata.normalize("NFKC", tidy(name)))
    if NUMBER.fullmatch(text):
        return repr(float(text.replace(",", ".")))
    # Between digits a blank separates: 1_12 is not 11_2.
    text = re.sub(r"(?<!\d) | (?!\d)", "", DASHES.sub(" ", text.casefold().translate(LOOK_ALIKE)))
    return re.sub(r"(?<!\d)0+(?=\d)", "", text)
