"""How small a defect may be, in pixels of the picture, and what is suggested for a smaller one."""

from pathlib import Path

import pytest
from typer.testing import CliRunner

from andon.cli import app
from andon.errors import RecipeError
from andon.geometry.views import Geometry
from andon.training import resolution
from conftest import part, save


@pytest.mark.parametrize(
    ("frame", "geometry", "pixels"),
    [
        ((1024, 1024), Geometry(size=256), 64.0),  # 4 pixels of the picture for one of the input, two positions of 8
        ((500, 1260), Geometry(size=256, shape=(160, 416)), 16 * (500 * 1260 / (160 * 416)) ** 0.5),
        ((3000, 4000), Geometry(size=256, tiles=True), 16.0),
        ((3000, 4000), Geometry(size=256, crop=(0, 0, 512, 512)), 32.0),
    ],
)
def test_the_smallest_defect_covers_four_positions(frame: tuple[int, int], geometry: Geometry, pixels: float) -> None:
    assert resolution.smallest_defect(frame, geometry, 8) == pytest.approx(pixels)


@pytest.mark.parametrize(
    ("wanted", "size", "said"),
    [
        (70, 256, "a defect of 70 is large enough"),
        (20, 256, "for a defect of 20 set size = 832, which takes 10.6 times the time"),
        (16, 256, "for a defect of 16 set size = 1024, which takes 16.0 times the time"),
        (
            6,
            256,
            "a defect of 6 is too small for this detector even at full resolution",
        ),
    ],
)
def test_advice_is_size_tiles_or_another_camera(wanted: float, size: int, said: str) -> None:
    assert said in resolution.advice((1024, 1024), Geometry(size=size), 8, wanted)


def test_tiles_are_suggested_for_large_pictures_and_size_that_is_suggested_is_enough() -> None:
    assert "set geometry.tiles = true" in resolution.advice((3000, 4000), Geometry(size=256), 8, 20)
    assert "set size = 832" in resolution.advice((1024, 1024), Geometry(size=256), 8, 20)
    assert resolution.smallest_defect((1024, 1024), Geometry(size=832), 8) <= 20


@pytest.mark.parametrize("text", ["", "px", "0px", "-3", "6 mm", "nan", "1e400x"])
def test_an_invalid_length_is_refused(text: str) -> None:
    with pytest.raises(RecipeError, match="expected a length in pixels"):
        resolution.length(text)


def test_check_says_how_small_a_defect_may_be(tmp_path: Path) -> None:
    for seed in range(3):
        save(tmp_path / "good" / f"{seed}.png", part(seed, side=480))
    run = CliRunner().invoke(app, ["check", str(tmp_path / "good")])
    assert "480 × 480 pixels the smallest defect that covers four positions of the detector is 16 × 16" in run.output
    run = CliRunner().invoke(app, ["check", str(tmp_path / "good"), "--smallest-defect", "12px"])
    assert "for a defect of 12 set size = 640" in run.output
    assert CliRunner().invoke(app, ["check", str(tmp_path / "good"), "--smallest-defect", "mm"]).exit_code != 0
