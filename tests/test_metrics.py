"""Figures against scikit-learn, SciPy and plain implementations."""

from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from andon.evaluate import metrics, piles
from andon.evaluate.metrics import PixelMetrics


@st.composite
def scored(draw):
    """Labels of both kinds, and scores with many ties."""
    n = draw(st.integers(2, 40))
    labels = draw(hnp.arrays(bool, n))
    labels[:2] = [True, False]
    return labels, draw(hnp.arrays(np.int8, n, elements=st.integers(-4, 4))) / 4


@settings(max_examples=40, deadline=None)
@given(scored())
def test_image_figures_agree_with_pairs_and_thresholds(sample):
    labels, scores = sample
    good, bad = scores[~labels], scores[labels]
    pairs = np.mean((bad[:, None] > good) + 0.5 * (bad[:, None] == good))
    assert metrics.auroc(labels, scores) == pytest.approx(pairs, abs=1e-12)
    f1, fpr = 0.0, 1.0
    for t in np.unique(scores):
        hits, alarms = np.sum(bad >= t), np.sum(good >= t)
        f1 = max(f1, 2 * hits / (hits + alarms + len(bad)))
        if hits / len(bad) >= 0.95:
            fpr = min(fpr, alarms / len(good))
    assert metrics.f1_max(labels, scores) == pytest.approx(f1, abs=1e-12)
    assert metrics.fpr_at_tpr(labels, scores) == pytest.approx(fpr, abs=1e-12)


@settings(max_examples=40, deadline=None)
@given(scored())
def test_image_figures_agree_with_scikit_learn(sample):
    sk = pytest.importorskip("sklearn.metrics")
    labels, scores = sample
    assert metrics.auroc(labels, scores) == pytest.approx(sk.roc_auc_score(labels, scores), abs=1e-12)
    assert metrics.average_precision(labels, scores) == pytest.approx(
        sk.average_precision_score(labels, scores), abs=1e-12
    )
    fpr, tpr, threshold = sk.roc_curve(labels, scores, drop_intermediate=False)
    curve = metrics.roc(labels, scores)
    np.testing.assert_allclose(curve.fpr, fpr)
    np.testing.assert_allclose(curve.tpr, tpr)
    np.testing.assert_array_equal(curve.threshold, threshold)


def test_image_figures_refuse_what_they_cannot_measure():
    with pytest.raises(ValueError, match="0 defects among 2"):
        metrics.auroc([0, 0], [1.0, 2.0])
    with pytest.raises(ValueError, match="2 defects among 2"):
        metrics.average_precision([1, 1], [1.0, 2.0])
    with pytest.raises(ValueError, match="1 scores are NaN"):
        metrics.f1_max([0, 1], [1.0, np.nan])
    with pytest.raises(ValueError, match="expected two of shape"):
        metrics.roc([0, 1], [1.0])


@pytest.mark.parametrize(
    ("k", "n", "low", "high"),  # Newcombe (1998), Two-sided confidence intervals for the single proportion, table I
    [(81, 263, 0.2527, 0.3676), (15, 148, 0.0578, 0.1617), (0, 20, 0.0, 0.1684), (1, 29, 0.0009, 0.1776)],
)
def test_binomial_interval_agrees_with_published_values(k, n, low, high):
    assert metrics.clopper_pearson(k, n) == pytest.approx((low, high), abs=5e-5)


