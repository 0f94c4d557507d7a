"""Connected areas of an anomaly map above a threshold: the places that a person should look at."""

import cv2
import numpy as np

from andon.inspection import Array, Region

MOST = 100  # regions that are listed; noise has tens of thousands


def find(anomaly_map: Array, threshold: float, min_area: int) -> tuple[tuple[Region, ...], int]:
    """Find connected areas (8 neighbours) of a map (H, W) above the threshold: the `MOST` worst, worst first.

    Also returns how many areas are not listed: those smaller than `min_area` pixels, and those beyond the worst.
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
    large = peak_label[stats[peak_label, cv2.CC_STAT_AREA] >= min_area]
    worst = large[np.argsort(-peaks[large], kind="stable")[:MOST]].tolist()
    found = []
    for i in worst:
        x, y, w, h, area = (int(v) for v in stats[i])
        row, column = divmod(int(peak_at[i - 1]), anomaly_map.shape[1])
        centroid = (float(centroids[i][0]), float(centroids[i][1]))
        found.append(Region((x, y, w, h), area, centroid, float(peaks[i]), (column, row)))
    return tuple(found), count - 1 - len(found)
