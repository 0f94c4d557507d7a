"""filtering-autoencoder: reconstruction error of a network trained to repair corrupted images.

Paper: Bauer, Nakajima & Müller, "Self-supervised autoencoders for visual anomaly detection", Mathematics 12(24), 2024.
Written from the paper; no code of others. In training a part of a good tile is corrupted (`corruption.py`), and the
network rebuilds the original tile. At inspection nothing is corrupted; the anomaly map is the difference between a tile
and its reconstruction. Symbols: X tile, X̂ corrupted tile, F network, M mask of the corrupted area, M̄ = 1 − M, ⊙
elementwise product, G_k mean over k × k pixels.

Differs from the paper:
- The score is the sum of the map divided by the number of pixels. The ranking is the same, and the scale does not
  depend on the resolution.
- The paper does not state the schedule of the learning rate, the length of the training, n, k, t, and the growth of the
  crops. They are our own, and were not tuned on labels.
- At the border, a mean is over the part of its window inside the image.
- Convolutions before a batch normalisation have no bias, because the normalisation would remove it.
- Equation 4 has 1 − error in place of −error, so that the loss stays positive and a divergence can be detected.
- The mean map of equation 13 is limited to 1: 1 − SSIM can reach 2, and the factor would rise again.
- The noise in input and target is from the authors' later work; see `corruption.py`.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal, NamedTuple, Self

import numpy as np
import torch
from pydantic import AfterValidator, BaseModel, Field, model_validator
from torch import Tensor, nn

from andon import files
from andon.detector import QUIET, Forecast, Run, Tiles
from andon.detectors.filtering_autoencoder.corruption import Corrupted, Corruption, Kind, outside_images
from andon.errors import RecipeError
from andon.nn.convolutional import Odd, smooth
from andon.nn.data import batches_of, floats, mix, split, vary
from andon.nn.learned import TILES_AT_ONCE, LearnedDetector, Network
from andon.nn.loop import CURVE, Loop, Schedule, choose
from andon.nn.losses import ssim

FACTOR = 8  # of the three poolings; a side must be a multiple of it
DILATIONS = (1, 2, 4, 8, 16, 32)
STACKS = 4
GROWTHS = 8  # crops grow in steps of an eighth of the tile's side


def _distinct(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    if len(set(kinds)) < len(kinds):
        raise ValueError("a value is listed twice; expected each once. Remove one")
    return kinds


def _ordered(patch: tuple[float, float]) -> tuple[float, float]:
    if patch[0] > patch[1]:
        raise ValueError("the first value is larger than the second; expected the least diameter first. Exchange them")
    return patch


Share = Annotated[float, Field(gt=0, le=1)]
Kinds = Annotated[tuple[Kind, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)]
Patch = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_ordered)]


class Settings(Schedule):
    """Settings of `filtering-autoencoder`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {
        *("score", "error", "smooth", "repeats", "object_correction", "correction_repeats"),
        *("objective", "occlusion_images"),  # the name of a network's checkpoint depends on these
    }

    objective: Literal["restore", "amplify", "ensemble"] = "restore"
    """Training objective: restore (eq. 1), amplify (eq. 4), or an ensemble of two networks, one for each."""
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """λ, weight of the corrupted area in the loss."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Highest learning rate."""
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Factor of the numbers of channels of the paper's table 1."""
    kernel: Literal[3, 5] = 3
    """f, side of the kernels of the dilated convolutions, positions."""
    corruptions: Kinds = ("elastic", "occlusion")
    """Corruptions of training tiles. Each tile has one of elastic, occlusion, cutout and swap; brightness and rotation
    are applied in addition.
    """
    patch: Patch = (0.05, 0.4)
    """Least and greatest diameter of a corrupted shape, as shares of the tile's side."""
    shapes: Annotated[int, Field(ge=1, le=16)] = 3
    """Greatest number of shapes of an occlusion."""
    displacement: Annotated[float, Field(gt=0, le=2)] = 0.3
    """Standard deviation of the displacement of `elastic`, as a share of the shape's radius."""
    brightness: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Greatest change of the corruption `brightness`, as a share of the pixel values."""
    rotation: Annotated[float, Field(gt=0, le=180)] = 45.0
    """Greatest angle of the corruption `rotation`, degrees in either direction."""
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Standard deviation of noise in input and target, for pixel values in [0, 1]; 0: none."""
    occlusion_images: str = ""
    """Folder of images of other things that fill occlusions; empty: areas of other tiles, and textures, fill them."""
    grow_from: Share = 0.5
    """Side of the first training crops, as a share of the tile's side; 1: whole tiles from the start."""
    grow_until: Share = 0.5
    """Share of the training after which crops are whole tiles."""
    score: Literal["sum", "max"] = "sum"
    """Image score: sum of the map, divided by the number of pixels, as in the paper; or its highest value (max)."""
    error: Literal["l2", "ssim"] = "l2"
    """Error that is the anomaly map: squared error, or 1 − SSIM."""
    smooth: Annotated[Odd, Field(ge=1, le=63)] = 5
    """k, side of the window over which the map is averaged, pixels, odd."""
    repeats: Annotated[int, Field(ge=0, le=16)] = 3
    """n, number of times the map is averaged."""
    object_correction: bool = False
    """Lower the map where the mean map of good parts is high (eq. 14); for aligned parts, without geometry.tiles."""
    correction_repeats: Annotated[int, Field(ge=0, le=16)] = 3
    """t, number of times the mean map is averaged."""

    @model_validator(mode="after")
    def _check_occlusion_images(self) -> Self:
        if self.occlusion_images and "occlusion" not in self.corruptions:
            raise ValueError("occlusion_images is set, but 'occlusion' is not among the corruptions. Add it")
        return self


