"""Time and memory of a graph on an engine, measured in a separate process.

`measure` runs this module as `python -m andon.engines.clock`, with a `Trial` as one line of JSON on standard input.
The process prints a `Timing` to standard output.
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
from andon.engines.runtime import Engine, Runtime
from andon.errors import AndonError
from andon.inspection import Pixels

BATCH = 8  # tiles in a run for the throughput
WARM_UP = 2  # runs before the measured ones
FEWEST, MOST = 5, 500  # measured runs


class Trial(BaseModel):
    """A measurement to make."""

    graph: Path
    shape: tuple[int, int]  # of a tile, pixels
    channels: int
    depth: int  # bits
    threads: int  # 0: the engine decides
    seconds: float  # for each of the two measurements
    engine: Engine = "onnxruntime"
    cuda: bool = False


class Timing(BaseModel):
    """The result of a measurement."""

    p50_ms: float  # of one tile, from pixels to score and map
    p95_ms: float
    p99_ms: float
    throughput: float  # tiles per second, in runs of BATCH tiles
    peak_mb: float | None  # peak memory until the end of the runs with one tile; None if the system does not report it
    scores: list[float] = []  # of BATCH tiles of noise, by the engine


def measure(name: str, trial: Trial, within: float | None = None) -> Timing:
    """Run a trial in a separate process. AndonError when the process fails, or is not done `within` seconds."""
    command = [sys.executable, "-m", "andon.engines.clock"]
    try:
        process = subprocess.run(
            command, input=trial.model_dump_json(), capture_output=True, text=True, encoding="utf-8", timeout=within
        )
    except subprocess.TimeoutExpired:
        raise AndonError(f"{name}: not done within {within:.0f} s. Use a smaller size, or another engine.") from None
    if process.returncode:
        how = f"signal {-process.returncode}" if process.returncode < 0 else f"status {process.returncode}"
        reason = (process.stderr.strip().splitlines() or ["signal 9 often means that memory ran out"])[-1]
        raise AndonError(
            f"{name}: the process that ran its graph ended with {how}: {reason}. Free memory, or use a smaller size."
        )
    return Timing.model_validate_json(process.stdout)


def time_runs(run: Callable[[Pixels], object], trial: Trial, peak: Callable[[], float | None]) -> Timing:
    """Time `run`, which scores tiles (n, t, t, c); `peak` returns the peak memory in MB."""
    tiles = _tiles(trial)
    single = _laps(lambda: run(tiles[:1]), trial.seconds)
    megabytes = peak()
    batches = _laps(lambda: run(tiles), trial.seconds)
    p50, p95, p99 = np.percentile(single, [50, 95, 99]) * 1000
    return Timing(
        p50_ms=p50,
        p95_ms=p95,
        p99_ms=p99,
        throughput=BATCH / float(np.median(batches)),
        peak_mb=megabytes,
    )


def _tiles(trial: Trial) -> Pixels:
    """BATCH tiles of noise."""
    kind = np.uint8 if trial.depth == 8 else np.uint16
    shape = (BATCH, *trial.shape, trial.channels)
    return np.random.default_rng(0).integers(0, 2**trial.depth, shape, dtype=kind)


def peak_mb() -> float | None:
    """Peak memory of this process, MB; None if the system does not report it."""
    try:  # Linux: of this program alone; getrusage includes the parent process
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
    """Duration of each run, seconds."""
    for _ in range(WARM_UP):
        run()
    laps: list[float] = []
    first = time.perf_counter()
    while len(laps) < FEWEST or (time.perf_counter() - first < seconds and len(laps) < MOST):
        start = time.perf_counter()
        run()
        laps.append(time.perf_counter() - start)
    return np.array(laps)


def main() -> None:
    """Run the trial of standard input and print its timing."""
    trial = Trial.model_validate_json(sys.stdin.buffer.readline())
    graph = trial.graph.read_bytes()
    if trial.cuda:
        session = runtime.session(graph, device="cuda")
        # ONNX Runtime does not report the memory of the GPU.
        timing = time_runs(lambda tiles: session.run(["score", "map"], {"tiles": tiles}), trial, lambda: None)
    else:
        scorer = Runtime(graph, trial.engine, trial.threads)
        timing = time_runs(scorer.score, trial, peak_mb)
        timing.scores = scorer.score(_tiles(trial)).image.tolist()
    print(timing.model_dump_json())


if __name__ == "__main__":
    main()
