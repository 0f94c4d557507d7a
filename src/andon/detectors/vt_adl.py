"""vt-adl: a transformer of patches, whose tokens are rebuilt into the picture and weighed by a mixture of Gaussians.

Paper: Mishra, Verk, Fornasier, Piciarelli & Foresti, "VT-ADL: A Vision Transformer Network for Image Anomaly
Detection and Localization", ISIE 2021, arXiv 2104.10036. Mixture density networks: Bishop, NCRG/94/004, 1994; noise
as their regulariser: Rothfuss et al., arXiv 1907.08982, 2019. The texts of the papers were not at hand: written from
what is known of them; no code of others. Symbols: x tile, x̂ reconstruction, y token (the encoded patch) of D values,
ỹ token with noise, K Gaussians of weight π_k, mean μ_k and variance σ_k², g × g patches.

The density is that of the token given the token itself, p(y | y): nothing forbids μ = y, a likelihood without bound,
and a map that is the same everywhere. Two things hold it back, and `noise = 0` shows what the first is worth. In
training the mixture sees ỹ and must say where y is, so that it learns the way back to what good parts look like, and a
token that lies off that way is far from every μ. And no variance falls below `floor`.

Differs from the paper:
- The likelihood is the mixture's, by log-sum-exp, and not an approximation of it. It is divided by D, so that its share
  in loss and score does not hang on the length of the tokens.
- The noise is on what the mixture and the reconstruction see, not on the token whose density is asked for.
- Tokens are standardised at the end (layer normalisation without weights), so that `noise` and `floor` have a unit and
  the encoder cannot raise the likelihood by shrinking them. There is no class token at all.
- One mean a Gaussian and value, but one variance a Gaussian (Bishop's kernel).
- Routing into one capsule has nothing to choose, its couplings are all 1, so it is done without iterations.
- Width of the decoder, smoothing and the floor are not in the text; they are ours. So is the sum of three terms that
  are not scaled to each other: `score` can also be one of its halves.
"""

import math
from itertools import pairwise
from typing import Annotated, Any, ClassVar, Literal

import torch
from pydantic import BaseModel, Field, model_validator
from torch import Tensor, nn
from torch.nn import functional as F

from andon.errors import RecipeError
from andon.nn.capsules import route
from andon.nn.learned import LearnedDetector, Network
from andon.nn.loop import Schedule
from andon.nn.losses import gaussian, ssim

COARSEST = 8  # positions a side that the decoder begins with, or up to twice as many
RECONSTRUCTION, STRUCTURE = 5.0, 0.5  # weights of the squared error and of SSIM; that of the likelihood is 1


class Settings(Schedule):
    """Settings of `vt-adl`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"score", "smooth"}

    patch: Annotated[int, Field(ge=4)] = 32
    """Side of a patch, pixels; it must divide geometry.size."""
    dim: Annotated[int, Field(ge=8)] = 512
    """D, values of a token."""
    depth: Annotated[int, Field(ge=1)] = 6
    """Layers of the transformer."""
    heads: Annotated[int, Field(ge=1)] = 8
    """Heads of attention; their number must divide `dim`."""
    mlp: Annotated[int, Field(ge=1)] = 1024
    """Width of the layers between attention."""
    gaussians: Annotated[int, Field(ge=1)] = 10
    """K, components of the mixture."""
    noise: Annotated[float, Field(ge=0)] = 0.2
    """Standard deviation of the noise on tokens in training; that of the tokens is 1."""
    floor: Annotated[float, Field(gt=0)] = 1e-3
    """Least variance σ_k²."""
    width: Annotated[int, Field(ge=1)] = 256
    """Channels of the decoder's first layer; each next layer has half as many."""
    score: Literal["sum", "reconstruction", "likelihood"] = "sum"
    """Image score: reconstruction error, negative log-likelihood, or their sum."""
    smooth: Annotated[float, Field(ge=0)] = 4.0
    """Standard deviation of the Gaussian that smooths the map, pixels; 0: none."""

    @model_validator(mode="after")
    def _whole(self) -> "Settings":
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} must be a multiple of heads = {self.heads}")
        return self


