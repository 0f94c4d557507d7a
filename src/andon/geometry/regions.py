"""Connected areas of an anomaly map above a threshold.

They are computed at the scale of the map and reported in pixels of the image.
"""

import cv2
import numpy as np

from andon.geometry.registration import Matrix
from andon.inspection import Array, Region

MOST = 100  # maximum number of listed regions; noise has tens of thousands


def find(
    anomaly_map: Array,
    threshold: float,
    min_area: int,
    matrix: Matrix | None = None,
    frame: tuple[int, int] | None = None,
) -> tuple[tuple[Region, ...], int]:
    """Find connected areas (8 neighbours) of a map (h, w) above the threshold; return the `MOST` worst, worst first.

    Also return the number of other areas: those smaller than `min_area` pixels of the image, and those not among the
    worst.

    matrix: (2, 3), from pixels of the map to pixels of the image; default: identity.
    frame: size of the image (H, W); default: size of the map.
    """
    above = anomaly_map > threshold  # NaN compares false
    if not above.any():
        return (), 0
    count, labels, stats, centroids = cv2.connectedComponentsWithStats(above.view(np.uint8), connectivity=8)
    at = np.flatnonzero(above)
    label, value = labels.ravel()[at].astype(np.intp), anomaly_map.ravel()[at]
    peaks = np.full(count, -np.inf, value.dtype)
    np.maximum.at(peaks, label, value)
    at_peak = np.flatnonzero(value == peaks[label])
    peak_label, first = np.unique(label[at_peak], return_index=True)  # every label but 0, ascending
    peak_at = at[at_peak[first]]
    matrix = np.eye(2, 3) if matrix is None else matrix
    height, width = frame or anomaly_map.shape
    ratio = abs(float(np.linalg.det(matrix[:, :2])))  # pixels of the image per pixel of the map
    large = peak_label[np.round(stats[peak_label, cv2.CC_STAT_AREA] * ratio) >= min_area]
    worst = large[np.argsort(-peaks[large], kind="stable")[:MOST]].tolist()
    regions = []
    for i in worst:
        x, y, w, h, area = (int(v) for v in stats[i])
        if matrix[0, 1] or matrix[1, 0]:  # rotated: the box of all pixels, not of the corners of the box
            rows, columns = np.nonzero(labels[y : y + h, x : x + w] == i)
        else:
            rows, columns = np.array([0, h - 1]), np.array([0, w - 1])
        corners = matrix @ [columns + x, rows + y, np.ones(len(rows))]  # (2, n): x, y of the centres of pixels
        half = np.abs(matrix[:, :2]).sum(axis=1) / 2
        left, top = _nearest(corners.min(axis=1) - half + 0.5, (width - 1, height - 1))
        right, bottom = _nearest(corners.max(axis=1) + half + 0.5, (width, height))
        box = (left, top, max(1, right - left), max(1, bottom - top))
        row, column = divmod(int(peak_at[i - 1]), anomaly_map.shape[1])
        peak = _nearest(matrix @ [column, row, 1], (width - 1, height - 1))
        centre = matrix @ [*centroids[i], 1]
        centroid = (float(centre[0]), float(centre[1]))
        regions.append(Region(box, max(1, round(area * ratio)), centroid, float(peaks[i]), peak))
    return tuple(regions), count - 1 - len(regions)


def _nearest(point: Matrix, most: tuple[int, int]) -> tuple[int, int]:
    """Round a point (x, y) to integer pixels between 0 and `most`."""
    x, y = np.clip(np.floor(point + 0.5), 0, most).astype(int).tolist()
    return x, y
