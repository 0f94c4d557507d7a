"""The command line: output, files written, exit codes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Annotated, Any, Literal

import pytest
import typer
from pydantic import AfterValidator, Field, create_model

import andon
from andon import cli
from andon.bundle import Bundle
from andon.cli import judging, settings
from andon.errors import AndonError
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
    assert "40 held out for calibration in turn, in 5 folds" in err
    assert "expected to take" in err
    assert "support a false-reject rate of 2.4 %" in err
    code, _, err = run(capsys, "calibrate", "ring.andon", "--reject-unsupported")
    assert code == 0 and "reject: 40 held-out good images support a false-reject rate of 2.4 %" in err
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


def test_a_heat_map_that_cannot_be_written_stops_no_batch(bundle_file: Path, tmp_path: Path, capsys: Any) -> None:
    long = "x" * 248  # with two more endings the heat map's name is longer than a name may be
    for number, name in enumerate(["a", long, "部" * 80]):
        save(tmp_path / "in" / f"{name}.png", part(number))
    code, out, err = run(capsys, "inspect", bundle_file, tmp_path / "in", "--out", tmp_path / "out")
    assert code == 1 and "3 images" in out
    assert err.count("without a heat map") == 1 and long in err
    assert len(list((tmp_path / "out/overlays").iterdir())) == 2
    assert len((tmp_path / "out/records.jsonl").read_text(encoding="utf-8").splitlines()) == 3


def test_json_hides_no_failure(bundle_file: Path, tmp_path: Path, capsys: Any) -> None:
    save(tmp_path / "in" / f"{'x' * 248}.png", part(1))
    (tmp_path / "in/lot42").symlink_to("nowhere")
    (tmp_path / "in/b.png").write_bytes(b"no picture")
    code, out, err = run(capsys, "inspect", bundle_file, tmp_path / "in", "--out", tmp_path / "out", "--json")
    assert code == 1 and [set(json.loads(line)) >= {"source"} for line in out.splitlines()] == [True] * 2
    assert "lot42" in err and "without a heat map" in err and "b.png" in err


def sources(file: Path) -> list[str]:
    return [json.loads(line)["source"] for line in file.read_text().splitlines()]


@pytest.mark.parametrize(
    ("left", "kept"),
    [
        ("", []),
        ('{"source": "a"}\n', ["a"]),
        ('{"source": "a"}\n{"sour', ["a"]),  # killed while writing
        ('{"sour', []),
        ('{"source": "a"}\n{"source": "b"}', ["a", "b"]),  # an editor took the last line end
    ],
)
def test_records_are_appended_where_they_lie(left: str, kept: list[str], tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    file.write_text(left)
    with Records(file) as records:
        assert sources(file) == kept
        records.add({"source": "ü\udcff"})
    assert sources(file) == [*kept, "ü\udcff"]
    assert sorted(tmp_path.iterdir()) == [file.with_suffix(".csv"), file]


def test_records_of_two_runs_at_once_interleave_by_lines(tmp_path: Path) -> None:
    file = tmp_path / "records.jsonl"
    with Records(file) as one, Records(file) as two:
        for i in range(20):
            (one, two)[i % 2].add({"source": str(i), "ballast": "x" * 10_000})
    assert sources(file) == [str(i) for i in range(20)]


def test_a_full_disk_leaves_whole_lines(tmp_path: Path, monkeypatch: Any) -> None:
    file, write = tmp_path / "records.jsonl", os.write
    with Records(file) as records:
        records.add({"source": "a"})
        monkeypatch.setattr(os, "write", lambda descriptor, line: write(descriptor, line[:9]))
        with pytest.raises(AndonError, match="no space left"):
            records.add({"source": "b"})
    assert sources(file) == ["a"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no SIGINT for one child process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_while_training_leaves_nothing(number: signal.Signals, parts: Path, tmp_path: Path) -> None:
    call = [sys.executable, "-m", "andon", "train", str(parts), "-o", str(tmp_path / "b.andon"), "--size", "512"]

    def listen() -> None:  # a shell lets what it runs in the background ignore Ctrl-C
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as running:
        assert running.stderr is not None
        for line in running.stderr:
            if "expected to take" in line:
                break
        time.sleep(0.2)
        running.send_signal(number)
        rest = running.stderr.read()
        assert running.wait(timeout=60) == 130
    assert "interrupted" in rest
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(os.name == "nt", reason="Windows sends no SIGTERM to one child process")
def test_sigterm_while_inspecting_leaves_whole_files(bundle_file: Path, tmp_path: Path) -> None:
    save(tmp_path / "in/0.png", part(1))
    for number in range(1, 2000):
        (tmp_path / f"in/{number}.png").symlink_to("0.png")
    out = tmp_path / "out"
    call = [sys.executable, "-m", "andon", "inspect", str(bundle_file), str(tmp_path / "in"), "--out", str(out), "-q"]
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as running:
        while running.poll() is None and not len(list(out.glob("overlays/*.png"))) > 3:
            time.sleep(0.01)
        running.terminate()
        _, err = running.communicate(timeout=60)
    assert running.returncode == 130 and "interrupted" in err
    lines = (out / "records.jsonl").read_text().splitlines()
    assert 3 < len(lines) < 2000 and all(json.loads(line)["verdict"] for line in lines)
    assert not [path for path in out.rglob("*") if path.suffix == ".part"]


def test_show_and_detectors(bundle_file: Path, capsys: Any) -> None:
    code, out, _ = run(capsys, "show", bundle_file)
    assert code == 0
    assert "takes 8-bit colour images of 96 × 96 pixels" in out
    assert "SHA-256" in out
    code, out, _ = run(capsys, "show", bundle_file, "--json")
    assert json.loads(out)["calibration"]["parts"] == 40
    code, out, _ = run(capsys, "detectors")
    assert out.startswith("memory-bank")
    code, out, _ = run(capsys, "detectors", "memory-bank")
    assert "bank = 2000  (integer, bank ≥ 1)\n      Number of stored patches (memories) of each stage;" in out
    assert "floor = 0.001  (number, 0 < floor ≤ 1)\n" in out
    assert "scales = 2  (one of 1, 2)\n" in out
    assert "presets" in out


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (Annotated[int, Field(ge=8, multiple_of=8)], "integer, x ≥ 8, a multiple of 8"),
        (Annotated[float, Field(ge=0, lt=1)], "number, 0 ≤ x < 1"),
        (Annotated[float, Field(le=9)] | None, "number, x ≤ 9, or not set"),
        (Annotated[int, AfterValidator(abs), Field(ge=3, le=63)], "integer, 3 ≤ x ≤ 63"),
        (Literal["a", "b"], 'one of "a", "b"'),
        (tuple[Annotated[int, Field(gt=0)], ...], "list of any length; each value: integer, value > 0"),
        (tuple[float, float], "list of 2; each value: number"),
        (bool, "true or false"),
    ],
)
def test_allowed_values_of_a_setting(annotation: Any, words: str) -> None:
    config = create_model("Settings", x=(annotation, ...))
    assert settings.allowed("x", config.model_json_schema()["properties"]["x"]) == words


def test_version(capsys: Any) -> None:
    assert run(capsys, "--version") == (0, f"andon {andon.__version__}\n", "")


@pytest.mark.parametrize(
    ("fail_on", "image", "expected"),
    [
        (None, "scratch", 0),
        ("review", "good", 0),
        ("review", "scratch", 1),
        ("reject", "good", 0),
        ("reject", "scratch", 1),
        ("review", "between", 1),
        ("reject", "between", 0),
        ("review", "unread", 1),
        ("reject", "unread", 1),
    ],
)
def test_fail_on_ends_with_one_at_a_verdict_or_a_worse_one(
    fail_on: str | None, image: str, expected: int, bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any
) -> None:
    path = parts / f"test/{image}/200.png"
    decided = tmp_path / "b.andon"
    thresholds = ["--review-threshold", "-1000", "--reject-threshold", "1e9"] if image == "between" else []
    if image in ("good", "between"):
        path = parts / "train/good/000.png"
    if image == "good":
        thresholds = ["--review-threshold", "1e9", "--reject-threshold", "1e9"]
    if image == "unread":
        path = tmp_path / "in"
        save(path / "a.png", part(1))
        (path / "b.png").write_bytes(b"\x89PNG")
    run(capsys, "calibrate", bundle_file, "-o", decided, "--min-area", 1, *thresholds)
    options = ["--fail-on", fail_on] if fail_on else []
    assert run(capsys, "inspect", decided, path, *options, "-q")[0] == expected


@pytest.mark.parametrize(
    ("fail_on", "verdict", "expected"),
    [(None, "INVALID", False), ("review", "INVALID", True), ("reject", "INVALID", True), ("reject", "REVIEW", False)],
)
def test_invalid_counts_as_worse_than_any_verdict(fail_on: str | None, verdict: str, expected: bool) -> None:
    assert judging.failed(fail_on, {"PASS": 3, verdict: 1}) is expected


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


def test_overlays_of_several_folders_are_kept_apart_and_never_inspected(
    bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any
) -> None:
    folders = [tmp_path / "a/line", tmp_path / "b/line"]
    for folder in folders:
        save(folder / "1.png", part(1))
    single = save(tmp_path / "1.png", part(1))
    code, _, _ = run(capsys, "inspect", bundle_file, *folders, single, single, "--out", folders[0], "-q")
    drawn = folders[0] / "overlays"
    found = sorted(path.relative_to(drawn).as_posix() for path in drawn.rglob("*.png"))
    assert (code, found) == (0, ["1 2.png.png", "1.png.png", "line 2/1.png.png", "line/1.png.png"])
    code, out, _ = run(capsys, "inspect", bundle_file, folders[0], "--out", folders[0])
    assert code == 0 and len(out.splitlines()) == 1
    run(capsys, "inspect", bundle_file, folders[1], "--out", folders[1] / "lot/results", "-q")
    for options in ((), ("--out", tmp_path / "elsewhere")):
        for folder in folders:
            code, out, _ = run(capsys, "inspect", bundle_file, folder, *options)
            assert code == 0 and len(out.splitlines()) == 1


def test_a_record_is_kept_though_its_picture_cannot_be(
    bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any
) -> None:
    (tmp_path / "overlays/100.png.png").mkdir(parents=True)
    code, _, err = run(capsys, "inspect", bundle_file, parts / "test/good", "--out", tmp_path, "-q")
    assert code == 1 and "without a heat map" in err and "it is a folder" in err
    assert len(sources(tmp_path / "records.jsonl")) == len(list((parts / "test/good").iterdir()))


def test_json_is_plain_ascii(bundle_file: Path, tmp_path: Path, capsys: Any) -> None:
    _, out, _ = run(capsys, "inspect", bundle_file, save(tmp_path / "ü.png", part(1)), "--json")
    assert out.isascii() and json.loads(out)["source"].endswith("ü.png")


def test_quiet_still_reports_what_was_left_out(bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any) -> None:
    save(tmp_path / "new/a.png", part(900))
    (tmp_path / "new/b.png").write_bytes(b"no picture")
    code, _, err = run(capsys, "calibrate", bundle_file, tmp_path / "new", "-o", tmp_path / "b.andon", "-q")
    assert code == 0 and err.count("\n") == 1 and err.startswith("left out: ") and "b.png" in err


def test_the_default_name_is_a_file_name(parts: Path, tmp_path: Path, capsys: Any, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    recipe = f'product = "a/b"\n[data]\nimages = "{parts}"\n[geometry]\nsize = 64\n[detector.settings]\nbank = 50\n'
    (tmp_path / "r.toml").write_text(recipe)
    code, _, err = run(capsys, "train", "r.toml", "-q", "--device", "cpu")
    assert code == 0 and "--device: not used; memory-bank is not trained by gradient" in err
    assert Bundle.load(tmp_path / "a_b.andon").recipe.product == "a/b"


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.parametrize(("redirect", "code"), [("| head -n 1", 0), (">&-", 0), ("2>&-", 0), ("> /dev/full", 2)])
def test_an_unwritable_output_causes_no_traceback(redirect: str, code: int) -> None:
    call = f"set -o pipefail; {sys.executable} -m andon detectors {redirect}"
    done = subprocess.run(["bash", "-c", call], capture_output=True, text=True)
    assert done.returncode == code
    assert "Traceback" not in done.stderr and "Exception" not in done.stderr


def test_the_help_teaches(capsys: Any) -> None:
    for command in ("train", "inspect", "evaluate", "check", "calibrate", "show", "detectors", "features"):
        code, out, _ = run(capsys, command, "--help")
        assert code == 0
        assert len(out) > 150


def test_the_help_lists_every_command_in_its_group(capsys: Any) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    sections = {text.split(":\n")[0]: text.split(":\n")[1] for text in out.split("\n\n") if ":\n" in text}
    listed = {
        group: [line.split()[0] for line in sections[group].splitlines() if line[2:3].strip()] for group in cli.GROUPS
    }
    assert list(listed) == ["Inspect", "Measure", "Station", "Fleet", "Laboratory"]
    assert {"train", "inspect"} <= set(listed["Inspect"]) and {"bench", "study"} <= set(listed["Laboratory"])
    commands = typer.main.get_group(cli.app).commands
    assert sorted(name for names in listed.values() for name in names) == sorted(commands)


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish", "powershell"])
def test_completion_of_the_shell(shell: str) -> None:
    environment = {**os.environ, "_ANDON_COMPLETE": f"complete_{shell}", "_TYPER_COMPLETE_ARGS": "andon ca"}
    environment |= {"COMP_WORDS": "andon ca", "COMP_CWORD": "1", "_TYPER_COMPLETE_FISH_ACTION": "get-args"}
    environment["_TYPER_COMPLETE_WORD_TO_COMPLETE"] = "ca"
    call = "import sys; sys.argv = ['andon']; from andon.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", call], capture_output=True, text=True, env=environment)
    assert done.returncode == 0 and "calibrate" in done.stdout and "inspect" not in done.stdout, done.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["inspect", "missing.andon", "x.png"], "missing.andon: cannot be read"),
        (["inspect", "{bundle}", "nowhere"], "nowhere: no such file"),
        (["inspect", "{bundle}", "{empty}"], "no images"),
        (["train", "{empty}"], "no images"),
        (["train", "nowhere"], "no such file or folder"),
        (["train", "{parts}", "--detector", "memory"], "unknown detector 'memory'. Did you mean 'memory-bank'?"),
        (["train", "{parts}", "-o", "{empty}/no/b.andon"], "there is no folder"),
        (["train", "{parts}", "-o", "{empty}"], "it is a folder"),
        (["evaluate", "{bundle}", "{parts}/train/good"], "none labelled"),
        (["evaluate", "{bundle}", "{empty}"], "no images"),
        (["calibrate", "{bundle}"], "nothing to change"),
        (["calibrate", "{bundle}", "--review-rate", "0.2", "--good", "x"], "expected a folder of good images too"),
        (["show", "{parts}/test/good/100.png"], "not a bundle"),
        (["detectors", "patchcore"], "unknown detector 'patchcore'"),
        (["features", "build", "resnet50"], "unknown feature network 'resnet50'"),
        (["features", "build", "legacy_xception"], "--weights FILE"),
        (["features", "build", "efficientnet-lite1", "--sha256", "ab"], "--sha256 without --weights"),
        (["features", "build", "efficientnet-lite1", "--out", "{bundle}"], "the folder cannot be created"),
        (["compare", "{bundle}", "{bundle}"], "expected the folder of labelled images as the last argument"),
        (["compare", "{bundle}", "{bundle}", "{parts}", "-o", "{bundle}"], "the folder cannot be created"),
        (["study", "moments", "{parts}", "-o", "{bundle}"], "the folder cannot be created"),
        (["nonsense"], "nonsense"),
        (["inspect", "{bundle}", ""], "an argument is empty"),
        (["inspect", "{bundle}", "{pipe}"], "a pipe or device; expected a picture"),
        (["inspect", "{bundle}", "x" * 300], "file name too long"),
        (["inspect", "{bundle}", "{parts}", "--threads", "100000"], "--threads"),
        (["inspect", "{bundle}", "{parts}/test/good", "--out", "{bundle}"], "the folder cannot be created: a file of"),
        (
            ["evaluate", "{bundle}", "{parts}", "--out", "{bundle}"],
            "the folder cannot be created: a file of this name exists",
        ),
        (["train", "x" * 300, "-o", "{empty}/b"], "no such file or folder"),
        (["train", "{parts}", "-o", "{parts}/test/good/100.png"], "this file exists and is not a bundle"),
        (["train", "{parts}", "-o", "x" * 300], "file name too long"),
        (["train", "{parts}", "--groups", "(" + "x" * 300 + ")"], "no match"),
        (["calibrate", "{bundle}", "--min-area", "3", "-o", "{parts}/test/good/100.png"], "it is not overwritten"),
        (["calibrate", "{bundle}", "--reject-threshold", "nan"], "reject_threshold = nan: expected a finite number"),
        (["calibrate", "{bundle}", "--reject-rate", "0.01", "--reject-threshold", "9"], "expected one of them"),
        (["calibrate", "{bundle}", "--review-threshold", "9", "--reject-threshold", "1"], "must not exceed"),
        (["train", "{parts}", "--size", "big"], "--size"),
    ],
)
def test_errors_of_the_user_end_with_code_2_and_a_message(
    arguments: list[str], message: str, bundle_file: Path, parts: Path, tmp_path: Path, capsys: Any, monkeypatch: Any
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    pipe = tmp_path / "pipe.png"
    if "{pipe}" in arguments:
        os.mkfifo(pipe)
    places = {"bundle": bundle_file, "parts": parts, "empty": tmp_path / "empty", "pipe": pipe}
    code, _, err = run(capsys, *(argument.format(**places) for argument in arguments))
    assert message in err
    assert "Traceback" not in err
    assert code == 2
    assert not list(tmp_path.glob("*.andon"))


def test_folders_are_reported_and_unknown_ones_refused(tmp_path: Path, parts: Path, capsys: Any) -> None:
    root = tmp_path / "line"
    for name in ("left", "right", "masks", "@eaDir"):
        shutil.copytree(parts / "train/good", root / name)
    (root / "left/loop.png").symlink_to("loop.png")
    for call in (["train", root, "-o", tmp_path / "a.andon"], ["check", root]):
        code, _, err = run(capsys, *call)
        assert code == 2 and "left (41), right (40)" in err and "--good 'left'" in err
    code, _, err = run(capsys, "train", root, "--good", "left", "-o", tmp_path / "a.andon", "--size", "64")
    assert code == 0 and "training images in left (41)" in err and "100.0% of each picture is inspected" in err
    assert "40 mask" in err and "1 system folder" in err and "loop.png: cannot be read: too many levels" in err
    code, out, _ = run(capsys, "check", root, "--good", "left", "-q")
    assert code == 1 and "training left 41" in out
    code, _, err = run(capsys, "calibrate", tmp_path / "a.andon", root, "--good", "right")
    assert "calibration images in right (40)" in err
    code, _, err = run(capsys, "inspect", tmp_path / "a.andon", root / "left")
    assert code == 1 and "loop.png" in err
