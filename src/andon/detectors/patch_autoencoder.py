"""patch-autoencoder: deep features of what a patch-wise autoencoder cannot rebuild, against those of good parts.

Paper: Saeedi & Giusti, "Anomaly Detection for Industrial Inspection using Convolutional Autoencoder and Deep
Feature-based One-class Classification", VISAPP 2022; its method "CPCAE" with k-NN. Written from the paper; no code of
others. Symbols: E encoder, D decoder, z latent vector of a patch, x̂ = D(E(x)) reconstruction, R(x, x̂) error map, λ
weight of the sparsity, a activations of the bottleneck, F pre-trained network, f = F(R) embedding, N_f its k nearest in
the training set.

A picture is made smaller and cut into overlapping patches; one autoencoder rebuilds them all, told by a number which
patch it has. The patches are put back, and the difference to the picture at its full size is the anomaly map. An
ImageNet network looks at that map, and the distance of its features to those of the good pictures' maps is the score.

Differs from the paper:
- EfficientNet-Lite0 up to stride 16 in place of Xception before its global pooling; others by `network` and `stages`.
- Numbers of layers, channels, latent values and patches, the shrinking, λ and the length of the training are not in the
  text; they are ours. Errors and activations enter the loss as means, so that settings hold at every resolution.
- The pooling layer is a figure without a text: "parallel and cascade poolings along with concatenation", three times
  the features of one global maximum. Ours: the global maximum beside two cascades, the global maximum of local
  averages and the global average of local maxima: the strongest trace, the strongest wide one, and how common any are.
- The network sees the error of each channel, |x − x̂|; the anomaly map is its root mean square over the channels, the
  Euclidean distance of the colours. The score stands for the whole image and is not read off the map.
- A feature that varied little in training has a floor under its deviation; of a constant one the paper says nothing.
- The embeddings of the good images are those of their maps as they are, also where training varied them.
"""

import math
import time
from typing import Annotated, Any, ClassVar, Literal, Self

import numpy as np
import onnx
import spox
import spox.opset.ai.onnx.v17 as op
import torch
from pydantic import BaseModel, Field
from spox import Var
from torch import Tensor, nn
from torch.nn import functional as F

from andon.detector import QUIET, Forecast, Run, Tiles
from andon.engines import runtime
from andon.errors import TrainingError
from andon.graphs import features, neighbours
from andon.graphs.neighbours import Neighbours
from andon.graphs.parts import input_tiles
from andon.inspection import Array, Pixels, Scores
from andon.nn.convolutional import SMALLEST, decoder, descent, halvings
from andon.nn.data import floats
from andon.nn.learned import TILES_AT_ONCE, LearnedDetector, Network
from andon.nn.loop import Schedule


class Settings(Schedule):
    """Settings of `patch-autoencoder`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {
        "network",
        "stages",
        "pooling",
        "window",
        "neighbours",
        "floor",
    }

    shrink: Annotated[int, Field(ge=1)] = 2
    """Factor by which the picture's side is reduced before patches are cut."""
    patch: Annotated[int, Field(ge=SMALLEST)] = 64
    """Side of a patch, in pixels of the reduced picture."""
    step: Annotated[int, Field(ge=1)] = 32
    """Greatest distance between neighbouring patches, pixels; below `patch` they overlap."""
    condition: bool = True
    """Give the network the position of its patch."""
    width: Annotated[int, Field(ge=1)] = 32
    """Channels of the first layer; each next layer has twice as many, up to `widest`."""
    widest: Annotated[int, Field(ge=1)] = 256
    """The most channels that a layer has."""
    latent: Annotated[int, Field(ge=1)] = 64
    """Values of the latent vector of a patch."""
    sparsity: Annotated[float, Field(ge=0)] = 1e-4
    """λ, weight of the absolute values of the latent vector; 0: none."""
    network: str = "efficientnet-lite0"
    """Name of a feature graph; `andon features list` lists them."""
    stages: Annotated[tuple[int, ...], Field(min_length=1, strict=False)] = (10,)
    """Blocks of the network whose features are joined."""
    pooling: Literal["source", "max"] = "source"
    """Pooling of deep features: the paper's, or the global maximum alone."""
    window: Annotated[int, Field(ge=2)] = 3
    """Window of the paper's local poolings, positions a side."""
    neighbours: Annotated[int, Field(ge=1)] = 15
    """k, nearest good images whose mean distance is the score."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Least standard deviation of a feature, as a share of the mean deviation."""


