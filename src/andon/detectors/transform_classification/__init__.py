"""transform-classification: how badly a network that knows good parts tells which transform was applied to a picture.

Papers: "Real-world industrial anomaly detection" (slides; morphological transforms, kernel-size prediction loss), here
[0]; Kim, Hong & Choe, "Deep morphological anomaly detection based on angular margin loss", Applied Sciences 11(14),
6545, 2021, of which we had the abstract, here [1]. Geometry, the Dirichlet score and the trunk: Golan & El-Yaniv, "Deep
Anomaly Detection Using Geometric Transformations", NeurIPS 2018; Zagoruyko & Komodakis, "Wide Residual Networks", BMVC
2016. Angular margins: Liu et al., "SphereFace", CVPR 2017; Deng et al., "ArcFace", CVPR 2019; Wang et al., "CosFace",
CVPR 2018. Dirichlet: Minka, "Estimating a Dirichlet distribution", 2000. Written from the papers; no code of others.
Symbols: g one of N transforms, n₁ n₂ n₃ its operation, width and height, F the network, θ the angle between a feature
and the weights of its class, m margin, s scale, α a Dirichlet's concentrations, y a softmax vector.

Differs from the paper:
- An erosion and a dilation by 1×1 are both the picture itself. As in the source both are classes in training, but the
  error does not count them: the guess between them is a throw of dice, and outweighs the errors that mean something.
- Rectangles are in pixels of the tile; what the transforms made is then brought down to `side` pixels. A crack of a
  pixel is first widened by the erosion and then made small, so it survives; the other way round it would be gone.
- A step may draw some transforms of each tile (`draw`); the source takes all of them every time (draw = 0).
- Trunk, optimiser and length of training are not in [0] and [1]. Ours are Wide-ResNets, with a stem that may stride.
- The angular losses are on normalised features with a scale, for all three alike; SphereFace has the feature's length
  for a scale. Past π its ψ(θ) = (−1)ᵏ cos(mθ) − 2k goes on falling, and we let cos(θ + m) go on likewise. SphereFace
  anneals the share λ of the plain cosine from 1000 to 5; ours is 5 (`blend`) from the start.
- Score and map are means over the transforms, not sums, so that scores of different families compare.
- The Dirichlet is fitted to all training tiles, whether early stopping held them out or not.
- The map is not in the sources: the heads are applied at every position of the trunk's last grid.
"""

import math
from collections.abc import Iterator, Sequence
from itertools import groupby, product
from typing import Annotated, Any, ClassVar, Literal, Self

import torch
from pydantic import AfterValidator, BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from andon.detector import QUIET, Forecast, Run, Tiles
from andon.detectors.transform_classification import dirichlet, morphology
from andon.detectors.transform_classification.morphology import OPERATIONS, Case, Operation
from andon.detectors.transform_classification.wide_resnet import WideResNet
from andon.errors import RecipeError
from andon.nn.data import floats
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule, choose
from andon.nn.resize import Resize

NAMED = {"type-1": (1, 28, 56), "type-2": (8, 28, 56), "type-3": (1, 8, 28, 56)}  # widths, and heights
MARGINS = {"multiplicative-angle": 4.0, "additive-angle": 0.5, "additive-cosine": 0.35}  # of the papers
GEOMETRY = list(product((0, 1, 2, 3), (0, 1), (-1, 0, 1), (-1, 0, 1)))  # quarter turns, flip, shift right, shift down
FEWEST = 10  # tiles: the least that a Dirichlet is fitted to
EDGE = 1e-6  # cosines are kept so far from ±1, where the angle has no gradient


def _different(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(f"{list(values)} has duplicates; every case must be another class. Leave each in once")
    return values


Sides = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False), AfterValidator(_different)]
Operations = Annotated[tuple[Operation, ...], Field(strict=False, min_length=1), AfterValidator(_different)]


