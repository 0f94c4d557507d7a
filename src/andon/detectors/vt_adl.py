"""vt-adl: reconstruction error of a vision transformer, and likelihood of its tokens under a mixture of Gaussians.

Paper: Mishra, Verk, Fornasier, Piciarelli & Foresti, "VT-ADL: A Vision Transformer Network for Image Anomaly Detection
and Localization", ISIE 2021, arXiv 2104.10036. Mixture density networks: Bishop, NCRG/94/004, 1994; their
regularisation by noise: Rothfuss et al., arXiv 1907.08982, 2019. Written from general knowledge of the papers, whose
texts were not available; no code of others. Symbols: x tile, x̂ reconstruction, y token (the encoded patch) of D
values, ỹ token with noise, K Gaussians of weight π_k, mean μ_k and variance σ_k², g × g patches.

The density is p(y | y), that of a token given the token itself. Without a limit the mixture could learn μ = y, an
unbounded likelihood, and the map would be the same everywhere. Two things prevent it. First, the input of the mixture
in training is ỹ, and it must predict y: it learns to denoise tokens of good parts, and an unusual token is far from
every μ (`noise = 0` switches it off). Second, no variance is below `floor`.

Differs from the paper:
- The likelihood of the mixture is exact (log-sum-exp), not an approximation. It is divided by D, so that its share in
  loss and score does not depend on the length of the tokens.
- The noise is added to the input of mixture and reconstruction, not to the token whose density is computed.
- Tokens are standardised at the end (layer normalisation without weights), so that `noise` and `floor` have a fixed
  scale and the encoder cannot raise the likelihood by scaling tokens down. There is no class token.
- A Gaussian has one mean for each value, but a single variance (Bishop's kernel).
- Routing into one capsule needs no iterations, because all its couplings are 1.
- The width of the decoder, the smoothing, `floor` and the unscaled sum of three terms are our own; the paper does not
  state them. `score` can also be the reconstruction error or the likelihood alone.
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

COARSEST = 8  # the side of the decoder's first grid is that of the tile, halved while it is even and not below this
RECONSTRUCTION, STRUCTURE = 5.0, 0.5  # weights of the squared error and of SSIM; the weight of the likelihood is 1


class Settings(Schedule):
    """Settings of `vt-adl`, and of its training."""

    unlearnt: ClassVar[frozenset[str]] = Schedule.unlearnt | {"score", "smooth"}

    patch: Annotated[int, Field(ge=4)] = 32
    """Side of a patch, pixels; it must divide geometry.size."""
    dim: Annotated[int, Field(ge=8)] = 512
    """D, number of values of a token."""
    depth: Annotated[int, Field(ge=1)] = 6
    """Number of layers of the transformer."""
    heads: Annotated[int, Field(ge=1)] = 8
    """Number of attention heads; it must divide `dim`."""
    mlp: Annotated[int, Field(ge=1)] = 1024
    """Number of values of the hidden layer of each feed-forward block."""
    gaussians: Annotated[int, Field(ge=1)] = 10
    """K, number of Gaussians of the mixture."""
    noise: Annotated[float, Field(ge=0)] = 0.2
    """Standard deviation of the noise that training adds to tokens, whose own standard deviation is 1."""
    floor: Annotated[float, Field(gt=0)] = 1e-3
    """Lower limit of the variances σ_k²."""
    width: Annotated[int, Field(ge=1)] = 256
    """Channels of the decoder's first layer; each next layer has half as many."""
    score: Literal["sum", "reconstruction", "likelihood"] = "sum"
    """Image score: reconstruction error, negative log-likelihood, or their sum."""
    smooth: Annotated[float, Field(ge=0)] = 4.0
    """Standard deviation of the Gaussian filter that smooths the map, pixels; 0: none."""

    @model_validator(mode="after")
    def _check_heads(self) -> "Settings":
        if self.dim % self.heads:
            raise ValueError(f"dim = {self.dim} must be a multiple of heads = {self.heads}")
        return self


