"""The Typer app and how errors reach a person."""

from __future__ import annotations

import os
import sys
from typing import Annotated

import typer

from dtsf.cli.commands_ablate import ablate_command
from dtsf.cli.commands_cache import cache_app
from dtsf.cli.commands_data import preprocess_command, synth_app
from dtsf.cli.commands_export import export_command
from dtsf.cli.commands_import import import_command
from dtsf.cli.commands_look import doctor_command, report_command
from dtsf.cli.commands_predict import predict_command
from dtsf.cli.commands_reproduce import reproduce_app
from dtsf.cli.commands_run import evaluate_command, train_command
from dtsf.cli.screen import set_verbosity, with_verbosity

__all__ = ["app", "main"]

app = typer.Typer(
    name="dtsf",
    help="Multi-view action recognition that is not fooled by backgrounds or by the one easy camera (DTSFNet).",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 finished, but more clips unusable than --max-bad; 2 wrong input or state; "
    "130 interrupted, safe to run again.",
)


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        sys.stdout.write(f"dtsf {importlib.metadata.version('dtsf')}\n")
        raise typer.Exit


@app.callback()
def _common(
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", "-q", help="Only results and errors; also behind a command.")
    ] = False,
    verbose: Annotated[
        bool, typer.Option("--verbose", "-v", help="Also say what is done and what was found; also behind a command.")
    ] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["DTSF_DEBUG"] = "1"
    set_verbosity(quiet=quiet, verbose=verbose)


app.command("preprocess")(preprocess_command)
app.command("import")(import_command)
app.command("train")(train_command)
app.command("evaluate")(evaluate_command)
app.command("ablate")(ablate_command)
app.command("predict")(predict_command)
app.command("report")(report_command)
app.command("doctor")(doctor_command)
app.command("export")(export_command)
app.add_typer(reproduce_app, name="reproduce")
app.add_typer(synth_app, name="synth")
app.add_typer(cache_app, name="cache")


def _speak_as_asked(commands: typer.Typer) -> None:
    """Let every command, of whatever group, take ``--quiet`` and ``--verbose``."""
    for command in commands.registered_commands:
        if command.callback is not None:
            command.callback = with_verbosity(command.callback)
    for group in commands.registered_groups:
        if group.typer_instance is not None:
            _speak_as_asked(group.typer_instance)


_speak_as_asked(app)


def main() -> None:
    """Run the command line and exit with the code that the outcome deserves."""
    from dtsf.errors import DtsfError

    try:
        app(standalone_mode=True)
    except DtsfError as error:
        if os.environ.get("DTSF_DEBUG"):
            raise
        from rich.console import Console
        from rich.text import Text

        Console(stderr=True, soft_wrap=True).print(Text.assemble(("error: ", "bold red"), str(error)))
        sys.exit(error.exit_code)
    except BrokenPipeError:
        # The reader of our output (head, less) went away: no error of ours.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except Exception as error:  # noqa: BLE001
        # A defect of ours. A person gets one line and the way to the rest.
        if os.environ.get("DTSF_DEBUG"):
            raise
        sys.stderr.write(f"internal error: {type(error).__name__}: {error}\nrun dtsf --debug ... to see where\n")
        sys.exit(2)
    except KeyboardInterrupt:
        sys.stderr.write("\ninterrupted: what is committed is safe; run the same command again to go on\n")
        sys.exit(130)
