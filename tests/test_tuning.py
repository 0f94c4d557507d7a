"""The choice of the engine: measured once for each machine, kept beside the bundle, and never at the cost of scores."""

import json
import shutil
from pathlib import Path

import pytest

from andon.bundle import Bundle
from andon.engines import clock, tuning
from andon.engines.clock import Timing, Trial
from andon.engines.tuning import Setting, Tuned
from andon.errors import AndonError
from andon.inspector import Inspector
from conftest import part
from test_cli import run as command


def setting(**changes: object) -> Setting:
    values = {"engine": "onnxruntime", "threads": 1, "p50_ms": 5, "p95_ms": 6, "p99_ms": 7, "throughput": 100}
    return Setting.model_validate({**values, "peak_mb": None, "difference": 0.0, **changes})


@pytest.fixture
def bundle(bundle_file: Path, tmp_path: Path) -> Path:
    return Path(shutil.copy(bundle_file, tmp_path / "part.andon"))


def test_the_best_is_the_fastest_or_the_highest_throughput_within_the_budget() -> None:
    fast, wide = setting(threads=4), setting(p50_ms=8, p99_ms=9, throughput=300)
    wrong = setting(engine="openvino", p50_ms=1, p99_ms=2, throughput=900, difference=0.01)
    tuned = Tuned([wide, fast, wrong], [])
    assert tuned.best() == fast
    assert tuned.best(10) == wide and tuned.best(8) == fast
    assert tuned.best(1) == fast  # none keeps it


def test_every_engine_is_measured_with_the_same_scores(bundle: Path) -> None:
    steps: list[tuple[int, int]] = []
    tuned = tuning.measure(Bundle.load(bundle).graph, 0.05, lambda _, done, total: steps.append((done, total)))
    assert steps[0] == (0, len(steps) - 1) and steps[-1][0] == steps[-1][1]
    assert len(tuned.settings) + len(tuned.failures) == len(steps) - 1
    assert tuned.settings[0].engine == "onnxruntime" and tuned.settings[0].difference == 0
    for each in tuned.settings:
        assert 0 < each.p50_ms <= each.p95_ms <= each.p99_ms and each.difference < tuning.TOLERANCE
    assert "* " + tuned.best().engine in tuning.table(tuned.settings, tuned.best())


def test_an_engine_that_fails_is_a_sentence_and_the_rest_is_measured(
    bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = clock.measure

    def measure(name: str, trial: Trial, within: float | None = None) -> Timing:
        if trial.engine == "openvino":
            raise AndonError(f"{name}: the process ended with signal 9")
        return real(name, trial, within)

    monkeypatch.setattr(clock, "measure", measure)
    monkeypatch.setattr(tuning.importlib.util, "find_spec", lambda name: name)
    tuned = tuning.measure(Bundle.load(bundle).graph, 0.02)
    assert {each.engine for each in tuned.settings} == {"onnxruntime"}
    assert tuned.failures and all("signal 9" in failure for failure in tuned.failures)


def test_a_process_that_hangs_is_ended(tmp_path: Path, bundle: Path) -> None:
    (tmp_path / "g.onnx").write_bytes(Bundle.load(bundle).graph)
    trial = Trial(graph=tmp_path / "g.onnx", shape=(96, 96), channels=3, depth=8, threads=1, seconds=60)
    with pytest.raises(AndonError, match="slow: not done within 1 s"):
        clock.measure("slow", trial, 1)


def test_the_choice_is_kept_for_this_machine_and_graph_only(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph = Bundle.load(bundle).graph
    path = tuning.keep(bundle, graph, setting(threads=1))
    monkeypatch.setattr(tuning, "measure", lambda *_: pytest.fail("measured again"))
    assert tuning.choose(bundle, graph) == setting(threads=1)
    monkeypatch.setattr(tuning, "measure", lambda *_: Tuned([setting(threads=2)], []))
    assert tuning.choose(bundle, graph + b" ").threads == 2  # another graph
    monkeypatch.setattr(tuning, "_processor", lambda: "another processor")
    assert tuning.choose(bundle, graph).threads == 2
    assert len(json.loads(path.read_bytes())["machines"]) == 3


@pytest.mark.parametrize(
    "content", [b"", b"[1", b"[]", b'{"version": 1}', b'{"version": 9, "machines": {}}', b"\xff" * 9]
)
def test_a_file_that_is_not_ours_is_ignored(bundle: Path, content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    tuning.place(bundle).write_bytes(content)
    monkeypatch.setattr(tuning, "measure", lambda *_: Tuned([setting()], []))
    assert tuning.choose(bundle, Bundle.load(bundle).graph) == setting()


def test_an_inspector_takes_the_engine_that_was_kept(bundle: Path) -> None:
    tuning.keep(bundle, Bundle.load(bundle).graph, setting(threads=2))
    inspector, usual = Inspector.load(bundle, "auto"), Inspector.load(bundle)
    assert (inspector.engine, inspector.threads) == ("onnxruntime", 2)
    assert Inspector.load(bundle, "auto", threads=1).threads == 1
    assert inspector.inspect(part(1)).score == pytest.approx(usual.inspect(part(1)).score, rel=1e-5)


def test_the_command_shows_the_table_keeps_the_best_and_fails_past_the_budget(
    bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = command(capsys, "tune", bundle, "--seconds", 0.1, "--budget", "100s")
    assert code == 0 and "p99 ms" in out and f"kept in {tuning.place(bundle)}" in err
    code, out, err = command(capsys, "tune", bundle, "--seconds", 0.1, "--budget", "0.001ms", "-q")
    assert code == 1 and "no engine is within 0.001 ms" in err
    for wrong in ("20", "0ms", "-3ms", "fast"):
        code, out, err = command(capsys, "tune", bundle, "--budget", wrong)
        assert code == 2 and "expected a time above 0 with its unit" in err
