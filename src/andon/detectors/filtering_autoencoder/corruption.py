"""Corruptions of good tiles, which a network learns to repair; computed on tensors, on their device.

Paper: Bauer, Nakajima & Müller, "Self-supervised autoencoders for visual anomaly detection", Mathematics 12(24), 2024;
its figure 5 shows the steps. The noise in input and target: Bauer & Müller, "Noise & Pattern: Identity-Anchored
Tikhonov Regularization for Robust Structural Anomaly Detection", arXiv 2511.07233, 2025, from its abstract. Written
from the papers; no code of others. Symbols: X tiles, X̂ corrupted tiles, M mask, X1 … X4 the patches of figure 5, ε
noise.

The papers do not state sizes and shapes. Ours:
- The content of a patch is computed for the whole tile and blended with the shape mask. The result is the same as with
  cut patches, a batch can have patches of all sizes, and nothing synchronises the GPU.
- Shapes are ellipses with a wavy outline and a soft edge. Displacements are normally distributed at the knots of a
  grid, with cubic interpolation between them.
- A rotated tile is corrupted everywhere: its mask is 1.
- The noise is in the target too. Only then does it regularise the Jacobian towards the identity:
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
from andon.nn.data import mix, rotate
from andon.pictures import image

Kind = Literal["elastic", "occlusion", "cutout", "swap", "brightness", "rotation"]

OUTSIDE = 200  # greatest number of outside images
KNOTS = 16  # knots of the displacement field, a side
WAVES = 5  # waves of a shape's outline
ROUGHNESS = 0.25  # standard deviation of the first wave, as a share of the radius; that of wave k is 1 / k of it
SOFTEST = 0.5  # greatest width of a soft edge, as a share of the radius


class Corrupted(NamedTuple):
    """Input and target of a network; each (n, c, h, w)."""

    input: Tensor  # X̂
    mask: Tensor  # M in [0, 1]
    target: Tensor  # X, with the same noise as the input


@dataclass(frozen=True)
class Corruption:
    """Settings of the corruptions; lengths are shares of a tile's side."""

    kinds: tuple[Kind, ...]  # each tile has one of the first four; brightness and rotation are applied in addition
    patch: tuple[float, float]  # least and greatest diameter of a shape
    shapes: int  # greatest number of shapes of an occlusion
    displacement: float  # standard deviation of the elastic deformation, as a share of the shape's radius
    brightness: float  # greatest change, as a share of the pixel values
    rotation: float  # greatest angle in degrees, in either direction
    noise: float  # standard deviation, for pixel values in [0, 1]; 0: none
    outside: Tensor | None = None  # images that fill occlusions (k, c, h, w) uint8, on the device

    @torch.no_grad()
    def __call__(self, tiles: Tensor, generator: torch.Generator) -> Corrupted:
        """Corrupt tiles X (n, c, h, w) in [0, 1], each with its own random values; `generator` is on their device."""
        count, draw = len(tiles), _Draw(generator)
        fillings = [kind for kind in self.kinds if kind not in ("brightness", "rotation")]
        filling = draw.index(len(fillings), count) if fillings else torch.zeros(count, device=tiles.device).long()
        if fillings or "brightness" in self.kinds:
            number = 1 + draw.index(self.shapes, count)
            if "occlusion" in fillings:
                number = torch.where(filling == fillings.index("occlusion"), number, 1)
            else:
                number = torch.ones_like(number)
            most = self.shapes if "occlusion" in fillings else 1
            mask, radius = shape_masks(tiles.shape[-2:], number, most, self.patch, draw)  # X2, embedded
            contents = [self._content(kind, tiles, radius, draw) for kind in fillings]  # X3
            content = torch.stack(contents)[filling, torch.arange(count, device=tiles.device)] if contents else tiles
            if "brightness" in self.kinds:
                content = (content * (1 + self.brightness * draw.signed(count, 1, 1, 1))).clamp(0, 1)
            # Figure 5: X4 = X2 ⊙ X3 + (1 − X2) ⊙ X1
            corrupted = mask * content + (1 - mask) * tiles
        else:
            mask, corrupted = torch.zeros_like(tiles[:, :1]), tiles
        if "rotation" in self.kinds:
            turned = draw.uniform(count, 1, 1, 1) < (0.5 if len(self.kinds) > 1 else 1)
            degrees = self.rotation * draw.signed(count)
            corrupted = torch.where(turned, rotate(corrupted, degrees), corrupted)
            mask = torch.where(turned, 1.0, mask)
        noise = self.noise * draw.normal(*tiles.shape) if self.noise else torch.zeros_like(tiles)
        return Corrupted(corrupted + noise, mask.expand_as(tiles), tiles + noise)

    def _content(self, kind: Kind, tiles: Tensor, radius: Tensor, draw: "_Draw") -> Tensor:
        """Return the content of the shapes (n, c, h, w)."""
        if kind == "elastic":
            return elastic(tiles, self.displacement * radius, draw)
        if kind == "cutout":
            return torch.zeros_like(tiles)
        if kind == "swap":
            return shift(tiles.roll(1, 0), 0.0, draw)
        if self.outside is not None:
            sample = self.outside[draw.index(len(self.outside), len(tiles))]
            source = F.interpolate(sample.to(tiles.dtype) / 255, tiles.shape[-2:], mode="bilinear", antialias=True)
            return shift(source, 180.0, draw)
        from_tiles = draw.uniform(len(tiles), 1, 1, 1) < 0.5
        return torch.where(from_tiles, shift(tiles.roll(1, 0), 180.0, draw), textures(tiles, draw))


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
    """Return y (h, 1) and x (1, w) of the centres of the pixels; a tile extends from −1 to 1."""
    y, x = (torch.arange(1 - s, s, 2, device=device) / s for s in size)
    return y[:, None], x[None, :]


