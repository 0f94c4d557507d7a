"""Synthetic defects: good tiles in, tiles with a defect and the mask of it out, a batch at a time.

Three kinds, one a tile: a region with the outline of Perlin noise, filled with another texture or colour (Perlin, "An
image synthesizer", SIGGRAPH 1985; as defects: Zavrtanik et al., "DRAEM", ICCV 2021); a rectangle cut from elsewhere in
the tile, turned and put down again (Li et al., "CutPaste", CVPR 2021); a thin bent scratch. Written from the papers.

Differs from the papers:
- Foreign textures are made (Perlin noise in a random colour) or are the tile itself, turned: no other data set needed.
- A Perlin region has an exact share of the tile, and lies about one place more often than all over the tile.
- Colours are as vivid as those of the tile can be: grey pictures get grey defects.
- What does not change the picture visibly does not belong to the mask, so no network is taught to see nothing.
"""

import math
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

Kind = Literal["perlin", "cut-paste", "scratch"]
KINDS: tuple[Kind, ...] = ("perlin", "cut-paste", "scratch")

CELLS = 16  # of Perlin noise along a side, at most
VISIBLE = 8 / 255  # a smaller change of brightness is none


@torch.no_grad()
def add_defects(
    tiles: Tensor,
    generator: torch.Generator,
    kinds: tuple[Kind, ...] = KINDS,
    least: float = 0.002,
    most: float = 0.1,
) -> tuple[Tensor, Tensor]:
    """Give each of the tiles (n, c, t, t) in [0, 1] one defect; return the new tiles and their masks (n, t, t), bool.

    The region of a defect covers a share of the tile between `least` and `most`, drawn evenly on a scale of logarithms;
    a scratch is thin whatever they say. Outside the mask nothing changes. What is random comes from the generator,
    which is on the device of the tiles.
    """
    side, out = tiles.shape[-1], tiles.clone()
    region = torch.zeros_like(tiles[:, 0], dtype=torch.bool)
    chosen = torch.randint(len(kinds), (len(tiles),), generator=generator, device=tiles.device)
    for index, kind in enumerate(kinds):
        mine = chosen == index
        good = tiles[mine]
        draw = Draw(len(good), tiles.device, generator)
        share = torch.exp(draw.between(math.log(least), math.log(most)))
        if kind == "perlin":
            here, filling = perlin_region(side, share, draw), _foreign(good, draw)
        elif kind == "cut-paste":
            here, filling = rectangle(side, share, draw), _recoloured(_moved(good, draw), draw)
        else:
            here, filling = scratch(side, draw), _scraped(good, draw)
        region[mine], out[mine] = here, filling
    # A pixel that happens to keep its colour amid others that do not is still part of the defect.
    change = (out - tiles).abs().amax(dim=1, keepdim=True) * region[:, None]
    mask = region & (F.max_pool2d(change, 5, stride=1, padding=2)[:, 0] > VISIBLE)
    return torch.where(mask[:, None], out, tiles), mask


class Draw:
    """Random numbers, one a tile."""

    def __init__(self, count: int, device: torch.device, generator: torch.Generator) -> None:
        """Draw for `count` tiles."""
        self.count, self.device, self.generator = count, device, generator

    def between(self, low: float, high: float, *shape: int) -> Tensor:
        """Uniform numbers (count, *shape)."""
        return low + (high - low) * torch.rand(self.count, *shape, generator=self.generator, device=self.device)

    def sign(self) -> Tensor:
        """−1 or 1 (count,)."""
        return torch.where(self.between(-1, 1) < 0, -1.0, 1.0)


def perlin(side: int, cells: Tensor, draw: Draw) -> Tensor:
    """Perlin noise (n, side, side) about 0, with `cells` (n,) ≤ CELLS along a side, not necessarily whole."""
    angle = draw.between(0, 2 * math.pi, (CELLS + 2) ** 2)
    gradient = torch.stack([torch.cos(angle), torch.sin(angle)])  # (2, n, corners)
    at = (torch.arange(side, device=draw.device) + 0.5) / side * cells[:, None] + draw.between(0, 1, 1)  # (n, side)
    corner = at.floor()
    inside, first = at - corner, corner.long()
    ease = inside**3 * (inside * (inside * 6 - 15) + 10)  # 6u⁵ − 15u⁴ + 10u³: no edges between the cells

    def ramp(down: int, right: int) -> Tensor:
        """Each pixel's offset from one corner of its cell, along that corner's gradient (n, side, side)."""
        index = ((first + down) * (CELLS + 2))[:, :, None] + (first + right)[:, None, :]
        y, x = (g.gather(1, index.flatten(1)).view(-1, side, side) for g in gradient)
        offset: Tensor = y * (inside - down)[:, :, None] + x * (inside - right)[:, None, :]
        return offset

    across, down = ease[:, None, :], ease[:, :, None]
    top = torch.lerp(ramp(0, 0), ramp(0, 1), across)
    return torch.lerp(top, torch.lerp(ramp(1, 0), ramp(1, 1), across), down)


