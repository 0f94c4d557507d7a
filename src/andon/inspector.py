"""The one path from a picture to a verdict, which calibration, evaluation and the station use too."""

import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, NamedTuple, Self

import numpy as np

from andon import calibration
from andon.bundle import Bundle, Manifest
from andon.calibration import Calibration, HeldOut
from andon.engines import tuning
from andon.engines.runtime import Engine, Runtime
from andon.errors import AndonError, BundleError, ImageError
from andon.geometry import regions, tiling, views
from andon.geometry.registration import NotFound, Reference
from andon.geometry.tiling import Place, ViewMap
from andon.geometry.views import Geometry, Placement, View
from andon.inspection import Array, Inspection, Pixels, Registration, Scorer, Thresholds, Verdict
from andon.pictures import image
from andon.pictures.appearance import Appearance
from andon.recipe import SPECK, Decision, Recipe
from andon.render import Scale
from andon.streams import line, naming
from andon.streams.frames import Outcome, Report, Sink, Source
from andon.streams.line import Settings


class Scan(NamedTuple):
    """Score and anomaly map of one image, before any decision."""

    score: float  # the highest score of its tiles
    map: ViewMap  # at the detector's scale
    registration: Registration | None = None

    @property
    def anomaly_map(self) -> Array:
        """(H, W); NaN where nothing was inspected."""
        return self.map.enlarge()


class Prepared(NamedTuple):
    """An image that was read and aligned, before the graph runs."""

    image: image.Image
    notes: tuple[str, ...]  # conversions, unusual appearance, or why it has no view
    view: View | None = None  # None: the image is INVALID
    registration: Registration | None = None
    appearance: Appearance | None = None  # None for bundles of older versions


def scan(
    pixels: Pixels,
    settings: Geometry,
    scorer: Scorer,
    name: str,
    reference: Reference | None = None,
    full: tuple[int, int] | None = None,
) -> Scan:
    """Align an image (H, W, c), score its tiles and join their maps. Arguments and errors: as `views.align`."""
    view = views.align(pixels, settings, name, reference, full)
    return scan_tiles(view, tiling.split(view, settings), settings.input, scorer)


def scan_tiles(view: Placement, tiles: Iterable[tuple[Place, Pixels]], shape: tuple[int, int], scorer: Scorer) -> Scan:
    """Score the tiles of one view, each (*shape, c) with its place, and join their maps.

    The score is NaN when the score or a map value of any tile is not finite.
    """
    scores: list[float] = []

    def maps() -> Iterator[tuple[Place, Array]]:
        for batch in tiling.batches(tiles, shape):
            result = scorer.score(np.stack([tile for _, tile in batch]))
            finite = np.isfinite(result.image).all() and np.isfinite(result.pixel).all()
            scores.append(float(result.image.max()) if finite else np.nan)
            yield from zip((place for place, _ in batch), result.pixel, strict=True)

    joined = tiling.collect(view, maps())
    return Scan(float(np.max(scores)), joined, view.registration)


def held_out(result: Scan, part: str, name: str, digest: str, fold: int) -> HeldOut:
    """Reduce the scan of a held-out good image to the values that calibration needs."""
    values = result.map.values[np.isfinite(result.map.values)]
    median = float(np.median(values))
    return HeldOut(part, result.score, float(values.max()), median, name, digest, fold)


