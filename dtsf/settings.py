"""Base classes of records and of each stage's settings. Settings are validated once and passed on as one object."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable
from typing import Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dtsf.errors import ConfigError

CHANGES_SHOWN = 4
MAX_SHOWN = 60  # characters of an invalid value that a message quotes from an external file


class Frozen(BaseModel):
    """Base class of records: immutable. An unknown field is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class Settings(BaseModel):
    """Immutable settings. An unknown name is an error. The docstring of a field is its documentation and its ``--help``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Validate keywords. Raises ConfigError, with the names of the command line: an unknown name, or a value out of range."""
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, cls.model_fields, cls.option)) from error

    @classmethod
    def option(cls, name: str) -> str:
        """Return the command-line option of a field: ``shard_size`` is ``--shard-size``, unless the field sets ``option``."""
        field = cls.model_fields.get(name)
        extra = field.json_schema_extra if field is not None else None
        own = extra.get("option") if isinstance(extra, dict) else None
        return str(own) if own else f"--{name.replace('_', '-')}"

    def changed(self, **values: Any) -> Self:
        """Return a validated copy with other values. Raises the same errors as :meth:`of`."""
        return type(self).of(**{name: getattr(self, name) for name in type(self).model_fields} | values)


def explain(
    error: ValidationError, known: Iterable[str] = (), name: Callable[[str], str] = str, *, most: int | None = None
) -> str:
    """Describe validation errors in one line: field, value and requirement. ``name`` converts a field name for the message.
    ``known``: valid names, to suggest the nearest one. ``most``: maximum number, for an external file; long values are cut.
    """
    lines = []
    for problem in error.errors(include_url=False)[:most]:
        field, value = ".".join(map(str, problem["loc"])), repr(problem["input"])
        # An error about several settings has no field. Its message names them.
        line = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden" and known:
            near = difflib.get_close_matches(field, list(known), n=1, cutoff=0.5)
            line = f"unknown {name(field)}" + (f"; did you mean {name(near[0])}?" if near else "")
        elif field:
            if most is not None and len(value) > MAX_SHOWN:
                value = value[: MAX_SHOWN - 3] + "..."
            # A whole section would make the message unreadable.
            shown = "" if isinstance(problem["input"], dict) else f" {value}"
            line = f"{name(field)}{shown}: {line[:1].lower()}{line[1:]}"
        lines.append(line)
    more = error.error_count() - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")


def describe_changes(name: str, was: Any, now: Any) -> str:
    """Return the first values that differ between two documents, each by its full name: ``recipe.model.depth 24, not 2``."""
    pairs, changes = [(name, was, now)], []
    while pairs:
        name, was, now = pairs.pop(0)
        if isinstance(was, BaseModel) and isinstance(now, BaseModel):
            was, now = was.model_dump(), now.model_dump()
        if isinstance(was, dict) and isinstance(now, dict):
            pairs += [(f"{name}.{key}", was.get(key), now.get(key)) for key in was | now]
        elif was != now:
            old, new = (text if len(text := repr(one)) <= MAX_SHOWN else f"{text[:MAX_SHOWN]}..." for one in (was, now))
            changes.append(f"{name} {old}, not {new}")
    more = f" and {len(changes) - CHANGES_SHOWN} more" if len(changes) > CHANGES_SHOWN else ""
    return "; ".join(changes[:CHANGES_SHOWN]) + more
