"""Whether a detector sees the defects: the hit rate of its map, and the control with the defects painted over."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import cv2
import numpy as np
import pytest

from andon.data import dataset
from andon.evaluate import seeing
from andon.evaluate.evaluating import evaluate
from andon.evaluate.rows import Row
from andon.inspection import Pixels, Verdict
from andon.inspector import Inspector
from andon.pictures import image
from andon.progress import silent
from conftest import save

SIDE = 120
AREA = np.zeros((SIDE, SIDE), np.bool_)
AREA[50:62, 70:82] = True


def picture(seed: int, defective: bool, light: float = 1.0) -> Pixels:
    """A noisy gray part; a defective one has a dark square where `AREA` marks it, and perhaps another light."""
    rng = np.random.default_rng(seed)
    smooth = cv2.GaussianBlur(rng.normal(0, 20, (SIDE, SIDE)), (0, 0), 4)
    pixels = np.clip(light * (120 + smooth), 0, 255)
    if defective:
        pixels[AREA] = 20
    return pixels.astype(np.uint8)[..., None]


class Scoring:
    """Inspects by a function of the pixels."""

    def __init__(self, score: Callable[[Pixels], float]) -> None:
        self._score = score

    def inspect(self, source: image.Image) -> Any:
        return SimpleNamespace(score=self._score(source.pixels), verdict=Verdict.PASS)


def rows(folder: Path, score: Callable[[Pixels], float], light: float = 1.0, area: Any = AREA) -> list[Row]:
    """Twenty good and twenty defective images, scored."""
    found = []
    for seed in range(40):
        defective = seed >= 20
        pixels = picture(seed, defective, light if defective else 1.0)
        path = save(folder / f"{seed}.png", pixels)
        mask = save(folder / f"{seed}_mask.png", area[..., None] * np.uint8(255)) if defective else None
        name, digest = path.name, image.read(path).digest
        found.append(
            Row(
                path,
                name,
                "dark" if defective else "good",
                name,
                mask,
                score(pixels),
                0.5,
                Verdict.PASS,
                0,
                1.0,
                digest,
            )
        )
    return found


def darkest(pixels: Pixels) -> float:
    """A score that sees the defect."""
    return -float(cv2.blur(pixels[..., 0].astype(np.float32), (9, 9)).min())


def brightness(pixels: Pixels) -> float:
    """A score that sees the light of the background only."""
    return -float(pixels[:40].mean())


def test_a_detector_that_sees_the_defect_loses_its_figure_when_the_defect_is_painted_over(tmp_path: Path) -> None:
    found = seeing.control(Scoring(darkest), rows(tmp_path, darkest), silent)
    assert found["figure"] == 1.0 and found["n"] == 20
    assert abs(found["auroc"] - 0.5) < 0.25 and found["marked"] is False


def test_a_detector_of_light_keeps_its_figure_and_is_marked(tmp_path: Path) -> None:
    found = seeing.control(Scoring(brightness), rows(tmp_path, brightness, light=0.8), silent)
    assert found["figure"] == 1.0 and found["auroc"] > 0.95 and found["marked"] is True
    said = seeing.sentences({"n": 0}, found)
    assert said[-1].startswith("† Most of this figure does not come from the annotated defects")


def test_a_detector_that_sees_neither_is_not_marked(tmp_path: Path) -> None:
    found = seeing.control(Scoring(brightness), rows(tmp_path, brightness), silent)
    assert found["marked"] is False


def test_the_paint_itself_is_on_both_sides(tmp_path: Path) -> None:
    def flatness(pixels: Pixels) -> float:
        """A score that sees smooth areas, such as paint."""
        return -float(cv2.blur(np.abs(cv2.Laplacian(pixels[..., 0].astype(np.float32), cv2.CV_32F)), (9, 9)).min())

    found = seeing.control(Scoring(flatness), rows(tmp_path, flatness), silent)
    assert abs(found["auroc"] - 0.5) < 0.3


def test_paint_continues_the_surroundings_and_leaves_the_rest() -> None:
    y, x = np.mgrid[:SIDE, :SIDE]
    for kind, top in ((np.uint8, 255), (np.uint16, 65535)):
        ramp = (top * (0.2 + 0.6 * (x + y) / (2 * SIDE)))[..., None].repeat(3, axis=2).astype(kind)
        torn = ramp.copy()
        torn[AREA] = 0
        painted = seeing.painted_over(torn, AREA)
        assert painted.dtype == kind and painted.shape == ramp.shape
        np.testing.assert_array_equal(painted[~AREA], ramp[~AREA])
        assert np.abs(painted[AREA].astype(float) - ramp[AREA]).max() < 0.05 * top


@pytest.mark.parametrize("area", [np.ones((40, 60), np.bool_), np.zeros((40, 60), np.bool_)])
def test_paint_over_all_or_nothing_is_finite(area: Any) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (40, 60, 1), dtype=np.uint8)
    painted = seeing.painted_over(pixels, area)
    assert painted.shape == pixels.shape and (area.all() or np.array_equal(painted, pixels))


@pytest.mark.parametrize(("x", "y", "expected"), [(75, 55, True), (83, 55, True), (84, 55, False), (10, 10, False)])
def test_a_peak_in_the_defect_or_just_beside_it_is_a_hit(x: int, y: int, expected: bool) -> None:
    values = np.zeros((SIDE, SIDE), np.float32)
    values[y, x] = 1  # the margin is two pixels here
    assert seeing.hit(values, AREA) is expected


def test_a_peak_in_any_of_several_defects_is_a_hit_and_a_map_of_nothing_is_none() -> None:
    both = AREA.copy()
    both[5:8, 5:8] = True
    values = np.full((SIDE, SIDE), np.nan, np.float32)
    assert seeing.hit(values, both) is False
    values[6, 6] = 1
    assert seeing.hit(values, both) is True


def test_a_defect_that_leaves_nothing_to_paint_from_is_left_out_and_why_is_told(tmp_path: Path) -> None:
    found = seeing.control(Scoring(darkest), rows(tmp_path, darkest, area=np.ones((SIDE, SIDE), np.bool_)), silent)
    assert found["auroc"] is None and "leaves enough of its surroundings" in found["why"]


def test_masks_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    images = rows(tmp_path, darkest)
    save(tmp_path / "20_mask.png", np.full((5, 5, 1), 255, np.uint8))  # of another size
    (tmp_path / "21_mask.png").write_bytes(b"")
    save(tmp_path / "22_mask.png", np.zeros((SIDE, SIDE, 1), np.uint8))  # marks nothing
    assert seeing.control(Scoring(darkest), images, silent)["n"] == 17


def test_evaluation_holds_both_figures(bundle_file: Path, parts: Path, tmp_path: Path) -> None:
    inspector = Inspector.load(bundle_file)
    found = evaluate(inspector, dataset.load(parts))
    assert found.metrics["hits"]["n"] == 4 and found.metrics["defects"]["scratch"]["hits"]["n"] == 4
    assert found.metrics["hits"]["count"] >= 3
    assert found.metrics["control"]["n"] == 4 and found.metrics["control"]["figure"] == found.metrics["image"]["auroc"]
    assert any("peak lies inside the defect" in sentence for sentence in found.summary())
    for path in (parts / "test/good").iterdir():
        save(tmp_path / "test/good" / path.name, image.read(path).pixels)
    for path in (parts / "test/scratch").iterdir():
        save(tmp_path / "test/scratch" / path.name, image.read(path).pixels)
    bare = evaluate(inspector, dataset.load(tmp_path))
    assert bare.metrics["hits"]["n"] == 0 and bare.metrics["control"]["why"] == "there are no masks"
    assert not any("painted over" in sentence for sentence in bare.summary())
