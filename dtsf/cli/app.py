"""The Typer app, and the messages and exit codes of errors."""

from __future__ import annotations

import gc
import os
import sys
import traceback
import warnings
from collections.abc import Callable
from typing import Annotated

import typer

from dtsf.cli.cache import cache_app
from dtsf.cli.data import import_command, preprocess_command, synth_app
from dtsf.cli.experiments import ablate_command, crossval_command, reproduce_app
from dtsf.cli.options import QUIET, VERBOSE, with_output
from dtsf.cli.predict import predict_command
from dtsf.cli.recordings import sync_command
from dtsf.cli.run import doctor_command, evaluate_command, export_command, report_command, train_command
from dtsf.cli.screen import ClosedPipeError, print_stdout, results, set_verbosity, styled
from dtsf.cli.timeline import timeline_command
from dtsf.errors import BadClipsError, DtsfError
from dtsf.files.write import remedy

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in shells."""

app = typer.Typer(
    name="dtsf",
    help="Multi-view action recognition that does not rely on the background or on a single camera (DTSFNet).",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 finished, but more clips unusable than --max-bad; 2 wrong input or state; "
    "130 interrupted, safe to run again.",
)
PANELS: dict[str, dict[str, Callable[..., None] | typer.Typer]] = {
    "Videos to answers": {"preprocess": preprocess_command, "train": train_command, "predict": predict_command},
    "Evaluate": {"evaluate": evaluate_command, "report": report_command},
    "Compare": {"crossval": crossval_command, "ablate": ablate_command, "reproduce": reproduce_app},
    "Recordings": {"sync": sync_command, "timeline": timeline_command},
    "Data": {"cache": cache_app, "import": import_command, "export": export_command, "synth": synth_app},
    "Machine": {"doctor": doctor_command},
}
"""Commands and groups of commands, by the panel of ``dtsf --help``. Each command takes ``--json``, ``--quiet``, ``--verbose``."""
for panel, commands in PANELS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
            for leaf in command.registered_commands:
                leaf.callback = with_output(leaf.callback) if leaf.callback is not None else None
        else:
            app.command(name, rich_help_panel=panel)(with_output(command))

INTRODUCTION = {
    "  dtsf preprocess DATASET --root DIR   ": "once: videos to a cache of embeddings",
    "  dtsf train                           ": "a network from the cache, in minutes",
    "  dtsf predict CAM1 CAM2 --run RUN     ": "class and uncertainty of one performance",
}
HINTS = {"all commands:": "dtsf --help", "no videos yet:": "dtsf synth nucla --out drawn", "check it:": "dtsf doctor"}


def _print_version(requested: bool) -> None:
    if requested:
        import importlib.metadata

        print_stdout(f"dtsf {importlib.metadata.version('dtsf')}")
        raise typer.Exit


@app.callback()
def _common(
    context: typer.Context,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
    quiet: QUIET = False,
    verbose: VERBOSE = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    if debug:
        os.environ["DTSF_DEBUG"] = "1"
    set_verbosity(quiet=quiet, verbose=verbose)
    if context.invoked_subcommand is None:
        lines = [styled((command, "bold cyan"), text) for command, text in INTRODUCTION.items()]
        hints = [styled(f"  {text:<16}", (command, "cyan")) for text, command in HINTS.items()]
        for line in (str(app.info.help), "", *lines, "", *hints):
            results().print(line)
        raise typer.Exit(2)


def main() -> None:
    """Run the command line and exit with the code of its outcome."""
    # Warnings of libraries contain names of files.
    warnings.showwarning = lambda message, *_, **__: _print_error(("warning: ", "yellow"), str(message))
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    except ClosedPipeError:
        code = 0
    except SystemExit as error:
        # Rich, which prints --help, ends with 1 if nobody reads on.
        code = 0 if isinstance(error.__context__, BrokenPipeError) else error.code
    except KeyboardInterrupt:
        _print_error("")
        _print_error(
            "interrupted: finished work is safe; run the same command again to continue (dtsf train with --resume)"
        )
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001
        code = error.exit_code if isinstance(error, DtsfError) else 2
        if os.environ.get("DTSF_DEBUG"):
            for line in traceback.format_exc().splitlines():
                _print_error(line)
        if isinstance(error, DtsfError):
            first, *listed = (error.message, *error.listed) if isinstance(error, BadClipsError) else (str(error),)
            _print_error(("error: ", "bold red"), first)
            for line in listed:
                _print_error(f"  {line}")
        elif isinstance(error, typer.Abort):
            _print_error("aborted")
        elif isinstance(error, OSError) and error.errno is not None:
            _print_error(("error: ", "bold red"), _describe_refusal(error))
        elif isinstance(error, MemoryError):
            _print_error(("error: ", "bold red"), f"not enough memory: {error or 'use smaller settings'}")
        elif not hasattr(error, "format_message"):
            # A defect of dtsf: one line, and how to get the rest.
            _print_error(("internal error: ", "bold red"), f"{type(error).__name__}: {error}")
            _print_error("run dtsf --debug ... for the traceback")
        elif type(error).__name__ != "NoArgsIsHelpError":  # for that, Typer has printed the help
            context = getattr(error, "ctx", None)
            if context is not None:
                _print_error(context.get_usage())
                _print_error(f"try {context.command_path} --help")
            _print_error(("error: ", "bold red"), error.format_message())
    gc.freeze()  # the interpreter ends without a search of all objects for garbage, which takes up to a second
    sys.exit(code if isinstance(code, int) else 0)


def _describe_refusal(error: OSError) -> str:
    """Describe an error of the system that no command expects, for example a limit of this machine."""
    name = f"{os.fsdecode(error.filename)}: " if isinstance(error.filename, str | bytes) else ""
    return f"{name}{error.strerror}: {remedy(error)}; dtsf --debug ... shows the place"


def _print_error(*parts: str | tuple[str, str]) -> None:
    results().print(styled(*parts), soft_wrap=True)
