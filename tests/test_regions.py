"""Connected areas above the pixel threshold: measured, the worst first, and no more than a person can read."""

from typing import Any

import cv2
import numpy as np
import pytest

from andon.geometry import regions, tiling, views
from andon.geometry.registration import Reference, Register
from andon.geometry.views import Geometry


def test_regions_are_measured_sorted_and_filtered() -> None:
    values = np.zeros((40, 60), np.float32)
    values[5:10, 10:20] = 2  # 50 pixels
    values[7, 15] = 3
    values[20:30, 30:40] = 5  # 100 pixels
    values[35, 50] = 9  # 1 pixel
    values[0, :] = np.nan
    found, removed = regions.find(values, 1.0, min_area=2)
    assert removed == 1
    assert [(r.box, r.area, r.peak) for r in found] == [((30, 20, 10, 10), 100, 5.0), ((10, 5, 10, 5), 50, 3.0)]
    assert found[1].peak_at == (15, 7)
    assert found[0].centroid == (34.5, 24.5)
    assert regions.find(values, 10.0, 0) == ((), 0)


def test_noise_lists_the_worst_and_counts_the_rest() -> None:
    values = np.random.default_rng(0).random((600, 600)).astype(np.float32)
    above = (values > 0.9).astype(np.uint8)
    count, labels = cv2.connectedComponents(above, connectivity=8)
    peaks = sorted((float(values[labels == i].max()) for i in range(1, count) if i % 50 == 0), reverse=True)
    found, unlisted = regions.find(values, 0.9, min_area=0)
    assert count - 1 > 10_000 and (len(found), unlisted) == (regions.MOST, count - 1 - regions.MOST)
    assert [r.peak for r in found] == sorted((r.peak for r in found), reverse=True)
    assert all(peak <= found[0].peak for peak in peaks)
    hidden = values.copy()
    for region in found:
        x, y = region.peak_at
        assert values[y, x] == region.peak
        hidden[labels == labels[y, x]] = 0
        assert region.area == np.count_nonzero(labels == labels[y, x])
    assert hidden.max() <= found[-1].peak


def test_small_regions_are_left_out_before_the_worst_are_chosen() -> None:
    values = np.zeros((100, 100), np.float32)
    values[::2, ::2] = 9  # 2,500 single pixels
    values[40:45, 40:45] = 5
    found, unlisted = regions.find(values, 1.0, min_area=20)
    assert [(r.box[2:], r.peak) for r in found] == [((5, 5), 5.0)]
    assert unlisted == cv2.connectedComponents((values > 1).astype(np.uint8), connectivity=8)[0] - 2


def test_several_pixels_at_the_peak_name_the_first_and_infinity_is_a_peak() -> None:
    values = np.zeros((5, 8), np.float32)
    values[1:4, 2:6] = np.inf
    values[0, 7] = 2
    found, _ = regions.find(values, 1.0, 0)
    assert [(r.peak, r.peak_at) for r in found] == [(np.inf, (2, 1)), (2.0, (7, 0))]


def smooth(height: int, width: int) -> Any:
    """A gray picture with three blurred spots, the brightest on the right."""
    values = np.zeros((height, width), np.float32)
    for x, y, radius, value in ((0.3, 0.3, 0.06, 220), (0.7, 0.62, 0.09, 250), (0.36, 0.72, 0.05, 200)):
        cv2.circle(values, (round(x * width), round(y * height)), round(radius * width), value, -1)
    return cv2.GaussianBlur(values, (0, 0), width / 60).astype(np.uint8)[..., None]


