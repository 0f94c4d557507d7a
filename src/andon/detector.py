"""The contract of a detector. It does not need torch; a detector that does imports torch in its own file."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from andon.errors import AndonError, TrainingError
from andon.inspection import Array, Pixels, Scores
from andon.progress import Progress, silent
from andon.recipe import Augment

if TYPE_CHECKING:
    import onnx

Need = Literal["none", "images", "masks", "masks if any"]
"""Images of defects that a detector uses in training: none, images, images with masks, or images with masks if any."""
REQUIRED: tuple[Need, ...] = ("images", "masks")  # needs without which training is impossible


class Labelled(NamedTuple):
    """A batch of tiles of defective parts."""

    pixels: Pixels  # (b, t, t, c)
    masks: NDArray[np.bool_]  # (b, t, t), True where defective; everywhere if the image has no mask


class Defects(Protocol):
    """The training tiles of defective parts. It can be iterated repeatedly, always in the same order."""

    groups: Sequence[int]  # (n,), as in `Tiles`

    def __len__(self) -> int:
        """Number of tiles."""
        ...

    def __getitem__(self, rows: Sequence[int]) -> Labelled:
        """The tiles with these indices, as a copy."""
        ...

    def __iter__(self) -> Iterator[Labelled]:
        """Batches of tiles, of the same size, channels and depth as the good tiles."""
        ...


class Tiles(Protocol):
    """The training tiles of good parts. It can be iterated repeatedly, always in the same order."""

    shape: tuple[int, int]  # height and width, pixels
    side: int  # t: height and width of square tiles, pixels
    channels: int  # 1 or 3
    depth: int  # 8 or 16 bits
    groups: Sequence[
        int
    ]  # (n,), the same number for all tiles of one part, lot or session; negative for defective parts
    defects: Defects | None  # None without images of defects, or for detectors that do not use them

    def __len__(self) -> int:
        """Number of tiles."""
        ...

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        """The tiles (b, h, w, c) with these indices, as a copy."""
        ...

    def __iter__(self) -> Iterator[Pixels]:
        """Batches (b, h, w, c)."""
        ...


Compute = Callable[[Pixels], Sequence[Array]]
"""Computes arrays (n, …) from tiles (n, h, w, c); each row depends on its tile only."""


def uncached(name: str, tiles: Pixels, compute: Compute) -> list[Array]:
    """The memo of a single fit: compute without a store."""
    return list(compute(tiles))


@dataclass(frozen=True)
class Run:
    """The circumstances of a fit: progress, device, files. They do not belong to a detector's settings."""

    progress: Progress = silent
    tell: Callable[[str], None] = lambda sentence: None  # receives messages for people
    augment: Augment = Augment()
    folder: Path | None = None  # for checkpoints and caches, from which an interrupted fit continues
    device: str = ""  # "cpu", "cuda", …; empty: the fastest available
    seconds: float | None = None  # time limit, instead of the detector's number of steps
    written: set[Path] = field(default_factory=set)  # files and folders in `folder` that this fit has written
    memo: Callable[[str, Pixels, Compute], list[Array]] = (
        uncached  # computes what several fits need of a tile only once
    )
    images: Sequence[
        Path
    ] = ()  # all files of the data set, test images included; never used as images of other objects

    def __post_init__(self) -> None:
        """AndonError for a time limit that is none."""
        seconds = self.seconds
        if seconds is not None and not (isinstance(seconds, Real) and 0 < seconds < math.inf):
            raise AndonError(f"seconds = {seconds!r}; expected a number of seconds above 0. Leave it out for no limit.")


QUIET = Run()


class Forecast(NamedTuple):
    """Expected time and memory of a fit."""

    seconds: float
    megabytes: float  # additional memory at the peak


class Detector(Protocol):
    """Is trained on tiles of good parts and exports one ONNX graph."""

    name: ClassVar[str]
    position_aware: ClassVar[bool]  # uses the position of a patch in the image, so it cannot work on tiles of an image
    defects: ClassVar[Need]  # of the class; the settings of an instance can change it
    square: ClassVar[bool]  # needs square tiles
    sizes: ClassVar[dict[str, int]]  # preset → default of geometry.size; without an entry, the default of Geometry
    times: ClassVar[dict[str, float]]  # preset → approximate time per picture, relative to the fastest preset
    quick: ClassVar[bool]  # a fit takes seconds, so that cross-conformal calibration is the default for few parts
    Config: ClassVar[type[BaseModel]]
    presets: ClassVar[
        dict[str, dict[str, Any]]
    ]  # name → settings that differ from the defaults; the first is the default
    stride: int  # pixels of a tile between neighbouring positions of the map before it is enlarged
    curve: str  # after gradient training: the loss of each step, as CSV; else empty

    def __init__(self, config: Any, seed: int) -> None:
        """Store the settings."""
        ...

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate time and memory of `fit` from a few timed steps."""
        ...

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Train on good tiles; a second call starts again."""
        ...

    def score(self, tiles: Pixels) -> Scores:
        """Score without the graph, for the export gate and the tests."""
        ...

    def graph(self) -> "onnx.ModelProto":
        """tiles (n, h, w, c) uint8 or uint16 → score float32 (n,), map float32 (n, h, w)."""
        ...


class DetectorSettings(BaseModel):
    """Settings of a detector, each with a docstring; an unknown setting or a wrong type is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class NumpyDetector:
    """Base of detectors that are fitted without gradients. `fit` sets `_fitted` at its end."""

    name: ClassVar[str]
    defects: ClassVar[Need] = "none"
    square: ClassVar[bool] = False
    sizes: ClassVar[dict[str, int]] = {}
    times: ClassVar[dict[str, float]] = {}
    quick: ClassVar[bool] = True
    presets: ClassVar[dict[str, dict[str, Any]]] = {"cpu": {}}
    stride = 1
    curve = ""

    def __init__(self, config: Any, seed: int) -> None:
        """Store the settings."""
        self.config = config
        self.seed = seed
        self._fitted = False

    def _require_fit(self) -> None:
        if not self._fitted:
            raise unfitted(self.name)


def unfitted(name: str) -> TrainingError:
    """Return the error for a detector that must be fitted first."""
    return TrainingError(f"this {name} is not fitted; expected a fitted detector. Call fit(tiles) first.")


def no_tiles() -> TrainingError:
    """Return the error for a training without tiles."""
    return TrainingError("no training tiles; expected at least one image of a good part. Add good images.")
