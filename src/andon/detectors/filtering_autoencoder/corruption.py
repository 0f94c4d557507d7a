"""Damage done to good tiles on purpose, for networks that learn to repair it: on tensors, on the device they are on.

Paper: Bauer, Nakajima & Müller, "Self-supervised autoencoders for visual anomaly detection", Mathematics 12(24), 2024;
its figure 5 has the steps. The noise that is kept: Bauer & Müller, "Noise & Pattern: Identity-Anchored Tikhonov
Regularization for Robust Structural Anomaly Detection", arXiv 2511.07233, 2025, from its abstract. Written from the
papers; no code of others. Symbols: X tiles, X̂ corrupted tiles, M mask, X1 … X4 the patches of figure 5, ε noise.

The papers leave sizes and shapes open. Ours:
- A patch is never cut out. Its content is made for the whole tile and blended in where the shape mask says, which is
  the same, and lets a batch with patches of all sizes be worked on at once. Nothing waits for the device.
- Shapes are ellipses with a wavy outline and a soft edge. Displacements are normally distributed at the knots of a
  grid, and cubic between them.
- A rotated tile is corrupted everywhere: its mask is 1.
- The kept noise is part of what is to be rebuilt too, for only then is the Jacobian held near the identity:
  E‖F(X̂ + ε) − (X + ε)‖² ≈ ‖F(X̂) − X‖² + σ²‖∂F − 1‖².
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, NamedTuple

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from andon import files
from andon.data import dataset
from andon.errors import DatasetError, ImageError
from andon.inspection import Pixels
from andon.nn.data import mix, rotated
from andon.pictures import image

Kind = Literal["elastic", "occlusion", "cutout", "swap", "brightness", "rotation"]

OUTSIDE = 200  # images from elsewhere that are kept, at most
KNOTS = 16  # of the displacement field, a side
WAVES = 5  # of a shape's outline
ROUGHNESS = 0.25  # standard deviation of the first wave, as a share of the radius; wave k has a k-th of it
SOFTEST = 0.5  # width of the softest edge, as a share of the radius


class Corrupted(NamedTuple):
    """What a network is given, and what is asked of it; each (n, c, h, w)."""

    input: Tensor  # X̂
    mask: Tensor  # M in [0, 1]
    target: Tensor  # X, and the noise that is kept


@dataclass(frozen=True)
class Corruption:
    """Which damage is done; lengths are shares of a tile's side."""

    kinds: tuple[Kind, ...]  # one of the first four for each tile in turn; brightness and rotation come on top
    patch: tuple[float, float]  # smallest and largest diameter of a shape
    shapes: int  # most shapes of an occlusion
    displacement: float  # standard deviation of the elastic deformation, as a share of the shape's radius
    brightness: float  # of a patch, times 1 ± up to this share
    rotation: float  # up to so many degrees either way
    noise: float  # standard deviation, of values in [0, 1]; 0: none
    outside: Tensor | None = None  # (k, c, h, w) uint8 on the device; fill occlusions, else other places and textures

    @torch.no_grad()
    def __call__(self, tiles: Tensor, generator: torch.Generator) -> Corrupted:
        """Corrupt tiles X (n, c, h, w) in [0, 1], each in its own way; `generator` is on their device."""
        count, draw = len(tiles), _Draw(generator)
        fillings = [kind for kind in self.kinds if kind not in ("brightness", "rotation")]
        chosen = draw.index(len(fillings), count) if fillings else torch.zeros(count, device=tiles.device).long()
        if fillings or "brightness" in self.kinds:
            number = 1 + draw.index(self.shapes, count)
            if "occlusion" in fillings:
                number = torch.where(chosen == fillings.index("occlusion"), number, 1)
            else:
                number = torch.ones_like(number)
            most = self.shapes if "occlusion" in fillings else 1
            mask, radius = shape_masks(tiles.shape[-2:], number, most, self.patch, draw)  # X2, embedded
            contents = [self._content(kind, tiles, radius, draw) for kind in fillings]  # X3
            content = torch.stack(contents)[chosen, torch.arange(count, device=tiles.device)] if contents else tiles
            if "brightness" in self.kinds:
                content = (content * (1 + self.brightness * draw.signed(count, 1, 1, 1))).clamp(0, 1)
            # Figure 5: X4 = X2 ⊙ X3 + (1 − X2) ⊙ X1
            damaged = mask * content + (1 - mask) * tiles
        else:
            mask, damaged = torch.zeros_like(tiles[:, :1]), tiles
        if "rotation" in self.kinds:
            turned = draw.uniform(count, 1, 1, 1) < (0.5 if len(self.kinds) > 1 else 1)
            degrees = self.rotation * draw.signed(count)
            damaged = torch.where(turned, rotated(damaged, degrees), damaged)
            mask = torch.where(turned, 1.0, mask)
        noise = self.noise * draw.normal(*tiles.shape) if self.noise else torch.zeros_like(tiles)
        return Corrupted(damaged + noise, mask.expand_as(tiles), tiles + noise)

    def _content(self, kind: Kind, tiles: Tensor, radius: Tensor, draw: "_Draw") -> Tensor:
        """Return what fills the shapes (n, c, h, w)."""
        if kind == "elastic":
            return elastic(tiles, self.displacement * radius, draw)
        if kind == "cutout":
            return torch.zeros_like(tiles)
        if kind == "swap":
            return moved(tiles.roll(1, 0), 0.0, draw)
        if self.outside is not None:
            chosen = self.outside[draw.index(len(self.outside), len(tiles))]
            source = F.interpolate(chosen.to(tiles.dtype) / 255, tiles.shape[-2:], mode="bilinear", antialias=True)
            return moved(source, 180.0, draw)
        elsewhere = draw.uniform(len(tiles), 1, 1, 1) < 0.5
        return torch.where(elsewhere, moved(tiles.roll(1, 0), 180.0, draw), textures(tiles, draw))


