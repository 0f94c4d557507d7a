"""Records for machines and for spreadsheets: strict JSON, and a CSV in which a name stays a text on one line."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andon import files
from andon.errors import AndonError
from andon.inspection import Inspection, Region, Thresholds, Verdict
from andon.records import COLUMNS, Records
from fake_inspector import whole

FOUND = Inspection(
    source="a.png",
    verdict=Verdict.REJECT,
    score=7.5,
    p_value=0.1,
    thresholds=Thresholds(3.0, 5.0, 4.0),
    map=whole(np.zeros((8, 8), np.float32)),
    regions=(Region((1, 2, 3, 4), 9, (2.0, 3.0), 6.5, (2, 2)), Region((0, 0, 1, 1), 1, (0.0, 0.0), 4.5, (0, 0))),
    removed_regions=0,
    milliseconds=12.0,
    notes=("alpha dropped", "so, so"),
    digest="ab" * 32,
)


def table(file: Path) -> list[dict[str, str]]:
    with file.open(encoding="utf-8", newline="") as lines:
        return list(csv.DictReader(lines, strict=True))


def strict(text: str) -> Any:
    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    return json.loads(text, parse_constant=refuse)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_numbers_are_null(bad: float, tmp_path: Path) -> None:
    region = replace(FOUND.regions[0], peak=bad, centroid=(bad, 1.0))
    found = replace(FOUND, score=bad, p_value=bad, thresholds=Thresholds(bad, bad, bad), regions=(region,))
    record = found.record()
    assert record["score"] is record["p_value"] is record["regions"][0]["peak"] is None
    assert record["regions"][0]["centroid"] == [None, 1.0]
    assert record["thresholds"] == {"review": None, "reject": None, "pixel": None}
    with Records(tmp_path / "records.jsonl") as records:
        records.add({**record, "more": [np.float64(bad), {"deep": (bad, 1)}]})
    assert strict((tmp_path / "records.jsonl").read_text())["more"] == [None, {"deep": [None, 1]}]
    assert table(tmp_path / "records.csv")[0]["score"] == ""
    assert strict(files.strict_json({"a": [bad, 1.5, "NaN", True, None]})) == {"a": [None, 1.5, "NaN", True, None]}


def test_the_table_holds_what_a_spreadsheet_needs(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    with Records(file) as records:
        records.add({**FOUND.record(), "bundle": "cd" * 32, "decision": "ef" * 32})
        records.add({"source": "b.png", "error": "b.png: damaged"})
    with Records(file) as records:
        records.add(replace(FOUND, verdict=Verdict.PASS, regions=(), notes=()).record())
    first, second, third = table(file.with_suffix(".csv"))
    assert tuple(first) == COLUMNS
    assert first["time"] == json.loads(file.read_text().splitlines()[0])["time"]
    wanted = {"source": "a.png", "digest": "ab" * 32, "verdict": "REJECT", "score": "7.5", "p_value": "0.1"}
    wanted |= {"review_threshold": "3.0", "reject_threshold": "5.0", "pixel_threshold": "4.0", "regions": "2"}
    wanted |= {"x": "1", "y": "2", "width": "3", "height": "4", "peak": "6.5", "milliseconds": "12.0", "error": ""}
    wanted |= {"notes": "alpha dropped; so, so", "bundle": "cd" * 32, "decision": "ef" * 32}
    assert {key: first[key] for key in wanted} == wanted
    assert (second["source"], second["error"], second["score"], second["regions"]) == (
        "b.png",
        "b.png: damaged",
        "",
        "",
    )
    assert (third["verdict"], third["regions"], third["peak"]) == ("PASS", "0", "")


@pytest.mark.parametrize(
    "name",
    [
        "=1+1",
        "+1",
        "-1",
        "@SUM(A1)",
        " =1",
        "\t=1",
        "＝1+1",
        "＠a",
        "\r=1",
        "\n=1",
        '"=1',
        "a\nb",
        "a;=1",
        "ü,\udcff",
        "x\u2028=1",
    ],
)
def test_a_name_is_a_text_on_one_line_and_no_formula(name: str, tmp_path: Path) -> None:
    with Records(tmp_path / "records.jsonl") as records:
        records.add({"source": name, "error": f"{name}: damaged", "score": -2.5})
        records.add(FOUND.record())
    raw = (tmp_path / "records.csv").read_bytes()
    assert len(raw.decode().splitlines()) == raw.count(b"\n") == 3
    row = table(tmp_path / "records.csv")[0]
    for key in ("source", "error"):
        assert row[key].strip()[0] not in "=+-@＝＋－＠"
    assert row["score"] == "-2.5"
    assert f'"{row["source"]}"'.encode() in raw or '"' in row["source"]  # quoted: no separator splits it
    assert json.loads((tmp_path / "records.jsonl").read_text().splitlines()[0])["source"] == name


def whole(tmp_path: Path) -> tuple[Path, bytes]:
    with Records(tmp_path / "records.jsonl") as records:
        records.add(FOUND.record())
    return tmp_path / "records.csv", (tmp_path / "records.csv").read_bytes()


def test_a_torn_last_line_is_mended_wherever_it_was_cut(tmp_path: Path) -> None:
    file, data = whole(tmp_path)
    header = data.index(b"\n") + 1
    for end in range(len(data) + 1):
        file.write_bytes(data[:end])
        with Records(tmp_path / "records.jsonl"):
            pass
        kept = data if end >= len(data) - 1 else data[:header]
        assert file.read_bytes() == kept, end


def test_a_table_of_other_columns_is_left_alone(tmp_path: Path) -> None:
    file, data = whole(tmp_path)
    for other in (b"name,price\na,1\n", data.replace(b'"time",', b"")):
        file.write_bytes(other)
        with pytest.raises(AndonError, match=r"records\.csv: its first line differs"):
            Records(tmp_path / "records.jsonl")
        assert file.read_bytes() == other


def test_two_runs_at_once_share_one_header(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    with Records(file) as one, Records(file) as two:
        for i in range(20):
            (one, two)[i % 2].add({"source": str(i), "error": "x" * 10_000})
    assert [row["source"] for row in table(file.with_suffix(".csv"))] == [str(i) for i in range(20)]


def test_a_run_leaves_the_line_that_another_run_is_writing(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    with Records(file) as one:
        one.add({"source": "a"})
        with file.open("ab") as half:  # as the other run is seen in the middle of its write
            half.write(b'{"source": "b"')
        with Records(file):
            assert file.read_bytes().endswith(b'{"source": "b"')
    with Records(file):  # nobody writes any more, so the line is torn
        assert file.read_bytes().count(b"\n") == 1 and file.read_bytes().endswith(b"\n")


def test_a_table_that_cannot_be_opened_closes_the_log(tmp_path: Path) -> None:
    (tmp_path / "records.csv").mkdir()
    with pytest.raises(AndonError, match=r"records\.csv: cannot be written"):
        Records(tmp_path / "records.jsonl")