def test_binomial_interval_agrees_with_the_beta_quantiles():
    stats = pytest.importorskip("scipy.stats")
    for n in (1, 2, 17, 400, 30_000):
        for k in {0, 1, n // 3, n - 1, n}:
            for level in (0.9, 0.95, 0.999):
                low = stats.beta.ppf((1 - level) / 2, k, n - k + 1) if k else 0.0
                high = stats.beta.ppf((1 + level) / 2, k + 1, n - k) if k < n else 1.0
                assert metrics.clopper_pearson(k, n, level) == pytest.approx((low, high), abs=1e-9)


def test_binomial_interval_of_nothing_is_everything():
    assert metrics.clopper_pearson(0, 0) == (0.0, 1.0)
    with pytest.raises(ValueError, match="3 events in 2"):
        metrics.clopper_pearson(3, 2)


def test_auroc_interval_holds_the_truth_as_often_as_it_says():
    rng = np.random.default_rng(0)
    labels = np.arange(90) < 40
    truth = 0.8413447  # two normal distributions, √2 apart
    inside = 0
    for _ in range(400):
        low, high = metrics.auroc_interval(labels, rng.normal(labels * np.sqrt(2)))
        inside += low <= truth <= high
    assert 0.92 <= inside / 400 <= 0.98


def test_auroc_interval_has_the_width_of_the_pairwise_variance():
    """DeLong's variance, written out pair by pair."""
    rng = np.random.default_rng(1)
    labels = np.arange(30) < 12
    scores = np.round(rng.normal(labels * 1.0), 1)
    wins = np.sign(scores[labels][:, None] - scores[~labels]) / 2 + 0.5
    area = wins.mean()
    error = np.sqrt(wins.mean(1).var(ddof=1) / 12 + wins.mean(0).var(ddof=1) / 18)
    reach = 1.959964 * error / (area * (1 - area))
    expected = [1 / (1 + np.exp(-(np.log(area / (1 - area)) + side * reach))) for side in (-1, 1)]
    assert metrics.auroc_interval(labels, scores) == pytest.approx(expected, abs=1e-6)


def test_auroc_interval_of_perfect_scores_depends_on_how_many_there_are():
    assert metrics.auroc_interval([0, 1], [0.0, 1.0]) == pytest.approx((0.025, 1.0))
    low, high = metrics.auroc_interval([0] * 50 + [1] * 60, [0.0] * 50 + [1.0] * 60)
    assert (low, high) == pytest.approx((0.025 ** (1 / 50), 1.0))
    assert metrics.auroc_interval([1, 0, 0], [1.0, 0.0, 2.0]) == (0.0, 1.0)
    assert metrics.auroc_interval([0, 1, 0, 1], [1.0] * 4) == (0.0, 1.0)


def plain_pixel_figures(maps, masks, limits):
    """AUROC, AP, F1 and AUPRO at every threshold and over every component, with nothing clever."""
    ndimage = pytest.importorskip("scipy.ndimage")
    seen = [np.isfinite(m) for m in maps]
    components = []
    for values, mask, inspected in zip(maps, masks, seen, strict=True):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        components += [values[(labelled == j) & inspected] for j in range(1, count + 1)]
    components = [c for c in components if len(c)]
    good = np.concatenate([v[~m & s] for v, m, s in zip(maps, masks, seen, strict=True)])
    bad = np.concatenate([v[m & s] for v, m, s in zip(maps, masks, seen, strict=True)])
    fpr, pro, tpr, ap, f1 = [0.0], [0.0], [0.0], 0.0, 0.0
    for t in np.unique(np.concatenate([good, bad]))[::-1]:
        hits, alarms = np.sum(bad >= t), np.sum(good >= t)
        fpr.append(alarms / len(good))
        tpr.append(hits / len(bad))
        pro.append(np.mean([np.mean(c >= t) for c in components]))
        ap += (tpr[-1] - tpr[-2]) * hits / (hits + alarms)
        f1 = max(f1, 2 * hits / (hits + alarms + len(bad)))
    fpr, pro, tpr = np.array(fpr), np.array(pro), np.array(tpr)
    aupro = []
    for limit in limits:
        inside = fpr <= limit
        x, y = fpr[inside], pro[inside]
        if not inside.all():
            j = np.argmin(inside)  # the first point beyond the limit
            x = np.append(x, limit)
            y = np.append(y, pro[j - 1] + (pro[j] - pro[j - 1]) * (limit - fpr[j - 1]) / (fpr[j] - fpr[j - 1]))
        aupro.append(np.trapezoid(y, x) / limit)
    return np.trapezoid(tpr, fpr), ap, f1, *aupro


def random_images(seed, levels):
    """Maps with blobs, ties (a finite number of levels), areas that are not inspected, and masks, some empty."""
    rng = np.random.default_rng(seed)
    maps, masks = [], []
    for j in range(4):
        h, w = rng.integers(5, 24, 2)
        mask = rng.random((h, w)) < (0, 0.05, 0.3, 0.1)[j]
        values = (np.round(rng.normal(mask * 1.0) * levels) / levels).astype(np.float32)
        values[rng.random((h, w)) < 0.1] = np.nan
        maps.append(values)
        masks.append(mask)
    return maps, masks


@settings(max_examples=25, deadline=None)
@given(
    st.integers(0, 10**6), st.sampled_from([0.1, 1, 4, 1000]), st.sampled_from([(8, 4, 2), (50, 20, 5), (9999, 999, 9)])
)
def test_pixel_figures_agree_with_the_plain_ones(seed, levels, sizes):
    maps, masks = random_images(seed, levels)
    limits = (0.30, 0.05, 1.0)
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("_RUN", "_BLOCK", "_STRIDE"), sizes, strict=True):
            patch.setattr(piles, name, value)
        pixel = PixelMetrics(memory_mb=0.0005 if seed % 2 else 1)  # half of them go through the file
        for j, (values, mask) in enumerate(zip(maps, masks, strict=True)):
            pixel.add(values, mask if mask.any() else None, kind=str(j % 2))
        measured = pixel.figures(limits=limits)
    expected = plain_pixel_figures(maps, masks, limits)
    assert [*measured[:3], *measured.aupro] == pytest.approx(list(expected), abs=1e-9)


