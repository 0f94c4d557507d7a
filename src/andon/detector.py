"""What a detector is. No torch in this contract: a detector that needs it says so by importing it in its own file."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple, Protocol, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict

from andon.errors import TrainingError
from andon.inspection import Array, Pixels, Scores
from andon.progress import Progress, silent
from andon.recipe import Augment

if TYPE_CHECKING:
    import onnx

Need = Literal["none", "images", "masks", "masks if any"]
"""Which images of defects a detector learns from besides those of good parts: none, some, or some that have masks."""
REQUIRED: tuple[Need, ...] = ("images", "masks")  # without which a detector cannot learn


class Labelled(NamedTuple):
    """A batch of tiles of defective parts."""

    pixels: Pixels  # (b, t, t, c)
    masks: NDArray[np.bool_]  # (b, t, t), what is defective; all of a tile that has no mask


class Defects(Protocol):
    """The training tiles of defective parts: as many passes as a detector wants, each in the same order."""

    groups: Sequence[int]  # (n,), as those of `Tiles`

    def __len__(self) -> int:
        """How many tiles one pass yields."""
        ...

    def __getitem__(self, rows: Sequence[int]) -> Labelled:
        """The tiles at these places of a pass, as a copy."""
        ...

    def __iter__(self) -> Iterator[Labelled]:
        """Batches of tiles, of the same side, channels and depth as the good ones."""
        ...


class Tiles(Protocol):
    """The training tiles: as many passes as a detector wants, each in the same order."""

    shape: tuple[int, int]  # height and width, pixels
    side: int  # t: height and width of square tiles, as all detectors but those that are not `square` get them
    channels: int  # 1 or 3
    depth: int  # 8 or 16 bits
    groups: Sequence[int]  # (n,), tiles of one part, lot or session have the same number, below 0 if it is defective
    defects: Defects | None  # for detectors that learn from them, where there are any

    def __len__(self) -> int:
        """How many tiles one pass yields."""
        ...

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        """The tiles (b, h, w, c) at these places of a pass, as a copy."""
        ...

    def __iter__(self) -> Iterator[Pixels]:
        """Batches (b, h, w, c)."""
        ...


Compute = Callable[[Pixels], Sequence[Array]]
"""Computes arrays (n, …) from tiles (n, h, w, c), each row from its tile alone."""


def anew(name: str, tiles: Pixels, compute: Compute) -> list[Array]:
    """Compute without a store: the memo of a single fit."""
    return list(compute(tiles))


@dataclass(frozen=True)
class Run:
    """How a fit is run: what does not change what is learnt from how many steps."""

    progress: Progress = silent
    tell: Callable[[str], None] = lambda sentence: None  # sentences for people
    augment: Augment = Augment()  # how training tiles may be varied
    folder: Path | None = None  # for checkpoints and caches: a killed fit goes on from here
    device: str = ""  # "cpu", "cuda", …; empty: the best there is
    seconds: float | None = None  # stop after this long, in place of the detector's number of steps
    written: set[Path] = field(default_factory=set)  # files and folders in `folder` that this fit owns; grows
    memo: Callable[[str, Pixels, Compute], list[Array]] = anew  # computes once what several fits need of a tile
    images: Sequence[Path] = ()  # every file of the data set, the test's too: images from elsewhere are none of them


QUIET = Run()


class Forecast(NamedTuple):
    """What a fit is expected to take, said before it starts."""

    seconds: float
    megabytes: float  # at the peak, beyond what the process holds already


class Detector(Protocol):
    """Learns from tiles of good parts and ends as one ONNX graph."""

    name: ClassVar[str]
    position_aware: ClassVar[bool]  # knows where in the image a patch lies, so cannot work on tiles cut from it
    defects: ClassVar[Need]  # of the class; an instance may need others by its settings
    square: ClassVar[bool]  # takes square tiles only
    sizes: ClassVar[dict[str, int]]  # preset → geometry.size where the recipe gives none; geometry's default where none
    times: ClassVar[dict[str, float]]  # preset → time of a picture as a multiple of the fastest preset's, about
    quick: ClassVar[bool]  # a fit takes seconds, so that a calibration can be crossed without being asked for
    Config: ClassVar[type[BaseModel]]
    presets: ClassVar[dict[str, dict[str, Any]]]  # name → settings that differ from the defaults; the first is usual
    stride: int  # pixels of a tile between neighbouring positions of the map before it is enlarged
    curve: str  # after a fit by gradient: how the loss fell, as CSV; else empty

    def __init__(self, config: Any, seed: int) -> None:
        """Take the settings; nothing is learnt yet."""
        ...

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate time and memory of `fit` from a few timed steps."""
        ...

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Learn from good tiles; a second call forgets the first."""
        ...

    def score(self, tiles: Pixels) -> Scores:
        """Score without the graph; only the export gate and the tests compare with this."""
        ...

    def graph(self) -> "onnx.ModelProto":
        """tiles (n, h, w, c) uint8 or uint16 → score float32 (n,), map float32 (n, h, w)."""
        ...


class DetectorSettings(BaseModel):
    """Settings of a detector: fields with a docstring each; what is unknown or of another type is refused."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, use_attribute_docstrings=True)


class NumpyDetector:
    """What detectors that are fitted without gradients have in common. `fit` sets `_fitted` when it is done."""

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
        """Take the settings; nothing is learnt yet."""
        self.config = config
        self.seed = seed
        self._fitted = False

    def _require_fit(self) -> None:
        if not self._fitted:
            raise unfitted(self.name)


def unfitted(name: str) -> TrainingError:
    """Say that a detector was asked for what only a fitted one can do."""
    return TrainingError(f"this {name} is not fitted; expected a fitted detector. Call fit(tiles) first.")


def no_tiles() -> TrainingError:
    """Say that there is nothing to learn from."""
    return TrainingError("no training tiles; expected at least one image of a good part. Add good images.")
