"""The feature network in torch is the feature graph."""

import numpy as np
import pytest

from andon.errors import AndonError
from andon.graphs import features

torch = pytest.importorskip("torch")

from andon.nn.trunk import Trunk  # noqa: E402


@pytest.mark.parametrize("channels", [1, 3])
def test_its_maps_are_those_of_the_graph(channels: int) -> None:
    tiles = np.random.default_rng(0).integers(0, 256, (2, 64, 96, channels), dtype=np.uint8)
    expected = features.Extractor("efficientnet-lite0", [10, 4])(tiles)
    found = Trunk("efficientnet-lite0", [10, 4])(torch.tensor(tiles).permute(0, 3, 1, 2) / 255)
    for have, want in zip(found, expected, strict=True):
        np.testing.assert_allclose(have.numpy(), want, atol=1e-3)


def test_gradients_pass_through_and_nothing_is_trained() -> None:
    trunk = Trunk("efficientnet-lite0", [4])
    images = torch.rand(1, 3, 32, 32, requires_grad=True)
    trunk(images)[0].square().sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    assert not list(trunk.parameters()) and not trunk.state_dict()


def test_an_unknown_network_is_an_error() -> None:
    with pytest.raises(AndonError, match="efficientnet-lite0"):
        Trunk("efficientnet-light0", [4])
