"""Protocols: the division of clips into training and test, as in the papers of the datasets or by the user.

====================  ===========================================================================================
``cross-subject``     test subjects after a colon: ``cross-subject:5,6``; default: the published lists of NTU and N-UCLA
``cross-view``        test view after a colon: ``cross-view:3``; default: view 1 of NTU, else view 3
``cross-setup``       NTU-120: even setups train, odd setups test
``split``             column ``split`` of the manifest: ``train`` and ``test``
``all``               all clips train and test: measures the fit only
====================  ===========================================================================================

A test on one unseen view and a test on all views of unseen subjects are different tasks; :class:`Split` names the task.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dtsf.cache.catalog import view_number
from dtsf.cache.schema import Clip
from dtsf.errors import ConfigError
from dtsf.settings import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

NAMES = ("cross-subject", "cross-view", "cross-setup", "split", "all")
DEFAULTS = {"nucla": "cross-view", "ntu": "cross-subject", "casia": "cross-view", "manifest": "split"}

NTU60_TRAIN = frozenset(map(str, (1, 2, 4, 5, 8, 9, 13, 14, 15, 16, 17, 18, 19, 25, 27, 28, 31, 34, 35, 38)))
NTU120_TRAIN = NTU60_TRAIN | frozenset(
    map(
        str,
        (
            *(45, 46, 47, 49, 50, 52, 53, 54, 55, 56, 57, 58, 59, 70, 74, 78, 80, 81, 82, 83, 84, 85, 86, 89),
            *(91, 92, 93, 94, 95, 97, 98, 100, 103),
        ),
    )
)


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
    left_out: dict[str, int]
    """Number of clips by reason."""
    task: str
    """Description of what the test measures."""
    held_out: tuple[Clip, ...] = ()
    """Evaluated during the training, neither trained nor tested; see :func:`.splits.hold_out`."""


class Side(Frozen):
    """Counts of one side of a split."""

    clips: int
    groups: int
    views: dict[str, int]
    """Number of clips by name of the view."""
    subjects: tuple[str, ...]
    """Subjects in order; empty if the dataset names no subjects."""
    setups: tuple[int, ...]
    """Setups of NTU; empty for other datasets."""


def parse_protocol(text: str | None, kind: str) -> Protocol:
    """Read ``name[:argument,...]``; None is the usual protocol of the kind of dataset.

    Raises ConfigError: unknown name, or an argument that the protocol does not take.
    """
    if text is None:
        return Protocol(name=DEFAULTS.get(kind, "all"))
    name, colon, rest = text.strip().partition(":")
    if name not in NAMES:
        raise ConfigError(
            f"unknown protocol {text!r}; there are {', '.join(NAMES)}, as in cross-subject:5,6 or cross-view:3"
        )
    words = tuple(word.strip() for word in rest.split(",") if word.strip())
    if colon and (name not in ("cross-subject", "cross-view") or not words):
        raise ConfigError(
            f"protocol {text!r}: {name} " + ("needs something after the colon" if not words else "takes no argument")
        )
    return Protocol(name=name, argument=words)


def split_clips(
    clips: Sequence[Clip],
    protocol: Protocol,
    kind: str,
    view_names: Sequence[str],
    needed: Sequence[str] = ("train", "test"),
) -> Split:
    """Divide clips into training and test.

    ``view_names``: names in the order of the view numbers; a protocol may use either. ``needed``: sides that must have clips; an
    evaluation on another dataset needs one. Raises ConfigError: unknown subject or view, a missing column of the dataset, or a
    needed side without clips.
    """
    rules: dict[str, Callable[[], tuple[Callable[[Clip], str], str]]] = {
        "cross-subject": lambda: _cross_subject(clips, protocol, kind),
        "cross-view": lambda: _cross_view(clips, protocol, kind, view_names),
        "cross-setup": lambda: _cross_setup(clips),
        "split": lambda: _manifest_split(clips),
        "all": lambda: (lambda clip: "both", "the training clips themselves: no generalisation is measured"),
    }
    side_of, task = rules[protocol.name]()
    sides = [(side_of(clip), clip) for clip in clips]
    train = tuple(clip for side, clip in sides if side in ("train", "both"))
    test = tuple(clip for side, clip in sides if side in ("test", "both"))
    if protocol.name == "split" and train and test:
        task = f"{task}: {_describe_test_rows(train, test, view_names)}"
    left_out = Counter(side for side, _ in sides if side not in ("train", "test", "both"))
    for side, word, there in (("train", "training", train), ("test", "test", test)):
        if side in needed and not there:
            raise ConfigError(
                f"protocol {protocol} leaves no {word} clip of {len(clips)} "
                f"(subjects {', '.join(_subjects(clips)) or 'unknown'}; views {', '.join(view_names)})"
            )
    return Split(train=train, test=test, left_out=dict(left_out), task=task)


def describe(clips: Sequence[Clip], view_names: Sequence[str]) -> Side:
    """Count the clips, groups, views, subjects and setups of one side of a split."""
    views = Counter(clip.view for clip in clips)
    return Side(
        clips=len(clips),
        groups=len({clip.group for clip in clips}),
        views={view_names[view - 1]: n for view, n in sorted(views.items())},
        subjects=tuple(_subjects(clips)),
        setups=tuple(sorted({clip.setup for clip in clips if clip.setup is not None})),
    )


def _cross_subject(clips: Sequence[Clip], protocol: Protocol, kind: str) -> tuple[Callable[[Clip], str], str]:
    known = set(_subjects(clips))
    if not known:
        raise ConfigError("protocol cross-subject: the dataset names no subjects (column subject of a manifest)")
    if protocol.argument:
        given = {word: _subject(word, known) for word in protocol.argument}
        absent = [word for word, subject in given.items() if subject is None]
        if absent:
            raise ConfigError(
                f"protocol {protocol}: no subject {', '.join(absent)}; there are {', '.join(_subjects(clips))}"
            )
        test = {subject for subject in given.values() if subject is not None}
    elif kind == "ntu":
        is_ntu120 = any(clip.label >= 60 or (clip.setup or 0) > 17 for clip in clips)
        test = known - (NTU120_TRAIN if is_ntu120 else NTU60_TRAIN)
    elif kind == "nucla":
        test = {"10"}
    else:
        raise ConfigError(
            f"protocol cross-subject: {kind} has no published test subjects; name them, as in cross-subject:5,6 "
            f"(there are {', '.join(_subjects(clips))})"
        )

    def side(clip: Clip) -> str:
        persons = set((clip.subject or "").split("+"))
        if not clip.subject:
            return "no subject"
        if persons <= test:
            return "test"
        return "a training and a test subject together" if persons & test else "train"

    return side, f"all views of unseen subjects ({', '.join(sorted(test & known, key=_number))})"


def _subject(word: str, known: set[str]) -> str | None:
    """Find a subject by name, or by number: 05 in file names is 5 in records."""
    if word in known:
        return word
    same = [name for name in known if word.isdecimal() and name.isdecimal() and int(name) == int(word)]
    return same[0] if len(same) == 1 else None


def _cross_view(
    clips: Sequence[Clip], protocol: Protocol, kind: str, view_names: Sequence[str]
) -> tuple[Callable[[Clip], str], str]:
    words = protocol.argument or ("1" if kind == "ntu" else "3",)
    numbers = sorted({view_number(word, view_names, f"protocol {protocol}") for word in words})
    names = ", ".join(view_names[number - 1] for number in numbers)
    one = "an unseen view alone" if len(numbers) == 1 else "unseen views"
    return (
        lambda clip: "test" if clip.view in numbers else "train",
        f"{one} (view {names}) of performances seen from others",
    )


def _cross_setup(clips: Sequence[Clip]) -> tuple[Callable[[Clip], str], str]:
    if all(clip.setup is None for clip in clips):
        raise ConfigError("protocol cross-setup: only NTU RGB+D has setups")

    def side(clip: Clip) -> str:
        if clip.setup is None:
            return "no setup"
        return "test" if clip.setup % 2 else "train"

    return side, "all views of unseen setups (odd numbers)"


def _manifest_split(clips: Sequence[Clip]) -> tuple[Callable[[Clip], str], str]:
    words = {clip.split for clip in clips}
    if not {"train", "test"} <= words:
        raise ConfigError(
            "protocol split: the column split of the manifest must contain train and test; it contains "
            f"{', '.join(sorted(word for word in words if word)) or 'nothing'}. Or choose --protocol all"
        )

    def side(clip: Clip) -> str:
        return clip.split if clip.split in ("train", "test") else f"split {clip.split or 'empty'}"

    return side, "the manifest's test rows"


def _describe_test_rows(train: Sequence[Clip], test: Sequence[Clip], view_names: Sequence[str]) -> str:
    """Describe the views and subjects that the test rows of a manifest share with its training rows."""
    seen, tested = {clip.view for clip in train}, {clip.view for clip in test}
    if not seen & tested:
        names = ", ".join(view_names[view - 1] for view in sorted(tested))
        views = f"an unseen view alone (view {names})" if len(tested) == 1 else f"unseen views ({names})"
    else:
        views = "views that trained too" if tested <= seen else "views of which some trained"
    trained, subjects = set(_subjects(train)), set(_subjects(test))
    if not subjects:
        people = "people it does not name"
    elif not trained & subjects:
        people = "unseen subjects"
    else:
        people = "subjects who trained too" if subjects <= trained else "subjects of whom some trained"
    same = " in performances seen from others" if {c.group for c in train} & {c.group for c in test} else ""
    return f"{views}, of {people}{same}"


def _subjects(clips: Sequence[Clip]) -> list[str]:
    return sorted({person for clip in clips if clip.subject for person in clip.subject.split("+")}, key=_number)


def _number(subject: str) -> tuple[int, str]:
    return (int(subject), "") if subject.isdecimal() else (10**9, subject)
