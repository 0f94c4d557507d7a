"""The one path: what it says of good and scratched parts, in whatever form they come."""

import json
import math
import re
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from dataclasses import FrozenInstanceError, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from andon import Inspector, Verdict
from andon.bundle import Bundle
from andon.engines.runtime import Runtime
from andon.errors import AndonError, BundleError, ImageError
from andon.geometry import tiling
from andon.geometry.views import Geometry
from andon.inspection import Pixels, Scores
from andon.pictures import image
from andon.recipe import Decision, InputRule, Recipe
from andon.training import train as training
from conftest import part, save, scratched


@pytest.fixture(scope="module")
def inspector(bundle_file: Path) -> Inspector:
    return Inspector.load(bundle_file)


def test_a_scratch_is_rejected_and_shown_where_it_is(inspector: Inspector) -> None:
    pixels, mask = scratched(300)
    found = inspector.inspect(pixels, name="scratched")
    assert found.verdict is Verdict.REJECT
    assert found.p_value == pytest.approx(1 / (1 + 40))
    assert found.anomaly_map.shape == mask.shape
    x, y = found.regions[0].peak_at
    assert mask[max(0, y - 6) : y + 7, max(0, x - 6) : x + 7].any()


def test_an_image_that_was_learnt_is_said_to_be(inspector: Inspector, parts: Path) -> None:
    note = "the bundle was trained on this image, so its score is too low"
    assert note in inspector.inspect(parts / "train/good/003.png").notes
    assert note not in inspector.inspect(parts / "test/good/103.png").notes


def test_most_good_parts_pass(inspector: Inspector) -> None:
    verdicts = [inspector.inspect(part(seed)).verdict for seed in range(400, 420)]
    assert verdicts.count(Verdict.PASS) >= 12


def test_file_bytes_and_array_give_the_same(inspector: Inspector, parts: Path) -> None:
    path = parts / "test/scratch/200.png"
    pixels = image.read(path).pixels
    scores = {inspector.inspect(source).score for source in (path, str(path), path.read_bytes(), pixels)}
    assert len(scores) == 1


def test_other_rates_change_the_verdict_and_not_the_score(bundle_file: Path) -> None:
    inspector = Inspector.load(bundle_file)
    pixels = part(500)
    before = inspector.inspect(pixels)
    decision = Decision(review_threshold=-1.0, reject_threshold=1e9, pixel_threshold=-1.0, min_area=10**6)
    other = inspector.decide(decision)
    after = other.inspect(pixels)
    assert after.score == before.score
    assert after.verdict is Verdict.REVIEW
    assert (len(after.regions), after.removed_regions) == (0, 1)
    assert inspector.inspect(pixels).verdict is before.verdict
    assert before.bundle == after.bundle == Bundle.load(bundle_file).digest()
    assert before.decision != after.decision == Inspector.load(bundle_file).decide(decision).inspect(pixels).decision
    with pytest.raises(FrozenInstanceError):
        inspector.decision = decision  # type: ignore[misc]


def test_specks_are_counted_and_change_no_verdict(bundle_file: Path) -> None:
    inspector = Inspector.load(bundle_file)
    limits = {"review_threshold": -1.0, "reject_threshold": 1e9}
    scratch = scratched(1)[0]
    below = float(np.nextafter(np.nanmax(inspector.inspect(scratch).anomaly_map), np.float32(0)))  # one pixel's peak
    listed = {}
    for min_area in ("auto", 0):
        decision = Decision(**limits, pixel_threshold=below, min_area=min_area)
        found = inspector.decide(decision).inspect(scratch)
        listed[min_area] = (len(found.regions), found.removed_regions, found.verdict)
    assert listed == {"auto": (0, 1, Verdict.REVIEW), 0: (1, 0, Verdict.REVIEW)}


