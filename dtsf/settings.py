"""Base of each stage's settings: validated once, from a command line, a file or keywords; then passed on as one object."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING, Any, Self

from pydantic import BaseModel, ConfigDict, ValidationError

from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable


SHOWN = 60
"""Characters of a refused value of a document of others that a message shows."""


class Settings(BaseModel):
    """Immutable; an unknown name is an error. The text below a field is its documentation and its ``--help``."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    @classmethod
    def of(cls, **values: Any) -> Self:
        """Validate keywords. Raises ConfigError: an unknown name (with the nearest one) or a value out of range, named as on
        the command line.
        """
        try:
            return cls(**values)
        except ValidationError as error:
            raise ConfigError(explain(error, cls.model_fields, cls.option)) from error

    @classmethod
    def option(cls, name: str) -> str:
        """A field as the command line spells it: ``shard_size`` is ``--shard-size``, or what the field says (``option``)."""
        field = cls.model_fields.get(name)
        extra = field.json_schema_extra if field is not None else None
        own = extra.get("option") if isinstance(extra, dict) else None
        return str(own) if own else f"--{name.replace('_', '-')}"

    def changed(self, **values: Any) -> Self:
        """A copy with other values, validated. Raises as :meth:`of`."""
        return type(self).of(**{name: getattr(self, name) for name in type(self).model_fields} | values)


def explain(
    error: ValidationError, known: Iterable[str] = (), name: Callable[[str], str] = str, *, most: int | None = None
) -> str:
    """What does not fit, in a line: field, value, what it must be.

    ``known``: names that there are, for the nearest one to an unknown name. ``name``: how a field is named to a person.
    ``most``: problems that are listed, for documents of others; their values are cut.
    """
    lines = []
    for problem in error.errors(include_url=False)[:most]:
        where = ".".join(str(part) for part in problem["loc"])
        message = problem["msg"].removeprefix("Value error, ")
        if problem["type"] == "extra_forbidden" and known:
            near = difflib.get_close_matches(where, list(known), n=1, cutoff=0.5)
            lines.append(f"unknown {name(where)}" + (f"; did you mean {name(near[0])}?" if near else ""))
        elif where and isinstance(problem["input"], dict):
            # A whole section would drown the message.
            lines.append(f"{name(where)}: {message[:1].lower()}{message[1:]}")
        elif where:
            value = repr(problem["input"])
            shown = value if most is None or len(value) <= SHOWN else value[: SHOWN - 3] + "..."
            lines.append(f"{name(where)} {shown}: {message[:1].lower()}{message[1:]}")
        else:
            # What concerns several settings has no place of its own, and its message names them.
            lines.append(message)
    more = error.error_count() - len(lines)
    return "; ".join(lines) + (f"; and {more} more" if more > 0 else "")
