"""The command `watch`: inspects the pictures of a folder, camera or video until the end or a signal to stop."""

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
            help="A folder that receives pictures; a video file; the number or URL of a camera; genicam:ADDRESS; or "
            "simulated:FOLDER, a simulated camera that shows the pictures of a folder.",
            show_default=False,
        ),
    ],
    out: Annotated[
        Path | None,
        typer.Option(help="Output folder: records.jsonl and records.csv, which grow with each run, and heat maps."),
    ] = None,
    pictures: Annotated[
        Literal["all", "alarms", "none"],
        typer.Option(help="Heat maps to write into --out; alarms: those of REVIEW and REJECT."),
    ] = "alarms",
    policy: Annotated[
        Literal["block", "drop"],
        typer.Option(help="If inspection is slower than the source: make it wait, or drop and count frames."),
    ] = "block",
    new: Annotated[bool, typer.Option("--new", help="Leave out pictures that are already in the folder.")] = False,
    settle: Annotated[
        float, typer.Option(min=0.0, help="Seconds without a change after which a file counts as complete.")
    ] = 0.5,
    frames: Annotated[int, typer.Option(min=0, help="Stop after this number of frames; 0: never.")] = 0,
    stall: Annotated[
        float, typer.Option(min=0.0, help="Warn after this number of seconds without a frame; 0: never.")
    ] = 0.0,
    fail_on: FailOn = None,
    as_json: AsJson = False,
    quiet: Quiet = False,
    engine: EngineName = "onnxruntime",
    threads: Threads = 0,
    workers: Annotated[
        int, typer.Option(min=0, max=64, help="Number of frames inspected at a time; 0: number of cores plus one.")
    ] = 0,
) -> None:
    """Inspect pictures as they arrive: from a folder, a camera or a video.

    \b
    andon watch part.andon incoming/ --out results/     the pictures in the folder, then new ones
    andon watch part.andon 0 --policy drop --stall 10   the first camera of this PC
    andon watch part.andon rtsp://10.0.0.7/stream       a camera on the network
    andon watch part.andon genicam:10.0.0.7             GigE Vision or USB3 Vision: pip install 'andon[genicam]'
    andon watch part.andon simulated:good/ --frames 20  a trial without a camera

    One line is printed for each frame, in order. A frame that cannot be inspected is INVALID; the others are still
    inspected. A lost camera is connected again. After Ctrl-C or SIGTERM, frames that were already received are
    inspected, then the command ends; a second signal ends it at once.

    Exit codes: 0: every frame was inspected. 1: a frame could not be inspected, was dropped or lost, or has a verdict
    named by --fail-on. 2: error in the command or its input, or results cannot be written. 130: ended at once.
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
    stream = naming.named(source, True, channels, existing=not new, settle=settle)
    if frames:
        stream = Limited(stream, frames)
    chain: list[Sink] = []
    maps = None
    records = Records(out / "records.jsonl") if out else None
    if records:
        chain.append(sinks.recorded(records))  # before the heat map: a full disk loses no decision
    if overlays and pictures != "none":
        below = Path(source) if files.is_folder(source) else None
        maps = sinks.HeatMaps(overlays, inspector.scale, inspector.calibration, _tell, pictures, sinks.placed(below))
        chain.append(maps)
    settings = Settings(policy, workers, stall=stall)
    with records or nullcontext(), progress_bars(quiet or as_json) as progress, stop_on_signals() as stop:
        sink = sinks.each(*chain, _shown(as_json, quiet, progress, stop))
        report = inspector.stream(stream, sink, settings, stop=stop, tell=_tell, draw=maps.draw if maps else None)
    if not quiet and not as_json:
        print(report.sentence())
    if not report.whole or failed(fail_on, {str(verdict): count for verdict, count in report.verdicts.items()}):
        raise typer.Exit(1)


def _tell(sentence: str) -> None:
    print(sentence, file=sys.stderr)


def _shown(as_json: bool, quiet: bool, progress: "Progress", stop: threading.Event) -> "Sink":
    """Return a sink that prints one line for each outcome; it stops the line if the reader closes the pipe."""
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
