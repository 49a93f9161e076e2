"""The training side in parts that are held out one after the other, divided as the protocol divides training and test."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from dtsf.cache.schema import Clip
from dtsf.settings import Frozen

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class Part(Frozen):
    """One way to hold some training clips out."""

    train: tuple[Clip, ...]
    held: tuple[Clip, ...]


def divide(clips: Sequence[Clip], protocol: str, n_parts: int) -> tuple[list[Part], str]:
    """Divide training clips into parts of about as many groups, and say by what. No parts where nothing can be divided.

    ``protocol``: its name: by cameras for ``cross-view``, by setups for ``cross-setup``, else by people; by groups where there
    are too few of these.
    """
    by = {"cross-view": "cameras", "cross-setup": "setups"}.get(protocol, "people")
    keys: dict[str, Callable[[Clip], str | None]] = {
        "cameras": lambda clip: str(clip.view),
        "setups": lambda clip: None if clip.setup is None else str(clip.setup),
        "people": lambda clip: clip.subject,
    }
    found = {clip.id: keys[by](clip) for clip in clips}
    if by == "people":
        found = _persons_together(found)
    owner = {clip: name for clip, name in found.items() if name is not None}
    if len(owner) < len(found) or len(set(owner.values())) < 2:
        by, owner = "groups", {clip.id: clip.group for clip in clips}
    sizes = Counter(owner.values())
    n_parts = min(n_parts, len(sizes))
    if n_parts < 2:
        return [], by
    # Each class's groups spread over the parts, where it is by groups; else the largest first, to the smallest part.
    label = {owner[clip.id]: clip.label for clip in clips}
    order = sorted(sizes, key=lambda name: (label[name], name) if by == "groups" else (-sizes[name], name))
    place: dict[str, int] = {}
    filled = [0] * n_parts
    for n, name in enumerate(order):
        place[name] = n % n_parts if by == "groups" else filled.index(min(filled))
        filled[place[name]] += sizes[name]
    return [
        Part(
            train=tuple(clip for clip in clips if place[owner[clip.id]] != k),
            held=tuple(clip for clip in clips if place[owner[clip.id]] == k),
        )
        for k in range(n_parts)
    ], f"{by} held out"


def drop_unknown_classes(part: Part) -> Part:
    """Without held clips of classes that none of those who train has: their answers say nothing of a network that has all."""
    known = {clip.label for clip in part.train}
    return Part(train=part.train, held=tuple(clip for clip in part.held if clip.label in known))


def _persons_together(owner: dict[str, str | None]) -> dict[str, str | None]:
    """Who performs together anywhere (``3+4``) is held out together: the first person of everybody so connected."""
    leader: dict[str, str] = {}

    def lead(person: str) -> str:
        while leader.setdefault(person, person) != person:
            person = leader[person]
        return person

    for persons in {name for name in owner.values() if name}:
        first, *others = persons.split("+")
        for other in others:
            leader[lead(other)] = lead(first)
    return {clip: lead(name.split("+")[0]) if name else None for clip, name in owner.items()}
