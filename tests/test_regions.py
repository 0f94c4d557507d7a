"""Connected areas above the pixel threshold: measured, the worst first, and no more than a person can read."""

import cv2
import numpy as np

from andon.geometry import regions


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
