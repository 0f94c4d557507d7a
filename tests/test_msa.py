"""The measurement system analysis: from a table to findings, and a page; degenerate and bad tables."""

import csv
import hashlib
import io
import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andon.bundle import Bundle
from andon.errors import AndonError, DatasetError, RecipeError
from andon.proof import limits, msa, scores, table, verdicts
from andon.proof.table import Table

BUNDLE = "ab" * 32
Change = Callable[[dict[str, Any]], dict[str, Any] | None]
HEADER = (
    *("part", "reference", "appraiser", "condition", "trial", "verdict", "score", "digest"),
    *("review_threshold", "reject_threshold", "bundle"),
)


def study_rows(parts: int = 20, raters: int = 2, trials: int = 3) -> list[dict[str, Any]]:
    """Two parts in five are defective; scores repeat within 0.25, thresholds are 2 and 2.6."""
    generator, rows = np.random.default_rng(3), []
    for p in range(parts):
        mean = generator.normal(0 if p % 5 < 3 else 3, 1)
        for o in range(raters):
            for t in range(trials):
                score = mean + generator.normal(0, 0.25)
                verdict = "PASS" if score < 2 else "REVIEW" if score < 2.6 else "REJECT"
                digest = hashlib.sha256(f"{p} {o} {t}".encode()).hexdigest()
                kind = "good" if p % 5 < 3 else ("dent", "scratch")[p % 2]
                cells = (f"p{p}", kind, f"cell {o}", "", t + 1, verdict, score, digest, 2.0, 2.6, BUNDLE)
                rows.append(dict(zip(HEADER, cells, strict=True)))
    return rows


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    text = io.StringIO()
    out = csv.DictWriter(text, list(rows[0]))
    out.writeheader()
    out.writerows(rows)
    path = folder / "table.csv"
    path.write_text(text.getvalue(), encoding="utf-8")
    return path


def made(folder: Path, rows: list[dict[str, Any]], **options: Any) -> msa.Study:
    return msa.study(table.read(written(folder, rows)), **options)


def changed(change: Change, **shape: int) -> list[dict[str, Any]]:
    return [row for row in map(change, study_rows(**shape)) if row is not None]


def sentences(study: msa.Study) -> str:
    return "\n".join(study.missing)


def test_rates_are_counted_as_by_hand(tmp_path: Path) -> None:
    rows = study_rows()
    stopped, passed = made(tmp_path, rows).agreements
    for agreement, stops in ((stopped, {"REVIEW", "REJECT"}), (passed, {"REJECT"})):
        for scope in agreement.scopes:
            own = [row for row in rows if scope.rater in (row["appraiser"], verdicts.TOGETHER)]
            bad = [row for row in own if row["reference"] != "good"]
            missed = [row["part"] for row in bad if row["verdict"] not in stops]
            assert scope.miss_rate is not None and scope.presentations == len(own)
            assert scope.miss_rate.presentations[:2] == (len(missed), len(bad))
            assert scope.miss_rate.parts[:2] == (len(set(missed)), len({row["part"] for row in bad}))
            wrong = [row["part"] for row in own if (row["verdict"] in stops) != (row["reference"] != "good")]
            assert scope.effectiveness is not None
            assert scope.effectiveness.presentations.cases == len(own) - len(wrong)
            assert scope.effectiveness.parts.cases == 20 - len(set(wrong))
    assert (stopped.review, passed.review) == ("stopped", "passed")
    by_mapping = [agreement.scopes[-1].miss_rate for agreement in (passed, stopped)]
    assert by_mapping[0].upper > by_mapping[1].upper  # type: ignore[union-attr]


def test_no_miss_in_48_is_acceptable_and_not_demonstrated(tmp_path: Path) -> None:
    rows = changed(
        lambda row: row | {"verdict": "PASS" if row["reference"] == "good" else "REJECT"}, parts=40, raters=1
    )
    found = next(f for f in made(tmp_path, rows).findings if f.quantity == "miss rate")
    assert found.sentence().startswith(
        "miss rate, cell 0: 0/48 (0 %) of presentations, 0/16 (0 %) of parts: acceptable"
    )
    assert (
        "at most 6.1 % of presentations of these parts, 17.1 % of parts like these: not demonstrated"
        in found.sentence()
    )
    assert "needed: 149 parts with 0 wrong; for these parts, 149 presentations with 0 wrong" in found.sentence()