def test_pixel_figures_agree_with_scikit_learn():
    sk = pytest.importorskip("sklearn.metrics")
    maps, masks = random_images(3, 2)
    pixel = PixelMetrics()
    for values, mask in zip(maps, masks, strict=True):
        pixel.add(values, mask)
    truth, score = np.concatenate([m.ravel() for m in masks]), np.concatenate([v.ravel() for v in maps])
    inspected = ~np.isnan(score)
    assert pixel.figures().auroc == pytest.approx(sk.roc_auc_score(truth[inspected], score[inspected]), abs=1e-12)
    assert pixel.figures().ap == pytest.approx(
        sk.average_precision_score(truth[inspected], score[inspected]), abs=1e-12
    )


def test_pixel_figures_of_a_kind_use_the_good_pixels_of_all_images():
    maps, masks = random_images(5, 3)
    both = PixelMetrics()
    both.add(maps[2], masks[2], kind="scratch")
    both.add(maps[3], masks[3], kind="dent")
    alone = PixelMetrics()
    alone.add(maps[2], masks[2])
    hidden = maps[3].copy()
    hidden[masks[3]] = np.nan
    alone.add(hidden)
    assert both.figures("scratch") == alone.figures()
    assert both.figures().components == sum(both.components.values())


def test_uninspected_pixels_count_nowhere():
    maps, masks = random_images(7, 3)
    pixel, other = PixelMetrics(), PixelMetrics()
    pixel.add(maps[3], masks[3])
    masks[3] = masks[3].copy()
    cut = np.isnan(maps[3])
    assert cut.any()
    other.add(np.pad(maps[3], 3, constant_values=np.nan), np.pad(masks[3], 3))
    assert pixel.figures() == other.figures()
    assert pixel.good + pixel.defects["defect"] == np.count_nonzero(~cut)


def test_pixel_metrics_refuse_what_they_cannot_measure():
    pixel = PixelMetrics()
    with pytest.raises(ValueError, match="expected the same shape"):
        pixel.add(np.zeros((3, 4)), np.zeros((4, 3), bool))
    pixel.add(np.zeros((3, 4)), np.zeros((3, 4), bool))
    with pytest.raises(ValueError, match="0 defect and 12 good pixels"):
        pixel.figures()
    with pytest.raises(ValueError, match="0 defect and 12 good pixels"):
        pixel.figures("scratch")


def test_images_can_follow_after_figures():
    maps, masks = random_images(11, 3)
    pixel, whole = PixelMetrics(memory_mb=0), PixelMetrics()
    for values, mask in zip(maps[1:], masks[1:], strict=True):
        pixel.add(values, mask)
        pixel.figures()
        whole.add(values, mask)
    assert pixel.figures() == whole.figures()


def plain_curve_area(fpr, y, limit):
    """The area under a curve of points, joined by straight lines, up to a limit, divided by the limit."""
    x = np.asarray(fpr)
    end = min(
        int(np.argmax(x >= limit)), len(x) - 1
    )  # the first point there: the curve may rise straight up at the limit
    last = np.interp(limit, x[end - 1 : end + 1], y[end - 1 : end + 1])
    return np.trapezoid([*y[:end], last], [*x[:end], limit]) / limit


def plain_spro(good, regions, enough, limits):
    """Every threshold, every region: at most all of the pixels that are enough."""
    fpr, spro = [0.0], [0.0]
    for t in np.unique(np.concatenate([good, *regions]))[::-1]:
        fpr.append(np.mean(good >= t))
        spro.append(np.mean([min(np.sum(r >= t) / e, 1) for r, e in zip(regions, enough, strict=True)]))
    return [plain_curve_area(fpr, spro, limit) for limit in limits]


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 4, 1000]))
def test_saturated_overlap_agrees_with_its_definition(seed, levels):
    maps, masks = random_images(seed, levels)
    rng = np.random.default_rng(seed)
    pixel = PixelMetrics(memory_mb=0.0005 if seed % 2 else 1)
    regions, enough, background = [], [], [maps[0][np.isfinite(maps[0])]]
    pixel.add(maps[0])
    for j in (1, 2, 3):
        areas = [masks[j] & (rng.random(masks[j].shape) < 0.7) for _ in range(2)]  # annotations may overlap
        areas = [area for area in areas if area.any()]
        share = rng.uniform(0.05, 1)
        seen = np.isfinite(maps[j])
        union = np.logical_or.reduce([np.zeros_like(masks[j]), *areas])
        kind = "logical" if j < 3 else "structural"
        pixel.add(maps[j], union, kind, [(area, lambda n, share=share: int(share * n)) for area in areas])
        if kind == "logical" or not areas:  # without an area it is a good image
            background.append(maps[j][seen & ~union])
        if kind == "logical":
            for area in areas:
                if (scores := maps[j][area & seen]).size:
                    regions.append(scores)
                    enough.append(max(1, int(share * scores.size)))
    if regions:
        expected = plain_spro(np.concatenate(background), regions, enough, (0.3, 0.05, 1.0))
        assert pixel.spro("logical", (0.3, 0.05, 1.0)) == pytest.approx(expected, abs=1e-9)


