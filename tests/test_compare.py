"""Bundles side by side: the paired test by hand and by simulation, and the page."""

import importlib.util
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import spox.opset.ai.onnx.v17 as op
from numpy.typing import NDArray
from spox import Tensor, argument, build

from andon.data import dataset
from andon.errors import AndonError, BundleError
from andon.evaluate import compare, compare_page, metrics
from andon.geometry.views import Geometry
from andon.pictures import image
from andon.pictures.image import Input
from andon.training import train as training
from conftest import part, save
from fake_inspector import FakeInspector, paint_set

LABELS = np.repeat([False, True], [40, 30])


def own(labels: NDArray[np.bool_]) -> list[str]:
    """A group of its own for each image."""
    return [str(j) for j in range(len(labels))]


def test_bootstrap_resamples_the_auroc_itself() -> None:
    rng = np.random.default_rng(1)
    scores = np.round(rng.random((1, 70)) + 0.3 * LABELS, 1)  # with ties
    found = compare.bootstrap(LABELS, scores, own(LABELS), 2000)[0]
    draws = np.random.default_rng(2)
    expected = []
    for _ in range(2000):
        chosen = np.concatenate([draws.choice(40, 40), 40 + draws.choice(30, 30)])
        expected.append(metrics.auroc(LABELS[chosen], scores[0, chosen]))
    assert found.mean() == pytest.approx(np.mean(expected), abs=0.005)
    assert found.std() == pytest.approx(np.std(expected), rel=0.1)
    assert found.mean() == pytest.approx(metrics.auroc(LABELS, scores[0]), abs=0.005)


def test_the_same_images_are_drawn_for_every_detector() -> None:
    scores = np.random.default_rng(0).random((1, 70)) + 0.2 * LABELS
    found = compare.bootstrap(LABELS, np.concatenate([scores, np.exp(scores)]), own(LABELS), 100)
    np.testing.assert_array_equal(found[0], found[1])  # ranks are the same, so is every resample
    interval, p_value = compare._two_sided(found[0] - found[1])
    assert (interval, p_value) == ((0.0, 0.0), 1.0)


def test_p_values_of_equal_detectors_are_seldom_small_and_of_unequal_ones_always() -> None:
    rng = np.random.default_rng(3)
    equal, unequal = [], []
    for _ in range(150):
        truth = rng.standard_normal(70) + LABELS
        scores = truth + rng.standard_normal((3, 70)) * [[0.5], [0.5], [0.5]]
        scores[2] = rng.standard_normal(70)
        found = compare.bootstrap(LABELS, scores, own(LABELS), 400)
        equal.append(compare._two_sided(found[0] - found[1])[1])
        unequal.append(compare._two_sided(found[0] - found[2])[1])
    assert np.mean(np.array(equal) < 0.05) < 0.12
    assert np.mean(np.array(unequal) < 0.05) > 0.6


