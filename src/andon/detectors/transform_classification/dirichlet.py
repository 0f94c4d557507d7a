"""Maximum-likelihood fit of a Dirichlet distribution by fixed-point iteration.

Paper: Minka, "Estimating a Dirichlet distribution", technical report, 2000, equation 9 and appendix C. Written from
the paper; no code of others. Symbols: α concentrations, Ψ digamma function, p̄ means of log y.
"""

import torch
from torch import Tensor

ROUNDS = 1000  # most iterations
CLOSE = 1e-7  # the iteration ends when no concentration changes by more than this share
SMALLEST, LARGEST = (
    1e-3,
    1e4,
)  # concentrations; of vectors that hardly differ they would grow beyond float32's precision


class Moments:
    """Means over vectors that arrive in batches: the sufficient statistics, and moments for the initial estimate."""

    def __init__(self) -> None:
        """Start with no vectors."""
        self.count = 0
        self._sums: tuple[Tensor, Tensor, Tensor] | None = None

    def add(self, logarithms: Tensor) -> None:
        """Add log y (n, …, K), float64, of vectors y on the simplex."""
        values = logarithms.exp()
        new = logarithms.sum(dim=0), values.sum(dim=0), (values**2).sum(dim=0)
        self._sums = new if self._sums is None else tuple(map(torch.add, self._sums, new))  # type: ignore[assignment]
        self.count += len(logarithms)

    def means(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return the means of log y, y and y² (…, K)."""
        assert self._sums is not None
        first, second, third = (part / self.count for part in self._sums)
        return first, second, third


def fit(moments: Moments) -> Tensor:
    """Return the concentrations α (…, K) of highest likelihood, between SMALLEST and LARGEST."""
    logarithms, mean, square = moments.means()
    # Minka, equation 23: the precision from the moments of the first class; here of the class with the most variance.
    variance = (square - mean**2).clamp_min(1e-12)
    most = variance.argmax(dim=-1, keepdim=True)
    m, v = mean.gather(-1, most), variance.gather(-1, most)
    alpha = (mean * (m * (1 - m) / v - 1).clamp(1e-2, LARGEST)).clamp(SMALLEST, LARGEST)
    for _ in range(ROUNDS):
        # Equation 9: Ψ(α_k) = Ψ(Σ α) + p̄_k
        new = inverse_digamma(torch.digamma(alpha.sum(dim=-1, keepdim=True)) + logarithms).clamp(SMALLEST, LARGEST)
        change = ((new - alpha).abs() / alpha).max()
        alpha = new
        if change < CLOSE:
            break
    return alpha


def inverse_digamma(y: Tensor) -> Tensor:
    """Solve Ψ(x) = y by five Newton steps (appendix C), in float64."""
    x = torch.where(y >= -2.22, y.exp() + 0.5, -1 / (y - torch.digamma(torch.ones_like(y))))
    for _ in range(5):
        x = x - (torch.digamma(x) - y) / torch.polygamma(1, x)
    return x
