"""The comparison with peers: one row for each peer, also for one that hangs, crashes or needs too much memory."""

import argparse
import importlib
import shutil
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from andon.errors import AndonError

FOLDER = Path(__file__).parents[1] / "benchmarks" / "peers"
PLAN = {"size": 32, "bank": 10, "pictures": 5, "test_pictures": 8, "seed": 0, "fit_threads": 1, "threads": 1}
PLAN |= {"minutes": 10, "memory_mb": 4000}

PEER = f"""
import sys
sys.path.insert(0, {str(FOLDER / "adapters")!r})
import cv2
from protocol import serve

class Dark:
    version, settings = "1.0", {{}}
    def __init__(self, job): open(job.folder + "/../runs", "a").write(job.peer + " ")
    def fit(self): return FIT
    def score(self, path):
        anomaly_map = 255.0 - cv2.imread(path, cv2.IMREAD_GRAYSCALE)
        return anomaly_map.max(), anomaly_map
    def engines(self): return {{"onnxruntime": lambda array: array.max(), "other": ENGINE}}

serve(Dark)
"""


def module(name: str, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(FOLDER))
    return importlib.import_module(name)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The command, with fake peers."""
    loaded = module("run", monkeypatch)
    peers = {}
    for name, fit in {"reference": "{}", "dark": "{}", "broken": "{}['no such key']", "stuck": "{}"}.items():
        script = tmp_path / f"{name}.py"
        script.write_text(
            PEER.replace("FIT", fit).replace("ENGINE", "1 / 0" if name == "stuck" else '"no such engine"')
        )
        peers[name] = loaded.Kind(str(script), "")
    peers["absent"] = loaded.Kind(peers["dark"].adapter, "imgad")
    monkeypatch.setattr(loaded, "PEERS", peers)
    monkeypatch.setattr(loaded, "REFERENCE", "reference")
    return loaded


def options(run: ModuleType, parts: Path, folder: Path) -> argparse.Namespace:
    places = {
        "data": parts.parent,
        "work": folder / "work",
        "environments": folder / "none",
        "page": folder / "page.md",
    }
    return argparse.Namespace(**PLAN, **places, no_build=True, again=False, peers=list(run.PEERS))


def test_each_peer_has_one_row_and_a_second_run_does_nothing(run: ModuleType, parts: Path, tmp_path: Path):
    chosen = options(run, parts, tmp_path)
    product, path = run.choose("ring", chosen), tmp_path / "results.jsonl"
    run.compare(product, run.Table(path, PLAN), chosen)
    rows = {row["peer"]: row for row in run.Table(path, PLAN).rows}
    assert {name: row["status"] for name, row in rows.items()} == {
        "reference": "ok",
        "dark": "ok",
        "broken": "crash",
        "stuck": "ok",
        "absent": "not installed",
    }
    assert rows["dark"]["figures"]["image_auroc"] == 1 and rows["dark"]["figures"]["pixel_auroc"] > 0.9
    assert rows["dark"]["engine_failures"] == {"other": "no such engine"}
    assert rows["dark"]["latency"]["onnxruntime"]["ratio"] > 0 and rows["dark"]["fit"]["peak_mb"] > 1
    assert "no such key" in rows["broken"]["reason"]
    assert rows["stuck"]["figures"] == rows["dark"]["figures"] and rows["stuck"]["latency"] == {}
    assert "ZeroDivisionError" in rows["stuck"]["engine_failures"]["all"]
    page = chosen.page.read_text()
    assert (
        "**crash**: exit status 1 after the event started: KeyError" in page
        and "| dark 1.0 | 100.00 (40–100) |" in page
    )
    runs = (chosen.work / "ring" / "runs").read_text()
    run.compare(product, run.Table(path, PLAN), chosen)
    assert (chosen.work / "ring" / "runs").read_text() == runs
    chosen.again, chosen.peers = True, ["dark"]
    run.compare(product, run.Table(path, PLAN), chosen)
    assert (chosen.work / "ring" / "runs").read_text() == runs + "reference dark "
    assert len(run.Table(path, PLAN).rows) == len(rows)


def test_the_command_without_results_says_so(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    run = module("run", monkeypatch)
    options = ["--only-page", "--again", "--results", str(tmp_path / "none"), "--page", str(tmp_path / "page.md")]
    monkeypatch.setattr(sys, "argv", ["run.py", *options])
    monkeypatch.setattr(run.signal, "signal", lambda *arguments: None)
    with pytest.raises(SystemExit, match="2"):
        run.main()
    assert "there are no results yet" in capsys.readouterr().err and not (tmp_path / "page.md").exists()


def test_a_product_without_pictures_says_what_is_missing(run: ModuleType, parts: Path, tmp_path: Path):
    with pytest.raises(AndonError, match="no product cup; expected a folder of this name"):
        run.choose("cup", options(run, parts, tmp_path))


def test_an_equalised_product_has_the_light_of_its_training_pictures(run: ModuleType, parts: Path, tmp_path: Path):
    plain, equal = (run.choose(name, options(run, parts, tmp_path)) for name in ("ring", "ring-equalised"))
    assert [sample.path.name for sample in plain.test] == [sample.path.name for sample in equal.test]
    middle = [np.median(run.read(sample.path)) for sample in equal.test]
    assert np.ptp(middle) <= 1 < np.ptp([np.median(run.read(sample.path)) for sample in plain.test])


def test_a_damaged_picture_or_mask_stops_before_any_peer(run: ModuleType, parts: Path, tmp_path: Path):
    root = tmp_path / "data" / "ring"
    shutil.copytree(parts, root)
    chosen = options(run, root, tmp_path)
    (root / "ground_truth/scratch/201_mask.png").write_bytes((root / "train/good/000.png").read_bytes()[:500])
    with pytest.raises(AndonError, match=r"201_mask\.png"):
        run.choose("ring", chosen)
    (root / "test/good/100.png").write_bytes(b"")
    with pytest.raises(AndonError, match=r"100\.png"):
        run.choose("ring", chosen)


FAILURES = {
    "import time; time.sleep(600)": ("timeout", "no answer within 1 s after its start"),
    "memory = b'1' * 400_000_000; import time; time.sleep(600)": ("out of memory", "the limit is 300 MB"),
    "raise MemoryError('Unable to allocate 9 GiB')": ("out of memory", "Unable to allocate 9 GiB"),
    "raise ValueError('no\\tweights')": ("crash", "exit status 1 after its start: ValueError: no weights"),
    "import os; os.abort()": ("crash", "ended by signal SIGABRT after its start: no message"),
    "print('hello')": ("crash", "wrote 'hello' where the event started was expected"),
    "print('{}')": ("crash", "sent the event None where started was expected"),
    "pass": ("crash", "exit status 0 after its start: no message"),
}


@pytest.mark.parametrize("code", FAILURES)
def test_a_failure_has_a_status_and_a_reason(code: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    process = module("process", monkeypatch)
    status, reason = FAILURES[code]
    seconds = 1 if status == "timeout" else 100
    with (
        process.Process([sys.executable, "-c", code], tmp_path / "log.txt", 300, {}) as peer,
        pytest.raises(process.Failure) as caught,
    ):
        peer.expect("started", seconds)
    assert caught.value.status == status and reason in caught.value.reason


def test_what_a_peer_started_ends_with_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    process = module("process", monkeypatch)
    code = "import subprocess; child = subprocess.Popen(['sleep', '600']); raise SystemExit(f'child {child.pid}')"
    with (
        process.Process([sys.executable, "-c", code], tmp_path / "log.txt", 300, {}) as peer,
        pytest.raises(process.Failure, match="child") as caught,
    ):
        peer.expect("started", 100)
    child = int(caught.value.reason.split()[-1])
    for _ in range(100):  # until the system has removed it
        if not Path(f"/proc/{child}").exists() or " Z " in Path(f"/proc/{child}/stat").read_text():
            break
        time.sleep(0.1)
    else:
        pytest.fail("the child still runs")


def test_an_interpreter_that_is_missing_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    process = module("process", monkeypatch)
    with pytest.raises(process.Failure, match="not installed: /no/python cannot be started"):
        process.Process(["/no/python"], tmp_path / "log.txt", 300, {})


def test_an_environment_that_pip_cannot_build_says_why(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    environments = module("environments", monkeypatch)
    (tmp_path / "requirements").mkdir()
    (tmp_path / "requirements" / "odd.txt").write_text("no such requirement!\n")
    monkeypatch.setattr(environments, "HERE", tmp_path)
    with pytest.raises(environments.Failure, match="not installed: ERROR: Invalid requirement"):
        environments.python(tmp_path / "environments", "odd")


@pytest.mark.parametrize("line", ["{", "[]", '{"product": "ring", "peer": "dark", "status": "good"}'])
def test_a_damaged_file_of_results_is_refused(line: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    results = module("results", monkeypatch)
    (tmp_path / "results.jsonl").write_text(line + "\n")
    with pytest.raises(AndonError, match="line 1 is not a row of results"):
        results.Table(tmp_path / "results.jsonl", PLAN)


def test_rows_of_another_plan_are_not_mixed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    results = module("results", monkeypatch)
    row = {"product": "ring", "peer": "dark", "status": "timeout", "reason": "slow"}
    results.Table(tmp_path / "results.jsonl", PLAN).add(row)
    with pytest.raises(AndonError, match="has rows of another plan"):
        results.Table(tmp_path / "results.jsonl", {**PLAN, "size": 64})


@pytest.mark.parametrize(
    ("scores", "maps", "message"),
    [
        ([1.0, np.nan], 0, "2 scores, 1 of them not finite; expected 2 numbers"),
        ([1.0], 0, "1 scores, 0 of them not finite; expected 2 numbers"),
        ([1.0, 2.0], 1, "1 maps of 2 pictures"),
    ],
)
def test_scores_that_cannot_be_measured_are_refused(
    scores: list[float], maps: int, message: str, run: ModuleType, parts: Path, tmp_path: Path
):
    product = run.choose("ring", options(run, parts, tmp_path))
    for number in range(maps):
        np.save(tmp_path / f"{number}.npy", np.zeros((4, 4), np.float32))
    with pytest.raises(AndonError, match=message):
        run.figures([product.test[0], product.test[-1]], scores, tmp_path)


def test_the_page_compares_accuracy_speed_and_fit(monkeypatch: pytest.MonkeyPatch):
    page = module("page", monkeypatch)

    def row(peer: str, auroc: float, fit: dict[str, Any], **ratios: float) -> dict[str, Any]:
        times = {"p50_ms": 9.0, "p95_ms": 9.5, "cpu_ms": 8.0}
        times |= {"ratio_low": 2.0, "ratio_high": 9.0, **ratios} if ratios else {}
        return {
            "product": "ring",
            "peer": peer,
            "status": "ok",
            "reason": "",
            "version": "1",
            "date": "2026-01-01",
            "machine": "a machine",
            "plan": PLAN,
            "figures": {"image_auroc": auroc, "image_ap": 1.0, "pixel_auroc": None, "aupro_30": None, "aupro_05": None},
            "fit": {"seconds": 3.0, "peak_mb": 100.0, **fit},
            "latency": {"torch": times},
            "engine_failures": {"openvino": "no | here"},
        }

    timings = {"read": 1.0, "fit": 1.0, "export": 2.0}
    rows = [
        row("patchcore", 0.9, {"cpu_seconds": 60.0, "details": {}}, ratio=4.0, cpu_ratio=3.0),
        row("andon-256", 0.92, {"cpu_seconds": 4.0, "details": {"timings": timings}}),
    ]
    text = page.text(rows, ["andon-256", "patchcore"])
    equal = [{**each, "product": "ring-equalised", "figures": rows[0]["figures"]} for each in rows]
    both = page.text([*rows, *equal], ["andon-256", "patchcore"])
    assert "| ring | – | +2.00 |" in both and "| mean | – | +0.00 |" in both and "0 of 0 | 1 of 1 |" in both
    assert "| ring | – | +2.00 | – | 3.0 | – | 30.0 | – |\n| mean |" in text
    assert "| reached | 0 of 0 | 1 of 1 | 0 of 0 | 0 of 1 | 0 of 0 | 1 of 1 | 0 of 0 |" in text
    assert "| patchcore | openvino | – | – | – | – | – | no / here |" in text and "{" not in text
    with pytest.raises(AndonError, match="no results yet"):
        page.text([], [])


def test_the_weights_are_those_of_the_graph(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    module("weights", monkeypatch).write(tmp_path / "weights.npz")
    data = np.load(tmp_path / "weights.npz")
    assert int(data["count"]) == 33 and data["weight0"].shape == (32, 3, 3, 3) and data["bias0"].shape == (32,)
    assert data["block4"].shape == (1, 40, 16, 16) and data["block10"].shape == (1, 112, 8, 8)
    assert (tmp_path / "weights.npz").stat().st_size < 20_000_000