def turned(pixels: Any) -> tuple[Any, Reference]:
    """A textured picture with the spots, turned by 12 degrees, and the picture that it is registered to."""
    height, width = pixels.shape[:2]
    texture = np.random.default_rng(1).integers(0, 60, (12, 16)).astype(np.uint8)
    part = np.maximum(pixels[..., 0] // 2 + 100, cv2.resize(texture, (width, height), interpolation=cv2.INTER_NEAREST))
    matrix = cv2.getRotationMatrix2D((width / 2, height / 2), 12, 1)
    picture = cv2.warpAffine(part, matrix, (width, height), borderMode=cv2.BORDER_REPLICATE)
    known = cv2.imencode(".png", part)[1].tobytes()
    return picture[..., None], Reference(known, Register(max_rotation=30, max_shift=0.2, least_quality=0.1), "part.png")


@pytest.mark.parametrize(
    "settings",
    [
        {"size": 128},
        {"size": 128, "aspect": "stretch"},
        {"size": 128, "aspect": "keep"},
        {"size": 256, "tiles": True},
        {"size": 128, "crop": (64, 40, 512, 400)},
        {"size": 128, "include": [[(30, 30), (600, 60), (610, 450), (60, 460)]]},
        {"size": 128, "crop": (64, 40, 512, 400), "ignore": [[(0, 0), (260, 0), (260, 200), (0, 200)]]},
        {"size": 128, "registration": {"max_rotation": 30, "max_shift": 0.2, "least_quality": 0.1}},
        {"size": 256, "tiles": True, "registration": {"max_rotation": 30, "max_shift": 0.2, "least_quality": 0.1}},
    ],
    ids=str,
)
def test_regions_at_the_detectors_scale_are_those_of_the_enlarged_map(settings: dict[str, Any]) -> None:
    """Boxes and centroids within a pixel of the map, areas within 6 % and that rim, peaks within 2 %."""
    pixels, known = smooth(480, 640), None
    if "registration" in settings:
        pixels, known = turned(pixels)
    geometry = Geometry.model_validate(settings).with_shape([(480, 640)])
    view = views.align(pixels, geometry, "spots", known)
    pieces = [(place, tile[..., 0].astype(np.float32)) for place, tile in tiling.split(view, geometry)]
    joined = tiling.collect(view, pieces)
    enlarged, level = joined.enlarge(), 165.0 if known else 150.0
    step = float(np.abs(joined.matrix[:, :2]).sum(axis=1).max())  # pixels of the image along a pixel of the map
    before, _ = regions.find(enlarged, level, 40)
    after, _ = regions.find(joined.values, level, 40, joined.matrix, view.frame)
    assert len(after) == len(before) >= 2
    for old, new in zip(before, after, strict=True):
        corners = [np.array([r.box[0], r.box[1], r.box[0] + r.box[2], r.box[1] + r.box[3]]) for r in (old, new)]
        assert np.abs(corners[0] - corners[1]).max() <= np.ceil(step) + 1
        assert np.hypot(*np.subtract(old.centroid, new.centroid)) <= step
        assert abs(old.area - new.area) <= 0.06 * old.area + step * 2
        assert new.peak == pytest.approx(old.peak, rel=0.02)
        x, y = new.peak_at
        assert enlarged[y, x] == pytest.approx(new.peak, rel=0.02)


def test_a_map_finer_than_its_view_is_judged_at_the_views_scale() -> None:
    view = views.align(smooth(100, 120), Geometry(size=256, aspect="stretch"), "small")
    joined = tiling.collect(view, [(next(tiling.places(view, Geometry(size=256, aspect="stretch"))), np.eye(256))])
    assert joined.values.shape == view.shape and np.array_equal(joined.matrix, np.eye(2, 3))
    np.testing.assert_array_equal(joined.values, joined.enlarge())


def test_a_region_of_interest_thinner_than_a_pixel_of_the_map_is_inspected() -> None:
    geometry = Geometry(size=64, aspect="stretch", include=[[(100, 0), (102, 0), (102, 639), (100, 639)]])
    geometry = geometry.model_copy(update={"small_region": True})
    view = views.align(smooth(640, 640), geometry, "thin")
    joined = tiling.collect(view, [(next(tiling.places(view, geometry)), np.ones((64, 64), np.float32))])
    assert np.isfinite(joined.values).all(axis=0).nonzero()[0].tolist() == [10]
    assert np.count_nonzero(np.isfinite(joined.values)) == 64
    again = views.align(smooth(640, 640), geometry, "thin")
    assert again.roi is view.roi  # drawn once
