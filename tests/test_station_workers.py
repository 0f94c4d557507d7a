"""Inspection in supervised processes: what a picture, a signal or a hang does to them costs one part."""

import os
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from andon.inspection import Pixels, Scores
from andon.inspector import Inspector
from andon.pictures import image
from andon.station.events import Outcome, StationError
from andon.station.work import Worker
from andon.station.workers import Workers
from conftest import part, scratched

SOON = 60.0  # seconds: a bound for what takes far less


def png(pixels: Pixels) -> bytes:
    return image.png(pixels)


def until(condition: Callable[[], object]) -> None:
    """Wait for something that another process does."""
    end = time.monotonic() + SOON
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


def state(pid: int) -> str:
    """As the kernel calls it: T is stopped, Z has ended and waits to be reaped."""
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


def gone(pid: int) -> bool:
    try:
        return state(pid) == "Z"
    except (FileNotFoundError, ProcessLookupError):
        return True


def stopped(pid: int) -> int:
    """Hold a process, so that it is in the middle of whatever it is given next."""
    os.kill(pid, signal.SIGSTOP)
    until(lambda: state(pid) == "T")
    return pid


@pytest.fixture(scope="module")
def workers(bundle_file: Path) -> Iterator[Workers]:
    with Workers(bundle_file) as running:
        yield running


@pytest.fixture
def good() -> bytes:
    return png(part(300))


def test_an_answer_is_what_the_inspector_says(workers: Workers, bundle_file: Path) -> None:
    inspector = Inspector.load(bundle_file)
    for job, pixels in enumerate((part(300), scratched(301)[0])):
        data = png(pixels)
        expected, answer = inspector.inspect(data, f"job {job}"), workers.inspect(job, data, SOON).result(SOON)
        record = expected.record()
        record.pop("milliseconds")
        assert {key: answer.record[key] for key in record} == record
        assert (answer.job, answer.verdict.value, answer.error) == (job, expected.verdict.value, "")
        assert (answer.score, answer.p_value, answer.regions) == (expected.score, expected.p_value, expected.regions)
        assert answer.thresholds == expected.thresholds
        assert answer.map is not None
        close = np.abs(answer.map.enlarge() - expected.anomaly_map).max()
        assert close <= 1e-3 * expected.anomaly_map.max()
        assert set(answer.stages) == {"wait", "read", "prepare", "score", "judge", "total"}
        assert answer.record["software"].startswith("andon ") and answer.record["engine"].startswith("onnxruntime ")
        assert answer.record["appearance"]["mean"] == pytest.approx(pixels.mean() / 255, abs=0.02)
    assert workers.about["bundle"] == inspector.digest


