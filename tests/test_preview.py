"""The preview of a recipe: what is inspected is bright, the rest dark, and a bad picture stops nothing."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

from andon import cli
from andon.errors import AndonError, DatasetError, RecipeError
from andon.pictures import image
from andon.recipe import Recipe
from andon.training import preview


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "good").mkdir()
    for i in range(6):
        drawn = np.full((100, 200, 3), 200, np.uint8)
        cv2.rectangle(drawn, (60 + i, 20), (140 + i, 80), (90, 60, 30), -1)
        cv2.circle(drawn, (80 + i, 40), 10, (250, 250, 250), -1)
        (tmp_path / f"good/{i}.png").write_bytes(cv2.imencode(".png", drawn)[1].tobytes())
    return tmp_path


def previewed(folder: Path, **geometry: object) -> preview.Picture:
    values = {"data": {"images": str(folder)}, "geometry": {"size": 64, **geometry}}
    return preview.sheet(Recipe.model_validate(values), 1)


def test_what_is_not_inspected_is_dark(folder: Path) -> None:
    region = [[[0, 0], [100, 0], [100, 100], [0, 100]]]
    for sheet in (previewed(folder, include=region), previewed(folder, crop=[0, 0, 100, 100])):
        left, right = sheet[60:160, 40:60], sheet[60:160, 290:320]  # the picture: 320 by 160, from 12
        assert left.mean() > 190 and right.mean() < 80
    whole = previewed(folder)
    assert whole[60:160, 300:320].mean() > 190


def test_tiles_and_crop_are_drawn_where_they_lie(folder: Path) -> None:
    plain, tiled = previewed(folder), previewed(folder, tiles=True, overlap=0)
    blue = [(sheet[:180, :, 2].astype(int) - sheet[:180, :, 0] > 100).sum() for sheet in (plain, tiled)]
    assert blue[0] == 0 and blue[1] > 300
    sheet = previewed(folder, crop=[20, 10, 100, 50])
    rows, columns = np.nonzero((sheet[12:172, 12:332] == preview.VIEW).all(axis=2))
    np.testing.assert_allclose([columns.min(), columns.max(), rows.min(), rows.max()], [32, 192, 16, 96], atol=2)


def test_a_registered_view_lies_on_the_part(folder: Path) -> None:
    sheet = previewed(folder, registration={"max_rotation": 5.0}, include=[[[60, 20], [146, 20], [146, 80], [60, 80]]])
    assert (sheet[:180] == preview.REGION).all(axis=2).sum() > 100
    assert sheet[80:100, 20:40].mean() < 80 and sheet[12 + 56 : 12 + 72, 12 + 120 : 12 + 136].mean() > 200


def test_the_command_takes_folders_and_goes_past_bad_pictures(folder: Path) -> None:
    (folder / "good/5.png").write_bytes(b"no picture")
    out = folder / "sheet.png"
    done = CliRunner().invoke(cli.app, ["preview", str(folder / "good"), "-o", str(out), "-q"])
    assert done.exit_code == 0, done.output
    assert image.read(out).pixels.shape[1] == 12 + 5 * 332
    assert "left out" in done.stderr and "5.png" in done.stderr


@pytest.mark.parametrize(
    ("out", "words"), [("good/preview.png", "among the pictures of"), ("preview.jpg", "expected the path of a PNG")]
)
def test_a_preview_is_no_picture_of_a_part_and_is_png(folder: Path, out: str, words: str) -> None:
    done = CliRunner().invoke(cli.app, ["preview", str(folder / "good"), "-o", str(folder / out), "-q"])
    assert isinstance(done.exception, AndonError) and words in str(done.exception)
    assert not (folder / out).exists()


def test_without_good_images_there_is_no_preview(folder: Path) -> None:
    with pytest.raises(RecipeError, match="names no images"):
        preview.sheet(Recipe())
    (folder / "good").rename(folder / "ng")
    with pytest.raises(DatasetError, match="no good images to show among 6 images"):
        previewed(folder / "ng")
