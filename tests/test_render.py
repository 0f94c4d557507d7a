"""Pictures: the scale is fixed, the threshold is marked, and nothing of the image's own range leaks into them."""

import cv2
import numpy as np
import pytest

from andon import render
from andon.inspection import Inspection, Region, Thresholds, Verdict
from andon.render import Scale
from fake_inspector import whole

SCALE = Scale.of(1.0, 3.0)


def blob(h=60, w=90, value=4.5):
    anomaly_map = np.full((h, w), 1.2, np.float32)
    anomaly_map[20:30, 40:60] = value
    return anomaly_map


def region(box=(40, 20, 20, 10)):
    x, y, w, h = box
    return Region(box, w * h, (x + w / 2, y + h / 2), 4.5, (x + w // 2, y + h // 2))


def test_threshold_lies_in_the_middle_of_the_scale():
    assert SCALE == (1.0, 5.0, 3.0)
    assert SCALE.normalize(np.float32([0, 1, 3, 5, 9])).tolist() == [0, 0, 0.5, 1, 1]
    degenerate = Scale.of(2.0, 2.0)
    assert degenerate.low < degenerate.threshold < degenerate.high
    assert Scale.of(0.0, 0.0).low < Scale.of(0.0, 0.0).high


def test_heat_is_not_scaled_to_its_own_image():
    alone = render.heat_map(blob(value=1.2), SCALE)
    beside = render.heat_map(blob(value=50.0), SCALE)
    np.testing.assert_array_equal(alone[:20], beside[:20])
    assert beside[25, 50].astype(int).sum() > 500 > alone[25, 50].astype(int).sum()


def test_only_the_given_regions_are_outlined():
    anomaly_map = blob()
    anomaly_map[45:50, 5:15] = 4.0
    area = render._area(anomaly_map > 3, [region()])
    assert area[20:30, 40:60].all() and area.sum() == 200
    assert not render._area(anomaly_map > 3, []).any()


def test_colours_rise_in_lightness():
    colours = render.heat_map(np.linspace(1, 5, 64, dtype=np.float32)[None], SCALE)
    lightness = cv2.cvtColor(colours, cv2.COLOR_RGB2LAB)[0, :, 0].astype(int)
    assert (np.diff(lightness) >= 0).all()


def test_uninspected_areas_are_gray_in_the_heat_map_and_hatched_in_the_overlay():
    anomaly_map = blob()
    anomaly_map[:, :20] = np.nan
    assert (render.heat_map(anomaly_map, SCALE)[:, :20] == 200).all()
    white = np.full((60, 90, 3), 255, np.uint8)
    picture = render.overlay(white, anomaly_map, SCALE, side=90, bar=False)
    assert picture[:, :19].max() < 160
    assert len(np.unique(picture[:, :19])) == 2
    assert picture[5:15, 30:].min() > 235


@pytest.mark.parametrize("pixels", [np.full((60, 90, 1), 90, np.uint8), np.full((60, 90, 3), 9000, np.uint16)])
def test_overlay_takes_every_kind_of_image_and_outlines_the_regions(pixels):
    plain = render.overlay(pixels, blob(), SCALE, bar=False)
    outlined = render.overlay(pixels, blob(), SCALE, [region()], bar=False)
    assert plain.shape == outlined.shape == (512, 768, 3)
    assert plain.dtype == np.uint8
    cyan = (outlined == render.REGION).all(2)
    rows, columns = np.nonzero(cyan)
    factor = 768 / 90
    assert (rows.min() / factor, rows.max() / factor) == pytest.approx((20, 30), abs=0.7)
    assert (columns.min() / factor, columns.max() / factor) == pytest.approx((40, 60), abs=0.7)
    assert not (plain == render.REGION).all(2).any()


def test_overlay_outlines_only_the_regions_that_were_kept():
    anomaly_map = blob()
    anomaly_map[50:52, 5:7] = 4.5  # filtered out by its area
    picture = render.overlay(np.zeros((60, 90, 3), np.uint8), anomaly_map, SCALE, [region()], bar=False)
    assert not (picture[400:, :100] == render.REGION).all(2).any()


def test_overlay_shows_the_mask_and_the_bar():
    mask = np.zeros((60, 90), bool)
    mask[5:15, 5:15] = True
    picture = render.overlay(np.zeros((60, 90, 1), np.uint8), blob(), SCALE, mask=mask)
    assert picture.shape == (512, 768 + 96, 3)
    assert (picture[:, :768] == render.TRUTH).all(2).any()
    bar = render.colour_bar(SCALE, 512)
    np.testing.assert_array_equal(picture[:, 768:], bar)
    assert (bar[256, 8] == render.INK).all()  # the threshold's mark, in the middle
    assert (bar[130, 8] == 255).all()


def test_display_windows_16_bit_images_only():
    ramp = np.linspace(1000, 3000, 64 * 64).reshape(64, 64, 1).astype(np.uint16)
    shown = render.display(ramp)
    assert shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)
    assert (render.display(np.full((9, 9, 1), 700, np.uint16)) == 0).all()
    np.testing.assert_array_equal(render.display(np.full((4, 4, 1), 77, np.uint8)), np.full((4, 4, 3), 77))


@pytest.mark.parametrize(
    ("value", "written"),
    [
        (0.0, "0.000"),
        (12.3456, "12.3"),
        (0.0012345, "0.00123"),
        (123456.7, "123457"),
        (1e9, "1.0e+09"),
        (-3.0, "-3.00"),
    ],
)
def test_values_are_written_short(value, written):
    assert render._short(value) == written


def test_contact_sheet_holds_every_picture():
    pictures = [np.full((40, 80, 3), 10 * j, np.uint8) for j in range(5)]
    sheet = render.contact_sheet(
        pictures, ["Gehäuse 1", "two", "3", "4", "a caption much too long for its cell"], 2, 80
    )
    assert sheet.shape == (12 + 3 * (40 + 36), 12 + 2 * 92, 3)
    for j in range(5):
        assert (sheet[20 + j // 2 * 76, 20 + j % 2 * 92] == 10 * j).all()
    with pytest.raises(ValueError, match="1 pictures, 2 captions"):
        render.contact_sheet(pictures[:1], ["a", "b"], 2)


@pytest.mark.parametrize("kind", ["png", "jpg"])
def test_encoded_pictures_keep_their_colours(kind):
    picture = np.full((16, 16, 3), (200, 100, 50), np.uint8)
    decoded = cv2.imdecode(np.frombuffer(render.encode(picture, kind), np.uint8), cv2.IMREAD_COLOR_RGB)
    assert np.abs(decoded.astype(int) - picture).max() <= (0 if kind == "png" else 4)


def test_captions_need_not_be_valid_unicode() -> None:
    picture = np.zeros((20, 20, 3), np.uint8)
    sheet = render.contact_sheet([picture] * 2, ["l\udcff" * 200, "良品"], 2)
    assert sheet.shape[2] == 3


def inspected(source, verdict=Verdict.REVIEW, score=5.0):
    return Inspection(source, verdict, score, 0.1, Thresholds(4.0, 9.0, 3.0), whole(blob()), (region(),), 0, 1.0)


@pytest.mark.parametrize("name", ["Gehäuse.png", "良品.png", "Деталь.png", "합격.png", "Geha\u0308use.png"])
def test_letters_of_many_languages_are_drawn_as_they_are(name):
    written, marked = np.zeros((2, 60, 400), np.uint8)
    render.text(written, name, (5, 40), 0.8, 255)
    render.text(marked, name.encode("ascii", "replace").decode(), (5, 40), 0.8, 255)
    assert (written != marked).any()
    assert render._drawable(name).isprintable() and "\\" not in render._drawable(name)


def test_what_the_font_lacks_is_written_as_its_code():
    assert render._drawable("a\udcff ไ\n.png") == "a\\udcff \\u0e44\\n.png"


def test_a_strip_above_the_picture_hides_nothing_of_it():
    picture = np.full((50, 300, 3), 7, np.uint8)
    short, long = (render.labelled(picture, inspected(name), [1.0, 2.0, 3.0]) for name in ("a.png", "良" * 60 + ".png"))
    for made in (short, long):
        np.testing.assert_array_equal(made[-50:], picture)
        assert (made[:-50, :6] == render.COLOURS[Verdict.REVIEW]).all()
        assert (made[:-50, -3:] == 255).all()  # no letter is cut off at the edge
    assert len(long) > len(short) + 2 * render.LINE
    other = render.labelled(picture, inspected("a.png", score=5.5), [1.0, 2.0, 3.0])
    assert other.shape == short.shape and (other != short).any()
    render.labelled(picture[:, :10], inspected("a", Verdict.INVALID, np.nan), [1.0])


def test_levels_are_0_at_typical_good_scores_and_1_at_the_threshold():
    limits = Thresholds(review=-4.0, reject=np.inf, pixel=0.0)
    assert render.levels(-4.0, [-9.0, -8.0, -6.0], limits) == {"review": 1.0}
    assert render.levels(-8.0, [-9.0, -8.0, -6.0], limits._replace(reject=0.0)) == {"review": 0.0, "reject": 0.0}
    assert render.levels(3.0, [5.0], limits) == {}


def test_the_heat_map_never_hides_the_picture_beneath():
    """Even at the top of the scale most of the contrast of a fine pattern is left."""
    pixels = np.where(np.arange(90) % 2, np.uint8(200), np.uint8(100))[None, :, None].repeat(60, 0)
    picture = render.overlay(pixels, blob(value=50.0), SCALE, side=90, bar=False).astype(int)
    inside = picture[22:28, 42:58]
    assert (abs(inside[:, ::2] - inside[:, 1::2]) > 50).all()