@pytest.mark.parametrize(
    ("geometry", "expected"),
    [
        (Geometry(size=128), 16 * 512 * 256 / 128**2),
        (Geometry(size=128, aspect="keep"), 16 * 4**2),
        (Geometry(size=128, crop=(0, 0, 64, 64)), 4),
        (Geometry(size=128, tiles=True), 16),
    ],
)
def test_the_least_area_follows_what_a_pixel_of_a_tile_covers(
    bundle_file: Path, geometry: Geometry, expected: int
) -> None:
    inspector = Inspector.load(bundle_file)
    other = replace(inspector.bundle, recipe=inspector.recipe.model_copy(update={"geometry": geometry}))
    resized = replace(inspector, bundle=other, scorer=inspector.scorer)
    assert resized.min_area((256, 512)) == expected
    assert resized.decide(Decision(min_area=7)).min_area((256, 512)) == 7


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("where", ["score", "map"])
@pytest.mark.parametrize("tiles", [False, True])
def test_what_is_not_a_number_never_passes(bundle_file: Path, value: float, where: str, tiles: bool) -> None:
    """In the first, the last or the only tile, in the score or in one pixel of the map."""

    class Broken:
        """Scores all tiles 0 but one."""

        def __init__(self, tile: int) -> None:
            self.tile = tile

        def score(self, batch: Pixels) -> Scores:
            found = Scores(np.zeros(len(batch), np.float32), np.zeros(batch.shape[:3], np.float32))
            at = self.tile % len(batch)
            if where == "score":
                found.image[at] = value
            else:
                found.pixel[at, 5, 7] = value
            return found

    bundle = Bundle.load(bundle_file)
    geometry = bundle.recipe.geometry.model_copy(update={"tiles": tiles, "overlap": 0, "size": 32 if tiles else 96})
    bundle = replace(bundle, recipe=bundle.recipe.model_copy(update={"geometry": geometry}))
    for tile in (0, -1):
        found = Inspector(bundle, scorer=Broken(tile)).inspect(part(1))
        assert found.verdict is Verdict.REJECT
        assert math.isnan(found.score) and math.isnan(found.p_value)
        assert "the graph returned a score or map that is not finite" in found.notes
        record = json.loads(json.dumps(found.record(), allow_nan=False))
        assert record["score"] is record["p_value"] is None


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda p: np.zeros_like(p), "the picture is black"),
        (lambda p: np.full_like(p, 255), "the picture is white"),
        (lambda p: cv2.GaussianBlur(p, (0, 0), 6), "blurred"),
        (lambda p: np.random.default_rng(0).integers(0, 256, p.shape, dtype=np.uint8), "another scene"),
    ],
)
def test_a_picture_without_the_part_is_reported_or_invalid(bundle_file: Path, spoil: Any, words: str) -> None:
    inspector = Inspector.load(bundle_file)
    found = inspector.inspect(spoil(part(600)))
    assert words in " ".join(found.notes) and found.verdict is not Verdict.INVALID
    recipe = inspector.recipe.model_copy(update={"input": InputRule(unusual="invalid")})
    strict = Inspector(replace(inspector.bundle, recipe=recipe))
    found = strict.inspect(spoil(part(600)))
    assert found.verdict is Verdict.INVALID and math.isnan(found.score) and np.isnan(found.anomaly_map).all()
    assert words in " ".join(found.notes)
    good = [strict.inspect(part(seed)) for seed in range(600, 630)]
    assert sum(each.verdict is Verdict.INVALID for each in good) <= 1


def test_an_inspector_goes_to_other_processes_and_threads(bundle_file: Path) -> None:
    inspector = Inspector.load(bundle_file).decide(Decision(review_rate=0.3, reject_rate=0.03))
    expected = [inspector.inspect(part(seed)) for seed in range(4)]
    with ProcessPoolExecutor(1, mp_context=get_context("spawn")) as pool:
        elsewhere = list(pool.map(inspector.inspect, [part(seed) for seed in range(4)]))
    with ThreadPoolExecutor(4) as threads:
        beside = list(threads.map(inspector.inspect, [part(seed) for seed in range(4)]))
    for found in (elsewhere, beside):
        assert [(f.score, f.verdict, f.bundle, f.decision) for f in found] == [
            (f.score, f.verdict, f.bundle, f.decision) for f in expected
        ]