DAMAGED = {
    "empty": lambda data: b"",
    "cut": lambda data: data[: len(data) // 2],
    "only a header": lambda data: data[:33],
    "no picture": lambda data: b"%PDF-1.7 " + bytes(500),
    "a bomb": lambda data: png(np.zeros((6000, 6000, 1), np.uint8)),
    "another size": lambda data: png(part(1, side=64)),
    "gray": lambda data: png(part(1, channels=1)),
}


@pytest.mark.parametrize("damage", DAMAGED)
def test_a_picture_that_cannot_be_used_is_invalid_and_the_process_lives(
    workers: Workers, good: bytes, damage: str
) -> None:
    before = workers.pids
    data = DAMAGED[damage](good)
    answer = workers.inspect(7, data, SOON).result(SOON)
    assert answer.verdict == Outcome.INVALID
    assert answer.error.startswith("job 7: ")
    assert len(answer.record["digest"]) == 64 and np.isnan(answer.score) and answer.map is None
    assert workers.inspect(8, good, SOON).result(SOON).verdict == Outcome.PASS
    assert workers.pids == before


def test_every_place_to_cut_a_jpeg_is_invalid(workers: Workers) -> None:
    data = cv2.imencode(".jpg", part(300))[1].tobytes()
    answers = [workers.inspect(n, data[:n], SOON).result(SOON) for n in range(0, len(data) - 2, 997)]
    assert {answer.verdict for answer in answers} == {Outcome.INVALID}


def test_what_is_no_picture_and_no_deadline_is_refused(workers: Workers, good: bytes) -> None:
    with pytest.raises(StationError, match="a str; expected the bytes"):
        workers.inspect(1, "part.png", 1.0)  # type: ignore[arg-type]
    for deadline in (float("nan"), float("inf")):
        with pytest.raises(StationError, match="expected a finite number of seconds"):
            workers.inspect(1, good, deadline)


def test_a_file_beyond_the_limit_never_reaches_a_process(bundle_file: Path, good: bytes) -> None:
    with Workers(bundle_file, max_bytes=len(good)) as workers:
        stopped(workers.pids[0])
        answer = workers.inspect(1, good + b"x", SOON).result(SOON)
        assert answer.verdict == Outcome.INVALID and "expected at most" in answer.error
        os.kill(workers.pids[0], signal.SIGCONT)
        assert workers.inspect(2, good, SOON).result(SOON).verdict == Outcome.PASS


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSEGV, signal.SIGABRT])
def test_a_process_that_ends_in_mid_inspection_costs_one_part(bundle_file: Path, good: bytes, number: int) -> None:
    told: list[str] = []
    with Workers(bundle_file, tell=told.append) as workers:
        pid = stopped(workers.pids[0])
        lost, following = workers.inspect(1, good, SOON), workers.inspect(2, good, SOON)
        until(lambda: lost.running() and not following.running())
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)
        assert lost.result(SOON).verdict == Outcome.ERROR
        assert signal.Signals(number).name in lost.result().error
        assert following.result(SOON).verdict == Outcome.PASS
        assert len(workers.pids) == 1 and workers.pids != [pid]
        assert not workers.dead and len(told) == 1


def test_a_process_that_ends_while_idle_costs_nothing(bundle_file: Path, good: bytes) -> None:
    with Workers(bundle_file) as workers:
        (pid,) = workers.pids
        os.kill(pid, signal.SIGKILL)
        until(lambda: workers.pids not in ([], [pid]))
        assert workers.inspect(1, good, SOON).result(SOON).verdict == Outcome.PASS


def test_a_process_that_hangs_is_killed_and_replaced(bundle_file: Path, good: bytes) -> None:
    with Workers(bundle_file, grace_s=0.1) as workers:
        pid = stopped(workers.pids[0])
        held, waiting = workers.inspect(1, good, 1.0), workers.inspect(2, good, SOON)
        assert held.result(SOON).verdict == Outcome.ERROR
        assert "did not answer in time" in held.result().error
        assert waiting.result(SOON).verdict == Outcome.PASS
        assert gone(pid)


def test_a_hang_while_the_picture_is_handed_over_loses_no_other_picture(bundle_file: Path) -> None:
    large = png(np.random.default_rng(0).integers(0, 256, (600, 600, 3), np.uint8))  # more than a pipe holds
    with Workers(bundle_file, grace_s=0.1) as workers:
        stopped(workers.pids[0])
        answer = workers.inspect(1, large, 0.2).result(SOON)
        assert (answer.verdict, answer.error) == (Outcome.LATE, "no process was free before its deadline")
        assert workers.inspect(2, png(part(300)), SOON).result(SOON).verdict == Outcome.PASS


