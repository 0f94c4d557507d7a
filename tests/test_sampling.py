"""Samples of a running line: drawn from records, judged by persons, estimated with intervals that cover."""

import csv
import io
import json
from collections import Counter
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andon.errors import AndonError, DatasetError
from andon.inspection import Verdict
from andon.progress import silent
from andon.proof import estimating, sampling
from andon.proof.estimating import Judged, Rate
from andon.streams.frames import Frame, Outcome
from test_cli import run

PASS, REVIEW, REJECT, INVALID = Verdict.PASS, Verdict.REVIEW, Verdict.REJECT, Verdict.INVALID


def record(j: int, verdict: str = "PASS", **changes: Any) -> dict[str, Any]:
    """A record of `andon inspect` as far as a sample looks at it."""
    made = {
        "source": f"pictures/{j}.png",
        "digest": f"{j:064x}",
        "verdict": verdict,
        "score": 1.5 * j,
        "bundle": "b" * 64,
        "decision": "d" * 64,
    }
    return made | changes


def line(path: Path, verdicts: Sequence[str]) -> Path:
    """Write the records of a line that gave these verdicts."""
    path.write_text("".join(json.dumps(record(j, verdict)) + "\n" for j, verdict in enumerate(verdicts)))
    return path


def filled(folder: Path, truth: str = "good", other: str = ",", **truths: str) -> Path:
    """Fill in the sheet of a sample: one truth for all items, or another for those of a verdict."""
    verdicts = {each["item"]: each["verdict"] for each in json.loads((folder / "sample.json").read_text())["items"]}
    rows = list(csv.DictReader(io.StringIO((folder / "sheet.csv").read_text(encoding="utf-8-sig"))))
    text = io.StringIO()
    writer = csv.DictWriter(text, sampling.COLUMNS, delimiter=other)
    writer.writeheader()
    for row in rows:
        writer.writerow(row | {"truth": truths.get(verdicts[int(row["item"])], truth), "by": "Ada"})
    (folder / "sheet.csv").write_text(text.getvalue(), encoding="utf-8-sig")
    return folder / "sheet.csv"


LINE = ["PASS"] * 300 + ["REVIEW"] * 20 + ["REJECT"] * 40


def test_a_sample_is_stratified_seeded_and_without_replacement(tmp_path: Path) -> None:
    path = line(tmp_path / "records.jsonl", LINE)
    first = sampling.draw(path, 100, seed=3)
    assert first.lots == {PASS: 300, REVIEW: 20, REJECT: 40}
    assert first.drawn() == {PASS: 50, REVIEW: 20, REJECT: 30}
    assert len({item.digest for item in first.items}) == 100
    assert [item.item for item in first.items] == list(range(1, 101))
    assert [item.digest for item in sampling.draw(path, 100, seed=3).items] == [item.digest for item in first.items]
    assert {item.digest for item in sampling.draw(path, 100, seed=4).items} != {item.digest for item in first.items}
    order = [item.verdict for item in first.items]
    assert order != sorted(order), "the order on the sheet must not tell the verdict"


def test_the_pictures_of_a_lot_have_equal_probability(tmp_path: Path) -> None:
    path = line(tmp_path / "records.jsonl", ["PASS"] * 10 + ["REJECT"] * 4)
    counts = Counter(item.digest for seed in range(400) for item in sampling.draw(path, 8, seed).items)
    passed = [counts[f"{j:064x}"] for j in range(10)]
    assert min(passed) > 110 and max(passed) < 210  # expected 160, standard deviation 9.8


@pytest.mark.parametrize(
    ("lots", "count", "sizes"),
    [
        ({PASS: 1000}, 50, {PASS: 50}),
        ({PASS: 1000, REJECT: 3}, 50, {PASS: 47, REJECT: 3}),
        ({PASS: 4, REJECT: 1000}, 50, {PASS: 4, REJECT: 46}),
        ({PASS: 90, REVIEW: 90, REJECT: 90, INVALID: 90}, 61, {PASS: 31, REVIEW: 10, REJECT: 10, INVALID: 10}),
        ({PASS: 3, REVIEW: 2}, 50, {PASS: 3, REVIEW: 2}),
        ({REVIEW: 5, REJECT: 500}, 100, {REVIEW: 5, REJECT: 95}),
        ({PASS: 1, REVIEW: 1, REJECT: 1}, 6, {PASS: 1, REVIEW: 1, REJECT: 1}),
    ],
)
def test_what_a_stratum_cannot_fill_goes_to_the_others(
    lots: dict[Verdict, int], count: int, sizes: dict[Verdict, int]
) -> None:
    assert sampling.allocation(lots, count) == sizes


