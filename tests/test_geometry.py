"""Crop, region of interest, tiles: what is cut comes back where it was."""

import tracemalloc
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from andon.errors import ImageError, RecipeError
from andon.geometry import tiling, views
from andon.geometry.views import Geometry
from andon.recipe import Recipe


def noise(height: int, width: int, channels: int = 1, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 256, (height, width, channels), dtype=np.uint8)


def there_and_back(pixels: Any, settings: Geometry) -> Any:
    """Join the tiles' own first channel as if it were the anomaly map."""
    view = views.align(pixels, settings, "test")
    return tiling.join(view, ((place, tile[..., 0].astype(np.float32)) for place, tile in tiling.split(view, settings)))


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(8, 300),
    width=st.integers(8, 300),
    size=st.sampled_from([64, 96, 128]),
    overlap=st.integers(0, 32),
)
def test_tiling_and_joining_is_the_identity(height: int, width: int, size: int, overlap: int) -> None:
    pixels = noise(height, width)
    joined = there_and_back(pixels, Geometry(size=size, tiles=True, overlap=overlap))
    np.testing.assert_allclose(joined, pixels[..., 0], atol=1e-3)


@settings(max_examples=100, deadline=None)
@given(length=st.integers(1, 5000), size=st.sampled_from([64, 128, 256]), overlap=st.integers(0, 32))
def test_tiles_cover_everything_with_the_asked_overlap(length: int, size: int, overlap: int) -> None:
    begin = tiling.starts(length, size, overlap)
    assert begin[0] == 0
    if length > size:
        assert begin[-1] == length - size
        assert max(np.diff(begin)) <= size - overlap


@settings(max_examples=60, deadline=None)
@given(
    x=st.integers(0, 60),
    y=st.integers(0, 60),
    width=st.integers(40, 140),
    height=st.integers(40, 140),
    aspect=st.sampled_from(["stretch", "keep"]),
)
def test_a_point_survives_the_round_trip(x: int, y: int, width: int, height: int, aspect: Any) -> None:
    """A bright blob comes back where it was, to within a pixel of the coarser of the two grids."""
    pixels = np.zeros((210, 210, 1), np.uint8)
    row, column = y + height // 2, x + width // 2
    pixels[row - 3 : row + 4, column - 3 : column + 4] = 255
    joined = there_and_back(pixels, Geometry(size=128, aspect=aspect, crop=(x, y, width, height)))
    weight = np.nan_to_num(joined)
    rows, columns = np.indices(weight.shape)
    found = (rows * weight).sum() / weight.sum(), (columns * weight).sum() / weight.sum()
    assert np.hypot(found[0] - row, found[1] - column) < 1.5


def test_the_map_has_the_frame_of_the_image_and_nothing_outside_the_crop() -> None:
    joined = there_and_back(noise(100, 150), Geometry(size=64, crop=(20, 10, 80, 60)))
    assert joined.shape == (100, 150)
    inside = np.zeros((100, 150), bool)
    inside[10:70, 20:100] = True
    assert np.array_equal(np.isfinite(joined), inside)


def test_what_is_ignored_never_reaches_the_detector() -> None:
    settings = Geometry(size=128, ignore=[[(0, 0), (63, 0), (63, 127), (0, 127)]])
    first, second = noise(128, 128, 3, seed=1), noise(128, 128, 3, seed=1)
    second[:, :64] = noise(128, 64, 3, seed=2)
    one, two = (next(tiling.split(views.align(p, settings, "test"), settings))[1] for p in (first, second))
    assert np.array_equal(one, two)
    joined = there_and_back(first, settings)
    assert np.isnan(joined[:, :64]).all()
    assert np.isfinite(joined[:, 64:]).all()


def test_include_and_ignore_work_together() -> None:
    settings = Geometry(
        size=64,
        include=[[(10, 10), (90, 10), (90, 90), (10, 90)]],
        ignore=[[(40, 40), (60, 40), (60, 60), (40, 60)]],
        crop=(5, 5, 90, 90),
    )
    joined = there_and_back(noise(100, 100), settings)
    assert np.isfinite(joined[20, 20])
    assert np.isnan(joined[50, 50])
    assert np.isnan(joined[7, 7])


