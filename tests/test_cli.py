"""The command as a user meets it: what it prints, what it leaves behind, and how it ends."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from andon import cli
from andon.records import Records
from conftest import part, save


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    """Run the command in this process; return its exit code, standard output and standard error."""
    sys.argv = ["andon", *(str(argument) for argument in arguments)]
    try:
        cli.main()
        code = 0
    except SystemExit as done:
        code = int(done.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def test_the_main_job(parts: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = run(capsys, "train", parts / "train/good", "--size", 96)
    assert code == 0
    assert "8 held out for calibration" in err
    assert "expected to take" in err
    assert "support a false-reject rate of 11.1 %" in err
    code, out, _ = run(capsys, "inspect", "ring.andon", parts / "test", "--out", "results")
    assert code == 0
    assert "10 images: " in out
    records = [json.loads(line) for line in Path("results/records.jsonl").read_text().splitlines()]
    assert len(records) == 10
    assert {r["verdict"] for r in records if "scratch" in r["source"]} == {"REJECT"}
    assert Path("results/overlays/scratch/200.png.png").is_file()
    code, out, _ = run(capsys, "evaluate", "ring.andon", parts, "--out", "report", "-q")
    assert code == 0
    figures = json.loads(Path("report/metrics.json").read_text())
    assert figures["image"]["auroc"] == 1.0
    assert "<html" in Path("report/report.html").read_text()


def test_json_for_one_image(bundle_file: Path, parts: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, "inspect", bundle_file, parts / "test/scratch/200.png", "--json")
    record = json.loads(out)
    assert code == 0
    assert record["verdict"] == "REJECT"
    assert record["regions"]
    assert len(record["bundle"]) == 64


def test_a_batch_goes_on_past_bad_files(bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any) -> None:
    incoming = tmp_path / "incoming ö"
    save(incoming / "a b.png", part(1))
    (incoming / "broken.png").write_bytes((parts / "test/good/100.png").read_bytes()[:300])
    (incoming / "Thumbs.db").write_bytes(b"x")
    save(incoming / "z.png", part(2))
    code, out, err = run(capsys, "inspect", bundle_file, incoming, "--out", tmp_path / "out")
    assert code == 1
    assert "3 images" in out
    assert "1 failed" in out
    assert "could not be inspected" in err
    assert "broken.png" in err
    lines = (tmp_path / "out/records.jsonl").read_text(encoding="utf-8").splitlines()
    assert ["error" in json.loads(line) for line in lines] == [False, True, False]
    run(capsys, "inspect", bundle_file, incoming / "z.png", "--out", tmp_path / "out", "-q")
    assert len((tmp_path / "out/records.jsonl").read_text(encoding="utf-8").splitlines()) == 4


def test_records_of_a_killed_run_are_taken_over(tmp_path: Path) -> None:
    (tmp_path / "records.jsonl").write_text('{"source": "a"}\n')
    (tmp_path / "records.jsonl.part").write_text('{"source": "a"}\n{"source": "b"}\n{"sour')
    with Records(tmp_path / "records.jsonl") as records:
        records.add({"source": "c"})
    found = [json.loads(line)["source"] for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert found == ["a", "b", "c"]
    assert not (tmp_path / "records.jsonl.part").exists()


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child process")
def test_ctrl_c_while_training_leaves_nothing(parts: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "andon", "train", str(parts), "-o", str(tmp_path / "b.andon"), "--size", "512"]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "expected to take" in line:
                break
        time.sleep(0.2)
        running.send_signal(signal.SIGINT)
        rest = running.stderr.read()
        assert running.wait(timeout=60) == 130
    assert "interrupted" in rest
    assert list(tmp_path.iterdir()) == []


def test_show_and_detectors(bundle_file: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, "show", bundle_file)
    assert code == 0
    assert "takes 8-bit colour images of 96 × 96 pixels" in out
    assert "SHA-256" in out
    code, out, _ = run(capsys, "show", bundle_file, "--json")
    assert json.loads(out)["calibration"]["parts"] == 8
    code, out, _ = run(capsys, "detectors")
    assert out.startswith("memory-bank")
    code, out, _ = run(capsys, "detectors", "memory-bank")
    assert "bank = " in out
    assert "presets" in out


def test_calibrate_changes_a_finished_bundle(bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "new.andon"
    code, _, err = run(capsys, "calibrate", bundle_file, parts / "test/good", "-o", out, "--review-rate", 0.2)
    assert code == 0
    assert "6 held-out good images support a false-reject rate of 14.3 %" in err
    _, shown, _ = run(capsys, "show", out)
    assert "calibrated on 6 good images" in shown
    assert "review_rate = 0.2" in shown


def test_check_ends_with_one_when_figures_cannot_be_trusted(parts: Path, tmp_path: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, "check", parts)
    assert code == 0
    assert "50 images" in out
    copy = tmp_path / "leak"
    for path in parts.rglob("*.png"):
        target = copy / path.relative_to(parts)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())
    (copy / "test/good/copy.png").write_bytes((parts / "train/good/003.png").read_bytes())
    code, out, _ = run(capsys, "check", copy, "--json")
    assert code == 1
    assert json.loads(out)["failed"]


def test_the_help_teaches(capsys: Any) -> None:
    for command in ("train", "inspect", "evaluate", "check", "calibrate", "show", "detectors", "features"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert len(out) > 150


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "missing.andon", "x.png"], "missing.andon: cannot be read"),
        (["inspect", "{bundle}", "nowhere"], "nowhere: no such file"),
        (["inspect", "{bundle}", "{empty}"], "no images"),
        (["train", "{empty}"], "no images"),
        (["train", "nowhere"], "there is nothing here"),
        (["train", "{parts}", "--detector", "memory"], "unknown detector 'memory'. Did you mean 'memory-bank'?"),
        (["train", "{parts}", "-o", "{empty}/no/b.andon"], "there is no folder"),
        (["train", "{parts}", "-o", "{empty}"], "it is a folder"),
        (["evaluate", "{bundle}", "{parts}/train/good"], "none labelled"),
        (["evaluate", "{bundle}", "{empty}"], "no images"),
        (["calibrate", "{bundle}"], "nothing to change"),
        (["show", "{parts}/test/good/100.png"], "not a bundle"),
        (["detectors", "patchcore"], "unknown detector 'patchcore'"),
        (["features", "build", "resnet50"], "unknown feature network 'resnet50'"),
        (["nonsense"], "nonsense"),
        (["train", "{parts}", "--size", "big"], "--size"),
    ],
)
def test_mistakes_end_with_two_and_a_sentence(
    arguments: list[str], message: str, bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    places = {"bundle": bundle_file, "parts": parts, "empty": tmp_path / "empty"}
    code, _, err = run(capsys, *(argument.format(**places) for argument in arguments))
    assert message in err
    assert "Traceback" not in err
    assert code == (1 if "nowhere" in message and arguments[0] == "inspect" else 2)
    assert not list(tmp_path.glob("*.andon"))