class PatchNetwork(Network):
    """The autoencoder of patches: what torch learns. Its score is the mean of its map."""

    rows: Tensor  # (across · p,), which row or column of the smaller picture stands where on a canvas of patches
    joining: Tensor  # (small, across · p), takes such a canvas back, the mean of what overlaps
    number: Tensor  # (patches, 1), a patch's number over how many there are

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side). TrainingError when patches or features do not fit them."""
        super().__init__()
        self.config, self.side, self.channels = config, side, channels
        small = _small(side, config)
        self.across = math.ceil((small - config.patch) / config.step) + 1  # patches a side
        starts = torch.linspace(0, small - config.patch, self.across).round().long()
        rows = (starts[:, None] + torch.arange(config.patch)).flatten()
        covers = F.one_hot(rows, small).T.float()
        self.patches = self.across**2
        self.register_buffer("rows", rows, persistent=False)
        self.register_buffer("joining", covers / covers.sum(dim=1, keepdim=True), persistent=False)
        self.register_buffer("number", torch.arange(1, self.patches + 1)[:, None] / self.patches, persistent=False)

        grids, extra = halvings(config.patch, channels, config.width, config.widest), int(config.condition)
        self.down = descent(grids)
        self.encode = nn.Linear(grids.size + extra, config.latent)
        self.decode = decoder(grids, config.latent + extra, nn.Sigmoid())

    def cut(self, tiles: Tensor) -> Tensor:
        """Tiles (n, c, t, t) → overlapping patches (n · patches, c, p, p) of the smaller picture, row by row."""
        small = F.avg_pool2d(tiles, self.config.shrink)
        canvas = small.index_select(2, self.rows).index_select(3, self.rows)
        k, p = self.across, self.config.patch
        apart = canvas.reshape(-1, self.channels, k, p, k, p).permute(0, 2, 4, 1, 3, 5)
        return apart.reshape(-1, self.channels, p, p)

    def join(self, patches: Tensor) -> Tensor:
        """Put patches (n · patches, c, p, p) back, overlaps averaged, and enlarge: (n, c, t, t)."""
        k, p = self.across, self.config.patch
        canvas = patches.reshape(-1, k, k, self.channels, p, p).permute(0, 3, 1, 4, 2, 5)
        canvas = canvas.reshape(-1, self.channels, k * p, k * p)
        small = self.joining @ canvas @ self.joining.T
        return F.interpolate(small, size=(self.side, self.side), mode="bilinear", align_corners=False)

    def rebuild(self, patches: Tensor) -> tuple[Tensor, Tensor]:
        """Return x̂ (m, c, p, p) of patches and the bottleneck's activations (m, latent); m = n · patches."""
        flat = self.down(patches)
        if not self.config.condition:
            latent = self.encode(flat)
            return self.decode(latent), latent  # eq. 1: x̂ = D(E(x)) = D(z)
        number = self.number.repeat(flat.shape[0] // self.patches, 1).to(flat)
        latent = self.encode(torch.cat([flat, number], dim=1))
        return self.decode(torch.cat([latent, number.to(latent)], dim=1)), latent

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Eq. 3: L2(x, x̂) + λ Σ |a|, as means."""
        patches = self.cut(tiles)
        rebuilt, latent = self.rebuild(patches)
        return ((patches - rebuilt.float()) ** 2).mean() + self.config.sparsity * latent.abs().mean()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → mean error (n,), map (n, t, t), reconstruction (n, c, t, t), z (n, patches · latent)."""
        patches, latent = self.rebuild(self.cut(tiles))
        rebuilt = self.join(patches)
        error = ((tiles - rebuilt) ** 2).mean(dim=1).sqrt()
        return error.mean(dim=(1, 2)), error, rebuilt, latent.reshape(-1, self.patches * self.config.latent)


class PatchAutoencoder(LearnedDetector):
    """A conditional autoencoder of patches, and k-NN on deep features of its error maps."""

    name: ClassVar[str] = "patch-autoencoder"
    position_aware: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"width": 8, "widest": 128, "steps": 1000, "learning_rate": 2e-3},
        "full": {"width": 32, "widest": 512, "latent": 128, "batch": 16, "steps": 20_000},
    }

    def __init__(self, config: Settings, seed: int) -> None:
        """Take the settings; nothing is learnt yet."""
        super().__init__(config, seed)
        self._stages = features.select(config.network, config.stages)
        self._good: Neighbours | None = None
        self._whole: onnx.ModelProto | None = None

    def network(self, side: int, channels: int) -> PatchNetwork:
        """Build the untrained network for tiles (n, channels, side, side)."""
        features.require_multiple([side], self._stages)
        return PatchNetwork(side, channels, self.config)

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate time and memory of `fit` from a few timed steps and one batch of deep features."""
        neighbours.require(len(tiles), self.config.neighbours)
        trained = super().forecast(tiles, run)
        extract, batch = features.Extractor(self.config.network, self.config.stages), next(iter(tiles))
        start = time.perf_counter()
        width = sum(x.shape[1] for x in extract(batch)) * (3 if self.config.pooling == "source" else 1)
        seconds = (time.perf_counter() - start) / len(batch) * len(tiles)
        return Forecast(trained.seconds + seconds, trained.megabytes + 8 * len(tiles) * width / 1e6)

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Learn to rebuild good tiles, then remember the embeddings of their error maps."""
        neighbours.require(len(tiles), self.config.neighbours)
        super().fit(tiles, run)
        source, found = self._rebuilt()
        embed = runtime.session(spox.build({"tiles": source}, {"embedding": self._embedding(source, found)}))
        rows: list[Array] = []
        for batch in tiles:
            rows += list(embed.run(None, {"tiles": batch})[0])
            run.progress("embeddings", len(rows), len(tiles))
        self._good = Neighbours.learn(np.stack(rows), self.config.neighbours, self.config.floor)
        self._whole = None
        return self

    def score(self, tiles: Pixels) -> Scores:
        """Score tiles (n, t, t, c) with torch and NumPy; the feature graph alone runs as it does in the graph."""
        network, extract = self._fitted(), runtime.session(features.load(self.config.network, self.config.stages))
        assert self._good is not None
        image, pixel = [], []
        for start in range(0, len(tiles), TILES_AT_ONCE):
            some = floats(tiles[start : start + TILES_AT_ONCE])
            with torch.no_grad():
                _, error, rebuilt, _ = network(some)
            seen = (2 * (some - rebuilt).abs() - 1).expand(-1, 3, -1, -1).numpy()  # |x − x̂| in [-1, 1]
            maps = [torch.from_numpy(x) for x in extract.run([s.name for s in self._stages], {"images": seen})]
            image.append(self._good.nearest(self._pooled(maps).numpy())[0])
            pixel.append(error.numpy())
        return Scores(np.concatenate(image), np.concatenate(pixel))

    def graph(self) -> onnx.ModelProto:
        """tiles (n, t, t, c) uint8 or uint16 → score (n,), map (n, t, t), reconstruction, latent, embedding.

        The reconstruction (n, t, t, c) is float32 in [0, 1]; latent (n, …) and embedding (n, d) are for comparisons.
        """
        self._fitted()
        assert self._good is not None
        if self._whole is None:
            tiles, found = self._rebuilt()
            found["embedding"] = self._good.standardise(self._embedding(tiles, found))
            found["score"], _ = self._good.search(found["embedding"])  # eq. 4
            self._whole = spox.build({"tiles": tiles}, found)
        return self._whole

    def _rebuilt(self) -> tuple[Var, dict[str, Var]]:
        """Begin a graph: its tiles, and what the autoencoder makes of them."""
        side, channels, depth = self._shape
        tiles = input_tiles((side, side), channels, depth)
        return tiles, dict(spox.inline(super().graph())(tiles=tiles))

    def _embedding(self, tiles: Var, found: dict[str, Var]) -> Var:
        """Add to a graph the way from tiles and reconstruction to f (n, d), the deep features of the error map."""
        side, channels, depth = self._shape
        values = op.mul(op.cast(tiles, to=np.float32), op.const(np.float32(1 / (2**depth - 1))))
        error = op.transpose(op.abs(op.sub(values, found["reconstruction"])), perm=[0, 3, 1, 2])  # (n, c, t, t)
        seen = op.sub(op.mul(error, op.const(np.float32(2))), op.const(np.float32(1)))
        images = op.concat([seen] * 3, axis=1) if channels == 1 else seen
        maps = spox.inline(features.load(self.config.network, self.config.stages))(images=images)
        pooled: list[Var] = []
        for stage in self._stages:
            x = maps[stage.name]
            pooled.append(op.global_max_pool(x))
            if self.config.pooling == "source":
                window = (min(self.config.window, side // stage.stride),) * 2
                pooled.append(op.global_max_pool(op.average_pool(x, kernel_shape=window)))
                pooled.append(op.global_average_pool(op.max_pool(x, kernel_shape=window)[0]))
        return op.flatten(op.concat(pooled, axis=1))

    def _pooled(self, maps: list[Tensor]) -> Tensor:
        """Feature maps (n, c_s, g_s, g_s) → one vector (n, d) an image; the same as in the graph, in torch."""
        pooled: list[Tensor] = []
        for x in maps:
            pooled.append(x.amax(dim=(2, 3)))
            if self.config.pooling == "source":
                window = min(self.config.window, x.shape[2])
                pooled.append(F.avg_pool2d(x, window, 1).amax(dim=(2, 3)))
                pooled.append(F.max_pool2d(x, window, 1).mean(dim=(2, 3)))
        return torch.cat(pooled, dim=1)


def _small(side: int, config: Settings) -> int:
    """Return the side of the smaller picture."""
    if side % config.shrink:
        raise TrainingError(
            f"tiles of {side} px cannot be shrunk {config.shrink} times; expected a divisor. Change shrink or the "
            "recipe's size."
        )
    small = side // config.shrink
    if config.patch > small:
        raise TrainingError(
            f"patches of {config.patch} px from tiles of {side} px, shrunk to {small}; expected at most {small}. "
            "Lower patch or shrink, or raise the recipe's size."
        )
    if config.step > config.patch:
        raise TrainingError(
            f"patches of {config.patch} px every {config.step} px leave gaps; expected a step of at most "
            f"{config.patch}. Lower step, or raise patch."
        )
    return small
