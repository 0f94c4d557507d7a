"""The command that stays: inspects what a folder, a camera or a video gives, until it ends or is told to stop."""

import sys
import threading
import traceback
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from andon.cli.judging import failed, line
from andon.cli.options import AsJson, BundleFile, EngineName, FailOn, Quiet, Threads, progress_bars
from andon.errors import AndonError

if TYPE_CHECKING:
    from andon.progress import Progress
    from andon.streams.frames import Outcome, Sink


def watch(
    bundle: BundleFile,
    source: Annotated[
        str,
        typer.Argument(
            help="A folder that is filled; a video file; a camera by its number or URL; genicam:ADDRESS; or "
            "simulated:FOLDER, a camera that shows the pictures of a folder.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for records.jsonl and records.csv (appended to), and for pictures with heat map."),
    ] = None,
    pictures: Annotated[
        Literal["all", "alarms", "none"],
        typer.Option(help="Which heat maps are written below --out; alarms: REVIEW and REJECT."),
    ] = "alarms",
    policy: Annotated[
        Literal["block", "drop"],
        typer.Option(help="When inspection is slower than the source: let it wait, or drop frames and count them."),
    ] = "block",
    new: Annotated[bool, typer.Option("--new", help="Leave out the pictures that are in the folder already.")] = False,
    settle: Annotated[
        float, typer.Option(min=0.0, help="Seconds for which a file must stay the same before it counts as whole.")
    ] = 0.5,
    frames: Annotated[int, typer.Option(min=0, help="Stop after so many frames; 0: never.")] = 0,
    stall: Annotated[
        float, typer.Option(min=0.0, help="Say so when no frame came for so many seconds; 0: never.")
    ] = 0.0,
    fail_on: FailOn = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    engine: EngineName = "onnxruntime",
    threads: Threads = 0,
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Frames inspected at a time; 0: one more than there are cores.")
    ] = 0,
) -> None:
    """Inspect pictures as they come: from a folder that is filled, a camera or a video.

    \b
    andon watch part.andon incoming/ --out results/     what is in the folder, then what comes
    andon watch part.andon 0 --policy drop --stall 10   the first camera of this PC
    andon watch part.andon rtsp://10.0.0.7/stream       a camera on the network
    andon watch part.andon genicam:10.0.0.7             GigE Vision or USB3 Vision: pip install 'andon[genicam]'
    andon watch part.andon simulated:good/ --frames 20  a trial without a camera

    Results come in the order of the frames, one line each. A frame that cannot be inspected is one INVALID, and the
    rest goes on. A camera that is lost is connected to again. Ctrl-C or SIGTERM finishes what was taken, then ends; the
    second one ends at once.

    Exit code 0: every frame was inspected; 1: some could not be, were dropped or lost, or --fail-on found one; 2:
    mistake in the call, or results can no longer be written; 130: ended at once.
    """
    from andon import files
    from andon.inspector import Inspector
    from andon.records import Records
    from andon.streams import naming, sinks
    from andon.streams.line import Settings
    from andon.streams.sources import Limited
    from andon.streams.stopping import stop_on_signals

    inspector = Inspector.load(bundle, engine, threads)
    overlays = out / "overlays" if out else None
    channels = inspector.manifest.input.channels
    given = naming.named(source, True, channels, existing=not new, settle=settle, skip=overlays)
    if frames:
        given = Limited(given, frames)
    chain: list[Sink] = []
    maps = None
    records = Records(out / "records.jsonl") if out else None
    if records:
        chain.append(
            sinks.recorded(records)
        )  # before the picture: what was decided is kept though the disk may be full
    if overlays and pictures != "none":
        below = Path(source) if files.is_folder(source) else None
        maps = sinks.HeatMaps(overlays, inspector.scale, inspector.calibration, _tell, pictures, sinks.placed(below))
        chain.append(maps)
    settings = Settings(policy, workers, stall=stall)
    with records or nullcontext(), progress_bars(quiet or as_json) as progress, stop_on_signals() as stop:
        sink = sinks.each(*chain, _shown(as_json, quiet, progress, stop))
        report = inspector.stream(given, sink, settings, stop=stop, tell=_tell, draw=maps.draw if maps else None)
    if not quiet and not as_json:
        print(report.sentence())
    if not report.whole or failed(fail_on, {str(verdict): count for verdict, count in report.verdicts.items()}):
        raise typer.Exit(1)


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _shown(as_json: bool, quiet: bool, progress: "Progress", stop: threading.Event) -> "Sink":
    """A sink that prints one line an outcome, at once; whoever reads them no more stops the line."""
    from andon import files

    count = 0

    def show(outcome: "Outcome") -> None:
        nonlocal count
        count += 1
        if outcome.fault and not as_json:
            _tell(f"could not be inspected: {outcome.error}")
        if outcome.fault and not isinstance(outcome.fault, AndonError):
            traceback.print_exception(outcome.fault)
        try:
            if as_json:
                print(files.strict_json(outcome.record()), flush=True)
            elif outcome.inspection and not quiet:
                print(line(outcome.inspection), flush=True)
        except BrokenPipeError:
            stop.set()
        progress("inspecting", count, 0)

    return show
