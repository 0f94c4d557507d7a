"""transform-classification: error of a network, trained on good parts, that classifies which transform was applied.

Papers: "Real-world industrial anomaly detection" (slides; morphological transforms, kernel-size prediction loss), here
[0]; Kim, Hong & Choe, "Deep morphological anomaly detection based on angular margin loss", Applied Sciences 11(14),
6545, 2021 (only its abstract was available), here [1]. Geometry, the Dirichlet score and the backbone: Golan &
El-Yaniv, "Deep Anomaly Detection Using Geometric Transformations", NeurIPS 2018; Zagoruyko & Komodakis, "Wide Residual
Networks", BMVC 2016. Angular margins: Liu et al., "SphereFace", CVPR 2017; Deng et al., "ArcFace", CVPR 2019; Wang et
al., "CosFace", CVPR 2018. Dirichlet: Minka, "Estimating a Dirichlet distribution", 2000. Written from the papers; no
code of others.
Symbols: g one of N transforms, n₁ n₂ n₃ its operation, width and height, F network, θ angle between a feature vector
and the weights of its class, m margin, s scale, α concentrations of a Dirichlet distribution, y softmax vector.

Differs from the paper:
- An erosion and a dilation by 1×1 both return the image itself. As in the source both are classes in training, but the
  score leaves them out: they are indistinguishable, their loss is noise, and it is larger than the informative errors.
- Rectangles are in pixels of the tile, and the transformed tile is then reduced to `side` pixels. So the erosion widens
  a crack of one pixel before the reduction, which would otherwise remove it.
- A step can use a random subset of the transforms of each tile (`draw`); the source uses all of them (draw = 0).
- Backbone, optimiser and length of training are not in [0] and [1]. Our backbone is a Wide-ResNet whose stem can have
  a stride.
- All three angular losses use normalised features and a fixed scale; the scale of SphereFace is the length of the
  feature vector. Its ψ(θ) = (−1)ᵏ cos(mθ) − 2k keeps falling past π; we extend cos(θ + m) in the same way. SphereFace
  lowers the weight λ of the plain cosine from 1000 to 5; ours is 5 (`blend`) from the start.
- Score and map are means over the transforms, not sums, so that scores of different families are comparable.
- The Dirichlet distributions are fitted to all training tiles, including those held out for early stopping.
- The sources have no anomaly map. For ours, the heads are applied at every position of the backbone's last grid.
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
from andon.errors import RecipeError
from andon.nn.data import floats
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule, choose
from andon.nn.resize import Resize
from andon.nn.wide_resnet import WideResNet

NAMED = {
    "type-1": (1, 28, 56),
    "type-2": (8, 28, 56),
    "type-3": (1, 8, 28, 56),
}  # the widths, and also the heights, of each family
MARGINS = {"multiplicative-angle": 4.0, "additive-angle": 0.5, "additive-cosine": 0.35}  # of the papers
GEOMETRY = list(product((0, 1, 2, 3), (0, 1), (-1, 0, 1), (-1, 0, 1)))  # quarter turns, flip, shift right, shift down
FEWEST = 10  # tiles that are needed to fit a Dirichlet distribution
EDGE = 1e-6  # least distance of a cosine from ±1, where the gradient of the angle is infinite


def _unique(values: tuple[Any, ...]) -> tuple[Any, ...]:
    if len(set(values)) < len(values):
        raise ValueError(
            f"{list(values)} has duplicates; expected different values, because each is a class. Remove the duplicates"
        )
    return values


Sides = Annotated[tuple[Annotated[int, Field(ge=1)], ...], Field(strict=False), AfterValidator(_unique)]
Operations = Annotated[tuple[Operation, ...], Field(strict=False, min_length=1), AfterValidator(_unique)]


def _depth(value: int) -> int:
    if value % 6 != 4:
        raise ValueError("must be 6 b + 4, with b blocks in each of three groups: 10, 16, 22, 28, …")
    return value


class Settings(Schedule):
    """Settings of `transform-classification`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"score", "at_once"}

    family: Literal["type-1", "type-2", "type-3", "morphology", "geometry"] = "type-3"
    """Family of transforms; `morphology` uses the settings operations, widths and heights."""
    operations: Operations = OPERATIONS
    """Operations of the family `morphology`: erosion, dilation, gradient."""
    widths: Sides = ()
    """Widths of the structuring elements of the family `morphology`, pixels of the tile."""
    heights: Sides = ()
    """Heights of the structuring elements of the family `morphology`, pixels of the tile."""
    heads: Literal["product", "single"] = "product"
    """Heads of the network: one softmax each for operation, width and height, or a single one for all transforms."""
    objective: Literal["cross-entropy", "multiplicative-angle", "additive-angle", "additive-cosine"] = "cross-entropy"
    """Loss: cross-entropy, or one of three losses with an angular margin."""
    scale: Annotated[float, Field(gt=0)] = 30.0
    """s, scale of the cosines in the angular losses."""
    margin: Annotated[float, Field(ge=0)] | None = None
    """m, margin of the angular losses; not set: 4, 0.5 or 0.35, as published."""
    blend: Annotated[float, Field(ge=0)] = 5.0
    """λ, weight of the plain cosine in the multiplicative angle: (λ cos θ + ψ(θ)) / (1 + λ)."""
    depth: Annotated[int, Field(ge=10), AfterValidator(_depth)] = 10
    """Number of convolutions of the backbone, 6 b + 4: 10, 16, 22, …"""
    channels: Annotated[int, Field(ge=1)] = 16
    """Channels of the stem; the three groups have `widen` times 1, 2 and 4 as many."""
    widen: Annotated[int, Field(ge=1)] = 1
    """Factor of the channels of the three groups."""
    stem: Literal[1, 2, 4] = 1
    """Stride of the stem, pixels."""
    side: Annotated[int, Field(ge=16)] = 64
    """Greatest side of the transformed tiles, pixels; larger tiles are reduced to it."""
    draw: Annotated[int, Field(ge=0)] = 0
    """Greatest number of transforms of a tile in a training step; 0: all."""
    at_once: Annotated[int, Field(ge=1)] = 64
    """Number of transforms of a tile that inspection evaluates at a time; a lower one needs less memory."""
    score: Literal["error", "dirichlet"] = "error"
    """Image score: mean classification error, or negative log-density of Dirichlet distributions."""

    @model_validator(mode="after")
    def _check_lists(self) -> Self:
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
        """Return the morphological transforms; an empty list for the family `geometry`."""
        if self.family == "geometry":
            return []
        widths = NAMED.get(self.family, self.widths)
        heights = NAMED.get(self.family, self.heights)
        return [Case(*case) for case in product(self.operations, widths, heights)]

    def labels(self) -> list[tuple[int, ...]]:
        """Return the labels of each transform, one for each head: (n₁, n₂, n₃), or the transform's number.

        A factor with only one value has no head.
        """
        cases: Sequence[tuple[Any, ...]] = self.cases() or GEOMETRY
        if self.heads == "single":
            return [(number,) for number in range(len(cases))]
        values = [list(dict.fromkeys(factor)) for factor in zip(*cases, strict=True)]
        factors = [factor for factor in range(len(values)) if len(values[factor]) > 1] or [0]
        return [tuple(values[factor].index(case[factor]) for factor in factors) for case in cases]

    def counted(self) -> list[bool]:
        """Return which transforms count in the score: all, but not the identities where there are two or more."""
        identities = [case.width == case.height == 1 and case.operation != "gradient" for case in self.cases()]
        return [not identity for identity in identities] if sum(identities) > 1 else [True] * len(self.labels())