def _depth(value: int) -> int:
    if value % 6 != 4:
        raise ValueError("must be 6 b + 4, with b blocks in each of three groups: 10, 16, 22, 28, …")
    return value


class Settings(Schedule):
    """Settings of `transform-classification`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"score", "at_once"}

    family: Literal["type-1", "type-2", "type-3", "morphology", "geometry"] = "type-3"
    """Family of transforms; "morphology" takes the next three settings."""
    operations: Operations = OPERATIONS
    """Operations of "morphology"."""
    widths: Sides = ()
    """Widths of the structuring elements of "morphology", pixels of the tile."""
    heights: Sides = ()
    """Their heights, pixels of the tile."""
    heads: Literal["product", "single"] = "product"
    """One softmax each for operation, width and height, or a single one for all transforms."""
    objective: Literal["cross-entropy", "multiplicative-angle", "additive-angle", "additive-cosine"] = "cross-entropy"
    """Loss: cross-entropy, or one of three with an angular margin."""
    scale: Annotated[float, Field(gt=0)] = 30.0
    """s of the angular losses."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """m of the angular losses; none: 4, 0.5 or 0.35, as published."""
    blend: Annotated[float, Field(ge=0)] = 5.0
    """λ of the multiplicative angle: (λ cos θ + ψ(θ)) / (1 + λ)."""
    depth: Annotated[int, Field(ge=10), AfterValidator(_depth)] = 10
    """Convolutions of the trunk, 6 b + 4."""
    channels: Annotated[int, Field(ge=1)] = 16
    """Channels of the stem; the three groups have 1, 2 and 4 times `widen` as many."""
    widen: Annotated[int, Field(ge=1)] = 1
    """Factor of the channels of the three groups."""
    stem: Literal[1, 2, 4] = 1
    """Stride of the stem, pixels."""
    side: Annotated[int, Field(ge=16)] = 64
    """Greatest side of the transformed tiles, pixels; larger ones are reduced to it."""
    draw: Annotated[int, Field(ge=0)] = 0
    """Greatest number of transforms of a tile in a step; 0: all."""
    at_once: Annotated[int, Field(ge=1)] = 64
    """Transforms of a tile that inspection evaluates at a time; it limits memory."""
    score: Literal["error", "dirichlet"] = "error"
    """Score: mean classification error, or Dirichlet score."""

    @model_validator(mode="after")
    def _lists(self) -> Self:
        if self.family != "morphology":
            if self.widths or self.heights or self.operations != OPERATIONS:
                raise ValueError(
                    f"operations, widths and heights are for family = 'morphology'; '{self.family}' has its own. "
                    "Leave them out, or change the family"
                )
        elif not self.widths or not self.heights:
            raise ValueError("family = 'morphology' needs widths and heights, such as [1, 8, 28]; one of them is empty")
        if not any(self.counted()):
            raise ValueError("an erosion and a dilation by 1 × 1 are identical. Use larger widths or heights")
        if len(self.labels()) < 2:
            raise ValueError(
                "this family has one transform; expected two or more, so that a network can distinguish them. Add "
                "values to a list"
            )
        return self

    def cases(self) -> list[Case]:
        """Return the morphological transforms; none for geometry."""
        if self.family == "geometry":
            return []
        widths = NAMED.get(self.family, self.widths)
        heights = NAMED.get(self.family, self.heights)
        return [Case(*case) for case in product(self.operations, widths, heights)]

    def labels(self) -> list[tuple[int, ...]]:
        """Return the labels of each transform, one a head: {n₁, n₂, n₃}, or the transform's number.

        A factor that has one value only has no head.
        """
        cases: Sequence[tuple[Any, ...]] = self.cases() or GEOMETRY
        if self.heads == "single":
            return [(number,) for number in range(len(cases))]
        values = [list(dict.fromkeys(factor)) for factor in zip(*cases, strict=True)]
        told = [factor for factor in range(len(values)) if len(values[factor]) > 1] or [0]
        return [tuple(values[factor].index(case[factor]) for factor in told) for case in cases]

    def counted(self) -> list[bool]:
        """Return which transforms the error counts: all but those that leave the picture as it is, if there are two."""
        whole = [case.width == case.height == 1 and case.operation != "gradient" for case in self.cases()]
        return [not same for same in whole] if sum(whole) > 1 else [True] * len(self.labels())


def geometric(tiles: Tensor, chosen: Sequence[int]) -> Tensor:
    """Apply geometric transforms to tiles (n, c, t, t): (n, chosen, c, t, t).

    Flipped, then shifted by a quarter of the side with reflection, then turned. `chosen` ascends.
    """
    side, shift, channels = tiles.shape[-1], tiles.shape[-1] // 4, tiles.shape[1]
    padded = F.pad(torch.cat([tiles, tiles.flip(3)], dim=1), (shift,) * 4, mode="reflect")
    shifted = padded.view(-1, 2, channels, *padded.shape[2:])
    for axis in (-2, -1):  # a shift right shows what lies to the left
        moved = [shifted.narrow(axis, shift * (1 - way), side) for way in (-1, 0, 1)]
        shifted = torch.stack(moved, dim=2)  # (n, flip, right, down, c, t, t) in the end
    shifted, found = shifted.flatten(1, 3), []
    for turns, numbers in groupby(chosen, lambda number: number // shifted.shape[1]):
        found.append(torch.rot90(shifted[:, [number % shifted.shape[1] for number in numbers]], turns, (3, 4)))
    return torch.cat(found, dim=1)


def falling(angle: Tensor) -> Tensor:
    """ψ = (−1)ᵏ cos(angle) − 2k for angles in [kπ, (k + 1)π]: the cosine, made to fall without end."""
    k = torch.floor(angle.detach() / math.pi)
    return (1 - 2 * (k % 2)) * torch.cos(angle) - 2 * k


class Head(nn.Module):
    """A softmax over classes; of the angular losses, over scaled cosines."""

    def __init__(self, features: int, classes: int, config: Settings) -> None:
        """Begin with small weights."""
        super().__init__()
        self.config, self.classes = config, classes
        self.angular = config.objective != "cross-entropy"
        self.linear = nn.Linear(features, classes, bias=not self.angular)

    def forward(self, features: Tensor) -> Tensor:
        """Features (…, f) → logits (…, classes), without a margin."""
        found: Tensor = self.config.scale * self._cosines(features) if self.angular else self.linear(features)
        return found

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of features (b, f) with labels (b,); the margin is taken off the label's logit."""
        if not self.angular:
            return F.cross_entropy(self.linear(features), labels)
        s, name, cosines = self.config.scale, self.config.objective, self._cosines(features)
        m = MARGINS[name] if self.config.margin is None else self.config.margin
        cosine = cosines.gather(1, labels[:, None])
        angle = torch.acos(cosine.clamp(EDGE - 1, 1 - EDGE))
        if name == "multiplicative-angle":  # ψ(θ), blended with cos θ
            blend = self.config.blend
            marked = (blend * cosine + falling(m * angle)) / (1 + blend)
        elif name == "additive-angle":
            marked = falling(angle + m)  # cos(θ + m)
        else:
            marked = cosine - m  # cos θ − m
        return F.cross_entropy(s * cosines.scatter(1, labels[:, None], marked), labels)

    def _cosines(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.linear.weight, dim=1))