def test_every_allocation_adds_up() -> None:
    rng = np.random.default_rng(0)
    for _ in range(300):
        lots = {verdict: int(rng.integers(1, 60)) for verdict in Verdict if rng.random() < 0.7}
        count = int(rng.integers(2 * len(lots), 120)) if lots else 0
        sizes = sampling.allocation(lots, count)
        assert sum(sizes.values()) == min(count, sum(lots.values()))
        assert all(1 <= sizes[verdict] <= lots[verdict] for verdict in lots)


def test_a_picture_counts_once_and_failures_belong_to_no_lot(tmp_path: Path) -> None:
    path = line(tmp_path / "records.jsonl", ["PASS"] * 5 + ["REJECT"])
    with path.open("a") as file:
        file.write(json.dumps(record(0)) + "\n")
        file.write(json.dumps({"source": "x.png", "error": "x.png: truncated"}) + "\n")
        watched = Outcome(Frame("y.png"), fault=AndonError("y.png: truncated"))
        file.write(json.dumps(watched.record()) + "\n")
        file.write('{"source": "torn')  # the line is running
    drawn = sampling.draw(path, 6)
    assert drawn.lots == {PASS: 5, REJECT: 1}
    assert (drawn.repeated, drawn.failed) == (1, 2)


def test_records_of_two_decisions_are_not_mixed(tmp_path: Path) -> None:
    path = line(tmp_path / "records.jsonl", ["PASS"] * 9)
    with path.open("a") as file:
        file.writelines(json.dumps(record(j, decision="e" * 64)) + "\n" for j in range(20))
    with pytest.raises(DatasetError, match=r"records of 2 decisions; expected those of one: .*9 pictures.*20 pictures"):
        sampling.draw(path, 8)
    with pytest.raises(DatasetError, match="no record of a bundle or decision abc"):
        sampling.draw(path, 8, decided_by="abc")
    with pytest.raises(DatasetError, match="records of 2 decisions"):
        sampling.draw(path, 8, decided_by="bbb")
    assert sampling.draw(path, 8, decided_by="eee").lots == {PASS: 20}