class Cost(NamedTuple):
    """The size of a network."""

    parameters: int
    multiply_adds: int  # of the convolutions, for one tile


class StackedDilated(nn.Module):
    """SDC: six parallel convolutions with growing dilation, and one convolution of their concatenated outputs."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        """Build it for `channels` input channels and six times `width` output channels."""
        super().__init__()
        self.parallel = nn.ModuleList(
            nn.Conv2d(channels, width, kernel, padding=d * (kernel // 2), dilation=d, bias=False) for d in DILATIONS
        )
        joined = width * len(DILATIONS)
        self.joined = nn.Sequential(nn.BatchNorm2d(joined), nn.ReLU(), *_convolution(joined, joined))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, 6 · width, h, w)."""
        features: Tensor = self.joined(torch.cat([convolution(x) for convolution in self.parallel], dim=1))
        return features


def _convolution(channels: int, width: int) -> Iterator[nn.Module]:
    yield from (nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def layers(channels: int, width: float, kernel: int) -> nn.Sequential:
    """Build F of table 1: images (n, channels, h, w) in [0, 1] → the same shape; h and w are multiples of 8."""
    narrow, middle, wide = (max(1, round(width * filters)) for filters in (64, 128, 256))
    network, before = nn.Sequential(), channels
    for filters in (narrow, middle, wide):
        network.extend([*_convolution(before, filters), *_convolution(filters, filters), nn.MaxPool2d(2)])
        before = filters
    for _ in range(STACKS):
        network.append(StackedDilated(before, narrow, kernel))
        before = narrow * len(DILATIONS)
    for filters in (wide, middle, narrow):
        up = nn.ConvTranspose2d(before, filters, 3, stride=2, padding=1, output_padding=1, bias=False)
        network.extend([up, nn.BatchNorm2d(filters), nn.ReLU()])
        network.extend([*_convolution(filters, filters), *_convolution(filters, filters)])
        before = filters
    return network.extend([nn.Conv2d(before, channels, 1), nn.Sigmoid()])


def cost(side: int, channels: int, width: float = 1.0, kernel: int = 3) -> Cost:
    """Count a network's parameters, and its multiply-adds for one tile (channels, side, side)."""
    total = 0

    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal total
        # Each weight is used once for each position of the output; in a transposed convolution, of the input.
        grid = inputs[0] if isinstance(module, nn.ConvTranspose2d) else output
        total += sum(p.numel() for p in module.parameters() if p.dim() == 4) * grid.shape[2] * grid.shape[3]

    with torch.device("meta"):
        network = layers(channels, width, kernel).eval()
        for module in network.modules():
            if isinstance(module, nn.Conv2d | nn.ConvTranspose2d):
                module.register_forward_hook(count)
        network(torch.empty(1, channels, side, side))
    return Cost(sum(p.numel() for p in network.parameters()), total)


def _whole() -> float:
    return 1.0


class FilteringNetwork(Network):
    """One network of table 1, trained with equation 1 or 4."""

    average: Tensor  # mean map of good parts (t, t), avgmap in the paper

    def __init__(self, side: int, channels: int, config: Settings, amplify: bool, corruption: Corruption) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config, self.side, self.amplify, self.corruption = config, side, amplify, corruption
        self.rebuild = layers(channels, config.width, config.kernel)
        self.share: Callable[[], float] = _whole  # share of the training that is done
        self.register_buffer("average", torch.zeros(side, side))

    def crop(self, share: float) -> int:
        """Side of the crops after a share of the training; it grows from `grow_from` of the tile's side to 1."""
        growth = min(1.0, share / self.config.grow_until)
        share_of_side = self.config.grow_from + growth * (1 - self.config.grow_from)
        unit = max(FACTOR, self.side // GROWTHS // FACTOR * FACTOR)
        return min(self.side, max(unit, int(share_of_side * self.side / unit + 1e-6) * unit))

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Equation 1 or 4: the error of the area that was not corrupted, and ±λ times that of the corrupted area."""
        if self.training:
            side = self.crop(self.share())
            y, x = torch.randint(
                self.side - side + 1, (2,)
            ).tolist()  # the CPU's generator: reading a GPU's would synchronise it
            tiles = tiles[..., y : y + side, x : x + side]
        x = self.corruption(tiles, generator)
        error = (self.rebuild(x.input).float() - x.target) ** 2
        outside = weighted_error(error, 1 - x.mask)
        # The mask of equation 4 is |X̂ − X|.
        inside = (
            1 - weighted_error(error, (x.input - x.target).abs()) if self.amplify else weighted_error(error, x.mask)
        )
        return ((1 - self.config.balance) * outside + self.config.balance * inside).mean()

    def difference(self, tiles: Tensor, rebuilt: Tensor, repeats: int) -> Tensor:
        """Equations 2 and 3: Diff(X, F(X)) (n, t, t), averaged with G_k `repeats` times."""
        error = 1 - ssim(tiles, rebuilt) if self.config.error == "ssim" else (tiles - rebuilt) ** 2
        error = error.mean(dim=1)
        for _ in range(repeats):
            error = smooth(error, self.config.smooth)
        return error

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        rebuilt = self.rebuild(tiles)
        error = self.difference(tiles, rebuilt, self.config.repeats)
        if self.config.object_correction:
            error = error * (1 - self.average) ** 2  # eq. 14
        return self.image_score(error), error, rebuilt

    def image_score(self, error: Tensor) -> Tensor:
        """Score (n,) of maps (n, t, t)."""
        return error.mean(dim=(1, 2)) if self.config.score == "sum" else error.amax(dim=(1, 2))


def weighted_error(error: Tensor, mask: Tensor) -> Tensor:
    """‖M ⊙ (F(X̂) − X)‖² / ‖M‖₁ (n,), of squared errors and masks (n, c, h, w); 0 where the mask is empty."""
    return (mask**2 * error).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1)


class Ensemble(Network):
    """Two networks, one for each objective; the map is the higher of their maps at each pixel."""

    def __init__(self, restore: FilteringNetwork, amplify: FilteringNetwork) -> None:
        """Combine two networks that are trained separately."""
        super().__init__()
        self.restore, self.amplify = restore, amplify

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """As `FilteringNetwork`; the reconstruction is the one of `restore`."""
        (_, restore_map, rebuilt), (_, amplify_map, _) = self.restore(tiles), self.amplify(tiles)
        error = torch.maximum(restore_map, amplify_map)
        return self.restore.image_score(error), error, rebuilt


class FilteringAutoencoder(LearnedDetector):
    """A filter that removes irregularities; the difference it makes is the anomaly map."""

    name: ClassVar[str] = "filtering-autoencoder"
    position_aware: ClassVar[bool] = False
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # The error on held-out good parts falls fastest with whole tiles from the first step, a small batch, a high
        # learning rate and a low λ. With λ = 0.5 a network removes all details for a long time.
        "cpu": {
            "width": 0.25,
            "steps": 6000,
            "batch": 2,
            "learning_rate": 1e-2,
            "balance": 0.1,
            "evaluate": 200,
            "grow_from": 1.0,
        },
        "full": {"steps": 20_000, "batch": 8, "evaluate": 250},
    }

    def __init__(self, config: Any, seed: int) -> None:
        """Take the settings; nothing is learnt yet."""
        super().__init__(config, seed)
        if config.object_correction:  # the mean map depends on the position in the image
            self.position_aware = True  # type: ignore[misc]

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        corruption = self._corruption(None)
        members = [self._member(side, channels, amplify, corruption) for amplify in self._objectives().values()]
        return Ensemble(*members) if len(members) == 2 else members[0]

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate time and memory of `fit` from a few timed steps on whole tiles."""
        with torch.random.fork_rng(devices=[]):
            forecasts = []
            for loop in self._loops(tiles, replace(run, tell=QUIET.tell)).values():
                member = loop.module
                assert isinstance(member, FilteringNetwork)
                area = 0.0
                for step in range(self.config.steps):
                    area += (member.crop(step / self.config.steps) / tiles.side) ** 2 / self.config.steps
                seconds, megabytes = loop.forecast(tiles)
                forecasts.append(Forecast(seconds if run.seconds else area * seconds, megabytes))
        return Forecast(sum(f.seconds for f in forecasts), max(f.megabytes for f in forecasts))

    def fit(self, tiles: Tiles, run: Run = QUIET) -> Self:
        """Learn from good tiles; a second call forgets the first."""
        size = cost(tiles.side, tiles.channels, self.config.width, self.config.kernel)
        run.tell(f"network: {size.parameters:,} parameters, {size.multiply_adds / 1e9:.2f} G multiply-adds a tile")
        members, curve = [], [CURVE]
        with torch.random.fork_rng(devices=[]):
            for objective, loop in self._loops(tiles, run).items():
                member = loop.module
                assert isinstance(member, FilteringNetwork)
                outside = member.corruption.outside
                digest = "" if outside is None else files.digest(outside.cpu().numpy().tobytes())
                member.share = loop.share
                curve += loop.fit(tiles, f"{self.name} {objective} {digest}").splitlines()[1:]
                member.share = _whole
                if self.config.object_correction:
                    self._learn_average(member, tiles, loop.device)
                members.append(member.cpu())
        self.curve = "\n".join([*curve, ""])
        return self._keep(Ensemble(*members) if len(members) == 2 else members[0], tiles)

    def preview(self, tiles: Tiles, run: Run = QUIET) -> Iterator[Corrupted]:
        """Yield tiles as training sees them, augmented and corrupted, in batches; on the CPU."""
        corruption = self._corruption(self._outside(tiles, replace(run, device="cpu")))
        generator = torch.Generator().manual_seed(mix(self.seed, "preview"))
        for batch in tiles:
            yield corruption(vary(batch, run.augment, generator), generator)

    def _objectives(self) -> dict[str, bool]:
        """Return the names of the networks, and whether each one amplifies."""
        objective = self.config.objective
        names = ("restore", "amplify") if objective == "ensemble" else (objective,)
        return {name: name == "amplify" for name in names}

    def _loops(self, tiles: Tiles, run: Run) -> dict[str, Loop]:
        """Return a loop for each network, with its own folder and its share of the time."""
        objectives, loops = self._objectives(), {}
        corruption = self._corruption(self._outside(tiles, run))
        seconds = run.seconds / len(objectives) if run.seconds else None
        for objective, amplify in objectives.items():
            torch.manual_seed(mix(self.seed, f"weights {objective}"))
            member = self._member(tiles.side, tiles.channels, amplify, corruption)
            own = replace(run, folder=run.folder / objective if run.folder else None, seconds=seconds)
            loops[objective] = Loop(member, member.loss, self.config, self.seed, own)
        return loops

    def _member(self, side: int, channels: int, amplify: bool, corruption: Corruption) -> FilteringNetwork:
        if side % FACTOR:
            raise RecipeError(
                f"recipe: geometry.size = {side}; {self.name} halves its tiles three times; expected a multiple of "
                f"{FACTOR}. Set size = {max(FACTOR, side // FACTOR * FACTOR)}."
            )
        return FilteringNetwork(side, channels, self.config, amplify, corruption)

    def _corruption(self, outside: Tensor | None) -> Corruption:
        c = self.config
        return Corruption(c.corruptions, c.patch, c.shapes, c.displacement, c.brightness, c.rotation, c.noise, outside)

    def _outside(self, tiles: Tiles, run: Run) -> Tensor | None:
        """Return the images that fill occlusions (k, c, t, t), on the device; None if the settings name no folder."""
        folder = self.config.occlusion_images
        if not folder:
            return None
        pixels = outside_images(folder, tiles.side, tiles.channels, run.images, self.seed, run.tell)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(choose(run.device))

    def _learn_average(self, member: FilteringNetwork, tiles: Tiles, device: torch.device) -> None:
        """Equation 13: the mean map of the tiles held out for early stopping, or of all tiles if none are held out."""
        held = split(tiles.groups, self.config.hold_out, self.seed)[1]
        rows = held if len(held) else np.arange(len(tiles))
        total = torch.zeros_like(member.average)
        with torch.no_grad():
            for batch in batches_of(tiles, rows):
                for start in range(0, len(batch), TILES_AT_ONCE):
                    x = floats(batch[start : start + TILES_AT_ONCE], device)
                    total += member.difference(x, member.rebuild(x), self.config.correction_repeats).sum(dim=0)
        member.average.copy_((total / len(rows)).clamp(max=1))
