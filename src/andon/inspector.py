"""The path from a picture to a verdict, and the only one: calibration, evaluation and the station go this way too."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from andon import calibration, files
from andon.bundle import Bundle, Manifest
from andon.calibration import Calibration, HeldOut
from andon.engines import tuning
from andon.engines.runtime import Engine, Runtime
from andon.errors import AndonError, ImageError
from andon.geometry import regions, tiling, views
from andon.geometry.registration import NotFound, Reference
from andon.geometry.tiling import Joined, Place
from andon.geometry.views import Geometry, Placement, View
from andon.inspection import Array, Inspection, Pixels, Registration, Scorer, Thresholds, Verdict
from andon.pictures import appearance, image
from andon.pictures.appearance import Appearance
from andon.recipe import SPECK, Decision, Recipe
from andon.render import Scale
from andon.streams import line, naming
from andon.streams.batching import Batching
from andon.streams.frames import Outcome, Report, Sink, Source
from andon.streams.line import Settings


class Scan(NamedTuple):
    """What the graph says of one image, before any decision."""

    score: float  # the highest of its tiles
    map: Joined  # at the detector's scale
    registration: Registration | None = None

    @property
    def anomaly_map(self) -> Array:
        """(H, W); NaN where nothing was inspected."""
        return self.map.whole()


class Prepared(NamedTuple):
    """An image on its way to a verdict, before the graph."""

    image: image.Image
    notes: tuple[str, ...]  # what is odd about it, or why it has no view
    view: View | None = None  # None: nothing can be said of the part, so it is INVALID
    registration: Registration | None = None
    appearance: Appearance | None = None  # None: the bundle is of before good pictures' appearance was kept


def scan(
    pixels: Pixels,
    settings: Geometry,
    scorer: Scorer,
    name: str,
    reference: Reference | None = None,
    full: tuple[int, int] | None = None,
) -> Scan:
    """Align, split, score and join one image (H, W, c). Arguments and errors: as `views.align`."""
    view = views.align(pixels, settings, name, reference, full)
    return scan_tiles(view, tiling.split(view, settings), settings.input, scorer)


def scan_tiles(view: Placement, tiles: Iterable[tuple[Place, Pixels]], shape: tuple[int, int], scorer: Scorer) -> Scan:
    """Score and join the tiles of one view, each (*shape, c) with its place. Of tiles kept from before, the same.

    One score or map value that is not finite, in any tile, makes the score NaN.
    """
    scores: list[float] = []

    def maps() -> Iterator[tuple[Place, Array]]:
        for batch in tiling.batches(tiles, shape):
            found = scorer.score(np.stack([tile for _, tile in batch]))
            finite = np.isfinite(found.image).all() and np.isfinite(found.pixel).all()
            scores.append(float(found.image.max()) if finite else np.nan)
            yield from zip((place for place, _ in batch), found.pixel, strict=True)

    joined = tiling.collect(view, maps())
    return Scan(float(np.max(scores)), joined, view.registration)


def held_out(found: Scan, part: str, name: str, digest: str, fold: int) -> HeldOut:
    """Reduce a scan of a held-out good image to what calibration keeps of it."""
    values = found.map.values[np.isfinite(found.map.values)]
    median = float(np.median(values))
    return HeldOut(part, found.score, float(values.max()), median, name, digest, fold)


@dataclass(frozen=True, eq=False)
class Inspector:
    """A bundle, ready to inspect. It never changes: another decision is another inspector.

    >>> inspector = Inspector.load("bottle.andon")
    >>> inspector.inspect("incoming/017.png").verdict
    <Verdict.PASS: 'PASS'>

    `threads` 0 lets the engine decide. BundleError when the graph does not fit the bundle's recipe and input.
    """

    bundle: Bundle
    engine: Engine = "onnxruntime"
    threads: int = 0
    decision: Decision = None  # type: ignore[assignment]  # the bundle's, unless another is given
    scorer: Scorer = None  # type: ignore[assignment]  # the bundle's graph on the engine, unless it runs already

    def __post_init__(self) -> None:
        """Start the engine."""
        if self.decision is None:
            object.__setattr__(self, "decision", self.recipe.decision)
        if self.scorer is None:
            runtime = Runtime(self.bundle.graph, self.engine, self.threads)
            runtime.expect(self.recipe.geometry.input, self.manifest.input.channels, self.manifest.input.depth)
            object.__setattr__(self, "scorer", runtime)
        _ = self.reference  # a bundle whose reference cannot be used is refused now

    @classmethod
    def load(cls, path: str | Path, engine: Engine | Literal["auto"] = "onnxruntime", threads: int = 0) -> Self:
        """Read and verify a bundle. BundleError when it is not one, or not whole.

        "auto" takes the engine, and the threads where they are 0, that `andon tune` kept for this machine; where there
        are none, engines are measured for some seconds.
        """
        bundle = Bundle.load(path)
        if engine == "auto":
            best = tuning.choose(path, bundle.graph)
            engine, threads = best.engine, threads or best.threads
        return cls(bundle, engine, threads)

    def decide(self, decision: Decision) -> Self:
        """Return an inspector of the same bundle with other rates or thresholds.

        The bundle stays as it is; `andon calibrate` writes a decision into it.
        """
        return replace(self, decision=decision)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the bundle; its decision may be another than `decision`."""
        return self.bundle.recipe

    @property
    def calibration(self) -> Calibration:
        """The held-out scores of the bundle."""
        return self.bundle.calibration

    @property
    def manifest(self) -> Manifest:
        """The provenance of the bundle."""
        return self.bundle.manifest

    @cached_property
    def digest(self) -> str:
        """Digest of the bundle."""
        return self.bundle.digest()

    @cached_property
    def decision_digest(self) -> str:
        """SHA-256 of the decision and of the thresholds that came of it: with the bundle's it names what decided."""
        return files.digest(repr((self.decision.model_dump_json(), tuple(self.thresholds))).encode())

    @cached_property
    def reference(self) -> Reference | None:
        """The picture that parts are registered to, if the recipe asks for it."""
        return self.bundle.registered_to()

    @cached_property
    def thresholds(self) -> Thresholds:
        """The thresholds of the decision."""
        return self.calibration.thresholds(self.decision)

    @cached_property
    def scale(self) -> Scale:
        """The scale of all heat maps."""
        return Scale.of(self.calibration.typical, self.thresholds.pixel)

    def min_area(self, frame: tuple[int, ...]) -> int:
        """The smallest region that is listed of an image (H, W), in its pixels."""
        chosen = self.decision.min_area
        if chosen != "auto":
            return chosen
        return round(SPECK**2 * tiling.covered((frame[0], frame[1]), self.recipe.geometry))

    def promises(self) -> list[str]:
        """Say which false-reject rates hold, on how many parts that rests, and how far one calibration varies."""
        return self.calibration.describe(self.decision)

    def scan(self, source: image.Source, name: str | None = None) -> tuple[image.Image, Scan]:
        """Read an image and score it, undecided. ImageError as `inspect`; NotFound when the part is not found."""
        read = self.read(source, name)
        return read, scan(read.pixels, self.recipe.geometry, self.scorer, read.name, self.reference, read.full)

    def read(self, source: image.Source, name: str | None = None) -> image.Image:
        """Read an image that the bundle takes; `inspect` takes it as it is. ImageError for another."""
        taken = self.manifest.input
        return image.accept(image.read(source, name, taken.reduced, taken.size), taken)

    def inspect(self, source: image.Source, name: str | None = None) -> Inspection:
        """Inspect a file, encoded bytes, an array (H, W), (H, W, 1) or RGB (H, W, 3), uint8 or uint16, or an `Image`.

        INVALID when the part is not found, or when the image looks like no good one and the recipe asks for it; else
        a note says what is odd. ImageError when the image is not what the bundle was trained on.
        """
        began = time.perf_counter()
        prepared = self.prepare(self.read(source, name))
        return self.judge(prepared, self.score(prepared), began)

    def prepare(self, read: image.Image) -> Prepared:
        """Say what is odd about an image that was read, and cut its view: the stage before the graph.

        Errors: ImageError when the image does not hold the crop or any of the region of interest.
        """
        usual = self.calibration.appearance
        look = appearance.of(read.pixels) if usual else None
        odd = usual.oddities(look) if usual and look else []
        (known,) = self.manifest.learnt_from([read.digest])
        learnt = ("the bundle learnt from this image, so its score is too low",) if known else ()
        if odd and self.recipe.input.unusual == "invalid":
            return Prepared(read, (*read.notes, *learnt, *odd), appearance=look)
        try:
            view = views.align(read.pixels, self.recipe.geometry, read.name, self.reference, read.full)
        except NotFound as missing:
            notes = (*read.notes, str(missing), *learnt, *odd)
            return Prepared(read, notes, None, missing.registration, look)
        return Prepared(read, (*read.notes, *learnt, *odd), view, view.registration, look)

    def score(self, prepared: Prepared) -> Scan | None:
        """Run the graph on the tiles of a view: the stage that needs the engine. None for an image without a view."""
        geometry, view = self.recipe.geometry, prepared.view
        return scan_tiles(view, tiling.split(view, geometry), geometry.input, self.scorer) if view else None

    def judge(self, prepared: Prepared, found: Scan | None, began: float) -> Inspection:
        """Decide on a scan: verdict, p-value and regions; without one the image is INVALID.

        `began` is the value of `time.perf_counter` when the work on the image began.
        """
        read, notes = prepared.image, prepared.notes
        if found and not np.isfinite(found.score):
            notes = (*notes, "the graph gave a score or map that is not a number")
        frame = read.full
        joined = found.map if found else tiling.unseen(frame)
        score = found.score if found else np.nan
        listed, unlisted = regions.find(
            joined.values, self.thresholds.pixel, self.min_area(frame), joined.matrix, frame
        )
        return Inspection(
            source=read.name,
            verdict=calibration.judge(score, self.thresholds) if found else Verdict.INVALID,
            score=score,
            p_value=self.calibration.p_value(score, self.decision.per),
            thresholds=self.thresholds,
            map=joined,
            regions=listed,
            removed_regions=unlisted,
            milliseconds=1000 * (time.perf_counter() - began),
            notes=notes,
            registration=prepared.registration,
            digest=read.digest,
            bundle=self.digest,
            decision=self.decision_digest,
        )

    def stream(
        self,
        source: Source | Iterable[Any] | str | Path,
        sink: Sink,
        settings: Settings = Settings(),
        *,
        stop: threading.Event | None = None,
        tell: Callable[[str], None] = lambda sentence: None,
        draw: Callable[[Outcome], bytes | None] | None = None,
    ) -> Report:
        """Inspect all that a source gives, and hand each outcome to the sink, in order; return when the source ends.

        Reading, geometry, graph and judging of several frames overlap, and tiles that wait for the engine at the same
        time go through the graph as one batch. A frame that cannot be inspected is an outcome with verdict INVALID.

        `source` is one of `andon.streams`, an iterable of pictures or of `Frame`s, or a path. Once `stop` is set, from
        any thread, frames on the line are finished and handed on. `tell` gets sentences on what goes wrong meanwhile,
        from any thread. `draw` makes a picture of an outcome beside the inspection of others, for the sink.

        Errors: AndonError when the source cannot go on, after the outcomes of all its frames; AndonError when the sink
        fails, with the names of the frames that were inspected and not handed on.
        """
        together = replace(self, scorer=Batching(self.scorer))
        return line.stream(together, naming.of(source), sink, settings, stop=stop, tell=tell, draw=draw)

    def inspect_many(
        self,
        sources: Iterable[image.Source],
        on_error: Callable[[image.Source, ImageError], None] | None = None,
    ) -> Iterator[Inspection]:
        """Inspect one after another, lazily. A bad image goes to `on_error` and is skipped; without one it raises.

        AndonError when it is given one source instead of several.
        """
        if isinstance(sources, str | bytes | Path | np.ndarray | image.Image):
            raise AndonError(
                f"inspect_many was given one {type(sources).__name__}; expected a list of images. "
                "Use inspect for one image, or list the files of a folder."
            )
        return self._each(sources, on_error)

    def _each(
        self, sources: Iterable[image.Source], on_error: Callable[[image.Source, ImageError], None] | None
    ) -> Iterator[Inspection]:
        for source in sources:
            try:
                yield self.inspect(source)
            except ImageError as error:
                if on_error is None:
                    raise
                on_error(source, error)