@pytest.mark.parametrize(
    "text",
    [
        "",
        "\n\n",
        "[1]\n",
        "nonsense\n" + json.dumps(record(1)) + "\n",
        json.dumps(record(1, verdict="pass")) + "\n",
        json.dumps(record(1, verdict=["PASS"])) + "\n",
        json.dumps(record(1, digest="")) + "\n",
        json.dumps(record(1, decision=None)) + "\n",
        json.dumps({"source": "x", "error": "x: torn"}) + "\n",
        "[" * 100_000 + "\n",
        "\x00\xff\n",
    ],
)
def test_an_invalid_record_is_refused_with_its_line(text: str, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text(text)
    with pytest.raises(DatasetError, match=r"records\.jsonl: (line 1: not a record of an|no record with a verdict)"):
        sampling.draw(path, 10)


def test_counts_and_seeds_that_are_not_possible_are_refused(tmp_path: Path) -> None:
    path = line(tmp_path / "records.jsonl", LINE)
    for count in (-1, 0, 1, 5, 5001):
        with pytest.raises(AndonError, match=f"^--count {count}: "):
            sampling.draw(path, count)
    with pytest.raises(AndonError, match=r"^--seed -1: "):
        sampling.draw(path, 10, seed=-1)
    with pytest.raises(DatasetError, match="cannot be read"):
        sampling.draw(tmp_path, 10)


def test_a_hundred_thousand_records(tmp_path: Path) -> None:
    path = line(tmp_path / "records.jsonl", ["PASS"] * 99_000 + ["REJECT"] * 1_000)
    assert sampling.draw(path, 400).lots == {PASS: 99_000, REJECT: 1_000}


def test_the_way_from_a_running_line_to_its_slip(bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any) -> None:
    assert run(capsys, "inspect", bundle_file, parts / "test", "--out", tmp_path, "-q")[0] == 0
    code, out, err = run(capsys, "sample", tmp_path / "records.jsonl", "--count", 8, "-o", tmp_path / "s", "-q")
    assert (code, out, err) == (0, "", "")
    page = (tmp_path / "s/sample.html").read_text()
    assert page.count("<img") == 8
    assert not any(verdict in page.partition("<body>")[2] for verdict in Verdict), "the judge must not know the verdict"
    assert not any(verdict in (tmp_path / "s/sheet.csv").read_text() for verdict in Verdict)
    code, out, _ = run(capsys, "sample", "--estimate", filled(tmp_path / "s", "defective", PASS="good"))
    assert code == 0 and "slip: 0 % (0 % to " in out
    code, out, _ = run(capsys, "sample", "--estimate", tmp_path / "s/sheet.csv", "--json", "--out", tmp_path / "e")
    assert code == 0 and json.loads(out)["judges"] == ["Ada"]
    page = (tmp_path / "e/estimate.html").read_text()
    assert "Horvitz" in page and "Ada" in page and "<script" not in page


def test_a_changed_or_deleted_picture_is_not_shown(bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any) -> None:
    images = tmp_path / "images"
    images.mkdir()
    for j, path in enumerate(sorted((parts / "test").rglob("*.png"))):
        (images / f"{j}.png").write_bytes(path.read_bytes())
    run(capsys, "inspect", bundle_file, images, "--out", tmp_path, "-q")
    (images / "0.png").write_bytes((images / "1.png").read_bytes())
    (images / "2.png").unlink()
    code, _, err = run(capsys, "sample", tmp_path / "records.jsonl", "-o", tmp_path / "s", "-q")
    assert code == 0
    assert err.count("picture missing") == 2 and "0.png: the file has changed" in err and "2.png" in err
    assert (tmp_path / "s/sample.html").read_text().count("<img") == 8


@pytest.mark.parametrize("source", ["a\0b.png", "x" * 5000, "/", "\udcff.png", "=1+1", "a\nb", "<script>"])
def test_a_picture_of_any_name_is_listed(source: str, tmp_path: Path) -> None:
    path = tmp_path / "records.jsonl"
    path.write_text("".join(json.dumps(record(j, source=source)) + "\n" for j in range(3)))
    assert len(sampling.write(sampling.draw(path, 3), tmp_path / "s", silent)) == 3
    assert estimating.load(filled(tmp_path / "s")).lots == {PASS: Judged(3, 3, 0, 0)}
    assert "<script" not in (tmp_path / "s/sample.html").read_text()


def test_a_filled_sheet_is_not_overwritten(tmp_path: Path) -> None:
    drawn = sampling.draw(line(tmp_path / "records.jsonl", LINE), 20)
    assert len(sampling.write(drawn, tmp_path / "s", silent)) == 20  # there are no pictures
    sheet = filled(tmp_path / "s").read_bytes()
    with pytest.raises(AndonError, match="exists already"):
        sampling.write(drawn, tmp_path / "s", silent)
    assert (tmp_path / "s/sheet.csv").read_bytes() == sheet


def test_records_and_estimate_exclude_each_other(tmp_path: Path, capsys: Any) -> None:
    assert run(capsys, "sample")[2].startswith("andon: neither RECORDS nor --estimate")
    assert run(capsys, "sample", "r.jsonl", "--estimate", "s.csv")[2].startswith("andon: both RECORDS and --estimate")


def by_name(rates: tuple[Rate, ...]) -> dict[str, Rate]:
    return {rate.name: rate for rate in rates}


def test_the_estimate_is_that_of_horvitz_and_thompson() -> None:
    rates = by_name(estimating.estimate({PASS: Judged(1000, 50, 1, 0), REJECT: Judged(40, 10, 8, 0)}, 0.95))
    assert rates["defective among passed"].estimate == pytest.approx(20 / 1000)
    assert rates["passed and defective"].estimate == pytest.approx(20 / 1040)
    assert rates["defective"].estimate == pytest.approx(52 / 1040)
    assert rates["slip"].estimate == pytest.approx(20 / 52)
    assert rates["false rejects"].estimate == pytest.approx(8 / 988)
    for rate in rates.values():
        assert rate.estimate is not None and rate.interval[0] <= rate.estimate <= rate.interval[1]


def test_what_was_judged_whole_is_known() -> None:
    rates = by_name(estimating.estimate({PASS: Judged(30, 30, 2, 0), REVIEW: Judged(10, 10, 6, 0)}, 0.95))
    assert rates["slip"].interval == (0.25, 0.25)
    assert rates["false rejects"].interval == (4 / 32, 4 / 32)


def test_lines_that_say_little_give_wide_intervals() -> None:
    nothing_stopped = by_name(estimating.estimate({PASS: Judged(500, 100, 0, 0)}, 0.95))
    assert nothing_stopped["slip"].estimate is None and nothing_stopped["slip"].interval == (0, 1)
    assert nothing_stopped["defective among passed"].interval[1] < 0.04
    nothing_passed = by_name(estimating.estimate({REJECT: Judged(500, 100, 100, 0)}, 0.95))
    assert nothing_passed["defective among passed"].estimate is None
    assert nothing_passed["defective among passed"].interval == (0, 1)
    assert nothing_passed["slip"].interval == (0, 0)
    one = by_name(estimating.estimate({PASS: Judged(1, 1, 0, 0)}, 0.95))
    assert one["defective among passed"].interval == (0, 0)


def test_what_is_unclear_widens_the_interval() -> None:
    clear = by_name(estimating.estimate({PASS: Judged(1000, 100, 2, 0), REJECT: Judged(50, 20, 20, 0)}, 0.95))
    unclear = by_name(estimating.estimate({PASS: Judged(1000, 100, 2, 3), REJECT: Judged(50, 20, 17, 3)}, 0.95))
    for name in ("defective among passed", "slip", "false rejects"):
        low, high = clear[name].interval
        assert unclear[name].interval[0] <= low and unclear[name].interval[1] > high


LINES = [  # lots, defective in each, drawn of each: defects are rare, or all over the place
    ({PASS: 2000, REVIEW: 100, REJECT: 60}, (0, 3, 40), (100, 50, 50)),
    ({PASS: 2000, REVIEW: 100, REJECT: 60}, (3, 10, 50), (60, 30, 30)),
    ({PASS: 500, REJECT: 20}, (40, 15), (25, 10)),
    ({PASS: 300, REJECT: 5}, (1, 5), (60, 5)),
]


@pytest.mark.parametrize(("lots", "defective", "drawn"), LINES)
@pytest.mark.parametrize("confidence", [0.8, 0.95])
def test_intervals_cover_at_the_confidence(
    lots: dict[Verdict, int], defective: tuple[int, ...], drawn: tuple[int, ...], confidence: float
) -> None:
    rng, runs = np.random.default_rng(1), 2000
    seen = np.stack(
        [
            rng.hypergeometric(bad, lot - bad, n, runs)
            for lot, bad, n in zip(lots.values(), defective, drawn, strict=True)
        ],
        axis=1,
    )
    passed_bad, bad, everything = defective[0], sum(defective), sum(lots.values())
    stopped_good = everything - lots[PASS] - (bad - passed_bad)
    truth = (
        passed_bad / lots[PASS],
        passed_bad / everything,
        bad / everything,
        passed_bad / bad,
        stopped_good / (everything - bad),
    )

    @cache
    def covered(counts: tuple[int, ...]) -> tuple[bool, ...]:
        judged = {v: Judged(lots[v], n, k, 0) for v, n, k in zip(lots, drawn, counts, strict=True)}
        rates = estimating.estimate(judged, confidence)
        return tuple(
            rate.interval[0] - 1e-12 <= t <= rate.interval[1] + 1e-12 for rate, t in zip(rates, truth, strict=True)
        )

    share = np.mean([covered(tuple(counts)) for counts in seen.tolist()], axis=0)
    assert (share >= confidence - 3 * np.sqrt(confidence * (1 - confidence) / runs)).all()


def test_the_estimate_has_no_bias() -> None:
    rng = np.random.default_rng(2)
    passed, stopped = rng.hypergeometric(20, 980, 100, 4000), rng.hypergeometric(30, 20, 10, 4000)

    @cache
    def defective(k: int, m: int) -> float:
        rates = estimating.estimate({PASS: Judged(1000, 100, k, 0), REJECT: Judged(50, 10, m, 0)}, 0.95)
        return by_name(rates)["defective"].estimate or 0.0

    found = [defective(k, m) for k, m in zip(passed.tolist(), stopped.tolist(), strict=True)]
    assert np.mean(found) == pytest.approx(50 / 1050, rel=0.015)  # standard error 0.5 %


@pytest.fixture
def sampled(tmp_path: Path) -> Path:
    sampling.write(sampling.draw(line(tmp_path / "records.jsonl", LINE), 20), tmp_path / "s", silent)
    return tmp_path / "s"


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_sheet_that_a_spreadsheet_saved_is_read(separator: str, sampled: Path) -> None:
    found = estimating.load(filled(sampled, "Defective ", separator, PASS="GOOD"))
    assert found.lots[PASS].defective == 0 and found.lots[REJECT].defective == 5
    assert "PASS: 10 of 300 judged, 0 defective" in found.text()


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ("", "20 of 20 items have no truth: 1, 2, 3, 4, 5, …; expected good, defective, unclear"),
        ("defect", "row 2: item 1: unknown truth 'defect'. Did you mean 'defective'"),
        ("1", "unknown truth '1'"),
    ],
)
def test_a_truth_that_is_missing_or_unknown_is_refused(truth: str, message: str, sampled: Path) -> None:
    with pytest.raises(DatasetError, match=message):
        estimating.load(filled(sampled, truth))


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("item,picture", "number,picture", "with item once"),
        ("truth", "verdict", "with truth once"),
        ("item,picture", "item,photo", "with picture once"),
        ("\r\n7,", "\r\n8,", "item '8': listed twice"),
        ("\r\n7,", "\r\n21,", "item '21': not in the sample"),
        ("\r\n7,", "\r\n7.0,", "item '7.0': not in"),
        ("\r\n7,", "\r\n,", "item '': not in"),
    ],
)
def test_a_sheet_whose_items_were_changed_is_refused(old: str, new: str, message: str, sampled: Path) -> None:
    sheet = filled(sampled)
    sheet.write_bytes(sheet.read_bytes().replace(old.encode(), new.encode(), 1))
    with pytest.raises(DatasetError, match=message):
        estimating.load(sheet)