def geometric(tiles: Tensor, numbers: Sequence[int]) -> Tensor:
    """Apply geometric transforms to tiles (n, c, t, t): (n, transforms, c, t, t).

    Each is a flip, then a shift by a quarter of the side with reflection, then quarter turns. `numbers` are ascending
    indices of GEOMETRY.
    """
    side, shift, channels = tiles.shape[-1], tiles.shape[-1] // 4, tiles.shape[1]
    padded = F.pad(torch.cat([tiles, tiles.flip(3)], dim=1), (shift,) * 4, mode="reflect")
    shifted = padded.view(-1, 2, channels, *padded.shape[2:])
    for axis in (-2, -1):
        windows = [shifted.narrow(axis, shift * (1 - step), side) for step in (-1, 0, 1)]
        shifted = torch.stack(windows, dim=2)  # after both axes: (n, flip, right, down, c, t, t)
    shifted, turned = shifted.flatten(1, 3), []
    for turns, group in groupby(numbers, lambda number: number // shifted.shape[1]):
        turned.append(torch.rot90(shifted[:, [number % shifted.shape[1] for number in group]], turns, (3, 4)))
    return torch.cat(turned, dim=1)


def monotonic_cosine(angle: Tensor) -> Tensor:
    """ψ = (−1)ᵏ cos(angle) − 2k for angles in [kπ, (k + 1)π]: the cosine, extended so that it falls monotonically."""
    k = torch.floor(angle.detach() / math.pi)
    return (1 - 2 * (k % 2)) * torch.cos(angle) - 2 * k


class Head(nn.Module):
    """A softmax over classes; with an angular loss, over scaled cosines."""

    def __init__(self, features: int, classes: int, config: Settings) -> None:
        """Build it for feature vectors of `features` values."""
        super().__init__()
        self.config, self.classes = config, classes
        self.angular = config.objective != "cross-entropy"
        self.linear = nn.Linear(features, classes, bias=not self.angular)

    def forward(self, features: Tensor) -> Tensor:
        """Features (…, f) → logits (…, classes), without a margin."""
        logits: Tensor = self.config.scale * self._cosines(features) if self.angular else self.linear(features)
        return logits

    def loss(self, features: Tensor, labels: Tensor) -> Tensor:
        """Mean cross-entropy of features (b, f) with labels (b,); the margin lowers the label's logit."""
        if not self.angular:
            return F.cross_entropy(self.linear(features), labels)
        s, name, cosines = self.config.scale, self.config.objective, self._cosines(features)
        m = MARGINS[name] if self.config.margin is None else self.config.margin
        cosine = cosines.gather(1, labels[:, None])
        angle = torch.acos(cosine.clamp(EDGE - 1, 1 - EDGE))
        if name == "multiplicative-angle":  # ψ(θ), blended with cos θ
            blend = self.config.blend
            lowered = (blend * cosine + monotonic_cosine(m * angle)) / (1 + blend)
        elif name == "additive-angle":
            lowered = monotonic_cosine(angle + m)  # cos(θ + m)
        else:
            lowered = cosine - m  # cos θ − m
        return F.cross_entropy(s * cosines.scatter(1, labels[:, None], lowered), labels)

    def _cosines(self, features: Tensor) -> Tensor:
        return F.linear(F.normalize(features, dim=-1), F.normalize(self.linear.weight, dim=1))


class TransformNetwork(Network):
    """All transforms of a tile, a backbone (`trunk`) and one or more heads."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side). RecipeError when a rectangle or the backbone does not fit."""
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
        # The score of each transform is −weights · log y − constant: the cross-entropy, or the negative log-density of
        # a Dirichlet distribution.
        self.register_buffer("constants", torch.zeros(len(labels)), persistent=False)
        self.constants: Tensor
        counted = torch.tensor(config.counted())
        self.counted = int(counted.sum())
        for head, count in enumerate(classes):
            weights = F.one_hot(labels[:, head], count).float() * counted[:, None]
            self.register_buffer(f"weights{head}", weights, persistent=False)

    def views(self, tiles: Tensor, numbers: Sequence[int]) -> Tensor:
        """Apply transforms, by ascending numbers, to tiles (n, c, t, t): (n, transforms, c, side, side) in [-2, 2]."""
        if self.cases:
            transformed = torch.stack(morphology.transform(tiles, [self.cases[number] for number in numbers]), dim=1)
        else:
            transformed = geometric(tiles, numbers)
        views: Tensor = 4 * self.shrink(transformed) - 2
        return views

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Sum of the heads' cross-entropies, averaged over the transforms of each tile."""
        count, draw = len(self.labels), self.config.draw
        if 0 < draw < count:
            # Each tile has its own subset, so that a step covers many transforms.
            subsets = torch.rand(len(tiles), count, generator=generator, device=tiles.device).topk(draw).indices
            subsets = subsets.sort(dim=1).values
            pairs = zip(torch.split(tiles, 1), subsets.tolist(), strict=True)
            views = torch.cat([self.views(tile, numbers) for tile, numbers in pairs])
            labels = self.labels[subsets.flatten()]
        else:
            views, labels = self.views(tiles, range(count)), self.labels.repeat(len(tiles), 1)
        features = self.trunk(views.flatten(0, 1)).mean(dim=(2, 3))
        with torch.autocast(tiles.device.type, enabled=False):  # angles need single precision
            losses = [head.loss(features.float(), labels[:, j]) for j, head in enumerate(self._heads())]
        return torch.stack(losses).sum()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t)."""
        images, maps = [], []
        for part, features in self._features(tiles):
            images.append(self._measure(features.mean(dim=(3, 4)), part).sum(dim=1))
            maps.append(self._measure(features.movedim(2, 4), part).sum(dim=1))  # at every position
        # The mean constant at the end: OpenVINO 2026.4 loses constants that are subtracted from each transform.
        constant = self.constants.mean()
        grid = torch.stack(maps).sum(dim=0) / self.counted - constant
        return torch.stack(images).sum(dim=0) / self.counted - constant, self.enlarge(grid[:, None])[:, 0]

    def errors(self, tiles: Tensor) -> Tensor:
        """Return the contribution of each transform to the score: (n, N)."""
        errors = [self._measure(features.mean(dim=(3, 4)), part) for part, features in self._features(tiles)]
        return torch.cat(errors, dim=1) - self.constants

    def logarithms(self, tiles: Tensor) -> list[Tensor]:
        """Return log y of each head: (n, N, classes)."""
        pooled = torch.cat([features.mean(dim=(3, 4)) for _, features in self._features(tiles)], dim=1)
        return [head(pooled).log_softmax(dim=-1) for head in self._heads()]

    def use_dirichlets(self, concentrations: Sequence[Tensor]) -> None:
        """Score by Dirichlet densities instead of the error; concentrations (N, classes) of each head."""
        self.counted = len(self.labels)
        constants = torch.zeros(self.counted, dtype=torch.float64)
        for j, alpha in enumerate(concentrations):
            setattr(self, f"weights{j}", (alpha - 1).float())
            constants += torch.lgamma(alpha.sum(dim=1)) - torch.lgamma(alpha).sum(dim=1)
        self.constants = constants.float()

    def _features(self, tiles: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Yield the features (n, part, f, g, g) of all transforms, `at_once` transforms at a time."""
        count, size = len(self.labels), self.config.at_once
        views = self.views(tiles, range(count))  # all at once: transforms share intermediate results
        for start in range(0, count, size):
            part = views[:, start : start + size]
            yield slice(start, start + size), self.trunk(part.flatten(0, 1)).unflatten(0, (-1, part.shape[1]))

    def _measure(self, features: Tensor, part: slice) -> Tensor:
        """Features (n, part, …, f) → −weights · log y (n, part, …), summed over the heads; without the constants."""
        total = torch.zeros((), device=features.device)
        for j, head in enumerate(self._heads()):
            weights: Tensor = getattr(self, f"weights{j}")[part]
            weights = weights.view(len(weights), *(1,) * (features.ndim - 3), -1)
            total = total - (head(features).log_softmax(dim=-1) * weights).sum(dim=-1)
        return total

    def _heads(self) -> list[Head]:
        return [head for head in self.heads if isinstance(head, Head)]


