"""Comparison of what a catalog knows: copies of recordings, contradictions, and names that look the same."""

from __future__ import annotations

import json
import math
from bisect import bisect_left
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import xxhash

from dtsf.cache.schema import Box, CatalogDocument, Clip, ClipRecord, DatasetInfo
from dtsf.names import counted, persons, similar_names

MARGIN = 0.1  # seconds at each end of a clip that another one may share: nobody cuts two clips at exactly one moment
SHARE = 0.1  # of a clip, of a picture: less than this is not the same
BEYOND = 0.5  # seconds that a clip may end after its file
SHOWN = 3  # examples in a sentence

Pair = tuple[Clip, Clip]


class Piece(NamedTuple):
    """Recording of a clip: the hash of its file and of its frames, its seconds in the file, and its part of the picture."""

    clip: Clip
    content: str
    frames: str
    start: float
    end: float

    def spans(self) -> Iterator[tuple[str, float, float, Box | None]]:
        """Yield each name of the recording, with the seconds and the part of the picture. Copies share one of them."""
        if self.content:
            yield self.content, self.start, self.end, self.clip.region
        if self.frames:
            yield self.frames, 0.0, math.inf, None


def make_pieces(document: CatalogDocument | None, records: Mapping[str, tuple[int, ClipRecord]]) -> dict[str, Piece]:
    """Return the piece of each clip by clip id. ``records``: as :func:`.catalog.match_rows` returns them."""
    pieces = {}
    for entry in document.clips if document else ():
        clip, record = entry.clip, records[entry.clip.id][1] if entry.clip.id in records else None
        content = record.source.content_hash if record else entry.key.removesuffix(clip.part)
        start, end = clip.start or 0.0, clip.end or math.inf
        if clip.first is not None or clip.last is not None:
            begin, rate = 0.0, clip.fps or 1.0
            if record is not None and record.duration and record.decoded_frames:
                begin, rate = record.begin, record.decoded_frames / record.duration
            start = begin + (clip.first or 0) / rate
            end = math.inf if clip.last is None else begin + (clip.last + 1) / rate
        margin = min(MARGIN, (end - start) * SHARE / 2)
        pieces[clip.id] = Piece(clip, content, record.frames_hash if record else "", start + margin, end - margin)
    return pieces


def digest_clips(
    info: DatasetInfo, clips: Iterable[Clip], records: Mapping[str, tuple[int, ClipRecord]]
) -> dict[str, str]:
    """Hash the annotations, the recording and the frames of each clip, by clip id. ``records``: as for :func:`make_pieces`."""
    digests = {}
    for clip in clips:
        record, label = records[clip.id][1], info.class_names[clip.label]
        who = (clip.group, str(clip.view), clip.subject, clip.background)
        digests[clip.id] = xxhash.xxh3_64_hexdigest(json.dumps([label, *who, record.key, record.frames_hash]).encode())
    return digests


