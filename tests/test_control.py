"""Hit rate and control: detectors of the background are marked, detectors of defects are not."""

import cv2
import numpy as np
import pytest
from markupsafe import escape

from andon.data import dataset
from andon.evaluate import control
from andon.evaluate.control import MARK, dilate, hit, margin, near, paint_over
from andon.evaluate.evaluating import evaluate
from andon.evaluate.report import html
from fake_inspector import FakeInspector, paint_set

SIDE = 120  # margin 2


def square(*corners, side=SIDE, size=10):
    mask = np.zeros((side, side), bool)
    for y, x in corners:
        mask[y : y + size, x : x + size] = True
    return mask


def peak(y, x, side=SIDE):
    values = np.zeros((side, side), np.float32)
    values[y, x] = 1
    return values


def write(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture
def lit(tmp_path):
    """Defective pictures have a darker background, and a bright square; all have noise."""
    rng = np.random.default_rng(0)
    for kind, level in (("good", 60), ("dent", 40)):
        for j in range(20):
            pixels = np.clip(rng.normal(level, 4, (48, 48)), 1, 200).astype(np.uint8)
            if kind == "dent":
                mask = square((10 + j % 8, 14 + j % 5), side=48, size=6)
                pixels[mask] = 150
                write(tmp_path / f"ground_truth/dent/{j:03}_mask.png", mask.astype(np.uint8) * 255)
            write(tmp_path / f"test/{kind}/{j:03}.png", pixels)
    return tmp_path


class Background(FakeInspector):
    """Score: how dark the picture's border is."""

    def inspect(self, source, name=None):
        found = super().inspect(source, name)
        object.__setattr__(found, "score", 200 - float(self.read(source).pixels[:5].mean()))
        return found


def test_a_peak_inside_the_mask_or_within_the_margin_is_a_hit():
    mask = square((40, 40))
    assert margin(SIDE * SIDE) == 2
    assert hit(peak(45, 45), mask)
    assert hit(peak(38, 45), mask)
    assert not hit(peak(37, 45), mask)


def test_the_margin_is_a_sixtieth_of_the_inspected_areas_root_and_at_least_a_pixel():
    assert [margin(pixels) for pixels in (1, 512 * 512, 1130 * 460)] == [1, 9, 12]


def test_maps_shifted_by_more_than_the_margin_never_hit():
    for y in range(40, 50):
        for x in range(40, 50):
            assert not hit(np.roll(peak(y, x), 13, axis=1), square((40, 40)))


def test_any_of_several_defects_can_be_hit():
    mask = square((10, 10), (80, 80))
    assert hit(peak(12, 12), mask) and hit(peak(85, 85), mask)
    assert not hit(peak(50, 50), mask)


def test_peaks_that_are_not_one_place_do_not_hit():
    mask = square((40, 40))
    assert not hit(np.ones((SIDE, SIDE), np.float32), mask)
    assert not hit(peak(45, 45) + peak(90, 90), mask)
    assert hit(peak(45, 45) + peak(45, 46), mask)


def test_pixels_that_are_not_inspected_hold_no_peak():
    values = peak(45, 45)
    values[:30] = np.nan
    assert hit(values, square((40, 40)))
    values[40:50, 40:50] = np.nan
    assert not hit(values, square((40, 40)))
    assert not hit(np.full((SIDE, SIDE), np.nan, np.float32), square((40, 40)))


def test_a_mask_of_all_that_is_inspected_cannot_tell():
    values = peak(45, 45)
    assert hit(values, np.ones((SIDE, SIDE), bool)) is None
    values[:, 60:] = np.nan
    mask = np.zeros((SIDE, SIDE), bool)
    mask[:, :60] = True
    assert hit(values, mask) is None


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 3])
def test_paint_continues_the_surroundings_and_changes_nothing_else(dtype, channels):
    top = np.iinfo(dtype).max
    slope = np.broadcast_to(np.linspace(0.1, 0.9, SIDE)[None, :, None] * top, (SIDE, SIDE, channels)).astype(dtype)
    area = square((40, 40), (0, 100), size=20)
    spoiled = np.where(area[..., None], top, slope).astype(dtype)
    filled = paint_over(spoiled, area)
    assert filled.dtype == dtype and filled.shape == slope.shape
    assert (filled[~area] == slope[~area]).all()
    inner = square((40, 40), size=20)
    assert np.abs(filled[inner].astype(float) - slope[inner]).max() < 0.03 * top


def test_paint_needs_surroundings():
    with pytest.raises(ValueError, match="covers the whole picture"):
        paint_over(np.zeros((9, 9, 1), np.uint8), np.ones((9, 9), bool))
    pixels = np.full((9, 9, 1), 7, np.uint8)
    assert (paint_over(pixels, np.zeros((9, 9), bool)) == pixels).all()
    one = np.ones((9, 9), bool)
    one[0, 0] = False
    assert (paint_over(pixels, one) == 7).all()


