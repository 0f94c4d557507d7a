"""The path from a picture to a verdict, and the only one: calibration, evaluation and the station go this way too."""

import time
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import NamedTuple, Self

import numpy as np

from andon import calibration, geometry, image
from andon.bundle import Bundle
from andon.calibration import HeldOut
from andon.errors import AndonError, ImageError
from andon.geometry import Geometry, Place
from andon.inspection import Array, Inspection, Pixels, Registration, Scorer, Verdict
from andon.recipe import Decision
from andon.registration import NotFound, Reference
from andon.render import Scale
from andon.runtime import Engine, Runtime


class Scan(NamedTuple):
    """What the graph says of one image, before any decision."""

    score: float  # the highest of its tiles
    anomaly_map: Array  # (H, W); NaN where nothing was inspected
    registration: Registration | None = None


def scan(pixels: Pixels, settings: Geometry, scorer: Scorer, name: str, reference: Reference | None = None) -> Scan:
    """Align, split, score and join one image (H, W, c). Errors: as `geometry.align`."""
    view = geometry.align(pixels, settings, name, reference)
    worst = -np.inf

    def maps() -> Iterator[tuple[Place, Array]]:
        nonlocal worst
        for batch in geometry.batches(geometry.split(view, settings), settings.size):
            scores = scorer.score(np.stack([tile for _, tile in batch]))
            worst = max(worst, *scores.image.tolist())
            yield from zip((place for place, _ in batch), scores.pixel, strict=True)

    anomaly_map = geometry.join(view, maps())
    return Scan(float(worst), anomaly_map, view.registration)


def held_out(found: Scan, part: str) -> HeldOut:
    """Reduce a scan of a held-out good image to what calibration keeps of it."""
    values = found.anomaly_map[np.isfinite(found.anomaly_map)]
    return HeldOut(part, found.score, float(values.max()), float(np.median(values, overwrite_input=True)))


class Inspector:
    """A bundle, ready to inspect.

    >>> inspector = Inspector.load("bottle.andon")
    >>> inspector.inspect("incoming/017.png").verdict
    <Verdict.PASS: 'PASS'>
    """

    def __init__(self, bundle: Bundle, engine: Engine = "onnxruntime", threads: int = 0) -> None:
        """Start the engine on a bundle's graph; `threads` 0 lets the engine decide.

        BundleError when the graph does not fit the bundle's recipe and input.
        """
        self.bundle = bundle
        self.recipe = bundle.recipe
        self.calibration = bundle.calibration
        self.manifest = bundle.manifest
        self.digest = bundle.digest()
        self.reference = bundle.registered_to()
        runtime = Runtime(bundle.graph, engine, threads)
        runtime.expect(bundle.recipe.geometry.size, self.manifest.input.channels, self.manifest.input.depth)
        self.scorer: Scorer = runtime
        self.decide(bundle.recipe.decision)

    @classmethod
    def load(cls, path: str | Path, engine: Engine = "onnxruntime", threads: int = 0) -> Self:
        """Read and verify a bundle. BundleError when it is not one, or not whole."""
        return cls(Bundle.load(path), engine, threads)

    def decide(self, decision: Decision) -> Self:
        """Use other rates or thresholds from now on; `andon calibrate` writes them into the bundle."""
        self.decision = decision
        self.thresholds = self.calibration.thresholds(decision)
        self.scale = Scale.of(self.calibration.typical, self.thresholds.pixel)
        return self

    def promises(self) -> list[str]:
        """Say which false-reject rates hold, and on how many parts that rests."""
        return self.calibration.describe(self.decision)

    def scan(self, source: image.Source, name: str | None = None) -> tuple[image.Image, Scan]:
        """Read an image and score it, undecided. ImageError as `inspect`; NotFound when the part is not found."""
        read = self._read(source, name)
        return read, scan(read.pixels, self.recipe.geometry, self.scorer, read.name, self.reference)

    def _read(self, source: image.Source, name: str | None) -> image.Image:
        return image.accept(image.read(source, name), self.manifest.input)

    def inspect(self, source: image.Source, name: str | None = None) -> Inspection:
        """Inspect a file, encoded bytes or an array (H, W), (H, W, 1) or RGB (H, W, 3), uint8 or uint16.

        INVALID when the part is not found. ImageError when the image is not what the bundle was trained on.
        """
        began = time.perf_counter()
        read = self._read(source, name)
        try:
            found = scan(read.pixels, self.recipe.geometry, self.scorer, read.name, self.reference)
        except NotFound as missing:
            return Inspection(
                source=read.name,
                verdict=Verdict.INVALID,
                score=float("nan"),
                p_value=float("nan"),
                thresholds=self.thresholds,
                anomaly_map=np.full(read.pixels.shape[:2], np.nan, np.float32),
                regions=(),
                removed_regions=0,
                milliseconds=1000 * (time.perf_counter() - began),
                notes=(*read.notes, str(missing)),
                registration=missing.registration,
            )
        regions, removed = calibration.regions(found.anomaly_map, self.thresholds.pixel, self.decision.min_area)
        return Inspection(
            source=read.name,
            verdict=calibration.judge(found.score, self.thresholds),
            score=found.score,
            p_value=self.calibration.p_value(found.score),
            thresholds=self.thresholds,
            anomaly_map=found.anomaly_map,
            regions=regions,
            removed_regions=removed,
            milliseconds=1000 * (time.perf_counter() - began),
            notes=read.notes,
            registration=found.registration,
        )

    def inspect_many(
        self,
        sources: Iterable[image.Source],
        on_error: Callable[[image.Source, ImageError], None] | None = None,
    ) -> Iterator[Inspection]:
        """Inspect one after another, lazily. A bad image goes to `on_error` and is skipped; without one it raises.

        AndonError when it is given one source instead of several.
        """
        if isinstance(sources, str | bytes | Path | np.ndarray):
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
