"""Options, progress bars and messages that several commands share."""

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from andon.errors import AndonError

if TYPE_CHECKING:
    from andon.progress import Progress

BundleFile = Annotated[Path, typer.Argument(help="A bundle made by `andon train`.", show_default=False)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="Show only errors and warnings.")]
AsJson = Annotated[bool, typer.Option("--json", help="JSON on standard output, for other programs.")]
Groups = Annotated[
    str | None,
    typer.Option(
        help="Groups of images that show one part, lot or session: a CSV file (columns stem or path, and group), or a "
        "regular expression on the path, whose first capture group is the group. All images of a group are used either "
        "for training or for calibration.",
        show_default=False,
    ),
]
Good = Annotated[
    list[str] | None,
    typer.Option(
        help="Name of a folder of good images, if andon does not know this name as good. Repeat the option for several "
        "folders. * matches any name; . means the images directly in the folder.",
        show_default=False,
    ),
]
FailOn = Annotated[
    Literal["review", "reject"] | None,
    typer.Option(
        help="Exit with code 1 if an image gets this verdict or a worse one. INVALID, and images that could not be "
        "inspected, count as worse.",
        show_default=False,
    ),
]
EngineName = Annotated[
    Literal["onnxruntime", "openvino", "auto"],
    typer.Option(help="Inference engine; auto: the fastest on this machine, as `andon tune` measured it."),
]
Threads = Annotated[
    int,
    typer.Option(min=0, max=64, help="Threads of the engine, and pictures inspected at a time; 0: as the cores allow."),
]


def refuse_among(pictures: str | Path, out: Path) -> None:
    """AndonError when an output would be in a folder of pictures, where a training would learn it as one of them."""
    if Path(os.path.realpath(out)).is_relative_to(os.path.realpath(pictures)):
        raise AndonError(
            f"{out}: would be among the pictures of {pictures}, and be learnt as one. Choose another place: --out."
        )


def printer(quiet: bool) -> Callable[[str], None]:
    """Return a function that prints a sentence on standard error, or does nothing if `quiet`."""
    return (lambda sentence: None) if quiet else (lambda sentence: print(sentence, file=sys.stderr))


@contextmanager
def progress_bars(quiet: bool) -> Iterator["Progress"]:
    """Yield a callback that draws a bar for each stage on standard error, with the time left.

    A training has one more bar for all its stages, in seconds.
    """
    from andon.progress import silent

    try:
        if quiet:
            yield silent
        else:
            yield from _bars()
    except KeyboardInterrupt:
        print("andon: interrupted; no incomplete files remain", file=sys.stderr)
        raise typer.Exit(130) from None


def _bars() -> Iterator["Progress"]:
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:<16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bars: dict[str, TaskID] = {}
    with Progress(*columns, console=Console(stderr=True), redirect_stdout=False) as shown:

        def update(stage: str, done: int, total: int) -> None:
            if stage not in bars:
                bars[stage] = shown.add_task(stage, total=None)
            shown.update(bars[stage], completed=done, total=total or None)

        yield update
