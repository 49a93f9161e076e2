"""A stage's settings as command-line options: one option a field, its documentation as the help."""

from __future__ import annotations

import functools
import inspect
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic_core import PydanticUndefined

from dtsf.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable

    from pydantic.fields import FieldInfo

    from dtsf.settings import Settings


JSON = Annotated[bool, typer.Option("--json", help="One JSON object on stdout.")]
CACHE = Annotated[Path, typer.Option(help="Folder of the cache.")]
SET = Annotated[list[str] | None, typer.Option("--set", help="Change a key: model.depth=4. May be repeated.")]
EPOCHS = Annotated[int | None, typer.Option(min=1, help="Short for --set train.epochs=N.")]
DEVICE = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
SEEDS = Annotated[str, typer.Option(help="Seeds, joined by commas; a training each.")]


def read_seeds(text: str) -> list[int]:
    """The numbers of ``--seeds``. Raises ConfigError: something else than numbers."""
    words = [word.strip() for word in text.split(",")]
    if not all(word.isascii() and word.isdigit() for word in words):
        raise ConfigError(f"--seeds {text!r} must be different numbers from 0, as in 0,1,2")
    return [int(word) for word in words]


def overrides(changes: list[str] | None, epochs: int | None) -> list[str]:
    """Of ``--set`` and ``--epochs``."""
    return [*(changes or []), *([f"train.epochs={epochs}"] if epochs else [])]


def with_settings(model: type[Settings], **texts: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Give a command one option for each field of ``model``; it is called with the validated object as ``settings``. ``texts``:
    types to read fields as, where the command line has another one than the model: ``max_bad=str``.
    """

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(command)
        def run(**words: Any) -> Any:
            chosen = {name: words.pop(name) for name in model.model_fields}
            return command(settings=model.of(**chosen), **words)

        own = inspect.signature(command, eval_str=True).parameters
        options = [_option(model, name, field, texts.get(name)) for name, field in model.model_fields.items()]
        first = [parameter for name, parameter in own.items() if name not in ("settings", "json_")]
        last = [parameter for name, parameter in own.items() if name == "json_"]
        parameters = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in [*first, *options, *last]]
        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
        return run

    return decorate


def _option(model: type[Settings], name: str, field: FieldInfo, text: Any) -> inspect.Parameter:
    # Named outright, a flag has no --no- form: its default is off.
    words = (model.option(name),)
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    shown: Any = extra.get("default_text", True)
    if field.default is PydanticUndefined:
        raise TypeError(f"setting {name} has no default")
    return inspect.Parameter(
        name,
        inspect.Parameter.KEYWORD_ONLY,
        default=field.default if text is None or field.default is None else text(field.default),
        annotation=Annotated[
            text or field.annotation, typer.Option(*words, help=field.description, show_default=shown)
        ],
    )