def limited(pid: int, mebibytes: int) -> None:
    """Let a process have so much more memory than it has now."""
    (now,) = re.findall(r"VmData:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    most = (int(now) << 10) + (mebibytes << 20)
    resource.prlimit(pid, resource.RLIMIT_DATA, (most, most))


def test_memory_that_runs_out_costs_at_most_one_part(bundle_file: Path, good: bytes) -> None:
    large = bytes(40 << 20)
    with Workers(bundle_file) as workers:
        (pid,) = workers.pids
        limited(pid, 10)
        answer = workers.inspect(1, large, SOON).result(SOON)  # another process takes what this one could not hold
        assert answer.verdict == Outcome.INVALID
        assert gone(pid) and workers.inspect(2, good, SOON).result(SOON).verdict == Outcome.PASS


def test_a_picture_that_no_process_can_hold_is_an_error_and_does_not_end_them_all(
    bundle_file: Path, good: bytes
) -> None:
    large = bytes(40 << 20)
    with Workers(bundle_file, processes=2, restarts=3) as workers:
        for pid in workers.pids:
            limited(pid, 10)
        answer = workers.inspect(1, large, SOON).result(SOON)
        assert answer.verdict in (Outcome.ERROR, Outcome.INVALID)  # by whether the first restarts before it is taken
        assert workers.inspect(2, good, SOON).result(SOON).verdict == Outcome.PASS
        assert not workers.dead


def test_a_picture_that_waits_past_its_deadline_is_late(bundle_file: Path, good: bytes) -> None:
    with Workers(bundle_file) as workers:
        pid = stopped(workers.pids[0])
        first, second = workers.inspect(1, good, SOON), workers.inspect(2, good, 0.1)
        assert second.result(SOON).verdict == Outcome.LATE
        assert "no process was free" in second.result().error
        os.kill(pid, signal.SIGCONT)
        assert first.result(SOON).verdict == Outcome.PASS


def test_a_pass_after_its_deadline_is_late(bundle_file: Path, good: bytes) -> None:
    with Workers(bundle_file, grace_s=SOON) as workers:
        pid = stopped(workers.pids[0])
        promise = workers.inspect(1, good, 0.5)
        until(promise.running)
        time.sleep(0.6)
        os.kill(pid, signal.SIGCONT)
        answer = promise.result(SOON)
        assert (answer.verdict, answer.record["verdict"]) == (Outcome.LATE, "LATE")
        assert answer.score > 0


def test_restarts_are_bounded_then_the_workers_are_dead(bundle_file: Path, good: bytes) -> None:
    dead: list[str] = []
    with Workers(bundle_file, restarts=1, on_dead=dead.append) as workers:
        for killed in range(2):
            until(lambda: len(workers.pids) == 1)
            assert workers.inspect(10 + killed, good, SOON).result(SOON).verdict == Outcome.PASS
            pid = stopped(workers.pids[0])
            lost, waiting = workers.inspect(1, good, SOON), workers.inspect(2, good, SOON)
            until(lost.running)
            os.kill(pid, signal.SIGKILL)
            assert lost.result(SOON).verdict == Outcome.ERROR
            assert waiting.result(SOON).verdict == (Outcome.ERROR if killed else Outcome.PASS)
        until(lambda: dead)
        assert dead == [workers.dead] and "2 times within 60 s" in workers.dead
        answer = workers.inspect(3, good, SOON).result(SOON)
        assert answer.verdict == Outcome.ERROR and answer.error == workers.dead
        assert workers.pids == []


def test_pictures_beyond_the_queue_are_refused_at_once(bundle_file: Path, good: bytes) -> None:
    with Workers(bundle_file, waiting=2) as workers:
        pid = stopped(workers.pids[0])
        first = workers.inspect(0, good, SOON)
        until(first.running)
        promises = [workers.inspect(n, good, SOON) for n in (1, 2, 3)]
        assert promises[2].result(SOON).verdict == Outcome.ERROR
        assert "2 pictures already wait" in promises[2].result().error
        assert promises[0].cancel()
        os.kill(pid, signal.SIGCONT)
        assert [first.result(SOON).verdict, promises[1].result(SOON).verdict] == [Outcome.PASS, Outcome.PASS]


def test_several_processes_inspect_side_by_side_and_answers_keep_their_jobs(bundle_file: Path) -> None:
    with Workers(bundle_file, processes=2) as workers:
        assert len(set(workers.pids)) == 2
        assert {Path(f"/proc/{pid}/oom_score_adj").read_text() for pid in workers.pids} == {"1000\n"}
        good, bad = png(part(300)), png(scratched(301)[0])
        promises = {job: workers.inspect(job, bad if job % 3 == 0 else good, SOON) for job in range(24)}
        for job, promise in promises.items():
            answer = promise.result(SOON)
            assert (answer.job, answer.verdict) == (job, Outcome.REJECT if job % 3 == 0 else Outcome.PASS)


def test_the_heartbeat_is_a_pass_through_the_graph(bundle_file: Path, good: bytes) -> None:
    beats: list[int] = []
    with Workers(bundle_file, idle_s=0.05, on_pass=lambda: beats.append(1)) as workers:
        idle = len(beats)
        until(lambda: len(beats) > idle + 3)  # idle, by known tiles
        stopped(workers.pids[0])
        time.sleep(0.2)
        held = len(beats)
        time.sleep(0.5)
        assert len(beats) == held  # nothing goes through the graph, so nothing beats
        os.kill(workers.pids[0], signal.SIGCONT)
        until(lambda: len(beats) > held)
    with Workers(bundle_file, idle_s=SOON, on_pass=lambda: beats.append(1)) as workers:
        before = len(beats)
        workers.inspect(1, good[:100], SOON).result(SOON)
        assert len(beats) == before  # not decoded, so not through the graph
        workers.inspect(2, good, SOON).result(SOON)
        until(lambda: len(beats) == before + 1)


def test_a_graph_that_answers_otherwise_than_at_its_start_is_a_fault(bundle_file: Path) -> None:
    worker = Worker(str(bundle_file), "onnxruntime", 1)
    worker.check()
    first = worker.inspector.scorer.score

    class Failing:
        """A processor that computes wrongly, by little or by all."""

        def __init__(self, factor: float) -> None:
            self.factor = factor

        def score(self, tiles: Pixels) -> Scores:
            return Scores(first(tiles).image * np.float32(self.factor), first(tiles).pixel)

    for factor in (1.01, float("nan")):
        worker.inspector = replace(worker.inspector, scorer=Failing(factor))
        with pytest.raises(ArithmeticError, match="another result for the test tile"):
            worker.check()


def test_no_module_is_taken_from_the_current_folder(
    bundle_file: Path, good: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numpy.py").write_text("raise SystemExit('this is not NumPy')")
    monkeypatch.chdir(tmp_path)
    with Workers(bundle_file) as workers:
        assert workers.inspect(1, good, SOON).result(SOON).verdict == Outcome.PASS


def test_a_golden_picture_is_checked(workers: Workers, good: bytes) -> None:
    bad = png(scratched(301)[0])
    assert workers.golden(good).verdict == Outcome.PASS
    assert workers.golden(bad, expected=Outcome.REJECT).verdict == Outcome.REJECT
    with pytest.raises(StationError, match=r"golden picture: REJECT; expected PASS .*not activated"):
        workers.golden(bad)
    with pytest.raises(StationError, match=r"golden picture: INVALID; expected PASS .*truncated"):
        workers.golden(good[:300])


def test_a_bundle_that_cannot_be_used_starts_nothing(tmp_path: Path, bundle_file: Path) -> None:
    torn = tmp_path / "torn.andon"
    torn.write_bytes(bundle_file.read_bytes()[:-200])
    for path in (torn, tmp_path / "missing.andon", tmp_path):
        with pytest.raises(StationError, match=path.name):
            Workers(path)
    with pytest.raises(StationError, match="processes = 0"):
        Workers(bundle_file, processes=0)
    with pytest.raises(StationError, match="threads = 1000"):
        Workers(bundle_file, threads=1000)


def test_another_bundle_in_its_place_is_not_used_after_a_restart(
    bundle_file: Path, tmp_path: Path, good: bytes
) -> None:
    place, dead = tmp_path / "ring.andon", []
    place.write_bytes(bundle_file.read_bytes())
    with Workers(place, restarts=1, on_dead=dead.append) as workers:
        place.write_bytes(b"another")
        os.kill(workers.pids[0], signal.SIGKILL)
        answer = workers.inspect(1, good, SOON).result(SOON)
        assert answer.verdict == Outcome.ERROR
        until(lambda: dead)
        assert "ring.andon" in workers.dead


def test_closing_inspects_what_waits_and_leaves_no_process(bundle_file: Path, good: bytes) -> None:
    workers = Workers(bundle_file, processes=2)
    pids = workers.pids
    assert not any("/dev/shm" in Path(f"/proc/{pid}/maps").read_text() for pid in (*pids, "self"))
    promises = [workers.inspect(job, good, SOON) for job in range(12)]
    workers.close()
    assert {promise.result(0).verdict for promise in promises} == {Outcome.PASS}
    assert all(gone(pid) for pid in pids)
    workers.close()
    with pytest.raises(StationError, match="are closed"):
        workers.inspect(13, good, SOON)


def test_closing_at_once_answers_everything(bundle_file: Path, good: bytes) -> None:
    workers = Workers(bundle_file)
    pids = [stopped(pid) for pid in workers.pids]
    promises = [workers.inspect(job, good, SOON) for job in range(3)]
    until(promises[0].running)
    workers.close(finish=False)
    assert {promise.result(0).verdict for promise in promises} == {Outcome.ERROR}
    assert all(gone(pid) for pid in pids)


PARENT = """
    import signal, sys, threading, time
    from contextlib import suppress
    from pathlib import Path
    from andon.station.events import StationError
    from andon.station.workers import Workers

    def inspect():
        with suppress(StationError):  # they are closed
            while True:
                workers.inspect(1, data, 30.0).result()

    # Who runs tests in the background of a shell lets them ignore Ctrl-C, and so all that they start.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    data = Path(sys.argv[2]).read_bytes()
    try:
        with Workers(sys.argv[1], processes=2) as workers:
            # Ctrl-C meets this thread in sleep. In Future.result() it could leave the lock of the future held.
            threading.Thread(target=inspect, daemon=True).start()
            print(*workers.pids, flush=True)
            while True:
                time.sleep(0.05)
    except KeyboardInterrupt:
        print("stopped")
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_its_station(bundle_file: Path, good: bytes, tmp_path: Path, number: int) -> None:
    picture, script = tmp_path / "part.png", tmp_path / "station.py"
    picture.write_bytes(good)
    script.write_text(textwrap.dedent(PARENT))
    with subprocess.Popen(
        [sys.executable, script, bundle_file, picture],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as station:
        try:
            assert station.stdout
            pids = [int(pid) for pid in station.stdout.readline().split()]
            assert len(pids) == 2
            if number == signal.SIGINT:
                os.killpg(station.pid, number)  # a terminal sends it to every process
            else:
                os.kill(station.pid, number)
            said, complaints = station.communicate(timeout=SOON)
        finally:
            station.kill()
    until(lambda: all(gone(pid) for pid in pids))
    if number == signal.SIGINT:
        assert (said, complaints, station.returncode) == ("stopped\n", "", 0)


def resident(pid: int) -> int:
    """MiB."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def test_memory_does_not_grow(bundle_file: Path) -> None:
    pictures = [png(part(seed)) for seed in range(300, 310)] + [png(scratched(301)[0]), png(part(1))[:500]]
    with Workers(bundle_file) as workers:
        sizes = []
        for _ in range(3):
            for start in range(0, 120, 12):
                wait([workers.inspect(start, picture, SOON) for picture in pictures])
            sizes.append((resident(workers.pids[0]), resident(os.getpid())))
    assert sizes[2][0] - sizes[0][0] < 16
    assert sizes[2][1] - sizes[0][1] < 16
