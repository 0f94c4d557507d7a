"""patch-autoencoder: deep features of the error map of a patch-wise autoencoder, compared with those of good parts.

Paper: Saeedi & Giusti, "Anomaly Detection for Industrial Inspection using Convolutional Autoencoder and Deep
Feature-based One-class Classification", VISAPP 2022; its method "CPCAE" with k-NN. Written from the paper; no code of
others. Symbols: E encoder, D decoder, z latent vector of a patch, x̂ = D(E(x)) reconstruction, R(x, x̂) error map, λ
weight of the sparsity, a activations of the bottleneck, F pre-trained network, f = F(R) embedding, N_f its k nearest
neighbours in the training set.

An image is reduced and cut into overlapping patches. One autoencoder rebuilds all patches; the number of the patch is
an additional input, the condition. The patches are joined again, and the difference to the full-size image is the
anomaly map. An ImageNet network extracts features of that map. The score is the distance of these features to those of
the maps of good images.

Differs from the paper:
- EfficientNet-Lite0 up to stride 16 in place of Xception before its global pooling; `network` and `stages` select
  another.
- The numbers of layers, channels, latent values and patches, the reduction, λ and the length of the training are our
  own; the paper does not state them. Errors and activations enter the loss as means, so that settings suit every
  resolution.
- The paper shows the pooling layer in a figure without an explanation: "parallel and cascade poolings along with
  concatenation", three times the features of one global maximum. Ours concatenates the global maximum, the global
  maximum of local averages, and the global average of local maxima.
- The input of the feature network is the error of each channel, |x − x̂|. The anomaly map is its root mean square over
  the channels. The score belongs to the whole image and is not computed from the map.
- The standard deviation of a feature has a lower limit. The paper does not say what it does with a constant feature.
- The embeddings of the good images are computed without augmentation, even if training uses it.

`score = "error"` is the comparison method "AE(L2)" of the paper's section 4.4: the same network with its patches and
condition; the score is the mean of the error map, and there are no deep features.
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
        "score",
        "network",
        "stages",
        "pooling",
        "window",
        "neighbours",
        "floor",
    }

    shrink: Annotated[int, Field(ge=1)] = 2
    """Factor by which the side of an image is reduced before patches are cut."""
    patch: Annotated[int, Field(ge=SMALLEST)] = 64
    """Side of a patch, pixels of the reduced image."""
    step: Annotated[int, Field(ge=1)] = 32
    """Greatest distance between neighbouring patches, pixels of the reduced image; below `patch` they overlap."""
    condition: bool = True
    """Whether the number of the patch is an input of encoder and decoder."""
    width: Annotated[int, Field(ge=1)] = 32
    """Channels of the first layer; each next layer has twice as many, up to `widest`."""
    widest: Annotated[int, Field(ge=1)] = 256
    """Greatest number of channels of a layer."""
    latent: Annotated[int, Field(ge=1)] = 64
    """Number of values of the latent vector of a patch."""
    sparsity: Annotated[float, Field(ge=0)] = 1e-4
    """λ, weight of the mean absolute value of the latent vector in the loss; 0: none."""
    score: Literal["knn", "error"] = "knn"
    """Image score: distance of the error map's deep features to those of good images (knn), or its mean (error)."""
    network: str = "efficientnet-lite0"
    """Name of a feature graph; `andon features list` lists them."""
    stages: Annotated[tuple[int, ...], Field(min_length=1, strict=False)] = (10,)
    """Numbers of the blocks of the network whose features are concatenated."""
    pooling: Literal["source", "max"] = "source"
    """Pooling of deep features: that of the paper (source), or the global maximum alone (max)."""
    window: Annotated[int, Field(ge=2)] = 3
    """Side of the window of the paper's local poolings, positions."""
    neighbours: Annotated[int, Field(ge=1)] = 15
    """k, number of nearest good images; the score is their mean distance."""
    floor: Annotated[float, Field(gt=0, le=1)] = 0.01
    """Lower limit of a feature's standard deviation, as a share of the mean standard deviation."""


