"""The report: one file that needs nothing, in which names are text and never markup; and its plots."""

import json
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser

import numpy as np
import pytest

from andon.data import dataset
from andon.errors import AndonError
from andon.evaluate import plots, report
from andon.evaluate.evaluating import evaluate
from andon.recipe import Decision
from fake_inspector import FakeInspector, paint, paint_set

VOID = {"meta", "img", "br"}


class Page(HTMLParser):
    """Checks that tags close, and collects what there is."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.words = [], [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.words).split())


@pytest.fixture
def painted(tmp_path):
    return paint_set(tmp_path / "ring")


def page_of(folder, inspector=None, **options):
    evaluation = evaluate(inspector or FakeInspector(), dataset.load(folder, **options))
    return Page(report.html(evaluation).decode())


def test_report_says_what_a_quality_engineer_asks(painted):
    page = page_of(painted)
    assert (
        "At the review threshold 5 of 6 defective images are caught, and 2 of 5 good images are stopped." in page.text
    )
    assert "Image AUROC 0.8" in page.text
    for words in ("promised, at most", "By type of defect", "scratch", "dent", "AUPRO", "seed 3", "0123456789abcdef"):
        assert words in page.text
    assert "Defective images that pass: all 1, lowest score first." in page.text
    assert "review: at most 10.0 % of good images, from 39 held-out good images. In the long run" in page.text
    assert "PASS scratch, score 10, p 0.775, 0 regions test/scratch/010.png" in page.text
    cards = [attributes["alt"] for tag, attributes in page.tags if tag == "img"]
    # an escape, two false rejects, three near defects and three near good ones, and two defects more
    assert (cards.count("image"), cards.count("heat map"), cards.count("colour bar")) == (11, 11, 1)
    assert [tag for tag, _ in page.tags].count("svg") == 2


def test_report_needs_nothing_else_and_may_load_nothing_else(painted):
    page = page_of(painted)
    tags = [tag for tag, _ in page.tags]
    assert not {"script", "link", "iframe", "object", "form"} & set(tags)
    policy = next(a["content"] for tag, a in page.tags if tag == "meta" and "http-equiv" in a)
    assert policy.startswith("default-src 'none';")
    for _, attributes in page.tags:
        assert not [name for name in attributes if name.startswith("on")]
        for name in ("src", "href"):
            assert attributes.get(name, "data:image/").startswith(("data:image/", "#"))


def test_every_pair_of_pictures_enlarges_on_a_click_and_shrinks_on_the_next(painted):
    page = page_of(painted)
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    links = [attributes["href"][1:] for tag, attributes in page.tags if tag == "a"]
    assert len(ids) == len(set(ids))
    assert sorted(links) == sorted(ids)
    assert len(links) == 2 * 11


def test_report_names_date_bundle_software_thresholds_and_levels(painted):
    evaluation = evaluate(FakeInspector(), dataset.load(painted))
    page = Page(report.html(evaluation, "ring <2>.andon").decode())
    assert "Thresholds: REVIEW above a score of 36, REJECT above 38." in page.text
    assert "bundle ring <2>.andon , digest 0123456789ab" in page.text
    assert re.search(r"evaluated \d{4}-\d\d-\d\d \d\d:\d\d UTC with andon \S+, onnxruntime \d", page.text)
    assert ", 0 regions test/good/037.png review level 1.06 reject level 0.94" in page.text
    assert "A region alone stops no part." in page.text
    assert "what 4 × 4 pixels of the detector's tile cover (decision.min_area)" in page.text
    by_hand = page_of(painted, FakeInspector(Decision(min_area=30)))
    assert "30 pixels of the image (decision.min_area)" in by_hand.text
    assert "REJECT above" not in by_hand.text  # too few held-out parts for 1 %


def test_names_are_text_and_never_markup(tmp_path):
    evil = "<script>alert(1)<!--\"'&"
    paint(tmp_path / f"good/{evil}.png", 50)
    paint(tmp_path / f"{evil}/000.png", 90)
    (tmp_path / f"good/{evil}2.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    page = page_of(tmp_path, FakeInspector(product=evil))
    assert "script" not in [tag for tag, _ in page.tags]
    assert page.text.count(evil) >= 5
    assert page.words.count(evil) >= 2  # the heading, and the row of the table


def test_report_lists_the_files_that_could_not_be_used(painted):
    (painted / "test/good/020.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    (painted / "ground_truth/dent/090_mask.png").write_bytes(b"")
    page = page_of(painted)
    assert "2 files could not be used and are missing from the figures" in page.text
    assert "Files that could not be used" in page.text
    assert "020.png" in page.text


def test_report_of_good_images_alone(tmp_path):
    for value in (5, 20, 50):
        paint(tmp_path / f"good/{value:03}.png", value)
    page = page_of(tmp_path)
    assert "0 of 0 defective images are caught, and 1 of 3 good images are stopped." in page.text
    assert "no defective images" in page.text
    assert [tag for tag, _ in page.tags].count("svg") == 1


def test_report_warns_when_more_are_stopped_than_promised(tmp_path):
    for value in range(100, 120):
        paint(tmp_path / f"good/{value:03}.png", value)
    page = page_of(tmp_path)
    assert "The review threshold stops 20 of 20" in page.text
    assert "recalibrate on good images like these" in page.text
    by_hand = page_of(tmp_path, FakeInspector(Decision(review_threshold=3.0, reject_threshold=5.0)))
    assert "recalibrate" not in by_hand.text
    assert "set by hand" in by_hand.text


def test_report_gives_groups_when_there_are_any(painted):
    page = page_of(painted, groups=r"(\d)\d\.png")
    assert "By group" in page.text
    assert "good groups that are stopped" in page.text
    assert re.search(r"AUROC 0\.\d{4} \(0\.\d{4} – ", page.text)


def test_galleries_are_bounded_and_take_every_type(tmp_path):
    for value in range(1, 30):
        paint(tmp_path / f"good/{value:03}.png", value)
    for kind in ("a", "b", "c"):
        for value in range(100, 130):
            paint(tmp_path / f"{kind}/{value:03}.png", value)
    evaluation = evaluate(FakeInspector(), dataset.load(tmp_path))
    found = {gallery.title: gallery for gallery in report.galleries(evaluation)}
    assert [card.row.defect for card in found["Detected defects"].cards] == ["a"] * 4 + ["b"] * 4 + ["c"] * 4
    assert all(110 <= card.row.score <= 120 for card in found["Detected defects"].cards)
    assert len(found["Close to the threshold"].cards) == 6
    assert found["Escapes"].words == "No defective image passes."


def test_everything_is_written_into_a_new_folder(painted, tmp_path):
    evaluation = evaluate(FakeInspector(), dataset.load(painted))
    out = tmp_path / "new" / "report"
    report.write(evaluation, out)
    assert sorted(path.name for path in out.iterdir()) == ["metrics.json", "report.html", "scores.csv"]
    assert json.loads((out / "metrics.json").read_text("utf-8"))["image"]["n_good"] == 5
    (tmp_path / "file").write_text("")
    with pytest.raises(AndonError, match="cannot be created"):
        report.write(evaluation, tmp_path / "file" / "report")


def test_plots_are_well_formed_and_escape_names():
    svg = plots.line_plot(
        [plots.Line([0, 0, 1], [0, 1, 1], "<memory & bank>"), plots.Line([0, 1], [0, 1], "b", plots.COLOURS[1])],
        "x <&>",
        "y",
        [plots.Mark(0.1, 0.9, "<mark>")],
        diagonal=True,
    )
    words = " ".join(ElementTree.fromstring(svg).itertext())
    assert "<memory & bank>" in words
    assert "<mark>" in words
    svg = plots.histograms([plots.Band("<a>", [1, 2, 2], plots.GOOD)], [plots.Cut(1.5, "<cut>")], "score")
    assert "<cut>" in " ".join(ElementTree.fromstring(svg).itertext())


def test_lines_are_drawn_once_a_tenth_of_a_pixel():
    x = np.linspace(0, 1, 100_000)
    assert len(plots.line_plot([plots.Line(x, x)], "x", "y")) < 100_000


@pytest.mark.parametrize(
    ("values", "logarithmic"), [([1.0, 30.0], True), ([-1.0, 30.0], False), ([5.0, 5.0], False), ([2.0, np.inf], False)]
)
def test_histograms_take_any_values(values, logarithmic):
    svg = plots.histograms([plots.Band("good", values, plots.GOOD)], [plots.Cut(2.0, "review")], "score")
    assert ("(logarithmic)" in svg) == logarithmic
    assert "2 images" in svg
    assert not re.search(r"nan|inf", svg)


@pytest.mark.parametrize(
    ("low", "high", "log", "ticks"),
    [
        (0, 1, False, [0, 0.2, 0.4, 0.6, 0.8, 1.0]),
        (-3, 7, False, [-2, 0, 2, 4, 6]),
        (0.5, 40, True, [0.5, 1, 2, 5, 10, 20]),
        (1, 1e6, True, [10.0**j for j in range(7)]),
    ],
)
def test_ticks_are_round(low, high, log, ticks):
    assert plots.Axis(low, high, 0, 100, log).ticks() == pytest.approx(ticks)