def shape_masks(
    size: torch.Size, number: Tensor, most: int, patch: tuple[float, float], draw: _Draw
) -> tuple[Tensor, Tensor]:
    """Return masks (n, 1, h, w) in [0, 1] of `number` (n,) ≤ `most` shapes, and the radius of the first shape (n,).

    A mask is 0 outside the shapes. The radius is a share of half the side.
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
    identity = torch.stack([x + 0 * y, 0 * x + y], dim=-1)  # (h, w, 2)
    grid = identity + deviation[:, None, None, None] * field.permute(0, 2, 3, 1)
    return F.grid_sample(tiles, grid, padding_mode="reflection", align_corners=False)


def shift(tiles: Tensor, degrees: float, draw: _Draw) -> Tensor:
    """Shift tiles (n, c, h, w) by 1/4 to 3/4 of their side, with reflection, and rotate them by up to `degrees`."""
    count = len(tiles)
    angle = math.radians(degrees) * draw.signed(count)
    offset = (0.5 + draw.uniform(count, 2)) * draw.signed(count, 2).sign()
    cos, sin = angle.cos(), angle.sin()
    matrix = torch.stack([cos, -sin, offset[:, 0], sin, cos, offset[:, 1]], dim=1).view(-1, 2, 3)
    grid = F.affine_grid(matrix, list(tiles.shape), align_corners=False)
    return F.grid_sample(tiles, grid, padding_mode="reflection", align_corners=False)


def textures(tiles: Tensor, draw: _Draw) -> Tensor:
    """Return procedural textures of the same shape: a colour, clouds and a grating, each with a random strength."""
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


def outside_images(
    folder: str,
    side: int,
    channels: int,
    data_set: Sequence[Path],
    seed: int,
    tell: Callable[[str], None] = lambda sentence: None,
) -> Pixels:
    """Read the images that fill occlusions: (k, side, side, channels) uint8, a random sample of at most `OUTSIDE`.

    Images that cannot be read are left out and reported to `tell`. DatasetError when there is no such folder, when no
    image in it can be read, or when one is in `data_set`, as the same file or as a copy of its bytes. A copy that was
    saved in another way is not detected.
    """
    place = Path(folder)
    paths = dataset.images(place) if files.is_folder(place) else []
    if not paths:
        reason = "no images" if files.is_folder(place) else "no such folder"
        raise DatasetError(
            f"occlusion_images = '{folder}': {reason}; expected a folder of pictures of other things. Correct the "
            "path, which is relative to the current folder, or leave the setting out."
        )
    sizes: dict[int, list[Path]] = {}
    for path in filter(files.is_file, data_set):
        sizes.setdefault(path.stat().st_size, []).append(path)
    for path in filter(files.is_file, paths):
        same_size = sizes.get(path.stat().st_size, [])
        digest = _digest(path) if same_size else ""
        twin = next((other for other in same_size if _digest(other) == digest), None)
        if twin:
            raise DatasetError(
                f"occlusion_images: {path} is {twin} of the data set; expected images that are not in the data set, "
                "because training must not see test images. Name another folder."
            )
    images: dict[int, Pixels] = {}
    skipped: list[str] = []
    for i in np.random.default_rng(mix(seed, "elsewhere")).permutation(len(paths)).tolist():
        try:
            images[i] = _read(paths[i], side, channels)
        except ImageError as error:
            skipped.append(str(error))
            tell(f"occlusion_images: left out: {error}")
        if len(images) == OUTSIDE:
            break
    if not images:
        raise DatasetError(
            f"occlusion_images = '{folder}': none of {len(paths)} images can be read; expected pictures of other "
            f"things. Replace them, or leave the setting out. One of them: {skipped[0]}"
        )
    return np.stack([images[i] for i in sorted(images)])


def _digest(path: Path) -> str:
    """SHA-256 of the file, or its path if it cannot be read, which equals no digest."""
    try:
        return files.digest(image.contents(path)[0])
    except ImageError:
        return str(path)


def _read(path: Path, side: int, channels: int) -> Pixels:
    """Read one image as (side, side, channels) uint8."""
    pixels = image.read(path).pixels
    if pixels.dtype != np.uint8:
        pixels = (pixels >> 8).astype(np.uint8)
    resized = cv2.resize(pixels, (side, side), interpolation=cv2.INTER_AREA).reshape(side, side, -1)
    if resized.shape[2] > channels:
        resized = resized.mean(axis=2, keepdims=True)
    return np.broadcast_to(resized, (side, side, channels)).astype(np.uint8)
