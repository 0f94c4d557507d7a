"""Memory of a training step by gradient, measured by one step on random tiles.

The fitted detector is useless, but its cost is that of a real one.
"""

import sys
import weakref
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from andon import detectors
from andon.detector import REQUIRED, Defects, Detector, Labelled, Run
from andon.errors import AndonError
from andon.inspection import Pixels
from andon.recipe import Recipe
from andon.training.train import construct

if TYPE_CHECKING:
    import torch

    from andon.nn.learned import Network

TILES = 16  # random tiles
BATCHES = (1, 2, 8)  # tiles in the measured step: the smallest batch that the detector can learn from
A_MOMENT = 1e-9  # seconds of training: one step, independent of the settings


class Learning(NamedTuple):
    """Memory of training by gradient."""

    backward: int  # bytes that automatic differentiation saves, for one tile
    weights: int  # bytes of all networks of the fitted detector
    network: "Network | None"  # the exported network, if it is the whole graph


class RandomTiles:
    """Random tiles, and as many tiles of defects with masks for detectors that need them."""

    def __init__(
        self, count: int, shape: tuple[int, int], channels: int = 3, depth: int = 8, labelled: bool = False
    ) -> None:
        """Draw `count` tiles with a fixed seed."""
        self.shape, self.side, self.channels, self.depth = shape, shape[0], channels, depth
        self.groups: Sequence[int] = range(count)
        rng = np.random.default_rng(0)
        kind = np.uint8 if depth == 8 else np.uint16
        self._tiles: Pixels = rng.integers(0, 2**depth, (count, *shape, channels), dtype=kind)
        self.defects: Defects | None = RandomDefects(self._tiles) if labelled else None

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        return self._tiles[list(rows)]

    def __iter__(self) -> Iterator[Pixels]:
        return (self._tiles[start : start + 8] for start in range(0, len(self), 8))


class RandomDefects:
    """The same tiles, with their upper left quarter as the mask."""

    def __init__(self, tiles: Pixels) -> None:
        """Take the tiles (n, t, t, c)."""
        self._tiles = tiles
        self.groups: Sequence[int] = range(len(tiles))

    def __len__(self) -> int:
        return len(self._tiles)

    def __getitem__(self, rows: Sequence[int]) -> Labelled:
        tiles = self._tiles[list(rows)]
        masks, half = np.zeros(tiles.shape[:3], bool), tiles.shape[1] // 2
        masks[:, :half, :half] = True
        return Labelled(tiles, masks)

    def __iter__(self) -> Iterator[Labelled]:
        yield self[range(len(self))]


def fit_on_noise(recipe: Recipe, channels: int, depth: int) -> tuple[Detector, Learning | None]:
    """Fit a detector on random tiles; by gradient in one step on one tile, or on more if it cannot learn from one.

    With more tiles the memory is divided by their number. AndonError or ValueError when it cannot learn from random
    tiles.
    """
    for count in BATCHES:
        try:
            model, saved = _with_batch(recipe, count), SavedTensors()
            tiles = RandomTiles(TILES, recipe.geometry.input, channels, depth, labelled=model.defects in REQUIRED)
            with saved.watch():
                model.fit(tiles, Run(device="cpu", seconds=A_MOMENT))
        except (AndonError, ValueError):  # ValueError comes from batch normalisation
            if count == BATCHES[-1]:
                raise
            continue
        return model, _learning(model, saved, count) if model.curve else None
    raise AssertionError


def _learning(model: Detector, saved: "SavedTensors", count: int) -> Learning:
    import torch

    from andon.nn.learned import LearnedDetector, Network

    networks = [value for value in vars(model).values() if isinstance(value, torch.nn.Module)]
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    weights = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    whole = isinstance(model, LearnedDetector) and type(model).graph is LearnedDetector.graph
    network = next((each for each in networks if whole and isinstance(each, Network)), None)
    return Learning(saved.peak(set(weights)) // count, sum(weights.values()), network)


def _with_batch(recipe: Recipe, count: int) -> Detector:
    """The detector of a recipe, with batches of `count` tiles."""
    settings = recipe.detector.settings
    if "batch" in detectors.get(recipe.detector.name).Config.model_fields:
        settings = {**settings, "batch": count}
    choice = recipe.detector.model_copy(update={"settings": settings})
    return construct(recipe.model_copy(update={"detector": choice}))[0]


class SavedTensors:
    """The memory that automatic differentiation saves for the backward pass."""

    def __init__(self) -> None:
        """Start with an empty log."""
        self._log: list[tuple[int, int]] = []  # address and bytes of a storage; negative bytes when it is released

    def watch(self) -> AbstractContextManager[Any]:
        """Log all tensors saved inside the block; does nothing if no detector has imported torch."""
        if "torch" not in sys.modules:
            return nullcontext()
        import torch

        return torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)

    def pack(self, tensor: "torch.Tensor") -> "SavedTensor":
        """Log that a tensor is saved, and when it is released."""
        saved, storage = SavedTensor(tensor), tensor.untyped_storage()
        with suppress(RuntimeError):  # a tensor without a storage, as in an export during the fit
            address, size = storage.data_ptr(), storage.nbytes()
            self._log.append((address, size))
            weakref.finalize(saved, self._log.append, (address, -size))
        return saved

    def unpack(self, saved: "SavedTensor") -> "torch.Tensor":
        """Return the saved tensor."""
        return saved.tensor

    def peak(self, exclude: Collection[int]) -> int:
        """Peak of the saved bytes; each storage counts once, and those at the addresses `exclude` do not count."""
        users: Counter[int] = Counter()
        current = peak = 0
        for address, size in self._log:
            before = users[address]
            users[address] += 1 if size > 0 else -1
            if address not in exclude and 0 in (before, users[address]):
                current += size
                peak = max(peak, current)
        return peak


class SavedTensor:
    """One saved tensor."""

    def __init__(self, tensor: "torch.Tensor") -> None:
        """Hold the tensor."""
        self.tensor = tensor