def test_many_go_on_past_a_bad_one(inspector: Inspector, parts: Path, tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_bytes(b"\x89PNG\r\n")
    sources = [parts / "test/good/100.png", bad, parts / "test/good/101.png"]
    failed: list[str] = []
    found = list(inspector.inspect_many(sources, on_error=lambda source, error: failed.append(str(error))))
    assert [Path(f.source).name for f in found] == ["100.png", "101.png"]
    assert len(failed) == 1
    assert str(bad) in failed[0]
    with pytest.raises(ImageError):
        list(inspector.inspect_many(sources))


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (part(1, channels=1), "gray image; this bundle was trained on colour images"),
        (part(1, depth=16), "16-bit image; this bundle was trained on 8-bit images"),
        (part(1, side=128), "128 × 128 pixels; this bundle was trained on images of 96 × 96"),
        (part(1).astype(np.float32), "array of float32; expected"),
    ],
)
def test_another_input_is_refused(inspector: Inspector, pixels: image.Source, message: str) -> None:
    with pytest.raises(ImageError, match=message):
        inspector.inspect(pixels, name="odd")


def test_openvino_gives_the_same_scores(bundle_file: Path) -> None:
    pytest.importorskip("openvino")
    pixels, _ = scratched(301)
    one, two = (Inspector.load(bundle_file, engine).inspect(pixels) for engine in ("onnxruntime", "openvino"))
    assert two.score == pytest.approx(one.score, rel=1e-3)
    np.testing.assert_allclose(two.anomaly_map, one.anomaly_map, atol=1e-3 * one.score)


def test_a_graph_that_is_not_ours_is_refused() -> None:
    with pytest.raises(BundleError, match="the graph is damaged or not ONNX"):
        Runtime(b"nonsense")


@pytest.mark.parametrize(("channels", "depth"), [(1, 8), (1, 16), (3, 16)])
def test_gray_and_sixteen_bit_parts_go_all_the_way(tmp_path: Path, channels: int, depth: int) -> None:
    for seed in range(12):
        save(tmp_path / "good" / f"{seed}.png", part(seed, 64, channels, depth))
    training.train(tmp_path / "good", tmp_path / "b.andon", size=64, settings={"bank": 100, "scales": 1})
    inspector = Inspector.load(tmp_path / "b.andon")
    assert (inspector.manifest.input.channels, inspector.manifest.input.depth) == (channels, depth)
    defective = save(tmp_path / "defective.png", scratched(50, 64, channels, depth)[0])
    assert inspector.inspect(defective).score > max(inspector.calibration.scores)