def test_more_presentations_show_more_of_these_parts_only(tmp_path: Path) -> None:
    sure: Change = lambda row: row | {"verdict": "PASS" if row["reference"] == "good" else "REJECT"}  # noqa: E731
    found = [
        made(tmp_path, changed(sure, parts=parts, raters=1, trials=t)).findings for parts, t in ((10, 40), (400, 1))
    ]
    shown = [next(f.shown for f in findings if f.quantity == "miss rate") for findings in found]
    assert shown == ["demonstrated for these parts only", "demonstrated"]


def test_a_figure_that_is_bad_is_unacceptable(tmp_path: Path) -> None:
    study = made(tmp_path, changed(lambda row: row | {"verdict": "PASS"}))
    assert study.failed
    assert {f.grade for f in study.findings if f.quantity == "miss rate"} == {"unacceptable"}
    assert "Some kappas are undefined" in sentences(study)
    assert all(scope.kappa.value is None for scope in study.agreements[0].scopes)


def test_the_record_and_the_page_tell_everything(tmp_path: Path) -> None:
    study = made(tmp_path, study_rows(), by="Q. <b>Engineer</b>")
    page = msa.write(study, tmp_path / "out").read_text()
    record = json.loads((tmp_path / "out" / "msa.json").read_text())
    assert record["table"]["digest"] == study.table.digest and record["bundles"] == [BUNDLE]
    assert len(record["presentations"]) == 120 and len(record["presentations"][0]["digest"]) == 64
    assert "Q. &lt;b&gt;Engineer" in page and "<script" not in page and not re.search(r'(src|href)="http', page)
    told = (
        study.table.digest,
        BUNDLE,
        study.made,
        "AIAG, Measurement Systems Analysis",
        "Clopper and Pearson",
        "numpy",
    )
    assert [word for word in (*told, "no conformity is claimed", "@page") if word not in page] == []
    assert all(sentence.replace("'", "&#39;") in page for sentence in study.missing)


def test_two_kinds_of_limits_and_limits_of_ones_own(tmp_path: Path) -> None:
    own = tmp_path / "limits.toml"
    own.write_text('miss_rate = {acceptable = 0.3, marginal = 0.4, source = "contract 7"}\n')
    study = made(tmp_path, study_rows(), limits=own)
    assert {f.limit.source for f in study.findings if f.quantity == "miss rate"} == {"contract 7"}
    assert {f.limit.acceptable for f in study.findings if "kappa" in f.quantity} == {0.75, 0.9}
    assert "contract 7" in msa.html(study).decode()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("miss = 1", "miss"),
        ("grr = {acceptable = 0.3, marginal = 0.1, source = 'x'}", "stricter than acceptable"),
        ("kappa = {acceptable = 0.3, marginal = 0.9, source = 'x'}", "stricter than acceptable"),
        ("kappa = {acceptable = 0.3, marginal = 0.2}", "source"),
        ("kappa", "not TOML"),
        ("kappa = {acceptable = nan, marginal = 0.2, source = 'x'}", "finite"),
    ],
)
def test_bad_limits_are_refused(text: str, words: str, tmp_path: Path) -> None:
    (tmp_path / "l.toml").write_text(text)
    with pytest.raises(RecipeError, match=words):
        limits.load(tmp_path / "l.toml")
    with pytest.raises(RecipeError, match="cannot be read"):
        limits.load(tmp_path / "none.toml")


