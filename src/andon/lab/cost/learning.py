"""What a step of training by gradient takes, learnt by taking one on random tiles.

What a detector then finds is worthless, and what it costs is what it would cost.
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

TILES = 16  # that a detector is fitted on
BATCHES = (1, 2, 8)  # tiles in the step that is watched: as few as a detector can learn from
A_MOMENT = 1e-9  # seconds of training by gradient: one step, whatever the settings say


class Learning(NamedTuple):
    """What learning by gradient takes."""

    backward: int  # bytes
    weights: int  # bytes, of all networks the fitted detector keeps
    network: "Network | None"  # the one that is exported, where the graph is a network and nothing else


class RandomTiles:
    """Noise to fit on, and as many tiles of defects with masks for detectors that need some."""

    def __init__(
        self, count: int, shape: tuple[int, int], channels: int = 3, depth: int = 8, labelled: bool = False
    ) -> None:
        """Draw `count` tiles, always the same."""
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
    """The same tiles once more, their upper left quarter marked."""

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


def fitted(recipe: Recipe, channels: int, depth: int) -> tuple[Detector, Learning | None]:
    """Fit a detector, by gradient for one step on one tile; on more, and divide, where it cannot learn from one.

    Errors: AndonError or ValueError when it cannot learn from random tiles at all.
    """
    for count in BATCHES:
        try:
            model, held = _with_batch(recipe, count), Held()
            tiles = RandomTiles(TILES, recipe.geometry.input, channels, depth, labelled=model.defects in REQUIRED)
            with held.watch():
                model.fit(tiles, Run(device="cpu", seconds=A_MOMENT))
        except (AndonError, ValueError):  # the latter from batch normalisation
            if count == BATCHES[-1]:
                raise
            continue
        return model, _learning(model, held, count) if model.curve else None
    raise AssertionError


def _learning(model: Detector, held: "Held", count: int) -> Learning:
    import torch

    from andon.nn.learned import LearnedDetector, Network

    networks = [value for value in vars(model).values() if isinstance(value, torch.nn.Module)]
    tensors = [tensor for network in networks for tensor in (*network.parameters(), *network.buffers())]
    weights = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in tensors}
    whole = isinstance(model, LearnedDetector) and type(model).graph is LearnedDetector.graph
    network = next((each for each in networks if whole and isinstance(each, Network)), None)
    return Learning(held.most(set(weights)) // count, sum(weights.values()), network)


def _with_batch(recipe: Recipe, count: int) -> Detector:
    """The detector, with batches of so many tiles."""
    settings = recipe.detector.settings
    if "batch" in detectors.get(recipe.detector.name).Config.model_fields:
        settings = {**settings, "batch": count}
    chosen = recipe.detector.model_copy(update={"settings": settings})
    return construct(recipe.model_copy(update={"detector": chosen}))[0]


class Held:
    """The memory that automatic differentiation keeps for the way back, while a network learns."""

    def __init__(self) -> None:
        """Nothing is kept yet."""
        self._log: list[tuple[int, int]] = []  # address of a memory, its bytes; negative when it is let go

    def watch(self) -> AbstractContextManager[Any]:
        """Note all that is kept inside the block; nothing where no detector has loaded torch."""
        if "torch" not in sys.modules:
            return nullcontext()
        import torch

        return torch.autograd.graph.saved_tensors_hooks(self.pack, self.unpack)

    def pack(self, tensor: "torch.Tensor") -> "Keeper":
        """Note what is kept, and when it is let go."""
        keeper, storage = Keeper(tensor), tensor.untyped_storage()
        with suppress(RuntimeError):  # a tensor without a memory, as an export within the fit has them
            address, size = storage.data_ptr(), storage.nbytes()
            self._log.append((address, size))
            weakref.finalize(keeper, self._log.append, (address, -size))
        return keeper

    def unpack(self, keeper: "Keeper") -> "torch.Tensor":
        """Give back what was kept."""
        return keeper.tensor

    def most(self, besides: Collection[int]) -> int:
        """The most bytes kept at one time, each memory counted once however many keep it; some addresses left out."""
        keepers: Counter[int] = Counter()
        now = most = 0
        for address, size in self._log:
            before = keepers[address]
            keepers[address] += 1 if size > 0 else -1
            if address not in besides and 0 in (before, keepers[address]):
                now += size
                most = max(most, now)
        return most


class Keeper:
    """One tensor that is kept."""

    def __init__(self, tensor: "torch.Tensor") -> None:
        """Take it."""
        self.tensor = tensor