class Layer(nn.Module):
    """One layer of a transformer: attention and two linear layers, each normalised before and added to its input."""

    def __init__(self, dim: int, heads: int, mlp: int) -> None:
        """Build it for tokens of `dim` values."""
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value, self.join = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.think = nn.Sequential(nn.Linear(dim, mlp), nn.GELU(), nn.Linear(mlp, dim))

    def forward(self, y: Tensor) -> Tensor:
        """Tokens (n, patches, dim) → the same."""
        n, patches, dim = y.shape
        found = self.query_key_value(self.before(y)).view(n, patches, 3, self.heads, dim // self.heads)
        query, key, value = found.permute(2, 0, 3, 1, 4)  # each (n, heads, patches, dim / heads)
        seen = F.scaled_dot_product_attention(query, key, value)
        y = y + self.join(seen.transpose(1, 2).reshape(n, patches, dim))
        return torch.add(y, self.think(self.between(y)))


class Mixture(nn.Module):
    """A mixture density network: from a token, the weights, means and variances of K Gaussians."""

    def __init__(self, dim: int, gaussians: int, floor: float) -> None:
        """Build it for tokens of `dim` values."""
        super().__init__()
        self.floor = floor
        self.hidden = nn.Sequential(nn.Linear(dim, dim), nn.GELU())
        self.weight, self.variance = nn.Linear(dim, gaussians), nn.Linear(dim, gaussians)
        self.mean = nn.Linear(dim, gaussians * dim)

    def forward(self, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Tokens (…, D) → log π (…, K), μ (…, K, D) and σ² (…, K)."""
        h = self.hidden(y)
        mean = self.mean(h).unflatten(-1, (-1, y.shape[-1]))
        return self.weight(h).log_softmax(dim=-1), mean, self.variance(h).exp() + self.floor


def log_likelihood(y: Tensor, log_weight: Tensor, mean: Tensor, variance: Tensor) -> Tensor:
    """Log density (…,) at y (…, D) of a mixture of round Gaussians: log π (…, K), μ (…, K, D), σ² (…, K)."""
    square = ((y[..., None, :] - mean) ** 2).sum(dim=-1)
    # log N(y; μ_k, σ_k² I) = −(D log(2π σ_k²) + |y − μ_k|² / σ_k²) / 2
    each = log_weight - (y.shape[-1] * torch.log(2 * math.pi * variance) + square / variance) / 2
    # log Σ_k exp, by the greatest: written out, so that no engine computes it in a way that underflows.
    greatest = each.amax(dim=-1, keepdim=True)
    return (greatest + (each - greatest).exp().sum(dim=-1, keepdim=True).log())[..., 0]


class VTADLNetwork(Network):
    """Patches → tokens → one capsule → reconstruction; and tokens → mixture → likelihood of each patch."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side). RecipeError when the patches do not fit in them."""
        super().__init__()
        if side % config.patch or side == config.patch:
            fitting = [p for p in (8, 16, 32, 64, 128) if side % p == 0 and p < side]
            raise RecipeError(
                f"tiles of {side} pixels a side do not divide into patches of {config.patch}; expected a multiple of "
                f"the patch, at least two a side. Set patch to one of {fitting}, or change geometry.size."
            )
        self.config, self.grid = config, side // config.patch
        dim, patches = config.dim, self.grid**2
        self.embed = nn.Conv2d(channels, dim, config.patch, stride=config.patch)
        self.position = nn.Parameter(0.02 * torch.randn(patches, dim))
        self.layers = nn.Sequential(*(Layer(dim, config.heads, config.mlp) for _ in range(config.depth)))
        self.standard = nn.LayerNorm(dim, elementwise_affine=False)
        self.vote = nn.Parameter(torch.randn(patches, dim, dim) / math.sqrt(dim * patches))
        self.mixture = Mixture(dim, config.gaussians, config.floor)
        coarse, doublings = side, 0
        while coarse % 2 == 0 and coarse >= 2 * COARSEST:
            coarse, doublings = coarse // 2, doublings + 1
        widths = [max(8, config.width // 2**i) for i in range(doublings)] + [channels]
        self.decode = nn.Sequential(
            nn.Linear(dim, widths[0] * coarse**2), nn.Unflatten(1, (widths[0], coarse, coarse)), nn.ReLU()
        )
        for here, after in pairwise(widths):
            self.decode.extend([nn.ConvTranspose2d(here, after, 4, stride=2, padding=1), nn.ReLU()])
        self.decode[-1] = nn.Sigmoid()

    def encode(self, tiles: Tensor) -> Tensor:
        """Tiles (n, c, t, t) → tokens y (n, g², D), each of mean 0 and variance 1."""
        y = self.embed(tiles).flatten(2).transpose(1, 2) + self.position
        tokens: Tensor = self.standard(self.layers(y))
        return tokens

    def rebuild(self, tokens: Tensor) -> Tensor:
        """Tokens (n, g², D) → reconstruction (n, c, t, t)."""
        votes = torch.einsum("npd,pde->npe", tokens, self.vote)[:, :, None]  # (n, g², 1, D)
        rebuilt: Tensor = self.decode(route(votes, iterations=1)[:, 0])
        return rebuilt

    def likelihood(self, tokens: Tensor, seen: Tensor) -> Tensor:
        """Negative log-likelihood, over D, (n, g²) of tokens given those that the mixture sees, both (n, g², D)."""
        return -log_likelihood(tokens.float(), *(v.float() for v in self.mixture(seen))) / self.config.dim

    def errors(self, tiles: Tensor, rebuilt: Tensor) -> Tensor:
        """5 · MSE + (1 − SSIM) / 2 of each tile and its reconstruction (n,)."""
        square = ((tiles - rebuilt) ** 2).mean(dim=(1, 2, 3))
        return RECONSTRUCTION * square + STRUCTURE * (1 - ssim(tiles, rebuilt).mean(dim=(1, 2, 3)))

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """5 · MSE − SSIM / 2 + NLL, and a half so that nothing is lost by a perfect SSIM."""
        tokens = self.encode(tiles)
        noise = torch.randn(tokens.shape, generator=generator, device=tokens.device)
        seen = tokens + self.config.noise * noise
        return (self.errors(tiles, self.rebuild(seen).float()) + self.likelihood(tokens, seen).mean(dim=1)).mean()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        tokens = self.encode(tiles)
        rebuilt = self.rebuild(tokens)
        unlikely = self.likelihood(tokens, tokens)  # (n, g²)
        error, worst = self.errors(tiles, rebuilt), unlikely.amax(dim=1)
        score = {"sum": error + worst, "reconstruction": error, "likelihood": worst}[self.config.score]
        coarse = unlikely.view(-1, 1, self.grid, self.grid)
        found = F.interpolate(coarse, size=tiles.shape[-2:], mode="bilinear", align_corners=False)
        return score, self._smoothed(found)[:, 0], rebuilt

    def _smoothed(self, maps: Tensor) -> Tensor:
        """Blur maps (n, 1, t, t); the edge is repeated."""
        sigma = self.config.smooth
        if not sigma:
            return maps
        reach = min(math.ceil(3 * sigma), maps.shape[-1] - 1)
        weights = gaussian(2 * reach + 1, sigma)
        maps = F.pad(maps, (reach,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(maps, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


class VTADL(LearnedDetector):
    """Reconstruction error of a picture and likelihood of its patches, from one transformer."""

    name: ClassVar[str] = "vt-adl"
    position_aware: ClassVar[bool] = True
    Config: ClassVar[type[BaseModel]] = Settings
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "cpu": {
            "patch": 16,
            "dim": 128,
            "depth": 3,
            "heads": 4,
            "mlp": 256,
            "gaussians": 5,
            "width": 64,
            "batch": 4,
            "steps": 400,
        },
        "full": {
            "patch": 64,
            "gaussians": 150,
            "learning_rate": 1e-4,
            "weight_decay": 1e-4,
            "decay": "constant",
            "steps": 10_000,
        },
    }

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side). RecipeError when the patches do not fit."""
        return VTADLNetwork(side, channels, self.config)
