"""Synthetic defects: batches of good tiles → tiles with a defect, and masks.

Four kinds, one per tile: a region with the outline of Perlin noise, filled with another texture or colour (Perlin, "An
image synthesizer", SIGGRAPH 1985; as defects: Zavrtanik et al., "DRAEM", ICCV 2021); a rectangle from another position
of the tile, rotated (Li et al., "CutPaste", CVPR 2021); a thin curved scratch; a soft blob, darker or brighter, that
fades out without an edge (our own: a network that sees only the others, which have sharp edges, learns to find edges).
Written from the papers.

Differs from the papers:
- Textures are Perlin noise in a random colour, or the rotated tile, so that no other data set is needed.
- A Perlin region has an exact share of the tile, and is often concentrated around one position.
- Colours are not more saturated than those of the tile: grey pictures get grey defects.
- Pixels without a visible change are not part of the mask.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["perlin", "cut-paste", "scratch", "soft"]
KINDS: tuple[Kind, ...] = ("perlin", "cut-paste", "scratch", "soft")

CELLS = 16  # largest number of cells of Perlin noise along a side
VISIBLE = 8 / 255  # smallest visible change


@torch.no_grad()
def add_defects(
    tiles: Tensor,
    generator: torch.Generator,
    kinds: tuple[Kind, ...] = KINDS,
    least: float = 0.002,
    most: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Add one defect to each of the tiles (n, c, t, t) in [0, 1]; return the new tiles and masks (n, t, t), bool.

    The share of the tile that a defect covers is log-uniform between `least` and `most`, except for scratches. Pixels
    outside the mask do not change. The generator must be on the device of the tiles.
    """
    side, out = tiles.shape[-1], tiles.clone()
    region = torch.zeros_like(tiles[:, 0], dtype=torch.bool)
    kind_of = torch.randint(len(kinds), (len(tiles),), generator=generator, device=tiles.device)
    for index, kind in enumerate(kinds):
        rows = kind_of == index
        good = tiles[rows]
        draw = Draw(len(good), tiles.device, generator)
        share = torch.exp(draw.between(math.log(least), math.log(most)))
        if kind == "perlin":
            area, filling = perlin_region(side, share, draw), _texture(good, draw)
        elif kind == "cut-paste":
            area, filling = rectangle(side, share, draw), _recolour(_move(good, draw), draw)
        elif kind == "scratch":
            area, filling = scratch(side, draw), _scrape(good, draw)
        else:
            change = soft(side, share, draw)
            area, filling = change != 0, (good + change[:, None]).clamp(0, 1)
        region[rows], out[rows] = area, filling
    # A pixel that keeps its colour by chance is part of the defect if its neighbours change.
    change = (out - tiles).abs().amax(dim=1, keepdim=True) * region[:, None]
    mask = region & (F.max_pool2d(change, 5, stride=1, padding=2)[:, 0] > VISIBLE)
    return torch.where(mask[:, None], out, tiles), mask


