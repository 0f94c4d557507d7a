"""What an answer keeps of a map, and how it reads a record."""

import io
import math

import cv2
import numpy as np
import pytest

from andon.geometry.tiling import Joined, unseen
from andon.geometry.views import Placement
from andon.inspection import Thresholds
from andon.station import work
from andon.station.answers import MOST_VALUES, Answer, Map
from andon.station.events import Outcome

MATRIX = np.array([[0.98, -0.17, 30.0], [0.17, 0.98, -12.0]])


def smooth(shape: tuple[int, int], seed: int = 0) -> np.ndarray:
    return cv2.GaussianBlur(np.random.default_rng(seed).random(shape, np.float32), (0, 0), 3) * 1e-4


def placed(kind: str) -> Placement:
    roi = np.zeros((160, 200), np.bool_)
    roi[20:120, 40:160] = True
    return {
        "whole": Placement((160, 200), (0, 0), (160, 200), None),
        "cropped": Placement((160, 200), (17, 5), (240, 320), None),
        "region": Placement((160, 200), (17, 5), (240, 320), roi),
        "registered": Placement((160, 200), (0, 0), (240, 320), None, matrix=MATRIX),
        "registered region": Placement((160, 200), (0, 0), (240, 320), roi, matrix=MATRIX),
    }[kind]


@pytest.mark.parametrize("kind", ["whole", "cropped", "region", "registered", "registered region"])
def test_a_kept_map_is_drawn_as_the_map_of_the_inspection(kind: str) -> None:
    joined = Joined(smooth((40, 50)), placed(kind))
    expected, kept = joined.whole(), Map.from_bytes(Map.of(joined).to_bytes()).whole()
    assert kept.shape == expected.shape
    both = np.isfinite(kept) & np.isfinite(expected)
    assert both.sum() > 0.95 * np.isfinite(expected).sum()
    assert np.isfinite(kept).sum() < 1.05 * np.isfinite(expected).sum()  # the edge of a region, to a pixel of the map
    inner = (
        cv2.erode(both.astype(np.uint8), np.ones((9, 9), np.uint8), borderType=cv2.BORDER_CONSTANT, borderValue=0) > 0
    )
    assert np.abs(kept - expected)[inner].max() < 1e-3 * np.nanmax(expected)


def test_a_large_map_is_reduced_and_keeps_its_peaks() -> None:
    values = np.zeros((3000, 2001), np.float32)
    values[1234, 567] = 7.0
    roi = np.ones(values.shape, np.bool_)
    roi[:1000] = False
    kept = Map.of(Joined(values, Placement(values.shape, (0, 0), values.shape, roi)))
    assert math.prod(kept.shape) <= 1.01 * MOST_VALUES and len(kept.values) == 2 * math.prod(kept.shape)
    drawn = kept.whole()
    y, x = np.unravel_index(np.nanargmax(drawn), drawn.shape)
    assert abs(y - 1234) <= 3 and abs(x - 567) <= 3
    assert np.isnan(drawn[:990]).all() and np.isfinite(drawn[1010:]).all()


def test_a_map_without_any_value_and_one_of_zeros() -> None:
    assert np.isnan(Map.of(unseen((12, 20))).whole()).all()
    zeros = Joined(np.zeros((8, 8), np.float32), Placement((8, 8), (0, 0), (8, 8), None))
    assert (Map.of(zeros).whole() == 0).all()


def test_what_is_no_map_is_refused() -> None:
    whole = Map.of(Joined(smooth((40, 50)), placed("registered"))).to_bytes()
    for data in (b"", b"{}\n", b"[]\n", b"1\n", whole[:-1], whole + b"x", whole.replace(b"50", b"-1", 1)):
        with pytest.raises(ValueError):
            Map.from_bytes(data)


def test_an_answer_reads_null_as_what_json_cannot_hold() -> None:
    record = {"score": None, "p_value": None, "thresholds": {"review": 1.5, "reject": None, "pixel": 2}, "stages": {}}
    answer = Answer(1, Outcome.INVALID, record)
    assert math.isnan(answer.score) and math.isnan(answer.p_value)
    assert answer.thresholds == Thresholds(1.5, math.inf, 2.0)
    assert (answer.regions, answer.error, answer.stages) == ((), "", {})
    assert Answer(1, Outcome.ERROR, {"error": "why"}).thresholds is None


def test_messages_arrive_whole_or_not_at_all() -> None:
    file = io.BytesIO()
    work.send(file, {"name": "größe", "score": math.nan}, b"\x00\xff")
    data = file.getvalue()
    assert work.receive(io.BytesIO(data), 2) == ({"name": "größe", "score": None}, b"\x00\xff")
    for cut in range(len(data)):
        with pytest.raises(EOFError):
            work.receive(io.BytesIO(data[:cut]), 2)
    with pytest.raises(ValueError, match="expected at most"):
        work.receive(io.BytesIO(data), 1)
    with pytest.raises(ValueError, match="expected at most"):
        work.receive(io.BytesIO(b"\xff" * 40), 1 << 20)
    with pytest.raises(ValueError, match="expected an object"):
        work.receive(io.BytesIO(work.LENGTHS.pack(2, 0) + b"[]"), 1)
