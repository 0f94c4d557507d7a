"""The example of docs/graph-elsewhere.md, which inspects without andon, says what `Inspector` says."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from andon.bundle import Bundle
from andon.calibration import Calibration
from andon.geometry.views import Geometry, embedded
from andon.inspector import Inspector
from andon.recipe import Decision
from andon.training import train as training
from conftest import part, save, scratched

PAGE = Path(__file__).parents[1] / "docs" / "graph-elsewhere.md"


@pytest.fixture(scope="module")
def elsewhere() -> Any:
    code = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert len(code) == 1 and "import andon" not in code[0] and "from andon" not in code[0]
    names: dict[str, Any] = {}
    exec(code[0], names)
    return names["Elsewhere"]


def changed(file: Path, out: Path, decision: Decision | None = None, **geometry: Any) -> Path:
    """Write the bundle with another geometry and decision, for images of any size."""
    bundle = Bundle.load(file)
    recipe = bundle.recipe.model_copy(
        update={
            "geometry": Geometry.model_validate({"size": 96, **geometry}),
            "decision": decision or bundle.recipe.decision,
        }
    )
    any_size = bundle.manifest.input.model_copy(update={"size": None})
    manifest = bundle.manifest.model_copy(update={"input": any_size})
    replace(bundle, recipe=recipe, manifest=manifest).save(out)
    return out


@pytest.mark.parametrize("side", [96, 70, 250])
@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"aspect": "keep", "crop": [3, 5, 60, 41]},
        {"include": [[[5, 5], [64.5, 8], [40, 66]]], "ignore": [[[20, 20], [30, 20], [30, 34.5]]]},
        {"tiles": True, "overlap": 20, "ignore": [[[0, 0], [120, 0], [120, 150], [0, 150]], [[0, 0], [2, 0], [0, 2]]]},
    ],
    ids=["stretched", "keep, cropped", "polygons", "tiles"],
)
def test_it_gives_the_score_and_verdict_of_the_inspector(
    bundle_file: Path, elsewhere: Any, tmp_path: Path, geometry: dict[str, Any], side: int
) -> None:
    if geometry.get("tiles") and side < 250:
        geometry = {"tiles": True, "overlap": 20}
    file = changed(bundle_file, tmp_path / "ring.andon", **geometry)
    inspector, other = Inspector.load(file), elsewhere(file)
    for pixels in (part(500, side), scratched(501, side)[0]):
        found = inspector.inspect(pixels)
        score, verdict = other.inspect(pixels)
        assert score == pytest.approx(found.score, rel=1e-5)
        assert verdict == found.verdict


def test_it_takes_the_shape_of_an_input_that_is_not_square(parts: Path, elsewhere: Any, tmp_path: Path) -> None:
    recipe = training.compose(parts, detector="variation", size=96)
    geometry = recipe.geometry.model_copy(update={"crop": (0, 0, 96, 48)})
    file = tmp_path / "wide.andon"
    training.train(recipe.model_copy(update={"geometry": geometry}), file)
    inspector, other = Inspector.load(file), elsewhere(file)
    assert inspector.bundle.recipe.geometry.shape == (64, 128)
    for pixels in (part(500), scratched(501)[0]):
        assert other.inspect(pixels)[0] == pytest.approx(inspector.inspect(pixels).score, rel=1e-5)


def test_it_reads_the_picture_of_a_region(bundle_file: Path, elsewhere: Any, tmp_path: Path) -> None:
    area = save(tmp_path / "area.png", 255 * (part(1, channels=1) > 128).astype("uint8"))
    file = changed(bundle_file, tmp_path / "ring.andon", region=embedded(area))
    pixels = part(500)
    score = Inspector.load(file).inspect(pixels).score
    assert elsewhere(file).inspect(pixels)[0] == pytest.approx(score, rel=1e-5)
    assert elsewhere(bundle_file).inspect(pixels)[0] != pytest.approx(score, rel=1e-3)


@pytest.mark.parametrize(
    "decision",
    [
        Decision(),
        Decision(review_rate=0.2, reject_rate=0.1, pixel_rate=0.3),
        Decision(review_rate=0.2, reject_rate=0.1, per="part"),
        Decision(reject_unsupported=True),
        Decision(review_threshold=1.5, pixel_threshold=0.25),
    ],
)
@pytest.mark.parametrize("frames", [1, 3])
def test_it_computes_the_thresholds(
    bundle_file: Path, elsewhere: Any, tmp_path: Path, decision: Decision, frames: int
) -> None:
    file = changed(bundle_file, tmp_path / "ring.andon", decision)
    bundle = Bundle.load(file)
    parts = [number // frames for number in bundle.calibration.part]
    calibration = Calibration(**{**bundle.calibration.model_dump(), "part": parts})
    replace(bundle, calibration=calibration).save(file)
    other = elsewhere(file)
    assert (other.review, other.reject, other.pixel) == pytest.approx(tuple(Inspector.load(file).thresholds))
