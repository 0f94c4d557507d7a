"""Capsules and dynamic routing, for several detectors.

Paper: Sabour, Frosst & Hinton, "Dynamic Routing Between Capsules", NeurIPS 2017. Written from the paper; no code of
others. Symbols: û_{j|i} the vote of capsule i of one layer for capsule j of the next, b_ij routing logits, c_ij
coupling coefficients, s_j total input and v_j output of capsule j.

Differs from the paper:
- The coupling coefficients are constants for the gradient: it flows through the votes of the last iteration only. The
  paper does not specify this. The memory of training then does not increase with the number of iterations.
- Votes are always routed in float32.
"""

import torch
from torch import Tensor, nn

EPSILON = 1e-8  # avoids NaN in the direction of a capsule of length 0, and in its gradient


def squash(s: Tensor) -> Tensor:
    """Scale vectors (…, d) to lengths in [0, 1), without changing their directions: long → near 1, short → near 0."""
    square = (s * s).sum(dim=-1, keepdim=True)
    # Eq. 1: v_j = ‖s_j‖² / (1 + ‖s_j‖²) · s_j / ‖s_j‖
    return s * (square / (1 + square)) * torch.rsqrt(square + EPSILON)


def route(votes: Tensor, iterations: int = 3) -> Tensor:
    """Dynamic routing: votes (n, inputs, outputs, d) → capsules (n, outputs, d), squashed.

    Each tile is routed separately, starting with equal couplings. With one output, all couplings are 1, and the result
    is the squashed sum of the votes.
    """
    votes = votes.float()
    constant = votes.detach()
    logits = torch.zeros_like(constant[..., 0])  # b_ij (n, inputs, outputs)
    for _ in range(iterations - 1):
        capsules = _combine(logits, constant)
        logits = logits + (constant * capsules[:, None]).sum(dim=-1)  # b_ij ← b_ij + û_{j|i} · v_j
    return _combine(logits, votes)


def _combine(logits: Tensor, votes: Tensor) -> Tensor:
    couplings = logits.softmax(dim=-1)  # eq. 3: c_ij = exp(b_ij) / Σ_k exp(b_ik)
    return squash((couplings[..., None] * votes).sum(dim=1))  # eq. 2: s_j = Σ_i c_ij û_{j|i}


class CapsuleLayer(nn.Module):
    """A layer of capsules: votes by one matrix per pair of capsules, then routing."""

    def __init__(self, inputs: int, width: int, outputs: int, d: int, iterations: int) -> None:
        """Build the layer for capsules (n, inputs, width)."""
        super().__init__()
        self._shape, self._iterations = (-1, inputs, outputs, d), iterations
        self.weights = nn.Parameter(torch.randn(inputs, width, outputs * d) * 0.1)  # W_ij

    def forward(self, capsules: Tensor) -> Tensor:
        """Capsules (n, inputs, width) → (n, outputs, d)."""
        # û_{j|i} = W_ij u_i, for all i at once: (inputs, n, width) · (inputs, width, outputs · d)
        votes = torch.bmm(capsules.transpose(0, 1), self.weights).transpose(0, 1)
        return route(votes.reshape(self._shape), self._iterations)
