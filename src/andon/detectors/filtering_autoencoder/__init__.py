"""filtering-autoencoder: what a network changes that was taught to repair damaged pictures.

Paper: Bauer, Nakajima & Müller, "Self-supervised autoencoders for visual anomaly detection", Mathematics 12(24), 2024.
Written from the paper; no code of others. In training a part of a good tile is damaged (`nn.corruption`) and the
network rebuilds the tile; at inspection nothing is damaged, and what it changes is the anomaly map. Symbols: X tile,
X̂ corrupted tile, F network, M mask of the corrupted area, M̄ = 1 − M, ⊙ elementwise product, G_k mean over k × k pixels.

Differs from the paper:
- The score is the sum of the map over the number of pixels: the same order, at the same scale at every resolution.
- How the rate falls, how long is trained, n, k, t, and how the crops grow are not in the text; they are ours. They are
  never chosen on labels.
- Beyond the border, means are taken over what there is of their square.
- Convolutions that batch normalisation follows have no bias; it would be taken off again.
- Equation 4 with 1 − error in place of −error, so that the loss stays positive and a divergence can be told.
- The mean map of equation 13 is held at 1 at most: 1 − SSIM can reach 2, and the factor would rise again.
- The noise that is kept on top of the damage is from the authors' later work; see `nn.corruption`.
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
from andon.detectors.filtering_autoencoder.corruption import Corrupted, Corruption, Kind, elsewhere
from andon.errors import RecipeError
from andon.nn.convolutional import Odd, smoothed
from andon.nn.data import floats, mix, of_rows, split, vary
from andon.nn.learned import TILES_AT_ONCE, LearnedDetector, Network
from andon.nn.loop import CURVE, Loop, Schedule, choose
from andon.nn.losses import ssim

HALVED = 8  # by three poolings
DILATIONS = (1, 2, 4, 8, 16, 32)
STACKS = 4
GROWTHS = 8  # a tile's side grows by an eighth at a time


def _distinct(kinds: tuple[Kind, ...]) -> tuple[Kind, ...]:
    if len(set(kinds)) < len(kinds):
        raise ValueError("each may be named once")
    return kinds


def _ordered(patch: tuple[float, float]) -> tuple[float, float]:
    if patch[0] > patch[1]:
        raise ValueError("the smallest comes first")
    return patch


Share = Annotated[float, Field(gt=0, le=1)]
Kinds = Annotated[tuple[Kind, ...], Field(strict=False, min_length=1), AfterValidator(_distinct)]
Patch = Annotated[tuple[Share, Share], Field(strict=False), AfterValidator(_ordered)]


class Settings(Schedule):
    """Settings of `filtering-autoencoder`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {
        *("error", "smooth", "repeats", "object_correction", "correction_repeats"),
        *("objective", "occlusion_images"),  # each network has a checkpoint of its own, which knows the pictures
    }

    objective: Literal["restore", "amplify", "ensemble"] = "restore"
    """Training objective: restore (eq. 1), amplify (eq. 4), or an ensemble of one network for each."""
    balance: Annotated[float, Field(ge=0, le=1)] = 0.5
    """λ, weight of the corrupted area in the loss."""
    learning_rate: Annotated[float, Field(gt=0)] = 1e-4
    """Highest learning rate."""
    width: Annotated[float, Field(gt=0, le=4)] = 1.0
    """Factor of the channels of table 1."""
    kernel: Literal[3, 5] = 3
    """f, side of the kernel of the dilated convolutions, positions."""
    corruptions: Kinds = ("elastic", "occlusion")
    """Corruptions of training tiles: elastic, occlusion, cutout, swap; brightness and rotation come on top."""
    patch: Patch = (0.05, 0.4)
    """Smallest and largest diameter of a corrupted shape, as shares of the tile's side."""
    shapes: Annotated[int, Field(ge=1, le=16)] = 3
    """Greatest number of shapes of an occlusion."""
    displacement: Annotated[float, Field(gt=0, le=2)] = 0.3
    """Standard deviation of the displacement of `elastic`, as a share of the radius."""
    brightness: Annotated[float, Field(gt=0, le=1)] = 0.4
    """Of the corruption `brightness`: values are multiplied by 1 ± at most this share."""
    rotation: Annotated[float, Field(gt=0, le=180)] = 45.0
    """Of the corruption `rotation`: greatest angle in degrees, either way."""
    noise: Annotated[float, Field(ge=0, le=0.5)] = 0.0
    """Standard deviation of noise that stays in the target, of values in [0, 1]; 0: none."""
    occlusion_images: str = ""
    """Folder of images from elsewhere that fill occlusions; empty: other places and textures do."""
    grow_from: Share = 0.5
    """Side of the first crops, as a share of the tile's side; 1: whole tiles from the start."""
    grow_until: Share = 0.5
    """Share of the training after which whole tiles are seen."""
    error: Literal["l2", "ssim"] = "l2"
    """Error that the map shows: squared error, or 1 − SSIM."""
    smooth: Annotated[Odd, Field(ge=1, le=63)] = 5
    """k, pixels a side over which the map is averaged, odd."""
    repeats: Annotated[int, Field(ge=0, le=16)] = 3
    """n, number of times that the map is averaged."""
    object_correction: bool = False
    """Subtract the mean map of good parts (eq. 14); for parts that lie alike, without geometry.tiles."""
    correction_repeats: Annotated[int, Field(ge=0, le=16)] = 3
    """t, number of times that the mean map is averaged."""

    @model_validator(mode="after")
    def _used(self) -> Self:
        if self.occlusion_images and "occlusion" not in self.corruptions:
            raise ValueError("occlusion_images are given, but 'occlusion' is not among the corruptions. Add it")
        return self