@dataclass(frozen=True, eq=False)
class Inspector:
    """A bundle that is ready to inspect images. It is immutable and can be shared between threads.

    >>> inspector = Inspector.load("bottle.andon")
    >>> inspector.inspect("incoming/017.png").verdict
    <Verdict.PASS: 'PASS'>

    `threads`: number of threads of the engine; 0: its default. Errors: BundleError when the graph does not match the
    recipe and the input of the bundle, or when its reference is not usable.
    """

    bundle: Bundle
    engine: Engine = "onnxruntime"
    threads: int = 0
    decision: Decision = None  # type: ignore[assignment]  # default: the decision of the recipe
    scorer: Scorer = None  # type: ignore[assignment]  # default: a new session of the engine for the bundle's graph

    def __post_init__(self) -> None:
        """Start the engine and check that graph and reference are usable."""
        if self.decision is None:
            object.__setattr__(self, "decision", self.recipe.decision)
        if self.scorer is None:
            runtime = Runtime(self.bundle.graph, self.engine, self.threads)
            runtime.check_tiles(self.recipe.geometry.input, self.manifest.input.channels, self.manifest.input.depth)
            object.__setattr__(self, "scorer", runtime)
        _ = self.reference  # raises BundleError now, not at the first image

    @classmethod
    def load(cls, path: str | Path, engine: Engine | Literal["auto"] = "onnxruntime", threads: int = 0) -> Self:
        """Read and verify a bundle. BundleError when the file is no bundle, or is damaged.

        engine: "auto" uses the engine that `andon tune` stored for this machine, and its threads if `threads` is 0;
        without a stored result, engines are measured for some seconds.
        """
        if not isinstance(path, str | Path):
            raise BundleError(f"a {type(path).__name__} in place of a bundle; expected the path of a file part.andon.")
        bundle = Bundle.load(path)
        if engine == "auto":
            best = tuning.choose(path, bundle.graph)
            engine, threads = best.engine, threads or best.threads
        return cls(bundle, engine, threads)

    def decide(self, decision: Decision) -> Self:
        """Return an inspector of the same bundle with other rates or thresholds.

        The bundle is unchanged. To change the decision in a bundle, use `andon calibrate`.
        """
        if not isinstance(decision, Decision):
            raise AndonError(
                f"the decision is a {type(decision).__name__}; expected a Decision, as by andon.recipe.Decision() or "
                "inspector.decision.model_copy(update={...})."
            )
        return replace(self, decision=decision)

    @property
    def recipe(self) -> Recipe:
        """The recipe of the bundle; its decision can differ from `decision`."""
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
        """SHA-256 of the decision and its thresholds; with the digest of the bundle it identifies what decided."""
        return self.calibration.decision_digest(self.decision)

    @cached_property
    def reference(self) -> Reference | None:
        """The reference that parts are registered to; None if the recipe uses no registration."""
        return self.bundle.load_reference()

    @cached_property
    def thresholds(self) -> Thresholds:
        """The thresholds of the decision."""
        return self.calibration.thresholds(self.decision)

    @cached_property
    def scale(self) -> Scale:
        """The scale of all heat maps."""
        return Scale.of(self.calibration.typical, self.thresholds.pixel)

    def min_area(self, frame: tuple[int, ...]) -> int:
        """The minimum area of a listed region in an image (H, W), in pixels of the image."""
        setting = self.decision.min_area
        if setting != "auto":
            return setting
        seen = self.reference.frame if self.reference else (frame[0], frame[1])
        return round(SPECK**2 * tiling.area_ratio(seen, self.recipe.geometry))

    def promises(self) -> list[str]:
        """Sentences on the false-reject rates, the number of parts behind them, and their long-run intervals."""
        return self.calibration.describe(self.decision)

    def scan(self, source: image.Source, name: str | None = None) -> tuple[image.Image, Scan]:
        """Read and score an image, without a decision. ImageError as `inspect`; NotFound when the part is not found."""
        read = self.read(source, name)
        return read, scan(read.pixels, self.recipe.geometry, self.scorer, read.name, self.reference, read.full)

    def read(self, source: image.Source, name: str | None = None) -> image.Image:
        """Read an image once, to inspect it or to show it. ImageError when the bundle does not accept it."""
        expected = self.manifest.input
        return image.accept(image.read(source, name, expected.reduced, expected.size), expected)

    def inspect(self, source: image.Source, name: str | None = None) -> Inspection:
        """Inspect a file, encoded bytes, an array (H, W), (H, W, 1) or RGB (H, W, 3), uint8 or uint16, or an `Image`.

        The verdict is INVALID when the part is not found, or when the image looks different from the good images and
        the recipe has `unusual = "invalid"`; otherwise a note describes the difference. Errors: ImageError when the
        image is unreadable, or differs from the training images in channels, depth or size.
        """
        start = time.perf_counter()
        prepared = self.prepare(self.read(source, name))
        return self.judge(prepared, self.score(prepared), start)

    def prepare(self, read: image.Image) -> Prepared:
        """Check the appearance of an image and align it: the stage before the graph.

        Errors: ImageError when the crop or the region of interest is outside the image.
        """
        usual = self.calibration.appearance
        look = usual.look(read) if usual else None
        oddities = usual.oddities(look) if usual and look else []
        (trained,) = self.manifest.learnt_from([read.digest])
        notes = (*(["the bundle was trained on this image, so its score is too low"] if trained else []), *oddities)
        if oddities and self.recipe.input.unusual == "invalid":
            return Prepared(read, (*read.notes, *notes), appearance=look)
        try:
            view = views.align(read.pixels, self.recipe.geometry, read.name, self.reference, read.full)
        except NotFound as missing:
            return Prepared(read, (*read.notes, str(missing), *notes), None, missing.registration, look)
        return Prepared(read, (*read.notes, *notes), view, view.registration, look)

    def score(self, prepared: Prepared) -> Scan | None:
        """Run the graph on the tiles of a view: the stage of the engine. None for an image without a view."""
        geometry, view = self.recipe.geometry, prepared.view
        return scan_tiles(view, tiling.split(view, geometry), geometry.input, self.scorer) if view else None

    def judge(self, prepared: Prepared, result: Scan | None, start: float) -> Inspection:
        """Decide on a scan: verdict, p-value and regions. Without a scan the image is INVALID.

        `start`: the value of `time.perf_counter` at the start of the work on the image.
        """
        read, notes = prepared.image, prepared.notes
        if result and not np.isfinite(result.score):
            notes = (*notes, "the graph returned a score or map that is not finite")
        frame = read.full
        joined = result.map if result else tiling.empty_map(frame)
        score = result.score if result else np.nan
        listed, unlisted = regions.find(
            joined.values, self.thresholds.pixel, self.min_area(frame), joined.matrix, frame
        )
        return Inspection(
            source=read.name,
            verdict=calibration.judge(score, self.thresholds) if result else Verdict.INVALID,
            score=score,
            p_value=self.calibration.p_value(score, self.decision.per),
            thresholds=self.thresholds,
            map=joined,
            regions=listed,
            removed_regions=unlisted,
            milliseconds=1000 * (time.perf_counter() - start),
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
        """Inspect all frames of a source and pass each outcome to the sink, in order; return when the source ends.

        The stages of several frames run in parallel, the graph too: on one thread each where frames overlap, on all
        threads for a frame that is alone. A frame that cannot be inspected gives an outcome with verdict INVALID.

        source: a source of `andon.streams`, an iterable of pictures or of `Frame`s, or a path.
        stop: when it is set, by any thread, frames that were already read are finished and passed to the sink.
        tell: receives messages about problems, from any thread.
        draw: renders a picture of an outcome for the sink, in parallel with the inspection of other frames.

        Errors: AndonError when the source fails, after the outcomes of all its frames; AndonError when the sink fails,
        with the names of frames that were inspected and not passed to the sink.
        """
        return line.stream(self, naming.of(source), sink, settings, stop=stop, tell=tell, draw=draw)

    def inspect_many(
        self,
        sources: Iterable[image.Source],
        on_error: Callable[[image.Source, ImageError], None] | None = None,
    ) -> Iterator[Inspection]:
        """Inspect images one by one, lazily. An ImageError is passed to `on_error`, if given, and the image skipped.

        Errors: ImageError as `inspect`, without `on_error`; AndonError when `sources` is a single image.
        """
        if isinstance(sources, str | bytes | Path | np.ndarray | image.Image):
            raise AndonError(
                f"the argument of inspect_many is a single {type(sources).__name__}; expected a list of images. "
                "Use inspect for one image, or list the files of a folder."
            )
        return self._inspect_many(sources, on_error)

    def _inspect_many(
        self, sources: Iterable[image.Source], on_error: Callable[[image.Source, ImageError], None] | None
    ) -> Iterator[Inspection]:
        for source in sources:
            try:
                yield self.inspect(source)
            except ImageError as error:
                if on_error is None:
                    raise
                on_error(source, error)