DEGENERATE: dict[str, tuple[list[dict[str, Any]], str]] = {
    "one part": (study_rows(parts=1), "Misses: no part is defective"),
    "one part, one appraiser, one trial": (study_rows(1, 1, 1), "Repeatability: no part was presented twice"),
    "one appraiser": (study_rows(raters=1), "Reproducibility: there is one appraiser"),
    "one trial": (study_rows(trials=1), "Gauge R&R: no part has two scores"),
    "good parts only": (changed(lambda row: row if row["reference"] == "good" else None), "Misses: no part"),
    "defective parts only": (changed(lambda row: row if row["reference"] != "good" else None), "False alarms: no part"),
    "no references": (changed(lambda row: row | {"reference": ""}), "no part has a reference"),
    "no scores": (changed(lambda row: row | {"score": ""}), "no row has a score"),
    "no digests": (changed(lambda row: row | {"digest": ""}), "120 scores have no digest"),
    "people": (changed(lambda row: row | {"digest": "", "score": ""}), "120 verdicts have neither"),
    "all invalid": (changed(lambda row: row | {"verdict": "INVALID"}), "120 presentations are INVALID"),
    "a missing trial": (study_rows()[1:], "1 with 2, 39 with 3; 0 with none"),
    "a missing appraiser": (study_rows()[3:], "39 with 3; 1 with none"),
    "scores all alike": (changed(lambda row: row | {"score": 1}), "the scores of all trials of a part are equal"),
    "no threshold": (
        changed(lambda row: row | {"review_threshold": "", "reject_threshold": ""}),
        "Distances from a threshold: no threshold is known",
    ),
    "two thresholds": (
        changed(lambda row: row | {"review_threshold": row["trial"]}),
        "Distances from the review threshold: the table has 3 different ones",
    ),
    "no bundle": (changed(lambda row: row | {"bundle": ""}), "neither the table nor --bundle names one"),
    "two bundles": (
        changed(lambda row: row | {"bundle": ("ab" if row["appraiser"] == "cell 0" else "cd") * 32}),
        "The scores come from 2 bundles",
    ),
    "the same picture for two appraisers": (
        changed(lambda row: row | {"digest": hashlib.sha256(f"{row['part']} {row['trial']}".encode()).hexdigest()}),
        "60 pictures were judged by several appraisers",
    ),
}


@pytest.mark.parametrize("name", DEGENERATE)
def test_the_report_lists_what_a_table_does_not_show(name: str, tmp_path: Path) -> None:
    rows, words = DEGENERATE[name]
    study = made(tmp_path, rows)
    assert words in sentences(study)
    assert "no conformity is claimed" in msa.html(study).decode()
    json.loads(msa.write(study, tmp_path / "out").with_suffix(".json").read_text())
    assert study.text()


def test_some_missing_references_are_refused(tmp_path: Path) -> None:
    rows = changed(lambda row: row | {"reference": "" if row["part"] in ("p1", "p7") else row["reference"]})
    with pytest.raises(DatasetError, match=r"table\.csv: 2 of 20 parts have no reference: p1, p7"):
        made(tmp_path, rows)


def test_conditions_instead_of_trials_are_refused_when_there_are_too_many(tmp_path: Path) -> None:
    rows = changed(lambda row: row | {"condition": row["digest"]})
    with pytest.raises(DatasetError, match=r"table\.csv: 120 appraisers and conditions; expected at most 50"):
        made(tmp_path, rows)


def test_distances_are_in_sigmas_of_repeatability(tmp_path: Path) -> None:
    rows = study_rows()
    (scale,) = made(tmp_path, rows).scales
    cells: dict[tuple[str, str], list[float]] = {}
    for row in rows:
        cells.setdefault((row["part"], row["appraiser"]), []).append(row["score"])
    sigma = math.sqrt(np.mean([np.var(each, ddof=1) for each in cells.values()]))
    assert scale.sigma == pytest.approx(sigma) and 0.2 < sigma < 0.3
    one = scale.distances[0]
    mean = np.mean([row["score"] for row in rows if row["part"] == one.part])
    assert one.sigmas == pytest.approx({"review": (mean - 2) / sigma, "reject": (mean - 2.6) / sigma})
    assert [each.nearest for each in scale.distances] == sorted(each.nearest for each in scale.distances)


def test_parts_without_all_scores_are_left_out_of_the_gauge_and_reported(tmp_path: Path) -> None:
    study = made(tmp_path, study_rows()[1:])
    (scale,) = study.scales
    assert scale.gauge is not None and (scale.gauge.parts, scale.left_out) == (19, 1)
    assert "1 parts with missing scores are left out" in sentences(study)
    whole = made(tmp_path, study_rows()[6:]).scales[0].gauge
    assert scale.gauge == whole


