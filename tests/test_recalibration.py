"""A recalibration after drift: what it changes is shown before it is used."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from andon.bundle import Bundle
from andon.calibration import judge
from andon.errors import BundleError
from andon.inspection import Verdict
from andon.training import calibrating
from conftest import part, save


def test_a_recalibration_is_shown_before_and_after(bundle_file: Path, tmp_path: Path) -> None:
    """New good parts are noisier than those of before: their scores are higher, and so are the thresholds."""
    for seed in range(40):
        pixels = part(seed + 500).astype(np.int16) + np.random.default_rng(seed).integers(-25, 26, (96, 96, 3))
        save(tmp_path / "new" / f"{seed:03}.png", np.clip(pixels, 0, 255).astype(np.uint8))
    before = Bundle.load(bundle_file)
    after = calibrating.recalibrate(before, tmp_path / "new")
    said = calibrating.before_and_after(before, after)
    old, new = (each.calibration.thresholds(each.recipe.decision) for each in (before, after))
    assert said[0] == f"review threshold: {old.review:.4g} before, {new.review:.4g} after"
    stopped = sum(score > old.reject for score in after.calibration.scores)
    assert stopped > 1
    assert f"{stopped} REJECT before, " in said[-2] and said[-2].startswith("of these 40 good images: ")
    assert said[-2].endswith("before, 39 PASS, 1 REVIEW after")  # the highest of 40 sets the reject threshold
    assert before.digest()[:12] in said[-1]
    assert before.digest() in after.manifest.history[-1]
    assert calibrating.before_and_after(before, before) == [
        f"of these 40 good images: {said_of(before)} before, {said_of(before)} after"
    ]
    with pytest.raises(BundleError, match="different graphs"):
        calibrating.before_and_after(before, replace(before, graph=b""))


def test_good_images_are_added_to_a_calibration_of_the_same_detector(bundle_file: Path, tmp_path: Path) -> None:
    for name, seeds in {"first": range(600, 612), "second": range(610, 620)}.items():  # two are in both
        for seed in seeds:
            save(tmp_path / name / f"{seed}.png", part(seed))
    said: list[str] = []
    crossed = Bundle.load(bundle_file)
    assert crossed.calibration.folds and not crossed.calibration.extendable
    first = calibrating.recalibrate(crossed, tmp_path / "first", add=True, warn=said.append)
    assert any("replace it" in sentence for sentence in said)
    assert first.calibration.images == 12 and first.calibration.extendable
    second = calibrating.recalibrate(first, tmp_path / "second")
    both = calibrating.recalibrate(first, tmp_path / "second", add=True, tell=said.append)
    assert any("added to the 12 good images" in sentence for sentence in said)
    found, once = both.calibration, dict(zip(first.calibration.digests, first.calibration.scores, strict=True))
    once |= dict(zip(second.calibration.digests, second.calibration.scores, strict=True))
    assert dict(zip(found.digests, found.scores, strict=True)) == once and found.images == found.parts == 20
    assert found.supported_rate == 1 / 21
    assert "calibrated on 20 good images, 12 of them from the previous calibration" in both.manifest.history[-1]
    assert both.graph == first.graph and first.digest() in both.manifest.history[-1]
    same = calibrating.recalibrate(both, tmp_path / "second", add=True)
    assert same.calibration.scores == found.scores and same.calibration.part == found.part
    with pytest.raises(ValueError, match="a crossed calibration"):
        first.calibration.extend(crossed.calibration)


def said_of(bundle: Bundle) -> str:
    """The verdicts of a calibration on its own images."""
    thresholds = bundle.calibration.thresholds(bundle.recipe.decision)
    verdicts = [judge(score, thresholds) for score in bundle.calibration.scores]
    return ", ".join(f"{verdicts.count(each)} {each}" for each in Verdict if each in verdicts)