class Cost(NamedTuple):
    """What a network takes."""

    parameters: int
    multiply_adds: int  # of the convolutions, a tile


class StackedDilated(nn.Module):
    """SDC: six convolutions of growing dilation beside each other, and one over all of them."""

    def __init__(self, channels: int, width: int, kernel: int) -> None:
        """Build it from `channels` to six times `width`."""
        super().__init__()
        self.parallel = nn.ModuleList(
            nn.Conv2d(channels, width, kernel, padding=d * (kernel // 2), dilation=d, bias=False) for d in DILATIONS
        )
        joined = width * len(DILATIONS)
        self.joined = nn.Sequential(nn.BatchNorm2d(joined), nn.ReLU(), *_convolution(joined, joined))

    def forward(self, x: Tensor) -> Tensor:
        """(n, channels, h, w) → (n, 6 · width, h, w)."""
        found: Tensor = self.joined(torch.cat([convolution(x) for convolution in self.parallel], dim=1))
        return found


def _convolution(channels: int, width: int) -> Iterator[nn.Module]:
    yield from (nn.Conv2d(channels, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU())


def layers(channels: int, width: float, kernel: int) -> nn.Sequential:
    """Build F of table 1: pictures (n, channels, h, w) in [0, 1] → the same; h and w are multiples of 8."""
    narrow, middle, wide = (max(1, round(width * filters)) for filters in (64, 128, 256))
    found, here = nn.Sequential(), channels
    for filters in (narrow, middle, wide):
        found.extend([*_convolution(here, filters), *_convolution(filters, filters), nn.MaxPool2d(2)])
        here = filters
    for _ in range(STACKS):
        found.append(StackedDilated(here, narrow, kernel))
        here = narrow * len(DILATIONS)
    for filters in (wide, middle, narrow):
        up = nn.ConvTranspose2d(here, filters, 3, stride=2, padding=1, output_padding=1, bias=False)
        found.extend([up, nn.BatchNorm2d(filters), nn.ReLU()])
        found.extend([*_convolution(filters, filters), *_convolution(filters, filters)])
        here = filters
    return found.extend([nn.Conv2d(here, channels, 1), nn.Sigmoid()])


def cost(side: int, channels: int, width: float = 1.0, kernel: int = 3) -> Cost:
    """Count a network's parameters, and its multiply-adds for one tile (channels, side, side)."""
    total = 0

    def count(module: nn.Module, given: tuple[Tensor, ...], out: Tensor) -> None:
        nonlocal total
        # Each weight is used once for each position of what comes out; of a transposed one, of what goes in.
        places = given[0] if isinstance(module, nn.ConvTranspose2d) else out
        total += sum(p.numel() for p in module.parameters() if p.dim() == 4) * places.shape[2] * places.shape[3]

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
    """One network of table 1, trained by equation 1 or 4."""

    average: Tensor  # avgmap (t, t)

    def __init__(self, side: int, channels: int, config: Settings, amplify: bool, corruption: Corruption) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        self.config, self.side, self.amplify, self.corruption = config, side, amplify, corruption
        self.rebuild = layers(channels, config.width, config.kernel)
        self.share: Callable[[], float] = _whole  # of the training that is done
        self.register_buffer("average", torch.zeros(side, side))

    def crop(self, share: float) -> int:
        """Side of the crops after a share of the training: from `grow_from` of the tile's to all of it."""
        growth = min(1.0, share / self.config.grow_until)
        grown = self.config.grow_from + growth * (1 - self.config.grow_from)
        unit = max(HALVED, self.side // GROWTHS // HALVED * HALVED)
        return min(self.side, max(unit, int(grown * self.side / unit + 1e-6) * unit))

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Equation 1, or 4: the error where nothing was corrupted, and with ±λ where something was."""
        if self.training:
            side = self.crop(self.share())
            y, x = torch.randint(self.side - side + 1, (2,)).tolist()  # torch's own generator: the device need not wait
            tiles = tiles[..., y : y + side, x : x + side]
        seen = self.corruption(tiles, generator)
        error = (self.rebuild(seen.input).float() - seen.target) ** 2
        kept = weighted(error, 1 - seen.mask)
        # The mask of equation 4 is |X̂ − X|.
        changed = 1 - weighted(error, (seen.input - seen.target).abs()) if self.amplify else weighted(error, seen.mask)
        return ((1 - self.config.balance) * kept + self.config.balance * changed).mean()

    def difference(self, tiles: Tensor, rebuilt: Tensor, repeats: int) -> Tensor:
        """Equations 2 and 3: Diff(X, F(X)), averaged by G_k `repeats` times (n, t, t)."""
        error = 1 - ssim(tiles, rebuilt) if self.config.error == "ssim" else (tiles - rebuilt) ** 2
        error = error.mean(dim=1)
        for _ in range(repeats):
            error = smoothed(error, self.config.smooth)
        return error

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        rebuilt = self.rebuild(tiles)
        found = self.difference(tiles, rebuilt, self.config.repeats)
        if self.config.object_correction:
            found = found * (1 - self.average) ** 2  # eq. 14
        return found.mean(dim=(1, 2)), found, rebuilt


def weighted(error: Tensor, mask: Tensor) -> Tensor:
    """‖M ⊙ (F(X̂) − X)‖² / ‖M‖₁ (n,), of squared errors and masks (n, c, h, w); 0 where the mask is empty."""
    return (mask**2 * error).sum(dim=(1, 2, 3)) / mask.sum(dim=(1, 2, 3)).clamp(min=1)


class Ensemble(Network):
    """A network of each objective; the map is the higher of theirs at each pixel."""

    def __init__(self, restore: FilteringNetwork, amplify: FilteringNetwork) -> None:
        """Put them side by side; they are trained apart."""
        super().__init__()
        self.restore, self.amplify = restore, amplify

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """As `FilteringNetwork`; the reconstruction is the one of `restore`."""
        (_, one, rebuilt), (_, other, _) = self.restore(tiles), self.amplify(tiles)
        found = torch.maximum(one, other)
        return found.mean(dim=(1, 2)), found, rebuilt


class FilteringAutoencoder(LearnedDetector):
    """A filter for irregularities: what it removes is the anomaly."""

    name: ClassVar[str] = "filtering-autoencoder"
    position_aware: ClassVar[bool] = False
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        # Whole tiles from the first step, few of them in each, a high rate and a low λ: so the error on held-out good
        # parts falls fastest. With λ = 0.5 a network first learns to trust no detail at all, and stays there for long.
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
        if config.object_correction:  # the mean map says where in the image a pixel lies
            self.position_aware = True  # type: ignore[misc]

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        corruption = self._corruption(None)
        members = [self._member(side, channels, amplify, corruption) for amplify in self._objectives().values()]
        return Ensemble(*members) if len(members) == 2 else members[0]

    def forecast(self, tiles: Tiles, run: Run = QUIET) -> Forecast:
        """Estimate time and memory of `fit` from a few timed steps on whole tiles."""
        with torch.random.fork_rng(devices=[]):
            found = []
            for loop in self._loops(tiles, replace(run, tell=QUIET.tell)).values():
                member = loop.module
                assert isinstance(member, FilteringNetwork)
                area = 0.0
                for step in range(self.config.steps):
                    area += (member.crop(step / self.config.steps) / tiles.side) ** 2 / self.config.steps
                seconds, megabytes = loop.forecast(tiles)
                found.append((seconds if run.seconds else area * seconds, megabytes))
        return Forecast(sum(seconds for seconds, _ in found), max(megabytes for _, megabytes in found))

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
                filled = "" if outside is None else files.digest(outside.cpu().numpy().tobytes())
                member.share = loop.share
                curve += loop.fit(tiles, f"{self.name} {objective} {filled}").splitlines()[1:]
                member.share = _whole
                if self.config.object_correction:
                    self._remember(member, tiles, loop.device)
                members.append(member.cpu())
        self.curve = "\n".join([*curve, ""])
        return self._keep(Ensemble(*members) if len(members) == 2 else members[0], tiles)

    def preview(self, tiles: Tiles, run: Run = QUIET) -> Iterator[Corrupted]:
        """Yield what training will see of tiles, varied and corrupted, a batch at a time; on the CPU."""
        corruption = self._corruption(self._elsewhere(tiles, replace(run, device="cpu")))
        generator = torch.Generator().manual_seed(mix(self.seed, "preview"))
        for batch in tiles:
            yield corruption(vary(batch, run.augment, generator), generator)

    def _objectives(self) -> dict[str, bool]:
        """Return which networks there are, and whether each amplifies."""
        objective = self.config.objective
        names = ("restore", "amplify") if objective == "ensemble" else (objective,)
        return {name: name == "amplify" for name in names}

    def _loops(self, tiles: Tiles, run: Run) -> dict[str, Loop]:
        """Return a loop for each network, with a folder and a share of the time of its own."""
        objectives, found = self._objectives(), {}
        corruption = self._corruption(self._elsewhere(tiles, run))
        seconds = run.seconds / len(objectives) if run.seconds else None
        for objective, amplify in objectives.items():
            torch.manual_seed(mix(self.seed, f"weights {objective}"))
            member = self._member(tiles.side, tiles.channels, amplify, corruption)
            own = replace(run, folder=run.folder / objective if run.folder else None, seconds=seconds)
            found[objective] = Loop(member, member.loss, self.config, self.seed, own)
        return found

    def _member(self, side: int, channels: int, amplify: bool, corruption: Corruption) -> FilteringNetwork:
        if side % HALVED:
            raise RecipeError(
                f"recipe: geometry.size = {side}; {self.name} halves its tiles three times, so it takes a multiple of "
                f"{HALVED}. Set size = {max(HALVED, side // HALVED * HALVED)}."
            )
        return FilteringNetwork(side, channels, self.config, amplify, corruption)

    def _corruption(self, outside: Tensor | None) -> Corruption:
        c = self.config
        return Corruption(c.corruptions, c.patch, c.shapes, c.displacement, c.brightness, c.rotation, c.noise, outside)

    def _elsewhere(self, tiles: Tiles, run: Run) -> Tensor | None:
        """Return the images that fill occlusions (k, c, t, t), on the device, where the settings name some."""
        folder = self.config.occlusion_images
        if not folder:
            return None
        pixels = elsewhere(folder, tiles.side, tiles.channels, run.images, self.seed, run.tell)
        return torch.from_numpy(pixels).permute(0, 3, 1, 2).to(choose(run.device))

    def _remember(self, member: FilteringNetwork, tiles: Tiles, device: torch.device) -> None:
        """Equation 13: the mean map of the tiles held out for early stopping, or of all where none are."""
        held = split(tiles.groups, self.config.hold_out, self.seed)[1]
        rows = held if len(held) else np.arange(len(tiles))
        together = torch.zeros_like(member.average)
        with torch.no_grad():
            for batch in of_rows(tiles, rows):
                for start in range(0, len(batch), TILES_AT_ONCE):
                    x = floats(batch[start : start + TILES_AT_ONCE], device)
                    together += member.difference(x, member.rebuild(x), self.config.correction_repeats).sum(dim=0)
        member.average.copy_((together / len(rows)).clamp(max=1))
