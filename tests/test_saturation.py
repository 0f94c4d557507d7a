"""Saturations of defects: what defects_config.json may hold, and MVTec LOCO's masks in an evaluation."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from andon.data import dataset, saturation
from andon.errors import DatasetError, ImageError
from andon.evaluate.evaluating import evaluate
from andon.evaluate.report import html
from fake_inspector import FakeInspector, paint

ENTRIES = [
    {"defect_name": "missing", "pixel_value": 255, "saturation_threshold": 8, "relative_saturation": False},
    {"defect_name": "scratch", "pixel_value": 254, "saturation_threshold": 0.5, "relative_saturation": True},
]


def write_mask(path: Path, value: int, box: tuple[int, int, int, int], other: int = 0) -> None:
    pixels = np.zeros((24, 24), np.uint8)
    top, bottom, left, right = box
    pixels[top:bottom, left:right] = value
    pixels[0, 23] = other
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(".png", pixels)[1].tobytes())


@pytest.fixture
def loco(tmp_path: Path) -> Path:
    """A product in MVTec LOCO's layout, whose bright square of 4 × 4 pixels has the value in its name."""
    root = tmp_path / "bag"
    paint(root / "train/good/000.png", 200)
    paint(root / "validation/good/000.png", 200)
    for value in (5, 20):
        paint(root / f"test/good/{value:03}.png", value)
    for kind, value in (("logical_anomalies", 60), ("structural_anomalies", 90)):
        paint(root / f"test/{kind}/{value:03}.png", value)
    write_mask(root / "ground_truth/logical_anomalies/060/000.png", 255, (8, 12, 8, 20))  # twice the square
    write_mask(root / "ground_truth/logical_anomalies/060/001.png", 254, (8, 12, 8, 12))
    write_mask(root / "ground_truth/structural_anomalies/090/000.png", 254, (4, 12, 8, 12))  # half of it is dark
    (root / "defects_config.json").write_text(json.dumps(ENTRIES))
    return root


def test_saturations_are_pixels_or_shares() -> None:
    missing, scratch = (saturation.Saturation(**entry) for entry in ENTRIES)
    assert [missing.pixels(n) for n in (1, 8, 100)] == [1, 8, 8]
    assert [scratch.pixels(n) for n in (1, 8, 101)] == [1, 4, 50]


def test_what_is_enough_of_a_defect_is_all_that_counts(loco: Path) -> None:
    evaluation = evaluate(FakeInspector(), dataset.load(loco))
    pixel, defects = evaluation.metrics["pixel"], evaluation.metrics["defects"]
    assert evaluation.errors == ()
    assert defects["logical_anomalies"]["pixel"]["spro_05"] == 1.0  # 8 pixels of 48 are enough, and 16 are bright
    assert defects["structural_anomalies"]["pixel"]["spro_05"] == 1.0  # half is enough
    assert pixel["spro_05"] == pixel["spro_30"] == 1.0
    assert pixel["aupro_05"] < 0.9  # the overlap with the whole area is not
    assert b"sPRO to 5 % FPR" in html(evaluation)


def test_without_saturations_there_is_no_such_figure(loco: Path) -> None:
    (loco / "defects_config.json").unlink()
    evaluation = evaluate(FakeInspector(), dataset.load(loco))
    assert evaluation.metrics["pixel"]["spro_05"] is None
    assert b"sPRO" not in html(evaluation)


@pytest.mark.parametrize(("value", "other"), [(7, 0), (255, 254)])
def test_a_mask_that_the_table_does_not_know_is_listed_and_not_used(loco: Path, value: int, other: int) -> None:
    write_mask(loco / "ground_truth/logical_anomalies/060/001.png", value, (8, 12, 8, 12), other)
    evaluation = evaluate(FakeInspector(), dataset.load(loco))
    assert len(evaluation.errors) == 1
    assert "060/001.png: marks defects with the values" in evaluation.errors[0]
    assert evaluation.metrics["pixel"]["images"] == {"good": 2, "masked": 1, "without_mask": 0}
    with pytest.raises(ImageError, match=r"expected one value that is in defects_config.json: \[254, 255\]"):
        saturation.regions(loco / "ground_truth/logical_anomalies/060", saturation.load(loco))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "Invalid JSON"),
        ('[{"defect_name": "a"', "Invalid JSON"),
        ("{}", "valid array"),
        ('[{"defect_name": "a", "pixel_value": 255}]', "0.saturation_threshold: Field required"),
        (json.dumps([{**ENTRIES[0], "saturation_threshold": 0}]), "greater than 0"),
        (json.dumps([{**ENTRIES[0], "pixel_value": "all"}]), "0.pixel_value"),
        (json.dumps([ENTRIES[0], ENTRIES[0]]), "a pixel_value is listed twice"),
    ],
)
def test_a_table_of_another_form_is_refused_before_anything_is_inspected(loco: Path, text: str, message: str) -> None:
    (loco / "defects_config.json").write_text(text)
    with pytest.raises(DatasetError, match=message):
        evaluate(FakeInspector(), dataset.load(loco))
