"""The table of a proof: what is read, and what is refused."""

import hashlib
import json
import math
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from andon.errors import DatasetError
from andon.inspection import Verdict
from andon.proof import table

A, B = (hashlib.sha256(name).hexdigest() for name in (b"a", b"b"))


def written(folder: Path, text: str, name: str = "table.csv") -> Path:
    path = folder / name
    path.write_text(text, encoding="utf-8")
    return path


def test_a_table_is_read(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        f"part,reference,appraiser,condition,trial,verdict,score,digest\n"
        f"7,good,cell 1,lamp old,1,PASS,0.5,{A}\n7,,cell 1,lamp old,2,review,,\n8,scratch,Eva,,1,REJECT,,\n",
    )
    found = table.read(path)
    assert found.digest == hashlib.sha256(path.read_bytes()).hexdigest()
    assert found.parts == {"7": "good", "8": "scratch"}
    assert found.appraisers == ("cell 1", "Eva")
    first, second, third = found.rows
    assert first[:8] == ("7", "good", "cell 1", "lamp old", "1", Verdict.PASS, 0.5, A)
    assert second.good and second.verdict is Verdict.REVIEW and math.isnan(second.score)  # the part's reference
    assert not third.good


@pytest.mark.parametrize("text", ["﻿Part;Verdict;Score\nä;PASS;0,25\n", "part\tverdict\tscore\r\nä\tPASS\t0.25\r\n\r\n"])
def test_spreadsheets_of_other_countries(text: str, tmp_path: Path) -> None:
    row = table.read(written(tmp_path, text)).rows[0]
    assert (row.part, row.score) == ("ä", 0.25)


@pytest.mark.parametrize("word", ["good", "OK", "i.O.", "Gut", "pass", "良品"])
def test_words_for_good_are_good(word: str, tmp_path: Path) -> None:
    assert table.read(written(tmp_path, f"part,reference,verdict\n1,{word},PASS\n")).rows[0].good


def test_parquet_is_read_as_csv_is(tmp_path: Path) -> None:
    columns = {"part": [1, 2], "reference": ["good", None], "trial": [1.0, None], "verdict": ["PASS", "REJECT"]}
    pyarrow.parquet.write_table(pyarrow.table({**columns, "score": [0.5, math.nan]}), tmp_path / "t.parquet")
    csv = written(tmp_path, "part,reference,trial,verdict,score\n1,good,1,PASS,0.5\n2,,,REJECT,\n")
    assert repr(table.read(tmp_path / "t.parquet").rows) == repr(table.read(csv).rows)


def records(folder: Path) -> Path:
    common = {"bundle": B, "decision": A, "thresholds": {"review": 0.5, "reject": None, "pixel": 0.7}}
    lines = [
        {"source": "shots/good/p1_1.png", "digest": A, "verdict": "PASS", "score": 0.25, **common},
        {"source": "shots/good/p1_2.png", "digest": B, "verdict": "INVALID", "score": None, **common},
        {"source": "shots/scratch/p2_1.png", "error": "shots/scratch/p2_1.png: truncated or damaged"},
    ]
    return written(folder, "".join(json.dumps(line) + "\n" for line in lines), "records.jsonl")


def test_records_are_read_with_a_pattern_on_their_sources(tmp_path: Path) -> None:
    found = table.read(records(tmp_path), r"(?P<reference>\w+)/(?P<part>p\d+)_(?P<trial>\d)\.png")
    assert found.parts == {"p1": "good", "p2": "scratch"}
    assert [row.verdict.value for row in found.rows] == ["PASS", "INVALID", "INVALID"]  # an error is no verdict
    assert found.rows[0][8:] == (B, A, 0.5, math.inf)
    assert found.rows[2].decision == "" and found.decisions == (A,)
    assert found.rows[0].appraiser == B and found.bundles == (B,)


