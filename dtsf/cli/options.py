"""Options of commands: shared ones, and those made from the settings of a stage (one option for each field)."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dtsf.cli.screen import AS_JSON, set_verbosity
from dtsf.names import local_path, split_address

if TYPE_CHECKING:
    from dtsf.settings import Settings


Command = Callable[..., Any]

STORES = ("cache", "path", "target")  # parameters that may be the URL of a cache
CACHE = Annotated[Path, typer.Option(help="Folder of the cache.")]
QUIET = Annotated[bool, typer.Option("--quiet", "-q", help="Print only results and errors.")]
VERBOSE = Annotated[bool, typer.Option("--verbose", "-v", help="Print progress details.")]


def with_settings(model: type[Settings], **types: Any) -> Callable[[Command], Command]:
    """Give a command one option for each field of ``model``. The command gets the validated object as ``settings``.

    ``types``: types of options that differ from the field: ``max_bad=str``.
    """

    def decorate(command: Command) -> Command:
        @functools.wraps(command)
        def run(**values: Any) -> Any:
            chosen = {name: values.pop(name) for name in model.model_fields}
            return command(settings=model.of(**chosen), **values)

        options = dict(inspect.signature(command, eval_str=True).parameters)
        del options["settings"]
        for name, field in model.model_fields.items():
            type_, default = types.get(name), field.default
            if field.is_required():
                default = inspect.Parameter.empty
            elif type_ is str and isinstance(default, tuple):
                default = ",".join(map(str, default))
            elif type_ is not None and default is not None:
                default = type_(default)
            extra: Any = field.json_schema_extra or {}
            # A flag with an explicit name has no --no- form: its default is off.
            option = typer.Option(
                model.option(name),
                help=field.description,
                show_default=extra.get("default_text", True),
                metavar=extra.get("metavar"),
            )
            options[name] = _option(name, default, Annotated[type_ or field.annotation, option])
        return _with_signature(run, options.values())

    return decorate


def with_output(command: Command) -> Command:
    """Give a command the options ``--json``, ``--quiet`` and ``--verbose``, so that they also work after its name."""

    @functools.wraps(command)
    def run(*, json_: bool = False, quiet: bool = False, verbose: bool = False, **options: Any) -> Any:
        AS_JSON.set(json_)
        set_verbosity(quiet=quiet, verbose=verbose)
        return command(**{name: _local(name, value) for name, value in options.items()})

    own = inspect.signature(command, eval_str=True).parameters
    help_ = f"One JSON object on stdout{'; with --watch one per performance' if 'watch' in own else ''}."
    shared = {"json_": Annotated[bool, typer.Option("--json", help=help_)], "quiet": QUIET, "verbose": VERBOSE}
    return _with_signature(run, [*own.values(), *(_option(name, False, type_) for name, type_ in shared.items())])


def _local(name: str, value: Any) -> Any:
    """Return paths of an option as paths of this machine; see :func:`dtsf.names.local_path`. A cache may also have a URL."""
    if isinstance(value, list):
        return [_local(name, one) for one in value]
    if not isinstance(value, Path) or (name in STORES and split_address(str(value))):
        return value
    return Path(local_path(str(value)))


def _option(name: str, default: Any, annotation: Any) -> inspect.Parameter:
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=annotation)


def _with_signature(run: Command, parameters: Iterable[inspect.Parameter]) -> Command:
    keywords = [parameter.replace(kind=inspect.Parameter.KEYWORD_ONLY) for parameter in parameters]
    run.__signature__ = inspect.Signature(keywords)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in keywords}
    return run
