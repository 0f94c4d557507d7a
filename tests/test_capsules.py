"""Dynamic routing against a plain loop, and what its gradient and its edges are."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from andon.inspection import Array  # noqa: E402
from andon.nn.capsules import route, squash  # noqa: E402


def plain_squash(s: Array) -> Array:
    length = np.linalg.norm(s)
    return np.asarray(length**2 / (1 + length**2) * s / length)


def plain_route(votes: Array, iterations: int) -> Array:
    """Procedure 1 of the paper for one tile's votes (inputs, outputs, d), capsule by capsule."""
    inputs, outputs, d = votes.shape
    b = np.zeros((inputs, outputs))
    v = np.zeros((outputs, d))
    for _ in range(iterations):
        c = np.stack([np.exp(row) / np.exp(row).sum() for row in b])
        for j in range(outputs):
            v[j] = plain_squash(sum((c[i, j] * votes[i, j] for i in range(inputs)), np.zeros(d)))
        for i, j in np.ndindex(inputs, outputs):
            b[i, j] += votes[i, j] @ v[j]
    return v


@pytest.mark.parametrize("iterations", [1, 3, 5])
def test_routing_is_that_of_the_paper(iterations: int) -> None:
    votes = np.random.default_rng(0).standard_normal((2, 7, 3, 4))
    found = route(torch.tensor(votes, dtype=torch.float32), iterations).numpy()
    for n in range(2):
        np.testing.assert_allclose(found[n], plain_route(votes[n], iterations), atol=1e-5)


def test_squash_keeps_directions_and_bounds_lengths() -> None:
    s = torch.tensor([[3.0, 4.0], [0.03, 0.04], [3000.0, 4000.0]])
    found = squash(s)
    np.testing.assert_allclose(found[0].numpy(), 25 / 26 * np.array([0.6, 0.8]), rtol=1e-6)
    np.testing.assert_allclose(found[1].numpy(), plain_squash(s[1].numpy()), rtol=1e-4)
    assert float(found[2].norm()) == pytest.approx(1, abs=1e-6)


def test_an_empty_capsule_has_a_gradient_that_is_a_number() -> None:
    votes = torch.zeros(1, 4, 2, 3, requires_grad=True)
    found = route(votes)
    found.sum().backward()
    assert not found.any() and votes.grad is not None and votes.grad.isfinite().all()


def test_the_gradient_takes_the_couplings_for_constants() -> None:
    torch.manual_seed(0)
    votes = torch.randn(2, 5, 2, 3, requires_grad=True)
    (found,) = torch.autograd.grad(route(votes, 3)[:, 0].square().sum(), votes)
    still = votes.detach()
    logits = torch.zeros(2, 5, 2)
    for _ in range(2):
        capsules = squash((logits.softmax(-1)[..., None] * still).sum(1))
        logits = logits + (still * capsules[:, None]).sum(-1)
    by_hand = squash((logits.softmax(-1)[..., None] * votes).sum(1))
    (expected,) = torch.autograd.grad(by_hand[:, 0].square().sum(), votes)
    torch.testing.assert_close(found, expected)


def test_a_tile_is_routed_alike_alone_and_in_a_batch() -> None:
    torch.manual_seed(0)
    votes = torch.randn(3, 6, 2, 4)
    torch.testing.assert_close(torch.cat([route(one[None]) for one in votes]), route(votes))


def test_one_output_is_the_squashed_sum() -> None:
    torch.manual_seed(0)
    votes = torch.randn(2, 6, 1, 4)
    torch.testing.assert_close(route(votes), squash(votes.sum(dim=1)))