def find_copies(
    pieces: Sequence[Piece], others: Iterable[Piece], *, other_group: bool = False
) -> tuple[list[Pair], list[Pair]]:
    """Return the clips of ``pieces`` that show what a clip of ``others`` shows; and those from the same file, but other seconds or
    another part of the picture. Each with one such clip. ``other_group``: only with clips of another group.
    """
    wanted = {name for piece in pieces for name, *_ in piece.spans()}
    spans: dict[str, dict[Box | None, list[tuple[float, float, Clip]]]] = defaultdict(lambda: defaultdict(list))
    for piece in others:
        for name, start, end, region in piece.spans():
            if name in wanted:
                spans[name][region].append((start, end, piece.clip))
    # For each clip in the order of the starts: of it and those before, the one that ends last, and that of another group.
    index: dict[str, list[tuple[Box | None, list[float], list[list[tuple[float, Clip]]]]]] = defaultdict(list)
    for name, by_region in spans.items():
        for region, found in by_region.items():
            found.sort(key=lambda span: span[0])
            last: list[list[tuple[float, Clip]]] = []
            for _, end, clip in found:
                first, *rest = sorted([*(last[-1] if last else []), (end, clip)], key=lambda item: -item[0])
                last.append([first, *[item for item in rest if item[1].group != first[1].group][:1]])
            index[name].append((region, [start for start, _, _ in found], last))

    def look(piece: Piece) -> Iterator[tuple[bool, Pair]]:
        """Yield True with a copy of a clip, False with another part of its file."""
        for name, start, end, region in piece.spans():
            for other_region, starts, last in index.get(name, ()):
                k = bisect_left(starts, end)
                shown = last[k - 1] if k and _share_picture(region, other_region) else []
                for is_copy, items in ((True, [item for item in shown if item[0] > start]), (False, last[-1])):
                    for _, clip in items:
                        if not other_group or clip.group != piece.clip.group:
                            yield is_copy, (piece.clip, clip)

    best = [max(look(piece), key=lambda item: item[0], default=None) for piece in pieces]
    same, parts = ([item[1] for item in best if item is not None and item[0] is kind] for kind in (True, False))
    return same, parts


def describe_pairs(pairs: Sequence[Pair]) -> str:
    """Return the first pairs as text: ``zoe1.mp4 (line 6) = anna1.mp4 (line 2)``."""
    texts = [a.place if a.place == b.place else f"{a.place} = {b.place}" for a, b in pairs]
    return examples(list(dict.fromkeys(texts)))


def remarks(document: CatalogDocument | None, records: Mapping[str, tuple[int, ClipRecord]]) -> tuple[str, ...]:
    """Return what people should know before they trust a result, one sentence each. Empty for a catalog without doubts.

    ``records``: as for :func:`make_pieces`; without them, copies are found among the files that are hashed.
    """
    if document is None or not document.clips:
        return ()
    pieces = make_pieces(document, records)
    clips = [entry.clip for entry in document.clips]
    return (
        *_about_classes(clips, document.info.class_names),
        *_about_groups(clips, pieces, document.info.view_names),
        *_about_copies(pieces),
        *about_ends([*_late_ends(clips, records)]),
        *_about_names(document, clips),
    )


def _about_classes(clips: Sequence[Clip], names: Sequence[str]) -> Iterator[str]:
    labels = {clip.label for clip in clips}
    if len(labels) == 1:
        yield f"all clips ({len(clips)}) are of one class ({names[clips[0].label]}): dtsf train needs two"
    trained, tested = ({clip.label for clip in clips if clip.split == side} for side in ("train", "test"))
    if trained and tested - trained:
        words = examples([names[label] for label in sorted(tested - trained)])
        yield f"column split: classes without a training clip cannot be learned: {words}"


def _about_groups(clips: Sequence[Clip], pieces: Mapping[str, Piece], views: Sequence[str]) -> Iterator[str]:
    groups: dict[str, list[Clip]] = defaultdict(list)
    for clip in clips:
        groups[clip.group].append(clip)
    twins, people = [], []
    for group, members in groups.items():
        by_subject = {"+".join(sorted(persons(clip.subject))): clip for clip in reversed(members) if clip.subject}
        if len(by_subject) > 1:
            named = [f"{subject} in {clip.place}" for subject, clip in sorted(by_subject.items())]
            people.append(f"group {group}: {', '.join(named)}")
        own = [pieces[clip.id] for clip in members]
        if len({piece.content for piece in own}) == len(own) == len({piece.frames or piece.clip.id for piece in own}):
            continue
        for k, clip in enumerate(members):
            for other, _ in find_copies(own[k + 1 :], own[k : k + 1])[0]:
                named = [f"{views[one.view - 1]}: {one.place}" for one in (clip, other)]
                twins.append(f"group {group}, {' = '.join(named)}")
    if twins:
        yield f"views of a group that are one recording: {examples(twins)}"
    if people:
        yield f"groups with different subjects: {examples(people)}"