def test_tiles_at_native_resolution_find_a_defect_that_resizing_loses(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    for seed in range(10):
        save(tmp_path / "good" / f"{seed}.png", rng.integers(90, 110, (256, 384, 3), dtype=np.uint8))
    values = {"images": str(tmp_path / "good")}
    recipe = Recipe.model_validate(
        {
            "data": values,
            "geometry": {"size": 128, "tiles": True},
            "decision": {"review_rate": 0.1, "reject_rate": 0.1},
            "detector": {"settings": {"bank": 200}},
        }
    )
    training.train(recipe, tmp_path / "b.andon")
    inspector = Inspector.load(tmp_path / "b.andon")
    pixels = rng.integers(90, 110, (256, 384, 3), dtype=np.uint8)
    cv2.circle(pixels, (300, 200), 5, (0, 0, 0), -1)
    found = inspector.inspect(pixels)
    assert found.anomaly_map.shape == (256, 384)
    assert found.verdict is Verdict.REJECT
    assert np.hypot(found.regions[0].peak_at[0] - 300, found.regions[0].peak_at[1] - 200) < 16

    assert tiling.starts(384, 128, 32) == [0, 85, 171, 256]
    background, scores = rng.integers(90, 110, (256, 384, 3), dtype=np.uint8), []
    for x in (
        64,
        106,
        149,
        235,
    ):  # the middle of the first tile; then the middle of each overlap
        pixels = background.copy()
        cv2.circle(pixels, (x, 64), 5, (0, 0, 0), -1)
        found = inspector.inspect(pixels)
        scores.append(found.score)
        assert found.verdict is Verdict.REJECT
        assert len(found.regions) == 1 and abs(found.regions[0].peak_at[0] - x) < 16
    assert min(scores[1:]) > 0.6 * scores[0]  # a seam hides nothing


def test_a_defect_in_an_ignored_area_changes_nothing(tmp_path: Path) -> None:
    for seed in range(12):
        save(tmp_path / "good" / f"{seed}.png", part(seed))
    polygon = [[0, 0], [48, 0], [48, 96], [0, 96]]
    recipe = Recipe.model_validate(
        {
            "data": {"images": str(tmp_path / "good")},
            "geometry": {"size": 96, "ignore": [polygon]},
            "detector": {"settings": {"bank": 100}},
        }
    )
    training.train(recipe, tmp_path / "b.andon")
    inspector = Inspector.load(tmp_path / "b.andon")
    clean, spoilt = part(60), part(60)
    spoilt[10:80, 5:40] = 0
    first, second = inspector.inspect(clean), inspector.inspect(spoilt)
    assert first.score == second.score
    assert np.isnan(second.anomaly_map[:, :48]).all()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("openvin",), "unknown engine 'openvin'. Did you mean 'openvino'?"),
        (("onnxruntime", -3), "threads = -3; expected"),
    ],
)
def test_an_engine_that_cannot_be(bundle_file: Path, options: tuple[Any, ...], message: str) -> None:
    with pytest.raises(AndonError, match=re.escape(message)):
        Inspector.load(bundle_file, *options)


@pytest.mark.parametrize("sources", ["folder", Path("folder"), b"png", np.zeros((9, 9), np.uint8)])
def test_many_wants_several(inspector: Inspector, sources: Any) -> None:
    with pytest.raises(AndonError, match="the argument of inspect_many is a single"):
        inspector.inspect_many(sources)


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_a_graph_that_does_not_fit_its_recipe_is_refused(bundle_file: Path, engine: Any) -> None:
    pytest.importorskip(engine)
    bundle = Bundle.load(bundle_file)
    other = bundle.manifest.input.model_copy(update={"channels": 1, "depth": 16})
    with pytest.raises(BundleError, match=r"tiles of .* 3 channels, 8 bits; .* have .* 1 channels, 16 bits"):
        Inspector(replace(bundle, manifest=bundle.manifest.model_copy(update={"input": other})), engine)


def test_an_unknown_engine_says_how_to_get_it(bundle_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "openvino", None)
    with pytest.raises(AndonError, match=r"pip install 'andon\[openvino\]'"):
        Inspector.load(bundle_file, "openvino")


def test_arguments_of_a_wrong_type_are_told(bundle_file: Path) -> None:
    for path in (None, 3):
        with pytest.raises(BundleError, match=r"in place of a bundle; expected the path of a file part\.andon"):
            Inspector.load(path)  # type: ignore[arg-type]
    with pytest.raises(AndonError, match=r"threads = 1\.5; expected a whole number from 0"):
        Inspector.load(bundle_file, threads=1.5)  # type: ignore[arg-type]
    inspector = Inspector.load(bundle_file, threads=np.int64(1))  # type: ignore[arg-type]
    with pytest.raises(AndonError, match="the decision is a dict; expected a Decision"):
        inspector.decide({"review_rate": 0.2})  # type: ignore[arg-type]