def test_a_threshold_by_hand_and_two_bundles(tmp_path: Path) -> None:
    (scale,) = made(tmp_path, study_rows(), threshold=1.5).scales
    assert scale.thresholds == {"threshold": 1.5}
    rows = changed(lambda row: row | {"bundle": ("ab" if row["appraiser"] == "cell 0" else "cd") * 32})
    with pytest.raises(DatasetError, match="scores of 2 bundles and one threshold"):
        scores.scales(table.read(written(tmp_path, rows)), 0.95, 1.5)


def test_another_bundle_is_refused(tmp_path: Path, bundle_file: Path) -> None:
    with pytest.raises(AndonError, match="Name the bundle that gave them"):
        made(tmp_path, study_rows(), bundle=bundle_file)
    with pytest.raises(AndonError, match="level"):
        made(tmp_path, study_rows(), level=1.0)


def test_verdicts_of_several_decisions_are_told_and_another_one_than_the_bundles_is_refused(
    tmp_path: Path, bundle_file: Path
) -> None:
    bundle = Bundle.load(bundle_file)
    own = bundle.calibration.decision_digest(bundle.recipe.decision)
    rows = [row | {"bundle": bundle.digest(), "decision": own} for row in study_rows()]
    assert "decision" not in sentences(made(tmp_path, rows, bundle=bundle_file))
    loose = [row | {"decision": "e" * 64 if row["appraiser"] == "cell 1" else own} for row in rows]
    assert "decision" not in sentences(made(tmp_path, loose, bundle=bundle_file)), "each appraiser has one"
    mixed = [row | {"decision": "e" * 64 if row["trial"] == 1 else own} for row in rows]
    study = made(tmp_path, mixed)
    assert "The verdicts of cell 0 come from 2 decisions: its rates and its repeatability" in sentences(study)
    assert len(study.record()["decisions"]) == 2
    assert "120 verdicts name a bundle and no decision" in sentences(made(tmp_path, study_rows()))
    with pytest.raises(AndonError, match=f"its decision is {own[:12]}; the verdicts of .* come from eeeeeeeeeeee"):
        made(tmp_path, [row | {"decision": "e" * 64} for row in rows], bundle=bundle_file)


def test_the_command_takes_the_records_of_inspect(parts: Path, bundle_file: Path, tmp_path: Path) -> None:
    from typer.testing import CliRunner

    from andon.cli import app

    run = CliRunner().invoke
    assert (
        run(app, ["inspect", str(bundle_file), str(parts / "test"), "--out", str(tmp_path / "i"), "-q"]).exit_code == 0
    )
    pattern = r"(?P<reference>\w+)/(?P<part>\w+)\.png$"
    records = [json.loads(line) for line in (tmp_path / "i/records.jsonl").read_text().splitlines()]
    for j, record in enumerate(records):  # names of parts are unique in a study
        record["part"] = f"{j}"
    (tmp_path / "r.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    call = ["msa", str(tmp_path / "r.jsonl"), "--fields", pattern, "--out", str(tmp_path / "o"), "--by", "me"]
    done = run(app, [*call, "--bundle", str(bundle_file)])
    assert done.exit_code in (0, 1), done.output
    record = json.loads((tmp_path / "o/msa.json").read_text())
    assert len(record["presentations"]) == len(records) and record["by"] == "me"
    assert not any("bundle" in sentence for sentence in record["not_shown"])
    assert record["scores"][0]["thresholds"]["review"] == records[0]["thresholds"]["review"]


def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    rows: list[table.Row] = []
    for p, row in enumerate(table.read(written(tmp_path, study_rows(50, 1, 1))).rows * 40):
        rows += [row._replace(part=str(p), trial=str(t), digest="", score=row.score + t) for t in range(50)]
    study = msa.study(Table("t", "", tuple(rows[1:])))  # one trial is missing
    assert len(rows) == 100_000
    assert study.scales[0].gauge is not None and study.scales[0].gauge.parts == 1999
    assert "The first 500 of 99999" in msa.html(study).decode()