class TransformClassification(LearnedDetector):
    """Scores an image by the error of a classifier of transforms."""

    name: ClassVar[str] = "transform-classification"
    position_aware: ClassVar[bool] = False  # convolutions and means do not depend on the position of a tile
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
                "distribution to each transform. Add good images, or set score = 'error'."
            )
        if self.config.family == "geometry" and (run.augment.flip or run.augment.quarter_turns):
            raise RecipeError(
                "family = 'geometry' classifies flips and quarter turns, and augment.flip and augment.quarter_turns "
                "apply them at random; expected both off. Leave them out of the recipe, or use another family."
            )

    def _fit_dirichlets(self, tiles: Tiles, run: Run) -> None:
        """Fit a Dirichlet distribution to the softmax vectors of each transform and head, over all training tiles."""
        network, device, done = self._fitted(), choose(run.device), 0
        assert isinstance(network, TransformNetwork)
        network.to(device)
        moments = [dirichlet.Moments() for _ in network.heads]
        with torch.no_grad():
            for batch in tiles:
                for tile in torch.split(floats(batch, device), 1):
                    for head, values in zip(moments, network.logarithms(tile), strict=True):
                        head.add(values.cpu().double())
                done += len(batch)
                run.progress("dirichlet", done, len(tiles))
        network.cpu().use_dirichlets([dirichlet.fit(head) for head in moments])
