"""The command `andon`: one function a command; everything heavy is imported inside the function that needs it.

Exit codes: 0: success. 1: finished, with a negative result (`check`: an error in the data; `inspect`, `watch`,
`evaluate`: images that cannot be read; `--fail-on`: a part with this verdict; `accept`: not all is proved; `msa`: an
unacceptable figure). 2: an error of the user, with a message that says how to correct it. 130: interrupted, by Ctrl-C
or SIGTERM.
"""

import errno
import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import andon
from andon.cli import audit, challenge, exporting, fleet, judging, making, measuring, proving, serve, station, watching
from andon.errors import AndonError, out_of_memory

GROUPS = {
    "Inspect": (
        judging.check,
        making.regions,
        making.preview,
        making.train,
        making.calibrate,
        judging.inspect,
        watching.watch,
        judging.show,
        exporting.export,
        judging.detectors,
    ),
    "Measure": (
        judging.evaluate,
        measuring.compare,
        measuring.tune,
        proving.plan,
        proving.sample,
        proving.accept,
        proving.msa,
    ),
    "Station": (serve.serve,),
    "Fleet": (),
    "Laboratory": (measuring.cost,),
}


class Grouped(TyperGroup):
    """Lists the commands by group, as plain text; typer's own groups would import rich."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Write one section a group."""
        commands: dict[str, Any] = self.commands  # type: ignore[assignment]  # all have a rich_help_panel
        limit = formatter.width - 6 - max(map(len, commands))
        for group in GROUPS:
            with formatter.section(group):
                formatter.write_dl(
                    [
                        (name, command.get_short_help_str(limit))
                        for name, command in commands.items()
                        if command.rich_help_panel == group
                    ]
                )


app = typer.Typer(
    cls=Grouped,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    help="""Visual inspection of manufactured parts, learnt from photographs of good parts.

    First steps: `andon check FOLDER`, `andon train FOLDER -o part.andon`, `andon inspect part.andon IMAGES`.
    Exit codes: 0: success. 1: finished, with a negative result (errors in the data, images that cannot be read, a
    verdict named by `--fail-on`, an agreement that is not proved). 2: error in the command or its input.
    """,
)
features_app = typer.Typer(no_args_is_help=True, help="Feature graphs of ImageNet networks: list them, or build more.")
for group, commands in GROUPS.items():
    for command in commands:
        app.command(rich_help_panel=group)(command)
app.add_typer(challenge.challenge, name="challenge", rich_help_panel="Station")
app.add_typer(audit.audit, name="audit", rich_help_panel="Station")
app.add_typer(station.station, name="station", rich_help_panel="Station")
app.add_typer(fleet.fleet, name="fleet", rich_help_panel="Fleet")
app.add_typer(measuring.bench, name="bench", rich_help_panel="Laboratory")
app.add_typer(measuring.datasets, name="datasets", rich_help_panel="Laboratory")
app.add_typer(measuring.study, name="study", rich_help_panel="Laboratory")
app.add_typer(features_app, name="features", rich_help_panel="Laboratory")
features_app.command("build")(making.features_build)
features_app.command("list")(making.features_list)


def _version(asked: bool) -> None:
    if asked:
        print(f"andon {andon.__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
) -> None:
    """Handle the options before the command."""


def main() -> None:
    """Run the command line; an error of the user ends with exit code 2 and a message."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  # a service may have no output
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # the terminal may lack characters of a name
    try:
        try:
            if "" in sys.argv[1:]:
                raise AndonError("an argument is empty; expected a value. Check the variables in the command.")
            with _sigterm_as_ctrl_c():
                app()
        finally:
            sys.stdout.flush()
    except AndonError as error:
        print(f"andon: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as done:
        if not isinstance(done.__context__, BrokenPipeError):  # Typer turns it into exit code 1
            raise
        _mute()
        sys.exit(0)
    except BrokenPipeError:  # the reader closed the pipe, as `| head` does
        _mute()
        sys.exit(0)
    except Exception as error:
        if out_of_memory(error):  # OpenCV, ONNX Runtime and torch raise different classes
            message = "out of memory. Free memory, or use a smaller geometry.size or a smaller network."
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _mute()
            message = f"{error.filename or 'standard output'}: cannot be written: no space left. Free some space."
        else:
            raise
        print(f"andon: {message}", file=sys.stderr)
        sys.exit(2)


@contextmanager
def _sigterm_as_ctrl_c() -> Iterator[None]:
    """Let SIGTERM interrupt a command as Ctrl-C does, so that no incomplete file remains.

    `watch` and `serve` have handlers of their own. A SIGTERM that is ignored or handled stays so. Programs that a
    command starts have the default.
    """
    ours = threading.current_thread() is threading.main_thread()
    if not ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _mute() -> None:
    """Discard the rest of standard output; Python would try to write it again at exit."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