def test_masks_grow_by_the_margin_in_every_direction():
    assert dilate(square((40, 40)), 2).sum() == 10 * 10 + 4 * 10 * 2 + 4  # of a corner (1, 1) alone is near


def test_a_detector_of_the_background_is_marked(lit):
    figures = evaluate(Background(), dataset.load(lit))
    found = figures.metrics["control"]
    assert found["images"] == {"good": 20, "defective": 20}
    assert found["plain"] == found["auroc"] == 1.0
    assert found["near"]
    assert any(sentence.startswith(MARK) for sentence in figures.summary())


def test_a_detector_of_the_defect_is_not_marked(lit):
    figures = evaluate(FakeInspector(), dataset.load(lit))
    found = figures.metrics["control"]
    assert found["plain"] == 1.0
    assert found["auroc"] < 0.5  # what is left is the darker background
    assert not found["near"]
    assert not any(MARK in sentence for sentence in figures.summary())
    assert figures.metrics["hits"]["count"] == figures.metrics["hits"]["n"] == 20
    assert "The peak of the heat map is inside the defect in 20 of 20 images" in " ".join(figures.summary())


def test_the_report_says_it_in_words_and_marks_the_figure(lit):
    page = html(evaluate(Background(), dataset.load(lit))).decode()
    assert str(escape(control.NEAR)) in page
    assert "control †" in page
    page = html(evaluate(FakeInspector(), dataset.load(lit))).decode()
    assert str(escape("The peak of the heat map is inside the defect in 20 of 20 images")) in page
    assert "control †" not in page and str(escape(control.NEAR)) not in page


def test_a_detector_of_paint_is_not_given_a_control(lit):
    class Paint(FakeInspector):
        """Score: the share of pixels that equal their neighbour."""

        def inspect(self, source, name=None):
            found = super().inspect(source, name)
            values = self.read(source).pixels[:, :, 0].astype(int)
            object.__setattr__(found, "score", float((np.abs(np.diff(values, axis=1)) <= 1).mean()))
            return found

    low, high = evaluate(Paint(), dataset.load(lit)).metrics["control"]["auroc_interval"]
    assert low < 0.5 < high


def test_near_is_half_of_what_lies_above_chance_and_beyond_chance_itself():
    assert near(0.92, 0.92, 0.88)
    assert near(1.0, 0.75, 0.6)
    assert not near(1.0, 0.74, 0.6)
    assert not near(0.6, 0.6, 0.48)


def test_without_masks_it_is_reported_once_why(tmp_path):
    root = paint_set(tmp_path / "ring")
    for path in (root / "ground_truth").rglob("*.png"):
        path.unlink()
    figures = evaluate(FakeInspector(), dataset.load(root))
    assert figures.metrics["control"] is None and figures.metrics["hits"]["n"] == 0
    told = [sentence for sentence in figures.summary() if "hit rate" in sentence]
    assert told == ["Pixel figures, the hit rate and the control cannot be measured: the data set has no masks."]
    assert MARK not in " ".join(figures.summary())


def test_masks_that_cannot_be_used_are_left_out(tmp_path):
    root = paint_set(tmp_path / "ring")
    masks = root / "ground_truth/scratch"
    write(masks / "060_mask.png", np.zeros((24, 24), np.uint8))
    write(masks / "080_mask.png", np.full((24, 24), 255, np.uint8))
    write(masks / "010_mask.png", np.full((30, 30), 255, np.uint8))
    figures = evaluate(FakeInspector(), dataset.load(root)).metrics
    assert figures["hits"]["n"] == 3
    assert figures["control"]["images"] == {"good": 5, "defective": 3}
    assert figures["defects"]["scratch"]["hits"]["n"] == 1
    assert len(figures["errors"]) == 2


def test_masks_of_the_whole_picture_only_are_reported(tmp_path):
    root = paint_set(tmp_path / "ring")
    for path in (root / "ground_truth").rglob("*.png"):
        write(path, np.full((24, 24), 255, np.uint8))
    figures = evaluate(FakeInspector(), dataset.load(root))
    assert figures.metrics["control"] is None
    assert "The hit rate and the control cannot be measured: every mask marks" in " ".join(figures.summary())


def test_the_control_can_be_left_out_and_its_progress_counts_all_images(lit):
    seen = []
    note = lambda stage, done, total: seen.append((stage, done, total))  # noqa: E731
    left_out = evaluate(FakeInspector(), dataset.load(lit), note, hidden=False).metrics
    assert left_out["control"] is None and left_out["hits"]["n"] == 20
    assert control.STAGE not in {stage for stage, *_ in seen}
    evaluate(FakeInspector(), dataset.load(lit), note)
    assert [(done, total) for stage, done, total in seen if stage == control.STAGE] == [(j, 40) for j in range(41)]