class Draw:
    """Random numbers for each tile of a batch."""

    def __init__(self, count: int, device: torch.device, generator: torch.Generator) -> None:
        """Prepare random numbers for `count` tiles."""
        self.count, self.device, self.generator = count, device, generator

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers (count, *shape)."""
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator, device=self.device)

    def sign(self) -> Tensor:
        """−1 or 1 (count,)."""
        return torch.where(self.between(-1, 1) < 0, -1.0, 1.0)


def perlin(side: int, cells: Tensor, draw: Draw) -> Tensor:
    """Perlin noise (n, side, side) with mean 0, with `cells` (n,) ≤ CELLS along a side, not necessarily integers."""
    angle = draw.between(0, 2 * math.pi, (CELLS + 2) ** 2)
    gradient = torch.stack([torch.cos(angle), torch.sin(angle)])  # (2, n, corners)
    at = (torch.arange(side, device=draw.device) + 0.5) / side * cells[:, None] + draw.between(0, 1, 1)  # (n, side)
    corner = at.floor()
    inside, first = at - corner, corner.long()
    ease = inside**3 * (inside * (inside * 6 - 15) + 10)  # 6u⁵ − 15u⁴ + 10u³: no edges between the cells

    def ramp(down: int, right: int) -> Tensor:
        """Offset of each pixel from one corner of its cell, along the gradient of the corner: (n, side, side)."""
        index = ((first + down) * (CELLS + 2))[:, :, None] + (first + right)[:, None, :]
        y, x = (g.gather(1, index.flatten(1)).view(-1, side, side) for g in gradient)
        offset: Tensor = y * (inside - down)[:, :, None] + x * (inside - right)[:, None, :]
        return offset

    across, down = ease[:, None, :], ease[:, :, None]
    top = torch.lerp(ramp(0, 0), ramp(0, 1), across)
    return torch.lerp(top, torch.lerp(ramp(1, 0), ramp(1, 1), across), down)


def perlin_region(side: int, share: Tensor, draw: Draw) -> Tensor:
    """Mark the highest `share` (n,) of Perlin noise that decreases around a position: masks (n, side, side)."""
    field = perlin(side, 2 ** draw.between(1, math.log2(CELLS)), draw)
    y, x = _grid(side, draw)
    concentration = draw.between(0, 1)  # 0: wherever the noise is high; 1: one spot with an irregular edge
    distance = ((y**2 + x**2) / (share[:, None, None] + 0.02)).clamp(max=50)
    field = field - concentration[:, None, None] * distance
    count = (share * side**2).round().long().clamp(1, side**2 - 1)
    ordered = field.flatten(1).sort(dim=1, descending=True).values
    return field >= ordered.gather(1, count[:, None] - 1)[:, :, None]


def rectangle(side: int, share: Tensor, draw: Draw) -> Tensor:
    """Mark an upright rectangle inside the tile with `share` (n,) of its area and an aspect ratio up to 4."""
    stretch = 2 ** draw.between(-1, 1)
    height, width = (torch.clamp(torch.sqrt(share) * s, 1 / side, 1) for s in (stretch, 1 / stretch))
    at = (torch.arange(side, device=draw.device) + 0.5) / side

    def within(length: Tensor) -> Tensor:
        start = draw.between(0, 1) * (1 - length)
        return (at >= start[:, None]) & (at < (start + length)[:, None])  # (n, side)

    return within(height)[:, :, None] & within(width)[:, None, :]


def scratch(side: int, draw: Draw) -> Tensor:
    """Mark a curved line, 0.1 to 0.5 sides long and at most 0.03 sides wide: masks (n, side, side)."""
    y, x = _grid(side, draw)
    angle = draw.between(0, math.pi)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    along, across = cos * x + sin * y, cos * y - sin * x
    length, bend = draw.between(0.1, 0.5)[:, None, None], draw.between(-1, 1)[:, None, None]
    width = torch.exp(draw.between(math.log(1.5 / side), math.log(max(0.03, 2 / side))))[:, None, None]
    return ((across - bend * along**2).abs() <= width / 2) & (along.abs() <= length / 2)


def soft(side: int, share: Tensor, draw: Draw) -> Tensor:
    """Return the change of brightness (n, side, side) of a blob; 0 outside, where it would be invisible.

    A Gaussian of height 0.15 to 0.5 and an aspect ratio up to 4, whose visible part covers about `share` (n,) of the
    tile; Perlin noise makes its outline irregular.
    """
    y, x = _grid(side, draw)
    height, stretch = draw.between(0.15, 0.5), 2 ** draw.between(-1, 1)[:, None, None]
    angle = draw.between(0, math.pi)[:, None, None]
    along, across = torch.cos(angle) * x + torch.sin(angle) * y, torch.cos(angle) * y - torch.sin(angle) * x
    # h exp(−d² / 2s²) > VISIBLE inside d² < 2 s² log(h / VISIBLE), an area of π d²
    variance = share / (2 * math.pi * torch.log(height / VISIBLE))
    warp = torch.exp(perlin(side, 2 ** draw.between(1, 3), draw))
    distance = (along**2 * stretch + across**2 / stretch) * warp
    change = height[:, None, None] * torch.exp(-distance / (2 * variance[:, None, None]))
    return draw.sign()[:, None, None] * change * (change > VISIBLE)


def _grid(side: int, draw: Draw) -> tuple[Tensor, Tensor]:
    """Offsets of every pixel from a random position, y (n, side, 1) and x (n, 1, side), relative to the side."""
    at = (torch.arange(side, device=draw.device) + 0.5) / side
    y, x = (at - draw.between(0.1, 0.9)[:, None] for _ in range(2))
    return y[:, :, None], x[:, None, :]


def _texture(tiles: Tensor, draw: Draw) -> Tensor:
    """Return another texture, with random opacity: Perlin noise in a random colour, or the rotated tile."""
    grain = perlin(tiles.shape[-1], 2 ** draw.between(2, math.log2(CELLS)), draw)[:, None]
    noise = 0.5 + _colour(tiles, draw, 0.5) + _colour(tiles, draw, 0.5) * grain
    own = _recolour(_move(tiles, draw), draw)
    filling = torch.where(draw.between(0, 1)[:, None, None, None] < 0.5, noise, own)
    opacity = draw.between(0.3, 1, 1, 1, 1)
    return torch.lerp(tiles, filling, opacity).clamp(0, 1)


def _move(tiles: Tensor, draw: Draw) -> Tensor:
    """Rotate each tile by one to three quarter turns, and roll it by 0.25 to 0.75 sides."""
    side = tiles.shape[-1]
    at = torch.arange(side, device=draw.device)
    down, right = ((at + (draw.between(0.25, 0.75) * side).long()[:, None]) % side for _ in range(2))  # (n, side)
    down, right = down[:, :, None].expand(-1, -1, side), right[:, None, :].expand(-1, side, -1)
    turn = draw.between(0, 3).long()[:, None, None]
    y = torch.where(turn == 0, right, torch.where(turn == 1, side - 1 - down, side - 1 - right))
    x = torch.where(turn == 0, side - 1 - down, torch.where(turn == 1, side - 1 - right, down))
    index = (y * side + x).flatten(1)[:, None].expand(-1, tiles.shape[1], -1)
    return tiles.flatten(2).gather(2, index).view_as(tiles)


def _recolour(tiles: Tensor, draw: Draw) -> Tensor:
    """Shift the colours of each tile by up to 0.125."""
    return (tiles + _colour(tiles, draw, 0.125)).clamp(0, 1)


def _colour(tiles: Tensor, draw: Draw, reach: float) -> Tensor:
    """Return a colour (n, c, 1, 1) within ±`reach` for each tile; grey for a grey tile."""
    saturation = (2 * (tiles.amax(dim=1) - tiles.amin(dim=1)).amax(dim=(1, 2))).clamp(max=1)
    share = (saturation * draw.between(0, 1))[:, None, None, None]
    grey, bright = draw.between(-reach, reach, 1, 1, 1), draw.between(-reach, reach, tiles.shape[1], 1, 1)
    return torch.lerp(grey, bright, share)


def _scrape(tiles: Tensor, draw: Draw) -> Tensor:
    """Make each tile much darker or brighter, all channels equally."""
    change = draw.sign() * draw.between(0.15, 0.6)
    changed = tiles + change[:, None, None, None]
    # Where the result would be clipped, the change has the opposite sign.
    opposite = tiles - change[:, None, None, None]
    fits = (changed > 0) & (changed < 1)
    return torch.where(fits, changed, opposite).clamp(0, 1)