def test_images_of_one_part_are_drawn_together() -> None:
    rng = np.random.default_rng(4)
    parts = rng.standard_normal(14) + np.repeat([0, 1], [8, 6])
    labels = np.repeat([False, True], [40, 30])
    scores = np.repeat(parts, 5)[None] + 1e-3 * rng.standard_normal((1, 70))
    groups = [str(j // 5) for j in range(70)]
    apart, together = (compare.bootstrap(labels, scores, g, 500).std() for g in (own(labels), groups))
    assert together > 1.7 * apart  # five frames of a part say little more than one: √5 if nothing more


@pytest.fixture
def compared(tmp_path: Path) -> compare.Comparison:
    return compare.Comparison({"a": FakeInspector(), "b": FakeInspector()}, dataset.load(paint_set(tmp_path / "ring")))


def test_equal_bundles_cannot_be_distinguished(compared: compare.Comparison) -> None:
    (difference,) = compared.differences()
    assert difference == ("a", "b", 0.0, (0.0, 0.0), 1.0)
    assert compare_page.headline(compared, [difference]).endswith("the difference to b is not significant.")


def test_the_headline_is_of_the_images_that_all_bundles_inspected(compared: compare.Comparison) -> None:
    compared.evaluations["a"].metrics["image"]["auroc"] = 0.99  # of other images, too
    compared.scores[0] *= -1
    assert compare_page.headline(compared, compared.differences()).startswith("b has the highest image AUROC, 0.8")


def test_warnings_name_the_bundles_that_they_are_about(tmp_path: Path) -> None:
    painted = dataset.load(paint_set(tmp_path / "ring"))
    (tmp_path / "ring/test/good/copy.png").write_bytes(painted.good("test")[0].path.read_bytes())
    both = {"a": FakeInspector(), "b": FakeInspector()}
    digest = compare.evaluating.evaluate(both["a"], painted).rows[0].digest
    both["b"].manifest = both["b"].manifest.model_copy(update={"learnt": [digest[:16]]})
    found = compare.Comparison(both, dataset.load(tmp_path / "ring"))
    assert [said[:30] for said in found.warnings] == [
        "1 image in several equal files",
        "b: The bundle was trained on 1",
    ]


def test_share_above_is_of_good_images_with_ties_half(compared: compare.Comparison) -> None:
    by_name = dict(zip([row.name for row in compared.images], compared.above()[0], strict=True))  # good: 5 20 30 37 39
    assert by_name["test/scratch/010.png"] == 0.2
    assert by_name["test/scratch/037.png"] == 0.7
    assert by_name["test/dent/095.png"] == 1.0


def test_good_images_alone_are_compared_without_a_test(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(3):
        save(tmp_path / "good" / f"{seed}.png", part(seed, 64))
    found = compare.Comparison({"a": FakeInspector(), "b": FakeInspector()}, dataset.load(tmp_path))
    assert found.differences() == []
    assert "cannot be compared" in compare_page.headline(found, [])
    monkeypatch.setattr(compare_page, "sections", lambda compared: [])  # these bundles have no graph to draw with
    monkeypatch.setattr(compare_page, "clouds", lambda compared: ([], ""))
    assert b"Do they differ" not in compare_page.html(found)


def test_page_of_two_bundles(parts: Path, bundle_file: Path, tmp_path: Path) -> None:
    training.train(parts, tmp_path / "still.andon", detector="variation", size=64)
    found = compare.Comparison(compare.load([bundle_file, tmp_path / "still.andon"]), dataset.load(parts))
    page = compare_page.write(found, tmp_path / "out").read_text()
    for words in ("ring", "still", "memory-bank", "variation", "Paired bootstrap", "Typical defects", "<svg"):
        assert words in page
    assert page.count('class="panel"') >= 4
    assert page.count('class="open"') == page.count('class="shut"') == page.count('class="panel"')  # each enlarges
    assert page.count("review level") == 2 * page.count('class="panel"')
    assert "http://" not in page.replace("http://www.w3.org/2000/svg", "") and "<script" not in page
    assert page.index("image AUROC") < page.index("Do they differ")


def test_images_are_laid_out_by_the_vectors_a_bundle_makes(
    parts: Path, bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("sklearn")
    training.train(parts, tmp_path / "deep.andon", detector="deep-knn", size=64)
    found = compare.Comparison(compare.load([bundle_file, tmp_path / "deep.andon"]), dataset.load(parts))
    inspector = found.inspectors["deep"]
    (values,) = compare_page.vectors(inspector, found.images, ["embedding"]).values()
    assert values.shape == (10, 112)
    good = values[~found.defective].mean(axis=0)
    apart = np.linalg.norm(values - good, axis=1)
    assert apart[found.defective].min() > apart[~found.defective].max()
    (cloud,), why = compare_page.clouds(found)
    assert cloud[:2] == ("deep", "embeddings") and why == ""
    assert cloud.plot.count("<circle") == 10 and "6 good" in cloud.plot and "4 defective" in cloud.plot
    page = compare_page.html(found).decode()
    assert "Which pictures a detector finds alike" in page and "deep: embeddings" in page
    monkeypatch.setattr(compare_page, "FEWEST", 11)
    assert compare_page.clouds(found) == ([], "not available for 10 images; it needs at least 11")
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *of: None if name == "sklearn" else find(name, *of))
    assert "scikit-learn is not installed" in compare_page.html(found).decode()


def test_names_are_distinguished_and_bundles_are_needed(bundle_file: Path, tmp_path: Path) -> None:
    other = tmp_path / "line2" / bundle_file.name
    other.parent.mkdir()
    other.write_bytes(bundle_file.read_bytes())
    assert list(compare.load([bundle_file, other])) == [f"{bundle_file.parent.name}/ring", "line2/ring"]
    with pytest.raises(AndonError, match="two or more"):
        compare.load([bundle_file])
    with pytest.raises(AndonError, match="given twice"):
        compare.load([bundle_file, bundle_file])
    with pytest.raises(BundleError, match="missing"):
        compare.load([bundle_file, tmp_path / "missing.andon"])


def test_reconstruction_is_shown_in_the_frame_of_the_image(tmp_path: Path) -> None:
    tiles = argument(Tensor(np.uint8, ("n", "t", "t", 3)))
    values = op.div(op.cast(tiles, to=np.float32), op.const(np.float32(255)))
    graph = build({"tiles": tiles}, {"reconstruction": op.mul(values, op.const(np.float32(0.5)))}).SerializeToString()
    path = save(tmp_path / "a.png", part(0, 96))
    recipe = SimpleNamespace(geometry=Geometry(size=96, crop=(8, 16, 80, 64)))
    manifest = SimpleNamespace(input=Input(channels=3, depth=8))
    bundle = SimpleNamespace(graph=graph)
    inspector = SimpleNamespace(bundle=bundle, recipe=recipe, reference=None, manifest=manifest)
    draw = compare_page._Draw(SimpleNamespace(inspectors={"a": inspector}), np.zeros((1, 1)))  # type: ignore[arg-type]
    picture = draw._reconstruction("a", inspector, image.read(path))  # type: ignore[arg-type]
    assert picture is not None
    small = picture[:: len(picture) // 96, :: len(picture) // 96][:96, :96]
    assert not small[:14].any() and not small[:, :6].any()
    inside, original = small[20:70, 12:80].astype(float), part(0, 96)[20:70, 12:80]
    assert inside.mean() == pytest.approx(original.mean() / 2, rel=0.05)
