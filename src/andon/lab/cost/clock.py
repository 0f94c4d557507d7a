"""How long a graph takes and how much memory it needs, measured in a process that does nothing else.

Run by `measure` as `python -m andon.cost.clock`, with a `Trial` as one line of JSON on standard input; it answers with
a `Timing` on standard output.
"""

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel

from andon.engines import runtime
from andon.engines.runtime import Runtime
from andon.errors import AndonError
from andon.inspection import Pixels

BATCH = 8  # tiles at once, for the throughput
WARM_UP = 2  # runs that are not counted
FEWEST, MOST = 5, 500  # runs that are


class Trial(BaseModel):
    """What is to be measured."""

    graph: Path
    shape: tuple[int, int]  # of a tile, pixels
    channels: int
    depth: int  # bits
    threads: int  # 0: the engine decides
    seconds: float  # for each of the two measurements
    cuda: bool


class Timing(BaseModel):
    """What was measured."""

    p50_ms: float  # one tile at a time, from pixels to score and map
    p95_ms: float
    throughput: float  # tiles a second, BATCH at a time
    peak_mb: float | None  # the most memory held up to the end of the runs with one tile; None where nothing tells


def measure(name: str, trial: Trial) -> Timing:
    """Run a trial in a process of its own. AndonError when that does not come to its end."""
    command = [sys.executable, "-m", "andon.lab.cost.clock"]
    done = subprocess.run(command, input=trial.model_dump_json(), capture_output=True, text=True, encoding="utf-8")
    if done.returncode:
        how = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
        last = (done.stderr.strip().splitlines() or ["signal 9 is often lack of memory"])[-1]
        raise AndonError(
            f"{name}: the process that ran its graph ended with {how}: {last}. Free memory, or take a smaller size."
        )
    return Timing.model_validate_json(done.stdout)


def timed(run: Callable[[Pixels], object], trial: Trial, peak: Callable[[], float | None]) -> Timing:
    """Time `run`, which takes tiles (n, t, t, c) and returns when they are scored; `peak` is asked for the memory."""
    rng = np.random.default_rng(0)
    kind = np.uint8 if trial.depth == 8 else np.uint16
    tiles: Pixels = rng.integers(0, 2**trial.depth, (BATCH, *trial.shape, trial.channels), dtype=kind)
    single = _laps(lambda: run(tiles[:1]), trial.seconds)
    held = peak()
    batches = _laps(lambda: run(tiles), trial.seconds)
    p50, p95 = np.percentile(single, [50, 95]) * 1000
    return Timing(p50_ms=p50, p95_ms=p95, throughput=BATCH / float(np.median(batches)), peak_mb=held)


def peak_mb() -> float | None:
    """The most memory this process has held, MB; None where the system does not tell."""
    try:  # Linux: of this program alone; what getrusage says begins with the process that started it
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 / 1e6 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6  # bytes on macOS


def _laps(run: Callable[[], object], seconds: float) -> NDArray[np.float64]:
    """Seconds of each run."""
    for _ in range(WARM_UP):
        run()
    laps: list[float] = []
    began = time.perf_counter()
    while len(laps) < FEWEST or (time.perf_counter() - began < seconds and len(laps) < MOST):
        start = time.perf_counter()
        run()
        laps.append(time.perf_counter() - start)
    return np.array(laps)


def main() -> None:
    """Answer the trial on standard input."""
    trial = Trial.model_validate_json(sys.stdin.buffer.readline())
    graph = trial.graph.read_bytes()
    if trial.cuda:
        session = runtime.session(graph, device="cuda")
        # What the GPU holds, ONNX Runtime does not tell.
        found = timed(lambda tiles: session.run(["score", "map"], {"tiles": tiles}), trial, lambda: None)
    else:
        found = timed(Runtime(graph, threads=trial.threads).score, trial, peak_mb)
    print(found.model_dump_json())


if __name__ == "__main__":
    main()
