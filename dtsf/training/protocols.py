"""Protocols: the division of clips into training and test, as in the papers or by the user (docs/concepts/groups.md).

An argument follows a colon: test subjects (``cross-subject:5,6``), test views (``cross-view:3``) or a part of the groups
(``groups:2/5``). By default they are those of NTU's and N-UCLA's papers; else ``cross-view`` tests view 3. :class:`Split` names
the task that the test measures.
"""

from __future__ import annotations

import re
import shlex
from collections import Counter
from collections.abc import Callable, Sequence

from dtsf.cache.catalog import view_number
from dtsf.cache.schema import Clip
from dtsf.errors import ConfigError
from dtsf.names import by_number, persons, tidy
from dtsf.settings import Frozen

NAMES = ("cross-subject", "cross-view", "cross-setup", "groups", "split", "all")
DEFAULTS = {"nucla": "cross-view", "ntu": "cross-subject", "casia": "cross-view", "manifest": "split"}

NTU60_TRAIN = frozenset({1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38})
NTU120_TRAIN = NTU60_TRAIN | {
    *(45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89),
    *(91, 92, 93, 94, 95, 97, 98, 100, 103),
}

Rule = tuple[Callable[[Clip], str], str]
"""Function that returns the side of a clip (``train``, ``test``, ``both``, or the reason for none), and the task."""


class Protocol(Frozen):
    """A protocol and its argument, written as ``cross-subject:5,6``."""

    name: str
    argument: tuple[str, ...] = ()

    def __str__(self) -> str:
        return self.name + (":" + ",".join(self.argument) if self.argument else "")


class Split(Frozen):
    """Training and test clips of a protocol."""

    train: tuple[Clip, ...]
    test: tuple[Clip, ...]
    left_out: dict[str, int]  # number of clips by reason
    task: str  # description of what the test measures
    notes: tuple[str, ...] = ()  # doubts about the test: splits.check_split
    held_out: tuple[Clip, ...] = ()  # evaluated during the training, neither trained nor tested: splits.hold_out


def parse_protocol(text: str | None, kind: str) -> Protocol:
    """Read ``name[:argument,...]``; None is the usual protocol of the kind of dataset. Raises ConfigError."""
    if text is None:
        return Protocol(name=DEFAULTS.get(kind, "all"))
    name, colon, rest = text.strip().partition(":")
    if name not in NAMES:
        names = ", ".join(NAMES)
        raise ConfigError(f"unknown protocol {text!r}; there are {names}, as in cross-subject:5,6 or cross-view:3")
    words = tuple(filter(None, map(tidy, rest.split(","))))
    if colon and not words:
        raise ConfigError(f"protocol {text!r}: {name} needs something after the colon")
    if name == "groups" and (len(words) != 1 or read_part(words[0]) is None):
        raise ConfigError(f"protocol {text!r}: groups needs one part of all, as in groups:2/5")
    if words and name not in ("cross-subject", "cross-view", "groups"):
        raise ConfigError(f"protocol {text!r}: {name} takes no argument")
    return Protocol(name=name, argument=words)


def suggested_protocol(clips: Sequence[Clip], kind: str) -> str | None:
    """Return a protocol that clips allow where they do not allow the usual one of their kind; None if they do. It tests a person,
    or those of one clip, if another clip is of other people.
    """
    if DEFAULTS.get(kind) != "split" or {"train", "test"} <= {clip.split for clip in clips}:
        return None
    together = [frozenset(persons(text)) for text in {clip.subject for clip in clips if clip.subject}]
    apart = [(len(some), sorted(some)) for some in together if any(some.isdisjoint(other) for other in together)]
    return f"cross-subject:{','.join(min(apart)[1])}" if apart else "all"


def split_clips(
    clips: Sequence[Clip],
    protocol: Protocol,
    kind: str,
    view_names: Sequence[str],
    needed: Sequence[str] = ("train", "test"),
) -> Split:
    """Divide clips into training and test.

    ``view_names``: in the order of the view numbers. ``needed``: sides that must have clips; an evaluation on another dataset needs
    one. Raises ConfigError: unknown subject or view, a missing column of the dataset, or a needed side without clips.
    """
    rules: dict[str, Callable[[], Rule]] = {
        "cross-subject": lambda: _cross_subject(clips, protocol, kind),
        "cross-view": lambda: _cross_view(protocol, kind, view_names),
        "cross-setup": lambda: _cross_setup(clips),
        "groups": lambda: _groups(clips, protocol),
        "split": lambda: _manifest_split(clips, view_names),
        "all": lambda: (lambda clip: "both", "the training clips themselves: no generalisation is measured"),
    }
    side_of, task = rules[protocol.name]()
    sides = [(side_of(clip), clip) for clip in clips]
    train = tuple(clip for side, clip in sides if side in ("train", "both"))
    test = tuple(clip for side, clip in sides if side in ("test", "both"))
    left_out = Counter(side for side, _ in sides if side not in ("train", "test", "both"))
    for side, word, there in (("train", "training", train), ("test", "test", test)):
        if side in needed and not there:
            raise ConfigError(
                f"protocol {protocol} leaves no {word} clip of {len(clips)} "
                f"(subjects {', '.join(subjects_of(clips)) or 'unknown'}; views {', '.join(view_names)})"
            )
    return Split(train=train, test=test, left_out=dict(left_out), task=task)


