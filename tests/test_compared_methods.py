"""The equations of the methods that the sources compare with: oc-svm, fcdd, draem, cutpaste, riad, anogan."""

import numpy as np
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("sklearn")

from torch.nn import functional as F  # noqa: E402

from andon.detectors import anogan, cutpaste, draem, fcdd, oc_svm, riad  # noqa: E402
from andon.errors import TrainingError  # noqa: E402
from andon.nn.losses import ssim  # noqa: E402
from test_detectors_contract import Textures  # noqa: E402

SIDE = 64


def random(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def tiles(count: int = 2, side: int = SIDE) -> torch.Tensor:
    return torch.rand(count, 3, side, side, generator=random(5))


def test_oc_svm_leaves_at_most_nu_of_the_good_outside_and_its_equation_holds() -> None:
    good = Textures(1, count=20)
    model = oc_svm.OcSvm(oc_svm.Settings(neighbours=3, nu=0.2), 0).fit(good)
    scores = model.score(good.tiles).image
    assert (scores > 2e-3).sum() <= 4 and (scores > -2e-3).sum() >= 4  # libsvm stops within 1e-3
    f, svm = model._good.rows.astype(np.float64), model._svm
    kernel = np.exp(-((f[:, None] - svm.support_vectors_) ** 2).sum(axis=2) / f.shape[1])
    np.testing.assert_allclose(scores, -svm.intercept_[0] - kernel @ svm.dual_coef_[0], atol=1e-4)


@torch.no_grad()
def test_fcdd_pulls_good_tiles_to_zero_and_pushes_defects_away() -> None:
    torch.manual_seed(0)
    network = fcdd.FcddNetwork(SIDE, 3, fcdd.Settings(width=4, share=1e-9)).eval()
    x = tiles()
    phi = network.inner(network.front(x)[0])[:, 0]
    errors = torch.sqrt(phi**2 + 1) - 1
    assert torch.allclose(network.errors(x), errors, atol=1e-6)
    assert float(network.loss(x, random())) == pytest.approx(float(errors.mean()), rel=1e-4)
    score, anomaly = network(x)
    assert torch.allclose(score, errors.mean(dim=(1, 2)))
    flat = network.spread @ torch.ones(1, 8, 8) @ network.spread.T
    assert torch.allclose(flat, torch.ones(1, SIDE, SIDE), atol=1e-5) and anomaly.shape == (2, SIDE, SIDE)
    pushed = fcdd.FcddNetwork(SIDE, 3, fcdd.Settings(width=4, share=1 - 1e-9)).eval()
    for network_scale in (0.1, 10.0):  # the further a defect is from 0, the smaller its loss
        pushed.inner[-1].bias.data.fill_(network_scale)
        pushed.inner[-1].weight.data.zero_()
        mean = (network_scale**2 + 1) ** 0.5 - 1
        assert float(pushed.loss(x, random())) == pytest.approx(-np.log(1 - np.exp(-mean)), rel=1e-3)


@torch.no_grad()
def test_draem_adds_three_losses() -> None:
    torch.manual_seed(0)
    network = draem.DraemNetwork(3, draem.Settings(width=2, share=0.0, structure=0.7, focal=3.0)).eval()
    x = tiles()
    rebuilt, logits = network.outputs(x)
    p = logits.sigmoid()
    focal = (p**2 * -torch.log(1 - p)).mean()  # nothing is defective
    expected = ((x - rebuilt) ** 2).mean() + 0.7 * (1 - ssim(x, rebuilt)).mean() + 3 * focal
    assert float(network.loss(x, random())) == pytest.approx(float(expected), rel=1e-4)
    assert network(x)[2].shape == x.shape


def test_cutpaste_measures_the_mahalanobis_distance_and_its_map_adds_up_to_the_logits() -> None:
    good = Textures(1, count=12)
    settings = cutpaste.Settings(channels=2, widen=1, side=SIDE, steps=2, batch=2, hold_out=0, ridge=1e-6)
    model = cutpaste.CutPaste(settings, 0).fit(good)
    scores = model.score(good.tiles).image
    assert float((scores**2).mean()) == pytest.approx(1, abs=0.1)  # Σ is that of these features
    network = model._network
    assert isinstance(network, cutpaste.CutPasteNetwork)
    x = tiles()
    with torch.no_grad():
        maps = network.maps(x)
        logits = network.classes(maps.mean(dim=(2, 3)))
        places = F.conv2d(maps, network.classes.weight[:, :, None, None], network.classes.bias)
        assert torch.allclose(places.mean(dim=(2, 3)), logits, atol=1e-4)


def test_riad_computes_no_pixel_from_itself() -> None:
    torch.manual_seed(0)
    network = riad.RiadNetwork(SIDE, 3, riad.Settings(width=2, squares=(4, 16))).eval()
    for sets, k in zip(network.divisions, (4, 16), strict=True):
        assert torch.equal(sets.sum(dim=0), torch.ones(SIDE, SIDE))
        assert float(sets.mean(dim=(1, 2)).std()) < 0.05
        x = tiles(1)
        y = x.clone()
        y[:, :, 32 : 32 + k, 16 : 16 + k] = 0
        square = np.s_[:, :, 32 : 32 + k, 16 : 16 + k]
        with torch.no_grad():
            before, after = network.rebuild(x, sets), network.rebuild(y, sets)
        assert torch.equal(before[square], after[square])
        assert not torch.equal(before, after)


def test_riad_similarity_is_one_for_equal_images_and_squares_must_fit() -> None:
    x = tiles()
    assert all(torch.allclose(one, torch.ones_like(one)) for one in riad.similarities(x, x))
    others = riad.similarities(x, 1 - x.flip(3))
    assert [one.shape[-1] for one in others] == [64, 32, 16, 8]
    assert all(float(one.min()) >= 0 and float(one.mean()) < 1 for one in others)
    ramp = torch.arange(8.0).expand(1, 1, 8, 8) / 100
    assert float(riad.gradient(ramp)[0, 0, 4, 4]) == pytest.approx(0.02, rel=1e-4)  # two pixels apart
    with pytest.raises(TrainingError, match=r"squares of 5 px in tiles of 64 px.*divisors"):
        riad.RiadNetwork(SIDE, 3, riad.Settings(width=2, squares=(5,)))


@pytest.mark.parametrize("side", [32, 36])  # 36 halves to an odd side
def test_anogan_writes_out_the_gradient_of_its_score_and_the_search_lowers_it(side: int) -> None:
    torch.manual_seed(0)
    settings = anogan.Settings(side=side, width=4, widest=8, latent=5, searches=20, features=0.3)
    network = anogan.AnoGanNetwork(SIDE, 3, settings).eval()
    for layer in network.gan.generator:
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.running_var.fill_(1.7)
            layer.running_mean.fill_(0.2)
    x = 2 * tiles(3, side) - 1
    z = torch.randn(3, 5, generator=random()).requires_grad_()
    (expected,) = torch.autograd.grad(network.distance(x, z)[0].sum(), z)
    with torch.no_grad():
        found = network.gradient(x, z)
    assert torch.allclose(found, expected, rtol=1e-3, atol=1e-7)
    first, _ = network.distance(x, torch.zeros(3, 5))
    last, _ = network.distance(x, network.search(x))
    assert bool((last < first).all())


def test_anogan_search_does_not_enlarge_rounding_errors() -> None:
    torch.manual_seed(0)
    settings = anogan.Settings(side=32, width=4, widest=8, latent=5, searches=100)
    network = anogan.AnoGanNetwork(SIDE, 3, settings).eval()
    for weight in network.parameters():
        weight.data *= 2
    with torch.no_grad():
        x = network.gan.generator(0.3 * torch.randn(6, 5, generator=random()))  # the search can reach the minimum
    single, double = network.search(x), network.double().search(x.double())
    assert float((single - double).abs().max()) < 1e-4  # 2e-3 with steps of fixed length