def test_records_as_csv_with_columns_added(tmp_path: Path) -> None:
    from andon.records import Records

    with Records(tmp_path / "log.jsonl") as log:
        for line in records(tmp_path).read_text().splitlines():
            log.add(json.loads(line))
    lines = (tmp_path / "log.csv").read_text().splitlines()
    added = [
        lines[0] + ",part,trial",
        *(f"{line},{name}" for line, name in zip(lines[1:], ("p,1", "p,2", "q,1"), strict=True)),
    ]
    found = table.read(written(tmp_path, "\n".join(added)))
    assert [row.verdict.value for row in found.rows] == ["PASS", "INVALID", "INVALID"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "no column verdict"),
        ("part,verdict\n", "no rows"),
        ("part\n1\n", "no column verdict"),
        ("part,verdict,part\n1,PASS,1\n", "column part is listed twice"),
        ("part,refrence,verdict\n1,good,PASS\n", "Did you mean 'reference'"),
        ("part,verdict\n1,PAS\n", "line 2: unknown verdict 'PAS'. Did you mean 'PASS'"),
        ("part,verdict\n1,\n", "line 2: unknown verdict ''"),
        ("part,verdict\n,PASS\n", "line 2 names no part"),
        ("part,verdict\n1,PASS,\n", "line 2 has 3 cells; expected the 2 columns"),
        ('part,verdict\n"1,PASS\n', "cannot be read as CSV"),
        ("part,verdict,score\n1,PASS,high\n", "score 'high'; expected a number"),
        ("part,verdict,score\n1,PASS,inf\n", "infinite"),
        ("part,verdict,digest\n1,PASS,abc\n", "64 hexadecimal digits"),
        ("part,reference,verdict\n1,1,PASS\n", "does not say whether the part is good"),
        ("part,reference,verdict,trial\n1,good,PASS,1\n1,dent,PASS,2\n", "two references, good and dent"),
        ("part,verdict,trial\n1,PASS,1\n1,PASS,1\n", "two rows of trial '1'"),
        ("part,verdict\n1,PASS\n1,PASS\n", "two rows of trial ''"),
        (f"part,verdict,digest\n1,PASS,{A}\n2,PASS,{A}\n", "parts '1' and '2' have the same picture"),
        (
            f"part,verdict,trial,digest\n1,PASS,1,{A}\n1,PASS,2,{A.upper()}\n",
            "scored again as a new trial, for 1 parts: 1",
        ),
        (f"part,verdict,condition,digest\n1,PASS,a,{A}\n1,PASS,b,{A}\n", "scored again"),
    ],
)
def test_bad_tables_are_refused(text: str, words: str, tmp_path: Path) -> None:
    path = written(tmp_path, text)
    with pytest.raises(DatasetError) as error:
        table.read(path)
    assert str(error.value).startswith(str(path))
    assert words in str(error.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [("t.csv", b"part,verdict\n\xff,PASS\n"), ("t.parquet", b"PAR1"), ("t.jsonl", b"[1]\n"), ("t.jsonl", b"{")],
)
def test_damaged_files_are_refused(name: str, content: bytes, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(DatasetError, match=name):
        table.read(tmp_path / name)


def test_no_file_and_a_folder_are_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "none.csv"):
        with pytest.raises(DatasetError, match="cannot be read"):
            table.read(path)


@pytest.mark.parametrize("fields", ["(", r"\d", "(?P<lot>x)", "(?P<part>zzz)"])
def test_bad_patterns_are_refused(fields: str, tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="pattern of fields"):
        table.read(records(tmp_path), fields)


def test_a_picture_that_two_appraisers_judged_is_counted(tmp_path: Path) -> None:
    rows = f"part,appraiser,verdict,score,digest\n1,old,PASS,1,{A}\n1,new,PASS,2,{A}\n2,old,PASS,1,\n"
    found = table.read(written(tmp_path, rows))
    assert (found.shared, found.undigested) == (1, 1)


def test_a_hundred_thousand_rows(tmp_path: Path) -> None:
    lines = (f"{j // 10},good,{j % 10},PASS,{j},{j:064x}\n" for j in range(100_000))
    found = table.read(written(tmp_path, "part,reference,trial,verdict,score,digest\n" + "".join(lines)))
    assert (len(found.rows), len(found.parts)) == (100_000, 10_000)