class PatchNetwork(Network):
    """The autoencoder of patches, the part that torch trains. Its score is the mean of its map."""

    rows: Tensor  # (across · p,), row or column of the reduced image for each row or column of the canvas of patches
    joining: Tensor  # (small, across · p), matrix from the canvas to the reduced image; overlaps are averaged
    number: Tensor  # (patches, 1), number of each patch divided by the count of patches

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
        """Tiles (n, c, t, t) → overlapping patches (n · patches, c, p, p) of the reduced image, row by row."""
        small = F.avg_pool2d(tiles, self.config.shrink)
        canvas = small.index_select(2, self.rows).index_select(3, self.rows)
        k, p = self.across, self.config.patch
        patches = canvas.reshape(-1, self.channels, k, p, k, p).permute(0, 2, 4, 1, 3, 5)
        return patches.reshape(-1, self.channels, p, p)

    def join(self, patches: Tensor) -> Tensor:
        """Join patches (n · patches, c, p, p), average overlaps, and enlarge: (n, c, t, t)."""
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
        if self.config.score == "knn":
            features.require_multiple([side], self._stages)
        return PatchNetwork(side, channels, self.config)

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate time and memory of `fit` from a few timed steps and one batch of deep features."""
        if self.config.score == "error":
            return super().forecast(tiles, run)
        neighbours.require(len(tiles), self.config.neighbours)
        trained = super().forecast(tiles, run)
        extract, batch = features.Extractor(self.config.network, self.config.stages), next(iter(tiles))
        start = time.perf_counter()
        width = sum(x.shape[1] for x in extract(batch)) * (3 if self.config.pooling == "source" else 1)
        seconds = (time.perf_counter() - start) / len(batch) * len(tiles)
        return Forecast(trained.seconds + seconds, trained.megabytes + 8 * len(tiles) * width / 1e6)

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Train the autoencoder on good tiles, then store the embeddings of their error maps."""
        if self.config.score == "error":
            return super().fit(tiles, run)
        neighbours.require(len(tiles), self.config.neighbours)
        super().fit(tiles, run)
        source, outputs = self._rebuild()
        embed = runtime.session(spox.build({"tiles": source}, {"embedding": self._embed(source, outputs)}))
        rows: list[Array] = []
        for batch in tiles:
            rows += list(embed.run(None, {"tiles": batch})[0])
            run.progress("embeddings", len(rows), len(tiles))
        self._good = Neighbours.learn(np.stack(rows), self.config.neighbours, self.config.floor)
        self._whole = None
        return self

    def score(self, tiles: Pixels) -> Scores:
        """Score tiles (n, t, t, c) with torch and NumPy; only the feature graph runs on ONNX Runtime."""
        if self.config.score == "error":
            return super().score(tiles)
        network, extract = self._fitted(), runtime.session(features.load(self.config.network, self.config.stages))
        assert self._good is not None
        image, pixel = [], []
        for start in range(0, len(tiles), TILES_AT_ONCE):
            batch = floats(tiles[start : start + TILES_AT_ONCE])
            with torch.no_grad():
                _, error, rebuilt, _ = network(batch)
            errors = (2 * (batch - rebuilt).abs() - 1).expand(-1, 3, -1, -1).numpy()  # |x − x̂| in [-1, 1]
            maps = [torch.from_numpy(x) for x in extract.run([s.name for s in self._stages], {"images": errors})]
            image.append(self._good.nearest(self._pool(maps).numpy())[0])
            pixel.append(error.numpy())
        return Scores(np.concatenate(image), np.concatenate(pixel))

    def graph(self) -> onnx.ModelProto:
        """tiles (n, t, t, c) uint8 or uint16 → score (n,), map (n, t, t), reconstruction, latent, embedding.

        The reconstruction (n, t, t, c) is float32 in [0, 1]; latent (n, …) and embedding (n, d) are for comparisons.
        With `score = "error"` there is no embedding.
        """
        if self.config.score == "error":
            return super().graph()
        self._fitted()
        assert self._good is not None
        if self._whole is None:
            tiles, outputs = self._rebuild()
            outputs["embedding"] = self._good.standardise(self._embed(tiles, outputs))
            outputs["score"], _ = self._good.search(outputs["embedding"])  # eq. 4
            self._whole = spox.build({"tiles": tiles}, outputs)
        return self._whole

    def _rebuild(self) -> tuple[Var, dict[str, Var]]:
        """Begin a graph: its tiles, and the outputs of the autoencoder."""
        side, channels, depth = self._shape
        tiles = input_tiles((side, side), channels, depth)
        return tiles, dict(spox.inline(super().graph())(tiles=tiles))

    def _embed(self, tiles: Var, outputs: dict[str, Var]) -> Var:
        """Add to a graph: tiles and reconstruction → f (n, d), the deep features of the error map."""
        side, channels, depth = self._shape
        values = op.mul(op.cast(tiles, to=np.float32), op.const(np.float32(1 / (2**depth - 1))))
        error = op.transpose(op.abs(op.sub(values, outputs["reconstruction"])), perm=[0, 3, 1, 2])  # (n, c, t, t)
        scaled = op.sub(op.mul(error, op.const(np.float32(2))), op.const(np.float32(1)))
        images = op.concat([scaled] * 3, axis=1) if channels == 1 else scaled
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

    def _pool(self, maps: list[Tensor]) -> Tensor:
        """Feature maps (n, c_s, g_s, g_s) → one vector (n, d) for each image; as in the graph, but in torch."""
        pooled: list[Tensor] = []
        for x in maps:
            pooled.append(x.amax(dim=(2, 3)))
            if self.config.pooling == "source":
                window = min(self.config.window, x.shape[2])
                pooled.append(F.avg_pool2d(x, window, 1).amax(dim=(2, 3)))
                pooled.append(F.max_pool2d(x, window, 1).mean(dim=(2, 3)))
        return torch.cat(pooled, dim=1)


def _small(side: int, config: Settings) -> int:
    """Return the side of the reduced image. TrainingError when shrink, patch and step do not fit the tile."""
    if side % config.shrink:
        raise TrainingError(
            f"tiles of {side} px cannot be reduced by the factor shrink = {config.shrink}; expected a divisor of "
            f"{side}. Change shrink, or geometry.size."
        )
    small = side // config.shrink
    if config.patch > small:
        raise TrainingError(
            f"patches of {config.patch} px from tiles of {side} px, reduced to {small} px; expected at most {small}. "
            "Lower patch or shrink, or raise geometry.size."
        )
    if config.step > config.patch:
        raise TrainingError(
            f"patches of {config.patch} px every {config.step} px leave gaps; expected a step of at most "
            f"{config.patch}. Lower step, or raise patch."
        )
    return small
