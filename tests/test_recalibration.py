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


def said_of(bundle: Bundle) -> str:
    """The verdicts of a calibration on its own images."""
    thresholds = bundle.calibration.thresholds(bundle.recipe.decision)
    verdicts = [judge(score, thresholds) for score in bundle.calibration.scores]
    return ", ".join(f"{verdicts.count(each)} {each}" for each in Verdict if each in verdicts)
