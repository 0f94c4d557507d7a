"""Evaluation: counts by hand, and a run that goes on past whatever is wrong with single files."""

import csv
import io
import json
import math
import os
import shutil
from dataclasses import replace

import cv2
import numpy as np
import pytest
from markupsafe import escape

from andon.calibration import Calibration
from andon.data import dataset
from andon.data.masks import read_sized
from andon.errors import DatasetError, ImageError
from andon.evaluate import metrics
from andon.evaluate.evaluating import evaluate
from andon.evaluate.report import html
from andon.recipe import Decision
from fake_inspector import FakeInspector, paint, paint_set


@pytest.fixture
def painted(tmp_path):
    return paint_set(tmp_path / "ring")


def test_figures_by_level(painted):
    evaluation = evaluate(FakeInspector(), dataset.load(painted))
    figures = evaluation.metrics
    assert json.loads(evaluation.json()) == figures
    labels, scores = [0] * 5 + [1] * 6, [5, 20, 30, 37, 39, 10, 37, 60, 80, 90, 95]
    assert figures["image"] == {
        "auroc": metrics.auroc(labels, scores),
        "auroc_interval": list(metrics.auroc_interval(labels, scores)),
        "ap": metrics.average_precision(labels, scores),
        "fpr_at_95_tpr": metrics.fpr_at_tpr(labels, scores),
        "f1_max_oracle": metrics.f1_max(labels, scores),
        "n_good": 5,
        "n_defective": 6,
    }
    review, reject = figures["decision"]["review"], figures["decision"]["reject"]
    assert (review["threshold"], reject["threshold"]) == (36, 38)
    assert (review["promised_rate"], reject["promised_rate"]) == (0.1, 0.05)
    assert review["false_rejects"] == {
        "count": 2,
        "n": 5,
        "rate": 0.4,
        "interval": list(metrics.clopper_pearson(2, 5)),
    }
    assert [d[key]["count"] for d in (review, reject) for key in ("escapes", "false_rejects")] == [1, 2, 2, 1]
    assert figures["defects"]["scratch"]["escapes"]["reject"]["count"] == 2
    assert figures["defects"]["dent"]["auroc"] == 1.0
    assert figures["defects"]["dent"]["n"] == figures["defects"]["dent"]["n_defective"] == 2
    assert figures["data"]["split"] == "test"
    assert figures["errors"] == []
    assert figures["groups"] is None


def test_pixel_figures_use_the_masks(painted):
    figures = evaluate(FakeInspector(), dataset.load(painted)).metrics
    assert figures["pixel"]["images"] == {"good": 5, "masked": 6, "without_mask": 0}
    assert figures["pixel"]["components"] == 6
    # the squares of five good images are above or level with some of the defects
    good = [1] * (11 * 23 * 24 - 11 * 16) + [value for value in (5, 20, 30, 37, 39) for _ in range(16)]
    bad = [value for value in (10, 37, 60, 80, 90, 95) for _ in range(16)]
    labels = [0] * len(good) + [1] * len(bad)
    assert figures["pixel"]["auroc"] == pytest.approx(metrics.auroc(labels, good + bad), abs=1e-12)
    assert figures["pixel"]["ap"] == pytest.approx(metrics.average_precision(labels, good + bad), abs=1e-12)
    assert figures["defects"]["dent"]["pixel"]["aupro_05"] == 1.0
    assert figures["defects"]["dent"]["pixel"]["components"] == 2


def test_scores_are_written_for_other_tools(painted):
    evaluation = evaluate(FakeInspector(), dataset.load(painted))
    rows = list(csv.DictReader(io.StringIO(evaluation.csv().decode())))
    assert len(rows) == 11
    assert {row["image"]: float(row["score"]) for row in rows}["test/scratch/060.png"] == 60
    assert rows[-1]["verdict"] == "REJECT"