class TransformNetwork(Network):
    """All transforms of a tile, a trunk and one or more heads."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side). RecipeError when a rectangle or the trunk does not fit."""
        super().__init__()
        self.config, self.cases = config, config.cases()
        largest = max((max(case.width, case.height) for case in self.cases), default=1)
        if largest > side:
            raise RecipeError(
                f"detector.settings: a rectangle of {largest} pixels is larger than the tile of {side}; expected at "
                f"most {side}. Use family = 'morphology' with shorter widths and heights, or a larger geometry.size."
            )
        small = min(side, config.side)
        if small < 8 * config.stem:
            raise RecipeError(
                f"detector.settings: a tile of {small} pixels is too small for a stem of stride {config.stem}; "
                f"expected at least {8 * config.stem}. Use a smaller stem, or a larger geometry.size and side."
            )
        labels = torch.tensor(config.labels())  # (N, heads)
        classes = [int(count) for count in labels.amax(dim=0) + 1]
        self.shrink = Resize(side, small)
        self.trunk = WideResNet(channels, config.channels, config.widen, config.depth, config.stem)
        self.heads = nn.ModuleList([Head(self.trunk.features, count, config) for count in classes])
        self.enlarge = Resize(math.ceil(small / (4 * config.stem)), side)
        self.register_buffer("labels", labels, persistent=False)
        self.labels: Tensor
        # What is read of log y for each transform: −weights · log y − constant, the error or minus a Dirichlet's log
        # density.
        self.register_buffer("constants", torch.zeros(len(labels)), persistent=False)
        self.constants: Tensor
        counted = torch.tensor(config.counted())
        self.counted = int(counted.sum())
        for head, count in enumerate(classes):
            weights = F.one_hot(labels[:, head], count).float() * counted[:, None]
            self.register_buffer(f"weights{head}", weights, persistent=False)

    def views(self, tiles: Tensor, chosen: Sequence[int]) -> Tensor:
        """Apply some transforms to tiles (n, c, t, t): (n, chosen, c, side, side), about zero; `chosen` ascends."""
        if self.cases:
            found = torch.stack(morphology.transform(tiles, [self.cases[number] for number in chosen]), dim=1)
        else:
            found = geometric(tiles, chosen)
        views: Tensor = 4 * self.shrink(found) - 2
        return views

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Sum of the heads' cross-entropies, averaged over the transforms of each tile."""
        count, drawn = len(self.labels), self.config.draw
        if 0 < drawn < count:
            # Of each tile its own, so that a step sees many of them.
            order = torch.rand(len(tiles), count, generator=generator, device=tiles.device).topk(drawn).indices
            order = order.sort(dim=1).values
            each = zip(torch.split(tiles, 1), order.tolist(), strict=True)
            views = torch.cat([self.views(tile, chosen) for tile, chosen in each])
            labels = self.labels[order.flatten()]
        else:
            views, labels = self.views(tiles, range(count)), self.labels.repeat(len(tiles), 1)
        features = self.trunk(views.flatten(0, 1)).mean(dim=(2, 3))
        with torch.autocast(tiles.device.type, enabled=False):  # angles need all their digits
            losses = [head.loss(features.float(), labels[:, j]) for j, head in enumerate(self._heads())]
        return torch.stack(losses).sum()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t)."""
        images, maps = [], []
        for part, features in self._features(tiles):
            images.append(self._read(features.mean(dim=(3, 4)), part).sum(dim=1))
            maps.append(self._read(features.movedim(2, 4), part).sum(dim=1))  # at every position
        # The constants last and all in one: taken off each transform, OpenVINO 2026.4 loses those of the score.
        constant = self.constants.mean()
        grid = torch.stack(maps).sum(dim=0) / self.counted - constant
        return torch.stack(images).sum(dim=0) / self.counted - constant, self.enlarge(grid[:, None])[:, 0]

    def errors(self, tiles: Tensor) -> Tensor:
        """Return what each transform adds to the score: (n, N)."""
        found = [self._read(features.mean(dim=(3, 4)), part) for part, features in self._features(tiles)]
        return torch.cat(found, dim=1) - self.constants

    def logarithms(self, tiles: Tensor) -> list[Tensor]:
        """Return log y of each head: (n, N, classes)."""
        pooled = torch.cat([features.mean(dim=(3, 4)) for _, features in self._features(tiles)], dim=1)
        return [head(pooled).log_softmax(dim=-1) for head in self._heads()]

    def measure_by(self, concentrations: Sequence[Tensor]) -> None:
        """Read Dirichlet densities in place of the error; concentrations (N, classes) of each head."""
        self.counted = len(self.labels)
        constants = torch.zeros(self.counted, dtype=torch.float64)
        for j, alpha in enumerate(concentrations):
            setattr(self, f"weights{j}", (alpha - 1).float())
            constants += torch.lgamma(alpha.sum(dim=1)) - torch.lgamma(alpha).sum(dim=1)
        self.constants = constants.float()

    def _features(self, tiles: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the trunk's features (n, part, f, g, g) of all transforms, some at a time."""
        count, size = len(self.labels), self.config.at_once
        views = self.views(tiles, range(count))  # all of them at once, for they share their work
        for start in range(0, count, size):
            part = views[:, start : start + size]
            yield slice(start, start + size), self.trunk(part.flatten(0, 1)).unflatten(0, (-1, part.shape[1]))

    def _read(self, features: Tensor, part: slice) -> Tensor:
        """Read features (n, part, …, f), but for the constants: (n, part, …), summed over the heads."""
        total = torch.zeros((), device=features.device)
        for j, head in enumerate(self._heads()):
            weights: Tensor = getattr(self, f"weights{j}")[part]
            weights = weights.view(len(weights), *(1,) * (features.ndim - 3), -1)
            total = total - (head(features).log_softmax(dim=-1) * weights).sum(dim=-1)
        return total

    def _heads(self) -> list[Head]:
        return [head for head in self.heads if isinstance(head, Head)]