class Layer(nn.Module):
    """One layer of a transformer: attention and two linear layers, each with pre-normalisation and a residual."""

    def __init__(self, dim: int, heads: int, mlp: int) -> None:
        """Build it for tokens of `dim` values."""
        super().__init__()
        self.heads = heads
        self.before, self.between = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.query_key_value, self.join = nn.Linear(dim, 3 * dim), nn.Linear(dim, dim)
        self.think = nn.Sequential(nn.Linear(dim, mlp), nn.GELU(), nn.Linear(mlp, dim))

    def forward(self, y: Tensor) -> Tensor:
        """Tokens (n, patches, dim) → tokens of the same shape."""
        n, patches, dim = y.shape
        projections = self.query_key_value(self.before(y)).view(n, patches, 3, self.heads, dim // self.heads)
        query, key, value = projections.permute(2, 0, 3, 1, 4)  # each (n, heads, patches, dim / heads)
        attention = F.scaled_dot_product_attention(query, key, value)
        y = y + self.join(attention.transpose(1, 2).reshape(n, patches, dim))
        return torch.add(y, self.think(self.between(y)))


class Mixture(nn.Module):
    """A mixture density network: a token → weights, means and variances of K Gaussians."""

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
    """Log density (…,) at y (…, D) of a mixture of spherical Gaussians: log π (…, K), μ (…, K, D), σ² (…, K)."""
    square = ((y[..., None, :] - mean) ** 2).sum(dim=-1)
    # log N(y; μ_k, σ_k² I) = −(D log(2π σ_k²) + |y − μ_k|² / σ_k²) / 2
    terms = log_weight - (y.shape[-1] * torch.log(2 * math.pi * variance) + square / variance) / 2
    # log Σ_k exp with the greatest term subtracted; explicit, so that it underflows on no engine.
    greatest = terms.amax(dim=-1, keepdim=True)
    return (greatest + (terms - greatest).exp().sum(dim=-1, keepdim=True).log())[..., 0]


class VTADLNetwork(Network):
    """Patches → tokens → one capsule → reconstruction; tokens → mixture → likelihood of each patch."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side). RecipeError when the patches do not fit."""
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
        for before, after in pairwise(widths):
            self.decode.extend([nn.ConvTranspose2d(before, after, 4, stride=2, padding=1), nn.ReLU()])
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

    def negative_log_likelihood(self, tokens: Tensor, inputs: Tensor) -> Tensor:
        """Negative log-likelihood, divided by D, (n, g²) of tokens given the inputs of the mixture, both (n, g², D)."""
        return -log_likelihood(tokens.float(), *(v.float() for v in self.mixture(inputs))) / self.config.dim

    def errors(self, tiles: Tensor, rebuilt: Tensor) -> Tensor:
        """5 · MSE + (1 − SSIM) / 2 of each tile and its reconstruction (n,)."""
        square = ((tiles - rebuilt) ** 2).mean(dim=(1, 2, 3))
        return RECONSTRUCTION * square + STRUCTURE * (1 - ssim(tiles, rebuilt).mean(dim=(1, 2, 3)))

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """5 · MSE + (1 − SSIM) / 2 + NLL, the mean over the tiles; NLL is the negative log-likelihood."""
        tokens = self.encode(tiles)
        noise = torch.randn(tokens.shape, generator=generator, device=tokens.device)
        noisy = tokens + self.config.noise * noise
        return (
            self.errors(tiles, self.rebuild(noisy).float()) + self.negative_log_likelihood(tokens, noisy).mean(dim=1)
        ).mean()

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,), map (n, t, t), reconstruction (n, c, t, t)."""
        tokens = self.encode(tiles)
        rebuilt = self.rebuild(tokens)
        nll = self.negative_log_likelihood(tokens, tokens)  # (n, g²)
        error, worst = self.errors(tiles, rebuilt), nll.amax(dim=1)
        score = {"sum": error + worst, "reconstruction": error, "likelihood": worst}[self.config.score]
        coarse = nll.view(-1, 1, self.grid, self.grid)
        enlarged = F.interpolate(coarse, size=tiles.shape[-2:], mode="bilinear", align_corners=False)
        return score, self._smooth(enlarged)[:, 0], rebuilt

    def _smooth(self, maps: Tensor) -> Tensor:
        """Smooth maps (n, 1, t, t); the edge is padded with its own values."""
        sigma = self.config.smooth
        if not sigma:
            return maps
        reach = min(math.ceil(3 * sigma), maps.shape[-1] - 1)
        weights = gaussian(2 * reach + 1, sigma)
        maps = F.pad(maps, (reach,) * 4, mode="replicate")
        return F.conv2d(F.conv2d(maps, weights.view(1, 1, 1, -1)), weights.view(1, 1, -1, 1))


class VTADL(LearnedDetector):
    """Reconstruction error of an image and likelihood of its patches, from one transformer."""

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