def test_scores_are_safe_in_a_spreadsheet(tmp_path):
    for name in ("test/good/a\nb.png", "test/good/c.png", "test/=scratch/d.png"):
        paint(tmp_path / name, 60)
    found = evaluate(FakeInspector(), dataset.load(tmp_path))
    endless = replace(next(row for row in found.rows if not row.good), score=math.inf, p_value=math.nan)
    lines = replace(found, rows=(*(row for row in found.rows if row.good), endless)).csv().decode().splitlines()
    rows = list(csv.DictReader(lines))
    assert len(lines) == 4 and lines[0].startswith('"image","defect"')
    assert {row["image"] for row in rows} >= {r"test/good/a\nb.png", "test/good/c.png"}
    assert (rows[0]["score"], rows[-1]["score"], rows[-1]["p_value"]) == ("60.0", "", "")
    assert rows[-1]["defect"] == "'=scratch"


def test_bad_files_and_masks_are_listed_and_the_run_goes_on(painted):
    (painted / "test/good/020.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    masks = painted / "ground_truth/scratch"
    paint(painted / "unused.png", 60, masks / "060_mask.png", side=30)
    (masks / "080_mask.png").write_bytes(cv2.imencode(".png", np.zeros((24, 24), np.uint8))[1].tobytes())
    (masks / "037_mask.png").unlink()
    paint(painted / "test/dent/255.png", 255)  # the part is not found
    (painted / "unused.png").unlink()
    evaluation = evaluate(FakeInspector(), dataset.load(painted))
    assert len(evaluation.errors) == 3
    assert any("020.png" in error for error in evaluation.errors)
    assert any("060_mask.png: mask of 30 × 30 pixels for an image of 24 × 24" in error for error in evaluation.errors)
    assert any("080_mask.png: the mask marks no pixel; expected" in error for error in evaluation.errors)
    figures = evaluation.metrics
    assert figures["errors"] == list(evaluation.errors)
    assert (figures["image"]["n_good"], figures["image"]["n_defective"]) == (4, 6)
    assert figures["pixel"]["images"] == {"good": 4, "masked": 3, "without_mask": 1}
    assert figures["data"]["not_found"] == {"good": 0, "defective": 1}
    assert "INVALID, and in no figure: 0 good and 1 defective images." in evaluation.warnings


def test_what_cannot_be_measured_is_null_and_says_why(tmp_path):
    for value in (5, 20):
        paint(tmp_path / f"good/{value:03}.png", value)
    only_good = evaluate(FakeInspector(), dataset.load(tmp_path))
    assert only_good.metrics["image"]["auroc"] is None
    assert only_good.metrics["image"]["why"] == "no defective images"
    assert only_good.metrics["pixel"]["why"] == "the data set has no masks"
    assert only_good.metrics["decision"]["review"]["escapes"] == {
        "count": 0,
        "n": 0,
        "rate": None,
        "interval": [0.0, 1.0],
    }
    assert "no defective images" in " ".join(only_good.summary())
    paint(tmp_path / "dent/090.png", 90)
    figures = evaluate(FakeInspector(), dataset.load(tmp_path)).metrics
    assert figures["image"]["auroc"] == 1.0
    assert figures["data"]["split"] == "all"
    assert figures["pixel"]["auroc"] is None


def test_frames_of_one_group_count_once(painted):
    table = "path,group\n" + "".join(
        f"{path.relative_to(painted).as_posix()},{'a' if path.stem < '030' else 'b'}\n"
        for path in sorted(painted.glob("t*/*/*.png"))
    )
    (painted / "groups.csv").write_text(table)
    figures = evaluate(FakeInspector(), dataset.load(painted, groups=painted / "groups.csv")).metrics
    grouped = figures["groups"]
    assert (grouped["image"]["n_good"], grouped["image"]["n_defective"]) == (2, 2)
    assert grouped["decision"]["review"]["false_rejects"]["count"] == 1  # b, by its frame of 39
    assert grouped["decision"]["review"]["escapes"]["count"] == 1  # a, whose one frame scores 10
    assert grouped["images_per_group"] == {"good": 2.5, "defective": 3.0}
    assert figures["decision"]["review"]["false_rejects"]["n"] == 5


def test_thresholds_set_by_hand_promise_nothing(painted):
    decision = Decision(review_threshold=50.0, reject_threshold=1e9)
    decided = evaluate(FakeInspector(decision), dataset.load(painted)).metrics["decision"]
    assert decided["review"]["threshold"] == 50
    assert decided["review"]["promised_rate"] is None
    assert decided["reject"]["threshold"] == 1e9
    assert decided["reject"]["escapes"]["count"] == 6


def test_summary_gives_counts_rates_and_intervals(painted):
    text = "\n".join(evaluate(FakeInspector(), dataset.load(painted)).summary())
    assert "At the review threshold 1 of 6 (16.7 %, 95 % interval 0.4 % to 64.1 %) defective images escape" in text
    assert "10.0 % was promised" in text
    assert "AUPRO" in text


def test_progress_counts_the_labelled_images(painted):
    seen = []
    evaluate(FakeInspector(), dataset.load(painted), lambda stage, done, total: seen.append((done, total)))
    assert seen[0] == (0, 11)
    assert seen[-1] == (11, 11)


def test_folders_without_labels_are_refused(tmp_path):
    paint(tmp_path / "000.png", 5)
    with pytest.raises(DatasetError, match="1 images, none labelled"):
        evaluate(FakeInspector(), dataset.load(tmp_path))
    (tmp_path / "000.png").unlink()
    (tmp_path / "good").mkdir()
    (tmp_path / "good/000.png").write_bytes(b"\x89PNG\r\n\x1a\n not really")
    with pytest.raises(DatasetError, match="0 of 1 images could be inspected"):
        evaluate(FakeInspector(), dataset.load(tmp_path))


@pytest.mark.parametrize("top", [1, 100, 255])
def test_masks_are_true_above_half_of_their_largest(tmp_path, top):
    values = np.full((10, 12), top // 2, np.uint8)
    values[2, 3] = top
    path = tmp_path / "mask.png"
    path.write_bytes(cv2.imencode(".png", values)[1].tobytes())
    assert np.argwhere(read_sized(path, (10, 12)).area).tolist() == [[2, 3]]
    path.write_bytes(cv2.imencode(".png", np.zeros((10, 12), np.uint8))[1].tobytes())
    with pytest.raises(ImageError, match="the mask marks no pixel"):
        read_sized(path, (10, 12))


def test_images_that_the_bundle_learnt_from_are_counted_and_reported(painted):
    inspector = FakeInspector()
    clean = evaluate(inspector, dataset.load(painted))
    assert clean.metrics["data"]["learnt_from"] == 0 and not clean.warnings
    learnt = [row.digest[:16] for row in clean.rows[:3]]
    inspector.manifest = inspector.manifest.model_copy(update={"learnt": learnt})
    known = evaluate(inspector, dataset.load(painted))
    assert known.metrics["data"]["learnt_from"] == 3
    assert [said[:51] for said in known.warnings] == ["The bundle was trained on 3 of these 11 images, so "]


def test_figures_of_images_are_not_held_against_a_promise_for_parts(painted):
    inspector = FakeInspector(Decision(review_rate=0.1, reject_rate=0.05, per="part"))
    known = inspector.calibration
    assert evaluate(inspector, dataset.load(painted)).metrics["decision"]["review"]["promised_rate"]  # one image a part
    inspector.calibration = known.model_copy(update={"part": [row // 2 for row in known.part]})
    single = evaluate(inspector, dataset.load(painted))
    assert single.metrics["decision"]["review"]["promised_rate"] is None
    assert any("promised for parts" in sentence for sentence in single.warnings)
    grouped = evaluate(inspector, dataset.load(painted, groups="(.*)"))
    assert grouped.metrics["groups"]["decision"]["review"]["promised_rate"] and not grouped.warnings


def test_good_images_that_set_the_thresholds_are_counted_and_reported(painted):
    inspector = FakeInspector()
    data = dataset.load(painted)
    rows = evaluate(inspector, data).rows
    digests = [row.digest for row in sorted(rows, key=lambda row: not row.good)]
    held_out = [*digests[-2:], *digests[:3]]  # two defective ones, three of five good ones
    inspector.calibration = Calibration(
        part=list(range(5)), scores=[1.0] * 5, peaks=[1.0] * 5, typical=1.0, digests=held_out, names=held_out
    )
    known = evaluate(inspector, data)
    (sentence,) = [sentence for sentence in known.warnings if "set the thresholds" in sentence]
    good = [row.name for row in known.rows if row.digest in digests[:3]]
    assert sentence.startswith("3 of 5 good images set") and all(name in sentence for name in good)
    assert sentence in html(known).decode()
    inspector.manifest = inspector.manifest.model_copy(update={"learnt": [digest[:16] for digest in digests]})
    assert not any("thresholds" in sentence for sentence in evaluate(inspector, data).warnings)  # the summary says it


def test_copies_and_contradictory_labels_are_reported(tmp_path):
    root = paint_set(tmp_path / "ring")
    before = evaluate(FakeInspector(), dataset.load(root))
    shutil.copy(root / "test/good/005.png", root / "test/good/006.png")
    shutil.copy(root / "test/good/020.png", root / "test/dent/020.png")
    doubtful = evaluate(FakeInspector(), dataset.load(root))
    found = [sentence for sentence in doubtful.warnings if sentence not in before.warnings]
    assert found[0].startswith("1 image in several equal files") and "test/good/005.png = test/good/006.png" in found[0]
    assert "labelled good and defective" in found[1] and "test/dent/020.png = test/good/020.png" in found[1]
    assert len(doubtful.rows) == len(before.rows) + 2


def test_names_need_not_be_valid_unicode(painted):
    try:
        (painted / "test/good/005.png").rename(painted / "test/good" / os.fsdecode(b"\xff.png"))
    except OSError:
        pytest.skip("this file system knows Unicode names only")
    evaluation = evaluate(FakeInspector(), dataset.load(painted))
    assert rb"\udcff.png" in evaluation.csv()
    assert len(evaluation.rows) == 11 and json.loads(evaluation.json())


def test_masks_that_are_missing_left_over_or_numbered_are_reported(painted):
    masks = sorted((painted / "ground_truth/scratch").iterdir())
    masks[0].rename(masks[0].with_name("other.png"))
    for path in masks[1:3]:
        drawn = cv2.imread(str(path), 0)
        drawn[drawn > 0] = 3
        drawn[:2, :2] = 1
        path.write_bytes(cv2.imencode(".png", drawn)[1].tobytes())
    inverted = next((painted / "ground_truth/dent").iterdir())
    inverted.write_bytes(cv2.imencode(".png", 255 - cv2.imread(str(inverted), 0))[1].tobytes())
    (painted / "test/dent/lost").symlink_to("lost")
    evaluation = evaluate(FakeInspector(), dataset.load(painted))
    assert [sentence.partition(";")[0].partition(",")[0] for sentence in evaluation.warnings] == [
        "1 of 6 images of defects have no mask",
        "1 mask without an image of a defect",
        "2 masks with class numbers",
    ]
    assert evaluation.metrics["warnings"] == evaluation.warnings
    assert "lost: cannot be read" in evaluation.errors[0] and "black and white seem to be exch" in evaluation.errors[1]
    assert all(str(escape(sentence)) in html(evaluation).decode() for sentence in evaluation.warnings)
    clean = evaluate(FakeInspector(), dataset.load(painted / "test", good=["good"]))
    assert clean.metrics["warnings"] == []


def test_several_images_at_a_time_change_no_figure(painted):
    (painted / "test/good/torn.png").write_bytes(b"no picture")
    one = evaluate(FakeInspector(), dataset.load(painted))
    several = evaluate(FakeInspector(), dataset.load(painted), workers=4)
    assert one.metrics.pop("milliseconds")["at_a_time"] == 1
    assert several.metrics.pop("milliseconds")["at_a_time"] == 4
    assert several.metrics == one.metrics
    assert [(row.name, row.score) for row in several.rows] == [(row.name, row.score) for row in one.rows]
    assert len(several.errors) == 1 and "torn.png" in several.errors[0]