def test_tiles_wholly_outside_the_region_of_interest_are_not_scored() -> None:
    settings = Geometry(size=64, tiles=True, overlap=0, include=[[(0, 0), (60, 0), (60, 60), (0, 60)]])
    view = views.align(noise(256, 256), settings, "test")
    assert len(list(tiling.split(view, settings))) == 1


def test_aspect_is_kept_by_repeating_the_edge() -> None:
    settings = Geometry(size=64, aspect="keep")
    pixels = np.full((100, 50, 1), 7, np.uint8)
    pixels[:, 25:] = 200
    tile = next(tiling.split(views.align(pixels, settings, "test"), settings))[1]
    assert tile.shape == (64, 64, 1)
    assert (tile[:, :16] == 7).all()
    assert (tile[:, 48:] == 200).all()


def test_sixteen_bits_stay_sixteen_bits() -> None:
    pixels = np.full((80, 80, 3), 40_000, np.uint16)
    tile = next(tiling.split(views.align(pixels, Geometry(size=64), "test"), Geometry(size=64)))[1]
    assert tile.dtype == np.uint16
    assert (tile == 40_000).all()


def test_twenty_megapixels_stay_under_a_gigabyte() -> None:
    settings = Geometry(size=512, tiles=True, overlap=64)
    pixels = np.zeros((4000, 5000, 3), np.uint8)
    tracemalloc.start()
    view = views.align(pixels, settings, "test")
    tiling.join(view, ((place, np.zeros((512, 512), np.float32)) for place, _ in tiling.split(view, settings)))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak + pixels.nbytes < 1e9


def test_a_crop_outside_the_image_says_what_to_do() -> None:
    with pytest.raises(ImageError, match=r"small.png: 50×40 pixels; the recipe's crop .* needs 70×30"):
        views.align(noise(40, 50), Geometry(size=64, crop=(20, 0, 50, 30)), "small.png")


def test_a_region_of_interest_outside_the_image_says_what_to_do() -> None:
    with pytest.raises(ImageError, match="region of interest"):
        views.align(noise(40, 50), Geometry(include=[[(100, 100), (120, 100), (120, 120)]]), "small.png")


