"""What runs in a process of its own: `python -m andon.station.teaching.work ACTION FOLDER`, for one project.

Each line on standard output is a message in JSON: progress, a sentence, or the end. Results are files in `run`. Those
of a training are in `new/run` until it has ended, so a training that does not end leaves the last result as it is. The
process ends when its standard input ends, so it never outlives its station.
"""

import json
import math
import os
import shutil
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from andon import files
from andon.errors import AndonError, out_of_memory
from andon.progress import Progress

RUN, NEW, RECIPE, BUNDLE = "run", "new", "recipe.toml", "run/part.andon"
CHECK, PREVIEW, EXPECTED, RESULT, HIGHEST, TRIED = (
    "run/check.json",
    "run/preview.png",
    "run/expected.json",
    "run/result.json",
    "run/highest.jpg",
    "run/tried",
)
NICE = 15  # the line comes first
MOST_TRIED, DRAWN, SIDE = 500, 48, 480  # pictures of defects; heat maps of them; pixels of the longer side
RATES = (0.001, 0.002, 0.005, 0.01, 0.015, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2)
"""Rates that the page offers."""


class Out:
    """Writes messages."""

    def __init__(self, file: IO[str]) -> None:
        self._file, self._lock, self._last = file, threading.Lock(), ("", -1)

    def __call__(self, **message: Any) -> None:
        with self._lock:
            self._file.write(files.strict_json(message) + "\n")
            self._file.flush()

    def progress(self, stage: str, done: int, total: int) -> None:
        """At most one message a hundredth of a stage."""
        step = (stage, 100 * done // total if total else done)
        if step != self._last:
            self._last = step
            self(stage=stage, done=done, total=total)


def check(place: Path, out: Out) -> None:
    """What `andon check` says of the pictures."""
    from andon.data import dataset
    from andon.training.checking import check_images

    recipe = _recipe(place)
    report, judged = check_images(dataset.load(recipe.data.images), recipe, None, out.progress)
    root = Path(recipe.data.images)
    strange = [(one.sample.path.relative_to(root).as_posix(), one.deviations) for one in judged[:DRAWN]]
    _write(place / CHECK, {"report": report.record(), "strange": strange})


def preview(place: Path, out: Out) -> None:
    """Crop, region and registration, drawn into ten pictures."""
    from andon import render
    from andon.training import preview as drawing
    from andon.training.train import compose, construct

    _, recipe = construct(compose(_recipe(place)))
    picture = drawing.sheet(recipe, 10, out.progress, lambda sentence: out(warn=sentence))
    _save(place / PREVIEW, render.encode(picture, "png"))


def expected(place: Path, out: Out) -> None:
    """The time that a training takes, from a few timed steps."""
    from andon.training.train import expected

    found = expected(_recipe(place), progress=out.progress)
    _write(place / EXPECTED, {"seconds": found.seconds, "megabytes": found.megabytes})


def train(place: Path, out: Out) -> None:
    """Train, try the bundle on the pictures of defects, and say what it can promise."""
    from andon.training.train import train

    new = place / NEW
    files.make_folder(new / RUN)
    (new / RESULT).unlink(missing_ok=True)
    train(
        _recipe(place),
        new / BUNDLE,
        progress=out.progress,
        tell=lambda sentence: out(tell=sentence),
        warn=lambda sentence: out(warn=sentence),
    )
    _try(new, place / "pictures", out.progress)
    describe(str(new))


def settle(place: Path) -> None:
    """Replace the last result of a training by the new one. After an interruption, the next call goes on."""
    try:
        for name in (TRIED, HIGHEST, BUNDLE, RESULT):
            made, last = place / NEW / name, place / name
            if made.exists():
                if files.is_folder(last):
                    shutil.rmtree(last)
                made.replace(last)
    except OSError as error:
        raise AndonError(f"{place / NEW}: cannot be moved: {files.reason(error)}. Allow writing there.") from error


def _try(place: Path, root: Path, progress: Progress) -> None:
    """Inspect the pictures of defects with the new bundle, and draw their heat maps."""
    from andon import render
    from andon.data import dataset
    from andon.errors import ImageError
    from andon.inspector import Inspector

    inspector = Inspector.load(place / BUNDLE)
    samples = dataset.load(root).defective()[:MOST_TRIED]
    tried: list[dict[str, Any]] = []
    for number, sample in enumerate(samples):
        progress("trying defects", number, len(samples))
        entry = {"name": sample.path.relative_to(root).as_posix(), "kind": sample.defect, "drawn": False, "score": None}
        tried.append(entry)
        try:
            read = inspector.read(sample.path)
            found = inspector.inspect(read)
        except ImageError as error:
            entry["note"] = str(error)
            continue
        entry["note"] = "; ".join(found.notes)
        if math.isfinite(found.score):
            entry["score"] = found.score
        if number < DRAWN:
            picture = render.overlay(read.pixels, found.anomaly_map, inspector.scale, found.regions, side=SIDE)
            _save(place / TRIED / f"{number}.jpg", render.encode(picture, "jpg"))
            entry["drawn"] = True
    progress("trying defects", len(samples), len(samples))
    _write(place / TRIED / "tried.json", tried)


def describe(place: str) -> dict[str, Any]:
    """What a trained bundle can promise, and what each rate would mean; written to `RESULT` too."""
    from andon.bundle import Bundle
    from andon.calibration import judge

    folder = Path(place)
    bundle = Bundle.load(folder / BUNDLE)
    calibration, decision = bundle.calibration, bundle.recipe.decision
    tried = json.loads((folder / TRIED / "tried.json").read_bytes())
    thresholds = calibration.thresholds(decision)
    scores, _ = calibration.units(calibration.scores, decision.per)
    rates = []
    for rate in sorted({*RATES, decision.review_rate, decision.reject_rate}):
        wanted = {"review_rate": rate, "reject_rate": rate, "reject_threshold": None, "review_threshold": None}
        threshold = calibration.thresholds(decision.model_copy(update=wanted)).review
        rates.append(
            {
                "rate": rate,
                "threshold": threshold,
                "supported": calibration.supports(rate),
                "good": int((scores > threshold).sum()),
                "defects": sum(each["score"] is not None and each["score"] > threshold for each in tried),
            }
        )
    for each in tried:
        each["verdict"] = "INVALID" if each["score"] is None else str(judge(each["score"], thresholds))
    result = {
        "digest": bundle.digest(),
        "trained": bundle.manifest.created,
        "detector": f"{bundle.manifest.detector}, {bundle.recipe.detector.preset}",
        "seconds": sum(bundle.manifest.timings.values()),
        "data": bundle.manifest.data,
        "promises": calibration.describe(decision),
        "review_rate": decision.review_rate,
        "reject_rate": decision.reject_rate,
        "thresholds": thresholds._asdict(),
        "scores": sorted(map(float, scores)),
        "highest": [each._asdict() for each in calibration.highest()],
        "lowest": calibration.names[calibration.scores.index(min(calibration.scores))] if calibration.names else "",
        "rates": rates,
        "tried": tried,
    }
    if bundle.sheet:
        files.write(folder / HIGHEST, bundle.sheet)
    _write(folder / RESULT, result)
    return dict(files.finite(result))


def redecide(place: str, changes: dict[str, float]) -> dict[str, Any]:
    """Change the rates of a trained bundle. Returns what `describe` does."""
    from andon.bundle import Bundle
    from andon.training import calibrating

    path = Path(place) / BUNDLE
    calibrating.redecide(Bundle.load(path), changes).save(path)
    return describe(place)


def thumbnail(source: str, side: int) -> bytes:
    """A picture as JPEG, its longer side `side` pixels."""
    from andon import render
    from andon.pictures import image

    return render.encode(render.fit(render.display(image.read(Path(source)).pixels), side), "jpg")


def drawable(source: str) -> bytes:
    """A picture to draw on, as PNG."""
    from andon.pictures import image
    from andon.training import regions

    return regions.reduced(image.read(Path(source))).png()


def presets(detector: str) -> dict[str, tuple[int, float]]:
    """The presets of a detector: the size of its input in pixels, and its time relative to the fastest."""
    from andon import detectors

    kind = detectors.get(detector)
    return {name: (kind.sizes.get(name, 0), kind.times.get(name, 1.0)) for name in kind.presets}


def _recipe(place: Path) -> Any:
    from andon.recipe import Recipe

    return Recipe.load(place / RECIPE)


def _write(path: Path, value: Any) -> None:
    _save(path, files.strict_json(value).encode())


def _save(path: Path, data: bytes) -> None:
    files.make_folder(path.parent)
    files.write(path, data)


ACTIONS: dict[str, Callable[[Path, Out], None]] = {
    "check": check,
    "preview": preview,
    "expected": expected,
    "train": train,
}


def _follow() -> None:
    """End this process with the station, which holds the other end of standard input."""
    sys.stdin.buffer.read()
    os._exit(1)


def main() -> None:
    """Run one action; its last message is the end, or an error."""
    out = Out(os.fdopen(os.dup(1), "w", encoding="utf-8"))
    os.dup2(2, 1)  # what libraries print is no message
    threading.Thread(target=_follow, daemon=True).start()
    if hasattr(os, "nice"):
        with suppress(OSError):
            os.nice(NICE)
    try:
        ACTIONS[sys.argv[1]](Path(sys.argv[2]), out)
    except AndonError as error:
        out(error=str(error))
    except Exception as error:
        if not out_of_memory(error):
            raise
        out(error="out of memory. Close other programs, use the preset fast, or train on a larger computer.")
    else:
        out(end=True)


if __name__ == "__main__":
    main()