def subjects_of(clips: Sequence[Clip]) -> list[str]:
    """Return the persons of clips (``3+4`` are two): numbers first, in order."""
    return sorted(set(persons(*(clip.subject for clip in clips))), key=by_number)


def find_subject(word: str, known: Sequence[str]) -> str:
    """Return the known name of a subject: 05 in file names may be 5 in records. Without one, return the word."""
    same = [name for name in known if word.isdecimal() and name.isdecimal() and int(name) == int(word)]
    return word if word in known or len(same) != 1 else same[0]


def _cross_subject(clips: Sequence[Clip], protocol: Protocol, kind: str) -> Rule:
    known = subjects_of(clips)
    if not known:
        raise ConfigError("protocol cross-subject: the dataset names no subjects (column subject of a manifest)")
    if protocol.argument:
        test = {find_subject(word, known) for word in protocol.argument}
        absent = [word for word in protocol.argument if word in test - set(known)]
        if absent:
            raise ConfigError(f"protocol {protocol}: no subject {', '.join(absent)}; there are {', '.join(known)}")
    elif kind == "ntu":
        is_ntu120 = any(clip.label >= 60 or (clip.setup or 0) > 17 for clip in clips)
        test = set(known) - set(map(str, NTU120_TRAIN if is_ntu120 else NTU60_TRAIN))
    elif kind == "nucla":
        test = {"10"}
    else:
        raise ConfigError(
            f"protocol cross-subject: {kind} has no published test subjects; name them, as in cross-subject:5,6 "
            f"(there are {', '.join(known)})"
        )

    def side(clip: Clip) -> str:
        if not clip.subject:
            return "no subject"
        in_test = [person in test for person in persons(clip.subject)]
        return "test" if all(in_test) else "a training and a test subject together" if any(in_test) else "train"

    return side, f"all views of unseen subjects ({', '.join(person for person in known if person in test)})"


def _cross_view(protocol: Protocol, kind: str, view_names: Sequence[str]) -> Rule:
    words = protocol.argument or ("1" if kind == "ntu" else "3",)
    numbers = sorted({view_number(word, view_names, f"protocol {protocol}") for word in words})
    names = ", ".join(view_names[number - 1] for number in numbers)
    one = "an unseen view alone" if len(numbers) == 1 else "unseen views"
    task = f"{one} (view {names}) of performances seen from others"
    return lambda clip: "test" if clip.view in numbers else "train", task


def read_part(word: str) -> tuple[int, int] | None:
    """Read ``2/5`` as the second of five parts; None if it is no such text."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", word)
    part, parts = (int(found[1]), int(found[2])) if found else (0, 0)
    return (part, parts) if 1 <= part <= parts and parts >= 2 else None


def _groups(clips: Sequence[Clip], protocol: Protocol) -> Rule:
    part, parts = read_part(protocol.argument[0]) or (1, 1)
    # Each class is spread over the parts, as in splits.make_folds.
    order = sorted({(clip.label, clip.group) for clip in clips})
    test = {group for n, (_, group) in enumerate(order) if n % parts == part - 1}
    task = f"part {part} of {parts} of the performances: people and cameras that the training has seen"
    return lambda clip: "test" if clip.group in test else "train", task


def _cross_setup(clips: Sequence[Clip]) -> Rule:
    if all(clip.setup is None for clip in clips):
        raise ConfigError("protocol cross-setup: only NTU RGB+D has setups")

    def side(clip: Clip) -> str:
        if clip.setup is None:
            return "no setup"
        return "test" if clip.setup % 2 else "train"

    return side, "all views of unseen setups (odd numbers)"


def _manifest_split(clips: Sequence[Clip], view_names: Sequence[str]) -> Rule:
    """Divide by the column ``split``. The task names the views and subjects that the test rows share with the training rows."""
    words = {clip.split for clip in clips}
    if not {"train", "test"} <= words:
        raise ConfigError(
            "protocol split: the column split of the manifest must contain train and test; it contains "
            f"{', '.join(sorted(word for word in words if word)) or 'nothing'}. Or choose another protocol, for example "
            f"--protocol {shlex.quote(suggested_protocol(clips, 'manifest') or 'all')}"
        )
    train, test = ([clip for clip in clips if clip.split == side] for side in ("train", "test"))
    seen, tested = ({clip.view for clip in side} for side in (train, test))
    if not seen & tested:
        names = ", ".join(view_names[view - 1] for view in sorted(tested))
        views = f"an unseen view alone (view {names})" if len(tested) == 1 else f"unseen views ({names})"
    else:
        views = "views that trained too" if tested <= seen else "views of which some trained"
    trained, subjects = set(subjects_of(train)), set(subjects_of(test))
    if not subjects:
        people = "people it does not name"
    elif not trained & subjects:
        people = "unseen subjects"
    else:
        people = "subjects who trained too" if subjects <= trained else "subjects of whom some trained"
    same = " in performances seen from others" if {c.group for c in train} & {c.group for c in test} else ""

    def side_of(clip: Clip) -> str:
        return clip.split if clip.split in ("train", "test") else f"split {clip.split or 'empty'}"

    return side_of, f"the manifest's test rows: {views}, of {people}{same}"