@pytest.mark.parametrize(
    "values",
    [
        {"size": 100},
        {"size": 0},
        {"crop": (-1, 0, 50, 50)},
        {"crop": (0, 0, 4, 4)},
        {"tiles": True, "size": 256, "overlap": 200},
        {"shape": (160, 416), "aspect": "stretch"},
        {"shape": (160, 416), "tiles": True},
        {"shape": (160, 400)},
        {"tiles": True, "aspect": "keep"},
        {"ignore": [[(0, 0), (1, 1)]]},
        {"rotation": 3},
    ],
)
def test_impossible_geometry_is_refused(values: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Geometry(**values)


@pytest.mark.parametrize(("t", "sizes"), [(256, [8, 2]), (512, [2] * 5), (1024, [1] * 10), (4096, [1] * 10)])
def test_batches_are_bounded_by_pixels(t: int, sizes: list[int]) -> None:
    assert [len(batch) for batch in tiling.batches(range(10), (t, t))] == sizes


def test_a_small_region_is_refused_unless_asked_for() -> None:
    corners = [[(10, 10), (14, 10), (14, 14)]]
    for values in ({"include": corners}, {"crop": (0, 0, 8, 8)}):
        with pytest.raises(ImageError, match=r"p.png: only 0\.\d\d% of its 200×100 pixels are in the recipe's"):
            views.align(noise(100, 200), Geometry(**values), "p.png")
        view = views.align(noise(100, 200), Geometry(**values, small_region=True), "p.png")
        assert 0 < view.share < 0.01
    assert views.align(noise(100, 200), Geometry(crop=(0, 0, 100, 50)), "p.png").share == 0.25


def test_a_picture_may_give_the_region(tmp_path: Path) -> None:
    drawn = np.zeros((60, 90), np.uint8)
    cv2.circle(drawn, (30, 30), 20, 255, -1)
    drawn[30, 30] = 0  # a hole, and an isle
    drawn[5, 80] = 255
    (tmp_path / "roi.png").write_bytes(cv2.imencode(".png", drawn)[1].tobytes())
    (tmp_path / "r.toml").write_text(
        '[geometry]\ninclude = "roi.png"\nignore = [[[0, 0], [20, 0], [20, 60], [0, 60]]]\n'
    )
    recipe = Recipe.load(tmp_path / "r.toml")
    (tmp_path / "roi.png").unlink()  # it is in the recipe
    again = Recipe.parse(recipe.dump(), "again")
    assert again.geometry == recipe.geometry and len(recipe.dump()) < 2000
    view = views.align(noise(60, 90), again.geometry, "p.png")
    expected = drawn > 0
    expected[:, :21] = False
    assert view.roi is not None
    np.testing.assert_array_equal(view.roi, expected)
    with pytest.raises(ImageError, match=r"90×61 pixels, but the picture of the region .* has 90×60; expected"):
        views.align(noise(61, 90), again.geometry, "p.png")
    with pytest.raises(RecipeError, match=r"geometry.include: .*roi.png: no such file"):
        Recipe.load(tmp_path / "r.toml")
    (tmp_path / "roi.png").write_bytes(cv2.imencode(".png", drawn * 0)[1].tobytes())
    with pytest.raises(RecipeError, match=r"roi.png: nothing is white; expected white where the picture is insp"):
        Recipe.load(tmp_path / "r.toml")


def test_a_picture_that_is_no_region_is_refused(tmp_path: Path) -> None:
    """A region in alpha was read as all of the picture, and a photograph as its bright pixels."""
    clear = np.full((60, 90, 4), 255, np.uint8)
    clear[:30, :, 3] = 0
    (tmp_path / "roi.png").write_bytes(cv2.imencode(".png", clear)[1].tobytes())
    with pytest.raises(ImageError, match=r"roi.png: a region with alpha; expected white where"):
        views.embedded(tmp_path / "roi.png")
    (tmp_path / "roi.png").write_bytes(cv2.imencode(".png", noise(60, 90))[1].tobytes())
    with pytest.raises(
        ImageError, match=r"roi.png: \d+% of its pixels are neither black nor white, as in a photograph"
    ):
        views.embedded(tmp_path / "roi.png")
    drawn = cv2.circle(np.zeros((60, 90), np.uint8), (30, 30), 20, 255, -1, cv2.LINE_AA)
    for suffix in (".png", ".jpg"):
        (tmp_path / "roi").write_bytes(cv2.imencode(suffix, drawn)[1].tobytes())
        assert views.embedded(tmp_path / "roi").startswith(views.EMBEDDED)


@pytest.mark.parametrize(
    ("frames", "size", "shape"),
    [
        ([(500, 1260)], 256, (160, 416)),
        ([(1260, 500)], 256, (416, 160)),
        ([(900, 900)], 256, (256, 256)),
        ([(480, 640)], 256, (224, 288)),
        ([(1, 1000)], 256, (64, 1024)),  # no side is below 64
        ([(200, 400)] * 9 + [(300, 300)], 256, (192, 352)),  # most agree
        ([(300, 300), (200, 400), (200, 400)], 256, (256, 256)),  # they do not
    ],
)
def test_the_input_takes_the_aspect_of_the_pictures(
    frames: list[tuple[int, int]], size: int, shape: tuple[int, int]
) -> None:
    shaped = Geometry(size=size).with_shape(frames)
    assert shaped.input == shape
    assert abs(np.log(shape[0] * shape[1] / size**2)) < 0.1


def test_the_shape_is_that_of_the_crop_and_of_squares_where_asked_for() -> None:
    assert Geometry(size=256, crop=(0, 0, 1260, 500)).with_shape([(900, 1300)]).input == (160, 416)
    for square in (
        Geometry(size=256, aspect="stretch"),
        Geometry(size=256, aspect="keep"),
        Geometry(size=256, tiles=True),
    ):
        assert square.with_shape([(500, 1260)]).input == (256, 256)
    assert Geometry(size=256, shape=(64, 128)).with_shape([(500, 1260)]).input == (64, 128)


def test_a_long_view_is_neither_squeezed_nor_padded() -> None:
    pixels = noise(500, 1260)
    settings = Geometry(size=256).with_shape([(500, 1260)])
    view = views.align(pixels, settings, "long.png")
    ((place, tile),) = tiling.split(view, settings)
    assert tile.shape == (160, 416, 1)
    assert place.inner == (0, 0, 416, 160)
    joined = tiling.join(view, [(place, tile[..., 0].astype(np.float32))])
    assert joined.shape == (500, 1260)