def test_the_sheet_of_another_sample_is_refused(sampled: Path, tmp_path: Path) -> None:
    other = tmp_path / "other"
    sampling.write(sampling.draw(tmp_path / "records.jsonl", 20, seed=1), other, silent)
    filled(other).replace(sampled / "sheet.csv")
    with pytest.raises(DatasetError, match=r"20 items are not those of sample\.json beside it: item \d+ has pictures/"):
        estimating.load(sampled / "sheet.csv")


def test_a_sheet_that_lost_items_is_refused(sampled: Path) -> None:
    sheet = filled(sampled)
    sheet.write_bytes(b"\n".join(sheet.read_bytes().split(b"\n")[:-4]) + b"\n")
    with pytest.raises(DatasetError, match="3 of 20 items have no truth: 18, 19, 20"):
        estimating.load(sheet)


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", b'"', b"\x00"])
def test_a_file_that_is_not_a_sheet_is_refused(content: bytes, sampled: Path) -> None:
    (sampled / "sheet.csv").write_bytes(content)
    with pytest.raises(DatasetError, match=r"sheet\.csv: (cannot be read as CSV|columns )"):
        estimating.load(sampled / "sheet.csv")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"lots"', '"lot"'),
        ('"PASS": 300', '"PASS": 3'),
        ('"PASS": 300', '"PASS": -300'),
        ('"PASS": 300,', ""),
        ('"PASS": 300,', '"PASS": 300, "INVALID": 7,'),
        ('"item": 7,', '"item": 8,'),
        ("{", ""),
    ],
)
def test_a_key_that_was_changed_is_refused(old: str, new: str, sampled: Path) -> None:
    sheet = filled(sampled)
    key = sampled / "sample.json"
    text = key.read_text().replace('"PASS":300', '"PASS": 300').replace('"item":7', '"item": 7')
    assert old in text
    key.write_text(text.replace(old, new, 1))
    with pytest.raises(DatasetError, match=r"sample\.json: .*expected the file that `andon sample` wrote"):
        estimating.load(sheet)


def test_a_sheet_without_its_key_is_refused(sampled: Path) -> None:
    (sampled / "sample.json").unlink()
    with pytest.raises(DatasetError, match=r"sample\.json: cannot be read"):
        estimating.load(sampled / "sheet.csv")
    with pytest.raises(AndonError, match=r"^--confidence 95: "):
        estimating.load(sampled / "sheet.csv", 95)
