"""JPEG at reduced scale: training and inspection decode the same pixels, and everything else stays in full pixels."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from andon import Inspector
from andon.bundle import Bundle
from andon.data import dataset, survey
from andon.data.store import Store
from andon.errors import ImageError
from andon.geometry import tiling, views
from andon.geometry.views import Geometry
from andon.pictures import image
from andon.recipe import Recipe
from andon.training import train as training
from andon.training.calibrating import recalibrate


def jpeg(seed: int, height: int = 480, width: int = 640, spot: bool = False) -> bytes:
    """A striped part with a little noise, and a black spot of 40 pixels at (480, 320)."""
    rng = np.random.default_rng(seed)
    stripes = 110 + 50 * np.sin(np.arange(width) / 17)[None, :, None] * np.ones((height, 1, 3))
    pixels = np.clip(stripes + rng.normal(0, 3, (height, width, 3)), 0, 255).astype(np.uint8)
    if spot:
        cv2.circle(pixels, (480, 320), 40, (0, 0, 0), -1)
    return cv2.imencode(".jpg", pixels, [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()


@pytest.mark.parametrize(
    ("settings", "frame", "expected"),
    [
        ({}, (3000, 4000), 8),
        ({}, (480, 640), 2),
        ({}, (400, 520), 1),
        ({"size": 128}, (480, 640), 4),
        ({"size": 128}, (481, 640), 1),
        ({"size": 128}, (482, 642), 2),
        ({"size": 128, "crop": (8, 16, 512, 320)}, (480, 640), 2),
        ({"size": 128, "crop": (9, 16, 512, 320)}, (480, 640), 1),
        ({"size": 128, "aspect": "keep"}, (480, 640), 4),
        ({"size": 128, "tiles": True}, (3000, 4000), 1),
        ({"size": 128, "ignore": [[(0, 0), (90, 0), (90, 90)]]}, (3000, 4000), 1),
        ({"size": 128, "registration": {}}, (3000, 4000), 1),
    ],
)
def test_the_view_is_never_made_smaller_than_the_input(
    settings: dict[str, Any], frame: tuple[int, int], expected: int
) -> None:
    geometry = Geometry.model_validate(settings).with_shape([frame])
    assert tiling.reduction(frame, geometry) == expected


@pytest.mark.parametrize("by", [2, 4, 8])
@pytest.mark.parametrize("crop", [None, (64, 32, 512, 384)])
def test_a_reduced_view_lies_where_the_full_one_does(by: int, crop: tuple[int, int, int, int] | None) -> None:
    geometry = Geometry(size=64, aspect="stretch", crop=crop)
    tiles = []
    for each in (1, by):
        read = image.read(jpeg(1, spot=True), "part.jpg", each)
        assert read.full == (480, 640) and read.pixels.shape == (480 // each, 640 // each, 3)
        view = views.align(read.pixels, geometry, read.name, full=read.full)
        assert (view.frame, view.shape, view.origin) == (
            (480, 640),
            *(((384, 512), (64, 32)) if crop else ((480, 640), (0, 0))),
        )
        tiles += [tile.astype(int) for _, tile in tiling.split(view, geometry)]
    assert np.abs(tiles[0] - tiles[1]).mean() < 2 and np.abs(tiles[0] - tiles[1]).max() < 45  # at the spot's edge


def test_damage_and_other_sizes_are_found_at_reduced_scale() -> None:
    data = jpeg(1)
    for spoilt in (data[: len(data) // 2], data[: len(data) // 2] + b"\xff\xd9"):
        with pytest.raises(ImageError, match=r"part\.jpg"):
            image.read(spoilt, "part.jpg", 4)
    odd = image.read(jpeg(1, 479, 640), "odd.jpg", 4)
    assert odd.pixels.shape == (479, 640, 3) and odd.frame is None


def test_exif_turns_the_reduced_pixels_and_the_full_size() -> None:
    data = jpeg(1)
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x06\0\0\0\0\0\0"
    turned = data[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + data[2:]
    read = image.read(turned, "turned.jpg", 4)
    assert read.full == (640, 480) and read.pixels.shape == (160, 120, 3)


def test_training_and_inspection_see_the_same_pixels_and_tell_full_coordinates(tmp_path: Path) -> None:
    folder = tmp_path / "good"
    folder.mkdir()
    for seed in range(14):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed))
    recipe = Recipe.model_validate(
        {
            "data": {"images": str(folder)},
            "geometry": {"size": 128},
            "decision": {"review_rate": 0.1, "reject_rate": 0.1},
            "detector": {"settings": {"bank": 200}},
        }
    )
    training.train(recipe, tmp_path / "b.andon")
    inspector = Inspector.load(tmp_path / "b.andon")
    rule = inspector.manifest.input
    assert (rule.reduced, rule.size) == (4, (640, 480))
    samples = dataset.load(folder).training_images()
    seen = survey.survey_images(samples, inspector.recipe, Store(), lambda *_: None, reduce=True)
    for sample in samples[:3]:
        prepared = inspector.prepare(inspector.read(sample.path))
        assert prepared.view is not None
        ((_, tile),) = tiling.split(prepared.view, inspector.recipe.geometry)
        np.testing.assert_array_equal(tile, seen.tiles(sample.path)[0])
    found = inspector.inspect(jpeg(99, spot=True))
    assert found.anomaly_map.shape == (480, 640)
    assert np.hypot(*np.subtract(found.regions[0].peak_at, (480, 320))) < 40  # inside the spot
    array = inspector.inspect(image.read(jpeg(99, spot=True)).pixels)  # an array is not reduced
    assert array.score == pytest.approx(found.score, rel=0.1) and array.verdict is found.verdict
    with pytest.raises(ImageError, match="320 × 240 pixels; this bundle was trained on images of 640 × 480"):
        inspector.inspect(jpeg(1, 240, 320))
    assert Bundle.load(tmp_path / "b.andon").manifest.input.reduced == 4


@pytest.mark.parametrize("kind", [".jpg", ".png"])
def test_a_picture_looks_the_same_however_it_arrives(tmp_path: Path, kind: str) -> None:
    """Good pictures were measured at reduced scale, arrays and other formats at full scale, so these were unusual."""
    (tmp_path / "good").mkdir()
    for seed in range(14):
        pixels = image.read(jpeg(seed)).pixels
        (tmp_path / f"good/{seed}{kind}").write_bytes(jpeg(seed) if kind == ".jpg" else image.png(pixels))
    recipe = Recipe.model_validate(
        {
            "data": {"images": str(tmp_path / "good")},
            "geometry": {"size": 128},
            "input": {"unusual": "invalid"},
            "decision": {"review_rate": 0.1, "reject_rate": 0.1},
            "detector": {"settings": {"bank": 200}},
        }
    )
    inspector = Inspector(training.train(recipe, tmp_path / "b.andon"))
    assert inspector.manifest.input.reduced == 4
    again = Inspector(recalibrate(inspector.bundle, good_jpegs(tmp_path / "new")))
    for each in (inspector, again):
        for seed in range(90, 93):
            pixels = image.read(jpeg(seed)).pixels
            for source in (jpeg(seed), image.png(pixels), pixels):
                assert each.inspect(source).notes == ()
        assert "blurred" in str(each.inspect(cv2.GaussianBlur(pixels, (0, 0), 8)).notes)


def good_jpegs(folder: Path) -> Path:
    """A folder of ten other good pictures."""
    folder.mkdir()
    for seed in range(50, 60):
        (folder / f"{seed}.jpg").write_bytes(jpeg(seed))
    return folder


@pytest.mark.parametrize("settings", [{"input": {"size": "any"}}, {"input": {"light": "gain"}}, {}])
def test_full_decoding_is_kept_where_sizes_or_light_differ(tmp_path: Path, settings: dict[str, Any]) -> None:
    for seed in range(3):
        height = 480 if settings or seed else 496
        (tmp_path / f"{seed}.jpg").write_bytes(jpeg(seed, height))
    recipe = Recipe.model_validate({"geometry": {"size": 64, "aspect": "stretch"}, **settings})
    seen = survey.survey_images(dataset.load(tmp_path).training_images(), recipe, Store(), lambda *_: None, reduce=True)
    assert seen.rule.reduced == 1
