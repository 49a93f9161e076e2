"""The Typer app and how errors reach a person."""

from __future__ import annotations

import os
import sys
from typing import Annotated, Any

import typer

from dtsf.cli.cache import cache_app
from dtsf.cli.data import preprocess_command, synth_app
from dtsf.cli.experiments import ablate_command, reproduce_app
from dtsf.cli.export import export_command
from dtsf.cli.import_lists import import_command
from dtsf.cli.predict import predict_command
from dtsf.cli.report import doctor_command, report_command
from dtsf.cli.run import evaluate_command, train_command
from dtsf.cli.screen import UnreadError, results, say_on_stdout, set_verbosity, with_verbosity, words

INTERRUPTED = 130
"""Exit code of what was ended by Ctrl-C, as shells have it."""

app = typer.Typer(
    name="dtsf",
    help="Multi-view action recognition that is not fooled by backgrounds or by the one easy camera (DTSFNet).",
    invoke_without_command=True,
    pretty_exceptions_enable=False,
    epilog="Exit codes: 0 done; 1 finished, but more clips unusable than --max-bad; 2 wrong input or state; "
    "130 interrupted, safe to run again.",
)


def _version(asked: bool) -> None:
    if asked:
        import importlib.metadata

        say_on_stdout(f"dtsf {importlib.metadata.version('dtsf')}")
        raise typer.Exit


FIRST = (
    ("preprocess DATASET --root DIR", "once: videos to a cache of embeddings"),
    ("train", "a network from the cache, in minutes"),
    ("predict CAM1 CAM2 --run RUN", "class and uncertainty of one performance"),
)
"""What ``dtsf`` alone shows: the way from videos to an answer."""
AIDS = (
    ("all commands:", "dtsf --help"),
    ("no videos yet:", "dtsf synth nucla --out drawn"),
    ("ready to run?", "dtsf doctor"),
)


@app.callback()
def _common(
    context: typer.Context,
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
    if context.invoked_subcommand is None:
        _introduce()
        raise typer.Exit(2)


def _introduce() -> None:
    screen = results()
    screen.print(f"{app.info.help}")
    screen.print()
    for command, what in FIRST:
        screen.print(words((f"  dtsf {command:<31}", "bold cyan"), what))
    screen.print()
    for what, command in AIDS:
        screen.print(words(f"  {what:<16}", (command, "cyan")))


WAY, JUDGE, DATA = "From videos to an answer", "Judge and compare", "Data and machine"
app.command("preprocess", rich_help_panel=WAY)(preprocess_command)
app.command("train", rich_help_panel=WAY)(train_command)
app.command("predict", rich_help_panel=WAY)(predict_command)
app.command("evaluate", rich_help_panel=JUDGE)(evaluate_command)
app.command("report", rich_help_panel=JUDGE)(report_command)
app.command("ablate", rich_help_panel=JUDGE)(ablate_command)
app.add_typer(reproduce_app, name="reproduce", rich_help_panel=JUDGE)
app.add_typer(cache_app, name="cache", rich_help_panel=DATA)
app.command("import", rich_help_panel=DATA)(import_command)
app.command("export", rich_help_panel=DATA)(export_command)
app.add_typer(synth_app, name="synth", rich_help_panel=DATA)
app.command("doctor", rich_help_panel=DATA)(doctor_command)


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
    import warnings

    from dtsf.errors import BadClipsError, DtsfError

    # Libraries warn of files by their names.
    warnings.showwarning = lambda message, *_, **__: _say(("warning: ", "yellow"), str(message))
    try:
        code = app(standalone_mode=False)
        if code == INTERRUPTED:
            raise KeyboardInterrupt
    except DtsfError as error:
        _show_traceback()
        first, *listed = (error.message, *error.listed) if isinstance(error, BadClipsError) else (str(error),)
        _say(("error: ", "bold red"), first)
        for line in listed:
            _say(f"  {line}")
        code = error.exit_code
    except UnreadError:
        code = 0
    except KeyboardInterrupt:
        _say("")
        _say("interrupted: what is committed is safe; run the same command again to go on")
        code = INTERRUPTED
    except Exception as error:  # noqa: BLE001
        _show_traceback()
        if isinstance(error, typer.Abort):
            _say("aborted")
        elif hasattr(error, "format_message"):
            _show_usage(error)
        else:
            # A defect of ours. A person gets one line and the way to the rest.
            _say(("internal error: ", "bold red"), f"{type(error).__name__}: {error}")
            _say("run dtsf --debug ... to see where")
        code = 2
    sys.exit(code if isinstance(code, int) else 0)


def _say(*parts: str | tuple[str, str]) -> None:
    """A line on stderr, ``--quiet`` or not."""
    results().print(words(*parts), soft_wrap=True)


def _show_traceback() -> None:
    if os.environ.get("DTSF_DEBUG"):
        import traceback

        for line in traceback.format_exc().splitlines():
            _say(line)


def _show_usage(error: Any) -> None:
    """What Typer has to say of options and arguments; of a group without a command it has shown the help already."""
    context = getattr(error, "ctx", None)
    if type(error).__name__ == "NoArgsIsHelpError":
        return
    if context is not None:
        _say(context.get_usage())
        _say(f"try {context.command_path} --help")
    _say(("error: ", "bold red"), error.format_message())