class TransformClassification(LearnedDetector):
    """The error in telling which transform was applied."""

    name: ClassVar[str] = "transform-classification"
    position_aware: ClassVar[bool] = False  # convolutions and means: it does not know where in the part a tile lies
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {"stem": 2, "draw": 6, "steps": 400, "learning_rate": 4e-3},
        "full": {"depth": 16, "widen": 8, "stem": 4, "side": 256, "at_once": 4, "steps": 10_000},
    }

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return TransformNetwork(side, channels, self.config)

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate time and memory of `fit` from a few timed steps."""
        self._check(tiles, run)
        return super().forecast(tiles, run)

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Learn from good tiles; a second call forgets the first."""
        self._check(tiles, run)
        super().fit(tiles, run)
        if self.config.score == "dirichlet":
            self._fit_dirichlets(tiles, run)
        return self

    def _check(self, tiles: Tiles, run: Run) -> None:
        if self.config.score == "dirichlet" and len(tiles) < FEWEST:
            raise RecipeError(
                f"score = 'dirichlet' with {len(tiles)} training tiles; expected {FEWEST} or more, to fit a Dirichlet "
                "to each transform. Add good images, or set score = 'error'."
            )
        if self.config.family == "geometry" and (run.augment.flip or run.augment.quarter_turns):
            raise RecipeError(
                "family = 'geometry' tells flips and quarter turns, which augment.flip and augment.quarter_turns apply "
                "at random; expected both off. Leave them out of the recipe, or use another family."
            )

    def _fit_dirichlets(self, tiles: Tiles, run: Run) -> None:
        """Fit a Dirichlet to the softmax vectors of each transform and head, over all training tiles."""
        network, device, done = self._fitted(), choose(run.device), 0
        assert isinstance(network, TransformNetwork)
        network.to(device)
        moments = [dirichlet.Moments() for _ in network.heads]
        with torch.no_grad():
            for batch in tiles:
                for one in torch.split(floats(batch, device), 1):
                    for of, values in zip(moments, network.logarithms(one), strict=True):
                        of.add(values.cpu().double())
                done += len(batch)
                run.progress("dirichlet", done, len(tiles))
        network.cpu().measure_by([dirichlet.fit(of) for of in moments])