class _Draw:
    """Random numbers on the generator's device."""

    def __init__(self, generator: torch.Generator) -> None:
        self._generator = generator

    def uniform(self, *shape: int) -> Tensor:
        return torch.rand(shape, generator=self._generator, device=self._generator.device)

    def signed(self, *shape: int) -> Tensor:
        return 2 * self.uniform(*shape) - 1

    def normal(self, *shape: int) -> Tensor:
        return torch.randn(shape, generator=self._generator, device=self._generator.device)

    def index(self, below: int, *shape: int) -> Tensor:
        return torch.randint(below, shape, generator=self._generator, device=self._generator.device)


def _positions(size: torch.Size, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return y (h, 1) and x (1, w) of the centres of pixels; a tile reaches from −1 to 1."""
    y, x = (torch.arange(1 - s, s, 2, device=device) / s for s in size)
    return y[:, None], x[None, :]


def shape_masks(
    size: torch.Size, number: Tensor, most: int, patch: tuple[float, float], draw: _Draw
) -> tuple[Tensor, Tensor]:
    """Return masks (n, 1, h, w) in [0, 1] of `number` (n,) shapes each, at most `most`, and the first's radius (n,).

    Zero outside the shapes. The radius is a share of half the side.
    """
    count = len(number)
    y, x = _positions(size, number.device)
    mask = torch.zeros(count, *size, device=number.device)
    radii = patch[0] + (patch[1] - patch[0]) * draw.uniform(most, count)
    for j, radius in enumerate(radii[..., None, None]):
        dy, dx = y - draw.signed(count, 1, 1), x - draw.signed(count, 1, 1)
        turn, stretch = math.pi * draw.uniform(count, 1, 1), torch.exp2(draw.signed(count, 1, 1) / 2)
        along, across = turn.cos() * dx + turn.sin() * dy, turn.cos() * dy - turn.sin() * dx
        along, across = along * stretch, across / stretch
        angle, outline = torch.atan2(across, along), torch.ones_like(along)
        for k in range(1, WAVES + 1):
            phase, height = 2 * math.pi * draw.uniform(count, 1, 1), draw.normal(count, 1, 1) * ROUGHNESS / k
            outline = outline + height * torch.cos(k * angle + phase)
        inside = outline.clamp(min=0.3) - torch.hypot(along, across) / radius
        soft = 0.05 + (SOFTEST - 0.05) * draw.uniform(count, 1, 1)
        rise = (inside / soft).clamp(0, 1)
        shape = rise**2 * (3 - 2 * rise)
        mask = torch.where((number > j)[:, None, None], torch.maximum(mask, shape), mask)
    return mask[:, None], radii[0]


def elastic(tiles: Tensor, deviation: Tensor, draw: _Draw) -> Tensor:
    """Deform tiles (n, c, h, w) by displacements of a standard deviation (n,), as shares of half the side."""
    knots = draw.normal(len(tiles), 2, KNOTS, KNOTS)
    field = F.interpolate(knots, tiles.shape[-2:], mode="bicubic", align_corners=True)
    y, x = _positions(tiles.shape[-2:], tiles.device)
    still = torch.stack([x + 0 * y, 0 * x + y], dim=-1)  # (h, w, 2)
    grid = still + deviation[:, None, None, None] * field.permute(0, 2, 3, 1)
    return F.grid_sample(tiles, grid, padding_mode="reflection", align_corners=False)


def moved(tiles: Tensor, degrees: float, draw: _Draw) -> Tensor:
    """Shift tiles (n, c, h, w) by a quarter to three quarters of their side, turned by up to `degrees`; reflected."""
    count = len(tiles)
    angle = math.radians(degrees) * draw.signed(count)
    shift = (0.5 + draw.uniform(count, 2)) * draw.signed(count, 2).sign()
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([cos, -sin, shift[:, 0], sin, cos, shift[:, 1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(tiles.shape), align_corners=False)
    return F.grid_sample(tiles, grid, padding_mode="reflection", align_corners=False)


def textures(tiles: Tensor, draw: _Draw) -> Tensor:
    """Return procedural textures of the same shape: a colour, clouds and a grating, each of random strength."""
    count, channels = tiles.shape[:2]
    y, x = _positions(tiles.shape[-2:], tiles.device)
    fine = F.interpolate(draw.normal(count, channels, 32, 32), tiles.shape[-2:], mode="bicubic")
    coarse = F.interpolate(draw.normal(count, channels, 6, 6), tiles.shape[-2:], mode="bicubic")
    turn, waves = math.pi * draw.uniform(count, 1, 1, 1), 4 * 2 ** (4 * draw.uniform(count, 1, 1, 1))
    phase = 2 * math.pi * draw.uniform(count, 1, 1, 1)
    grating = torch.sin(math.pi * waves * (turn.cos() * x + turn.sin() * y) + phase)
    strength = 0.3 * draw.uniform(3, count, channels, 1, 1)
    clouds = strength[0] * coarse + strength[1] * fine + strength[2] * grating
    return (draw.uniform(count, channels, 1, 1) + clouds).clamp(0, 1)


def elsewhere(
    folder: str,
    side: int,
    channels: int,
    taken: Sequence[Path],
    seed: int,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Pixels:
    """Read images that fill occlusions: (k, side, side, channels) uint8, at most `OUTSIDE`, drawn by the seed.

    Those that cannot be read are left out, and `tell` hears of each. DatasetError when there is no such folder, no
    image in it that can be read, or one that is among those of the data set, `taken`: the same file, or a copy of it.
    A copy that was saved anew is not noticed.
    """
    place = Path(folder)
    paths = dataset.images(place) if files.is_folder(place) else []
    if not paths:
        found = "no images" if files.is_folder(place) else "no such folder"
        raise DatasetError(
            f"occlusion_images = '{folder}': {found}; expected a folder of pictures of something else. Correct the "
            "path, which is relative to where the command runs, or leave the setting out."
        )
    sizes: dict[int, list[Path]] = {}
    for path in filter(files.is_file, taken):
        sizes.setdefault(path.stat().st_size, []).append(path)
    for path in filter(files.is_file, paths):
        alike = sizes.get(path.stat().st_size, [])
        digest = _digest(path) if alike else ""
        twin = next((other for other in alike if _digest(other) == digest), None)
        if twin:
            raise DatasetError(
                f"occlusion_images: {path} is {twin} of the data set; expected images from elsewhere, or training sees "
                "what it is tested on. Name another folder."
            )
    fitted: dict[int, Pixels] = {}
    skipped: list[str] = []
    for i in np.random.default_rng(mix(seed, "elsewhere")).permutation(len(paths)).tolist():
        try:
            fitted[i] = _fitted(paths[i], side, channels)
        except ImageError as error:
            skipped.append(str(error))
            tell(f"occlusion_images: left out: {error}")
        if len(fitted) == OUTSIDE:
            break
    if not fitted:
        raise DatasetError(
            f"occlusion_images = '{folder}': none of {len(paths)} images can be read; expected pictures of something "
            f"else. Replace them, or leave the setting out. One of them: {skipped[0]}"
        )
    return np.stack([fitted[i] for i in sorted(fitted)])


def _digest(path: Path) -> str:
    """SHA-256 of the file; one that cannot be read is like no other."""
    try:
        return files.digest(image.contents(path)[0])
    except ImageError:
        return str(path)


def _fitted(path: Path, side: int, channels: int) -> Pixels:
    """Read one image as (side, side, channels) uint8."""
    pixels = image.read(path).pixels
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    shown = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA).reshape(side, side, -1)
    if shown.shape[2] > channels:
        shown = shown.mean(axis=2, keepdims=True)
    return np.broadcast_to(shown, (side, side, channels)).astype(np.uint8)