def _about_copies(pieces: Mapping[str, Piece]) -> Iterator[str]:
    counts = Counter(name for piece in pieces.values() for name, *_ in piece.spans())
    several = [piece for piece in pieces.values() if any(counts[name] > 1 for name, *_ in piece.spans())]
    found, _ = find_copies(several, several, other_group=True)
    # Of two copies, each is found with the other.
    pairs = {frozenset((a.id, b.id)): (a, b) if (a.line or 0, a.id) > (b.line or 0, b.id) else (b, a) for a, b in found}
    with_other = {
        "different labels": sum(a.label != b.label for a, b in pairs.values()),
        "different subjects": sum(a.subject != b.subject for a, b in pairs.values()),
        "one clip in training, one in test (column split)": sum(
            {a.split, b.split} == {"train", "test"} for a, b in pairs.values()
        ),
    }
    more = "".join(f"; {counted(n, 'pair')} with {what}" for what, n in with_other.items() if n)
    if pairs:
        listed = describe_pairs(list(pairs.values()))
        yield f"{counted(len(found), 'clip shows', 'clips show')} a recording that is also in another group: {listed}{more}"


def late_end(clip: Clip, stop: float) -> str:
    """Return a text about a clip that ends long after its file, or an empty one. ``stop``: end of the file in seconds."""
    if clip.end is None or clip.end - stop <= max(BEYOND, (clip.end - (clip.start or 0.0)) * SHARE):
        return ""
    return f"{clip.place} ends at {clip.end:g} s, its file at {stop:.1f} s"


def about_ends(found: Sequence[str]) -> list[str]:
    """Return one sentence about all texts of :func:`late_end`, none for none."""
    clips = counted(len(found), "clip ends long after its file", "clips end long after their file")
    return [f"{clips}, of which the rest is used: {examples(found)}"] if found else []


def _late_ends(clips: Sequence[Clip], records: Mapping[str, tuple[int, ClipRecord]]) -> Iterator[str]:
    for clip in clips:
        record = records[clip.id][1] if clip.id in records else None
        if record is None or record.row is None:
            continue
        if record.duration and (text := late_end(clip, record.begin + record.duration)):
            yield text
        if clip.last and record.decoded_frames:
            over, length = clip.last + 1 - record.decoded_frames, clip.last + 1 - (clip.first or 0)
            if over > max(2, length * SHARE):
                yield f"{clip.place} ends with frame {clip.last}, its file with frame {record.decoded_frames - 1}"


def _about_names(document: CatalogDocument, clips: Sequence[Clip]) -> Iterator[str]:
    names = {
        "classes": document.info.class_names,
        "views": document.info.view_names,
        "subjects": sorted(set(persons(*(clip.subject for clip in clips)))),
        "groups": sorted({clip.group for clip in clips}),
        "splits": sorted({clip.split for clip in clips if clip.split}),
        "backgrounds": sorted({clip.background for clip in clips if clip.background}),
    }
    for what, known in names.items():
        if same := similar_names(known):
            # Letters that look alike are printed as numbers.
            shown = [map(repr if len({name.casefold() for name in one}) == 1 else ascii, one) for one in same]
            words = examples([" and ".join(one) for one in shown])
            yield f"{what} that differ only in how they are written: {words}. If they are the same, write them alike"


def _share_picture(a: Box | None, b: Box | None) -> bool:
    """Return whether two parts of the picture overlap, or may overlap."""
    if a is None or b is None or (max(a) <= 1) != (max(b) <= 1):
        return True
    width, height = (min(a[k] + a[k + 2], b[k] + b[k + 2]) - max(a[k], b[k]) for k in (0, 1))
    return min(width, height) > 0 and width * height > SHARE * min(a[2] * a[3], b[2] * b[3])


def examples(texts: Sequence[str]) -> str:
    """Return the first texts, and the number of further ones."""
    more = len(texts) - SHOWN
    return "; ".join(texts[:SHOWN]) + (f"; and {more} more" if more > 0 else "")