def perlin_region(side: int, share: Tensor, draw: Draw) -> Tensor:
    """Mark the highest `share` (n,) of Perlin noise that falls off around some place: masks (n, side, side)."""
    field = perlin(side, 2 ** draw.between(1, math.log2(CELLS)), draw)
    y, x = _grid(side, draw)
    together = draw.between(0, 1)  # 0: wherever the noise is high; 1: a spot with a ragged edge
    distance = ((y**2 + x**2) / (share[:, None, None] + 0.02)).clamp(max=50)
    field = field - together[:, None, None] * distance
    count = (share * side**2).round().long().clamp(1, side**2 - 1)
    ordered = field.flatten(1).sort(dim=1, descending=True).values
    return field >= ordered.gather(1, count[:, None] - 1)[:, :, None]


def rectangle(side: int, share: Tensor, draw: Draw) -> Tensor:
    """Mark an upright rectangle of `share` (n,) of the tile, up to four times as long as wide, wholly inside it."""
    stretch = 2 ** draw.between(-1, 1)
    height, width = (torch.clamp(torch.sqrt(share) * s, 1 / side, 1) for s in (stretch, 1 / stretch))
    at = (torch.arange(side, device=draw.device) + 0.5) / side

    def within(length: Tensor) -> Tensor:
        start = draw.between(0, 1) * (1 - length)
        return (at >= start[:, None]) & (at < (start + length)[:, None])  # (n, side)

    return within(height)[:, :, None] & within(width)[:, None, :]


def scratch(side: int, draw: Draw) -> Tensor:
    """Mark a bent line, a tenth to half a side long, and at most three hundredths wide: masks (n, side, side)."""
    y, x = _grid(side, draw)
    angle = draw.between(0, math.pi)
    cos, sin = torch.cos(angle)[:, None, None], torch.sin(angle)[:, None, None]
    along, across = cos * x + sin * y, cos * y - sin * x
    length, bend = draw.between(0.1, 0.5)[:, None, None], draw.between(-1, 1)[:, None, None]
    width = torch.exp(draw.between(math.log(1.5 / side), math.log(max(0.03, 2 / side))))[:, None, None]
    return ((across - bend * along**2).abs() <= width / 2) & (along.abs() <= length / 2)


def _grid(side: int, draw: Draw) -> tuple[Tensor, Tensor]:
    """Offsets of every pixel from a random place, y (n, side, 1) and x (n, 1, side), in sides."""
    at = (torch.arange(side, device=draw.device) + 0.5) / side
    y, x = (at - draw.between(0.1, 0.9)[:, None] for _ in range(2))
    return y[:, :, None], x[:, None, :]


def _foreign(tiles: Tensor, draw: Draw) -> Tensor:
    """Another texture: Perlin noise in a random colour, or the tile itself, turned; more or less opaque."""
    grain = perlin(tiles.shape[-1], 2 ** draw.between(2, math.log2(CELLS)), draw)[:, None]
    made = 0.5 + _colour(tiles, draw, 0.5) + _colour(tiles, draw, 0.5) * grain
    own = _recoloured(_moved(tiles, draw), draw)
    filling = torch.where(draw.between(0, 1)[:, None, None, None] < 0.5, made, own)
    opaque = draw.between(0.3, 1, 1, 1, 1)
    return torch.lerp(tiles, filling, opaque).clamp(0, 1)


def _moved(tiles: Tensor, draw: Draw) -> Tensor:
    """Each tile turned by a quarter or more, and rolled by a quarter of a side to three quarters."""
    side = tiles.shape[-1]
    at = torch.arange(side, device=draw.device)
    down, right = ((at + (draw.between(0.25, 0.75) * side).long()[:, None]) % side for _ in range(2))  # (n, side)
    down, right = down[:, :, None].expand(-1, -1, side), right[:, None, :].expand(-1, side, -1)
    turn = draw.between(0, 3).long()[:, None, None]
    y = torch.where(turn == 0, right, torch.where(turn == 1, side - 1 - down, side - 1 - right))
    x = torch.where(turn == 0, side - 1 - down, torch.where(turn == 1, side - 1 - right, down))
    index = (y * side + x).flatten(1)[:, None].expand(-1, tiles.shape[1], -1)
    return tiles.flatten(2).gather(2, index).view_as(tiles)


def _recoloured(tiles: Tensor, draw: Draw) -> Tensor:
    """Each tile's colours shifted by up to an eighth."""
    return (tiles + _colour(tiles, draw, 0.125)).clamp(0, 1)


def _colour(tiles: Tensor, draw: Draw, reach: float) -> Tensor:
    """A colour (n, c, 1, 1) within ±`reach` for each tile, and a grey one for a tile that knows no other."""
    vivid = (2 * (tiles.amax(dim=1) - tiles.amin(dim=1)).amax(dim=(1, 2))).clamp(max=1)
    share = (vivid * draw.between(0, 1))[:, None, None, None]
    grey, bright = draw.between(-reach, reach, 1, 1, 1), draw.between(-reach, reach, tiles.shape[1], 1, 1)
    return torch.lerp(grey, bright, share)


def _scraped(tiles: Tensor, draw: Draw) -> Tensor:
    """Each tile much darker or brighter, all its channels alike."""
    change = draw.sign() * draw.between(0.15, 0.6)
    moved = tiles + change[:, None, None, None]
    # Where there is no room left on that side, a scratch goes the other way.
    back = tiles - change[:, None, None, None]
    fits = (moved > 0) & (moved < 1)
    return torch.where(fits, moved, back).clamp(0, 1)
