"""A test set that measures light, focus or file format is told, with an equalised figure; an honest one is not."""

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from andon.cli import app
from andon.data import dataset
from andon.data.check import Finding
from andon.evaluate import crude, report
from andon.evaluate.evaluating import evaluate
from andon.inspection import Pixels
from andon.pictures import appearance
from andon.pictures.appearance import GoodAppearance
from conftest import part, save, scratched
from fake_inspector import FakeInspector

COUNT = 16


def light(pixels: Pixels) -> Pixels:
    return np.clip(pixels * 1.2, 0, 255).astype(np.uint8)


def focus(pixels: Pixels) -> Pixels:
    return cv2.GaussianBlur(pixels, (0, 0), 1.5).reshape(pixels.shape)


def cut(pixels: Pixels) -> Pixels:
    return pixels[:90, :90].copy()


def gray_part(seed: int) -> Pixels:
    return part(seed, channels=1)


def painted(root: Path, change: object = None, suffix: str = "png") -> Path:
    """Good and scratched test parts; `change` is done to the defective ones."""
    for seed in range(COUNT):
        save(root / f"test/good/{seed:03}.png", gray_part(seed))
        pixels = scratched(100 + seed, channels=1)[0]
        pixels[pixels == 0] = 110  # a scratch that leaves the mean gray as it is
        save(root / f"test/scratch/{seed:03}.{suffix}", change(pixels) if callable(change) else pixels)
    return root


@pytest.mark.parametrize(
    ("change", "suffix", "name", "measured"),
    [
        (light, "png", "mean gray", "light"),
        (focus, "png", "sharpness", "focus"),
        (cut, "png", "size in pixels", "the size of the images"),
        (None, "bmp", "file type", "the type of the files"),
        (None, "jpg", "bytes per pixel", "the compression of the files"),
    ],
)
def test_a_statistic_that_separates_good_from_defective_is_reported(
    tmp_path: Path, change: object, suffix: str, name: str, measured: str
) -> None:
    told = [finding.message for finding in crude.findings(dataset.load(painted(tmp_path, change, suffix)))]
    (sentence,) = [each for each in told if each.startswith(f"The {name} alone separates this test set: AUROC 100.0")]
    assert f"may measure {measured}" in sentence


def test_a_valid_test_set_gives_no_warning(tmp_path: Path) -> None:
    root = tmp_path
    for seed in range(COUNT):
        save(root / f"test/good/{seed:03}.png", gray_part(seed))
        save(root / f"test/scratch/{seed:03}.png", gray_part(100 + seed))
    assert not crude.findings(dataset.load(root))


def test_rankings_are_folded_with_their_intervals() -> None:
    look = appearance.measure(gray_part(0))
    measured = [
        crude.Crude(dict.fromkeys(crude.MEANING, float(value)), "png", look) for value in (5, 6, 7, 8, 1, 2, 3, 9)
    ]
    found = crude.statistics(measured, [False] * 4 + [True] * 4)["mean gray"]
    assert found["auroc"] == 0.75
    assert found["defective_are_higher"] is False
    assert found["interval"][0] <= 0.75 <= found["interval"][1]
    assert crude.statistics(measured, [True] * 8) == {}
    assert crude.statistics(measured, [False] * 8) == {}
    assert crude.statistics([], []) == {}


def test_few_images_separate_nothing(tmp_path: Path) -> None:
    for seed in range(4):
        save(tmp_path / f"test/good/{seed:03}.png", gray_part(seed))
        save(tmp_path / f"test/scratch/{seed:03}.png", light(gray_part(100 + seed)))
    assert not crude.findings(dataset.load(tmp_path))


def test_the_equalised_figure_has_the_gain_divided_out(tmp_path: Path) -> None:
    """The score is the brightest pixel, and the defective images are good ones in a brighter light."""

    def dim(seed: int) -> Pixels:  # far from full scale
        return (gray_part(seed) * 0.6).astype(np.uint8)

    for seed in range(COUNT):
        save(tmp_path / f"test/good/{seed:03}.png", dim(seed))
        save(tmp_path / f"test/scratch/{seed:03}.png", light(dim(seed)))
    inspector = FakeInspector()
    usual = GoodAppearance.of([appearance.measure(dim(seed)) for seed in range(300, 320)])
    inspector.calibration = inspector.calibration.model_copy(update={"appearance": usual})
    evaluation = evaluate(inspector, dataset.load(tmp_path))
    figures = json.loads(evaluation.json())
    assert figures["image"]["auroc"] > 0.95
    assert figures["crude"]["equalised"]["auroc"] < 0.7
    assert figures["crude"]["statistics"]["mean gray"]["auroc"] == 1.0
    words = " ".join(evaluation.summary())
    assert "The mean gray alone separates this test set: AUROC 100.0" in words
    assert "image AUROC is" in words
    assert "instead of" in words
    page = report.html(evaluation).decode()
    assert "The mean gray alone separates this test set" in page
    assert "scaled to the mean gray" in page


def test_without_a_finding_nothing_is_inspected_twice(tmp_path: Path) -> None:
    for seed in range(COUNT):
        save(tmp_path / f"test/good/{seed:03}.png", gray_part(seed))
        save(tmp_path / f"test/scratch/{seed:03}.png", gray_part(100 + seed))
    figures = evaluate(FakeInspector(), dataset.load(tmp_path)).metrics["crude"]
    assert figures["equalised"] is None
    assert figures["sentences"] == []


def test_good_test_images_that_differ_from_training_are_told(tmp_path: Path) -> None:
    usual = GoodAppearance.of([appearance.measure(gray_part(seed)) for seed in range(60)])
    rows = []
    for seed in range(100, 100 + COUNT):
        path = save(tmp_path / f"{seed}.png", (gray_part(seed) * 0.9).astype(np.uint8))
        rows.append(SimpleNamespace(path=path, good=True))
    inspector = FakeInspector()
    inspector.calibration = inspector.calibration.model_copy(update={"appearance": usual})
    (sentence, *_) = crude.figures(inspector, rows, None)["sentences"]
    assert "Good test images differ from those of the calibration" in sentence
    assert "darker" in sentence


def test_the_check_reports_it(tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(painted(tmp_path, light)), "--json", "-q"])
    codes = [finding["code"] for finding in json.loads(done.stdout)["findings"]]
    assert "crude" in codes


@pytest.mark.parametrize(
    ("product", "expected"),
    [
        ("mvtec_ad/bottle", set()),
        ("mvtec_ad/screw", {"mean gray", "contrast"}),
        ("ball_screw", {"mean gray", "sharpness"}),
        ("hazelnut_toy", {"mean gray", "contrast"}),
    ],
)
def test_real_test_sets(shared_data: Path, product: str, expected: set[str]) -> None:
    told: list[Finding] = crude.findings(dataset.load(shared_data / product))
    names = {finding.message.removeprefix("The ").split(" alone")[0] for finding in told}
    assert names == expected if not expected else names >= expected