def test_saturated_overlap_of_whole_regions_is_the_overlap():
    maps, masks = random_images(3, 1000)
    pixel = PixelMetrics()
    ndimage = pytest.importorskip("scipy.ndimage")
    pixel.add(maps[0])
    for values, mask in zip(maps[1:], masks[1:], strict=True):
        labelled, count = ndimage.label(mask, structure=np.ones((3, 3)))
        pixel.add(values, mask, "defect", [(labelled == j, lambda n: n) for j in range(1, count + 1)])
    assert pixel.spro("defect") == pytest.approx(pixel.figures().aupro, abs=1e-9)


def plain_aupimo(good, defect, low, high):
    """At each rate, the highest overlap of a threshold whose mean rate over the good images does not exceed it."""
    thresholds = [*np.unique(np.concatenate([*good, defect])), np.inf]
    rates = [np.mean([np.mean(g >= t) for g in good]) for t in thresholds]
    overlaps = [np.mean(defect >= t) for t in thresholds]
    edges = sorted({low, high, *(rate for rate in rates if low < rate < high)})
    area = 0.0
    for x, following in pairwise(edges):
        best = max(overlap for overlap, rate in zip(overlaps, rates, strict=True) if rate <= x + 1e-12)
        area += best * np.log(following / x)
    return area / np.log(high / low)


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 4, 1000]), st.sampled_from([(0.02, 0.2), (0.1, 0.9), (0.001, 0.01)]))
def test_aupimo_agrees_with_its_definition(seed, levels, rates):
    good_maps, _ = random_images(seed, levels)
    maps, masks = random_images(seed + 1, levels)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(metrics, "PIMO_RATES", rates)
        pixel = PixelMetrics(memory_mb=0, good_images=4 + seed % 3)  # at least as many as there are
        expected = []
        for j in range(4):
            pixel.add(good_maps[j])
            defect = maps[j][masks[j] & np.isfinite(maps[j])]
            if masks[j].any():
                pixel.add(maps[j], masks[j], kind=str(j))
            if defect.size:
                expected.append(plain_aupimo([g[np.isfinite(g)] for g in good_maps], defect, *rates))
        if expected:
            assert pixel.aupimo() == pytest.approx(expected, abs=1e-9)
        if pixel.defects.get("3"):
            assert pixel.aupimo("3") == pytest.approx(expected[-1:], abs=1e-9)


def test_aupimo_keeps_the_highest_good_pixels_only():
    rng = np.random.default_rng(0)
    pixel = PixelMetrics(good_images=50)
    for _ in range(50):
        pixel.add(rng.normal(size=(100, 100)))
    assert len(pixel._shared._score) <= 50 * 10_000 * 1e-4 + 1
    with pytest.raises(ValueError, match="more than the 50 images"):
        pixel.add(rng.normal(size=(10, 10)))


def test_aupimo_and_overlap_need_images_of_both_kinds():
    pixel = PixelMetrics()
    mask = np.zeros((3, 4), bool)
    mask[1, 1] = True
    pixel.add(np.eye(3, 4), mask)
    with pytest.raises(ValueError, match="1 images of defects and 0 good"):
        pixel.aupimo()
    with pytest.raises(ValueError, match="0 regions and 11 good pixels"):
        pixel.spro("defect")


@settings(max_examples=20, deadline=None)
@given(st.integers(0, 10**6), st.sampled_from([1, 4, 1000]), st.floats(-2, 2))
def test_segmentation_f1_agrees_with_counts(seed, levels, threshold):
    maps, masks = random_images(seed, levels)
    pixel = PixelMetrics()
    for j, (values, mask) in enumerate(zip(maps, masks, strict=True)):
        pixel.add(values, mask, kind=str(j))
    values, truth = np.concatenate([m.ravel() for m in maps]), np.concatenate([m.ravel() for m in masks])
    above = values > np.float32(threshold)
    truth = truth & ~np.isnan(values)
    hits, alarms, misses = np.sum(above & truth), np.sum(above & ~truth), np.sum(~above & truth)
    assert pixel.f1(threshold) == pytest.approx(2 * hits / (2 * hits + alarms + misses), abs=1e-12)
