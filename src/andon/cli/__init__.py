"""The command `andon`: one function a command; everything heavy is imported inside the function that needs it.

Exit codes: 0 done; 1 done, and the answer is a bad one (`check` found an error, `inspect`, `watch` or `evaluate` met
images it could not read, `--fail-on` met a bad part, `accept` did not prove all, `msa` found a figure unacceptable); 2
the user's mistake, with a message that says how to mend it; 130 interrupted.
"""

import errno
import os
import sys
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

import andon
from andon.cli import audit, challenge, judging, making, measuring, proving, serve, station, watching
from andon.errors import AndonError, out_of_memory

GROUPS = {
    "Inspect": (
        judging.check,
        making.preview,
        making.train,
        making.calibrate,
        judging.inspect,
        watching.watch,
        judging.show,
        judging.detectors,
    ),
    "Measure": (judging.evaluate, measuring.compare, proving.plan, proving.sample, proving.accept, proving.msa),
    "Station": (serve.serve,),
    "Laboratory": (measuring.cost,),
}


class Grouped(TyperGroup):
    """Lists the commands by their groups, as plain text: the panels of typer would import rich."""

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
    Exit codes: 0 done; 1 done, with a bad answer (errors found, images that could not be read, a verdict that
    `inspect --fail-on` names, an agreement that is not proved); 2 mistake in the call.
    """,
)
features_app = typer.Typer(no_args_is_help=True, help="ImageNet feature graphs beyond the one that comes along.")
for group, commands in GROUPS.items():
    for command in commands:
        app.command(rich_help_panel=group)(command)
app.add_typer(challenge.challenge, name="challenge", rich_help_panel="Station")
app.add_typer(audit.audit, name="audit", rich_help_panel="Station")
app.add_typer(station.station, name="station", rich_help_panel="Station")
app.add_typer(measuring.bench, name="bench", rich_help_panel="Laboratory")
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
    """Take what goes before the command."""


def main() -> None:
    """Run the command line; mistakes of the user end with exit code 2 and one clear sentence."""
    sys.stdout = sys.stdout or Path(os.devnull).open("w")  # noqa: SIM115  # a service may have none
    sys.stderr = sys.stderr or Path(os.devnull).open("w")  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]  # a name may not fit the terminal
    try:
        try:
            if "" in sys.argv[1:]:
                raise AndonError("one of the arguments is empty; expected a name. Is a variable not set?")
            app()
        finally:
            sys.stdout.flush()
    except AndonError as error:
        print(f"andon: {error}", file=sys.stderr)
        sys.exit(2)
    except SystemExit as done:
        if not isinstance(done.__context__, BrokenPipeError):  # Typer makes exit code 1 of it
            raise
        _mute()
        sys.exit(0)
    except BrokenPipeError:  # whoever reads has seen enough: `| head`
        _mute()
        sys.exit(0)
    except Exception as error:
        if out_of_memory(error):  # OpenCV, ONNX Runtime and torch have classes of their own for that
            sentence = "out of memory. Free some, or take a smaller geometry.size or a smaller network."
        elif isinstance(error, OSError) and error.errno == errno.ENOSPC:
            _mute()
            sentence = f"{error.filename or 'what is printed'}: cannot be written: no space left. Free some space."
        else:
            raise
        print(f"andon: {sentence}", file=sys.stderr)
        sys.exit(2)


def _mute() -> None:
    """Let go of what standard output still holds, or the interpreter would try again to write it as it ends."""
    with suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
