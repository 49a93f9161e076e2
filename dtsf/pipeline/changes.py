"""What changed in a data set since the last run: clips that are new, changed, relabelled, moved, gone."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dtsf.cache.records import Frozen, part_of

if TYPE_CHECKING:
    from collections.abc import Callable

    from dtsf.cache.catalog import CatalogDocument, CatalogEntry
    from dtsf.cache.spec import DatasetInfo


class Changes(Frozen):
    """Clips by what became of them. All but ``gone`` add up to the clips of the source; ``unusable`` are some of them."""

    new: int = 0
    changed: int = 0
    """Another content under the same path."""
    relabelled: int = 0
    """The same bytes with other annotations: class, group, camera, subject, split, background, offset."""
    moved: int = 0
    """The same bytes under another path."""
    unchanged: int = 0
    gone: int = 0
    """Listed by the last run, and no longer in the source: nothing trains on them."""
    unusable: int = 0
    to_decode: int = 0
    """Parts of files that no row is there for yet."""


def compare(before: CatalogDocument | None, now: CatalogDocument, *, unusable: int, to_decode: int) -> Changes:
    """Compare two catalogs, by paths first and then by content; classes and cameras by their names."""
    counts = dict.fromkeys(("new", "changed", "relabelled", "moved", "unchanged"), 0)
    held: dict[tuple[str, str], list[CatalogEntry]] = {}
    for entry in before.clips if before else ():
        held.setdefault(_spot(entry), []).append(entry)
    said_before = _said(before.info) if before else None
    said_now = _said(now.info)
    rest: list[CatalogEntry] = []
    # Rows may name one file twice: first those with the same annotations.
    for exact in (True, False):
        todo, rest = (now.clips if exact else tuple(rest)), []
        for entry in todo:
            candidates = held.get(_spot(entry), [])
            same = [old for old in candidates if said_before is not None and said_before(old) == said_now(entry)]
            if not candidates or (exact and not same):
                rest.append(entry)
                continue
            old = (same or candidates)[0]
            candidates.remove(old)
            is_same = old.place == entry.place or (old.key != "" and old.key == entry.key)
            counts["changed" if not is_same else "unchanged" if same else "relabelled"] += 1
    left: dict[str, int] = {}
    gone = 0
    for entries in held.values():
        for old in entries:
            left[old.key] = left.get(old.key, 0) + 1
            gone += 1
    for entry in rest:
        if entry.key and left.get(entry.key):
            left[entry.key] -= 1
            gone -= 1
            counts["moved"] += 1
        else:
            counts["new"] += 1
    return Changes(**counts, gone=gone, unusable=unusable, to_decode=to_decode)


def _spot(entry: CatalogEntry) -> tuple[str, str]:
    return entry.clip.path, part_of(entry.clip)


def _said(info: DatasetInfo) -> Callable[[CatalogEntry], tuple[object, ...]]:
    def annotations(entry: CatalogEntry) -> tuple[object, ...]:
        c = entry.clip
        label, view = info.class_names[c.label], info.view_names[c.view - 1]
        return label, c.raw_label, c.group, view, c.subject, c.setup, c.split, c.background, c.offset

    return annotations
