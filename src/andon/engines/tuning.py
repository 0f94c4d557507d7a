"""The fastest engine and number of threads for a graph on this machine, measured and stored beside the bundle.

The file `BUNDLE.tuned.json` contains one measurement for each kind of machine and graph. It affects the time of an
inspection, never its verdict: an engine whose scores differ from those of ONNX Runtime is not chosen.
"""

import importlib.util
import json
import os
import platform
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple, get_args

import numpy as np
import onnxruntime
from pydantic import BaseModel, ConfigDict, ValidationError

from andon import files
from andon.engines import clock
from andon.engines.clock import Trial
from andon.engines.runtime import MAX_THREADS, Engine, Runtime
from andon.errors import AndonError, counted
from andon.progress import Progress, silent

VERSION = 1
LARGEST = 1_000_000  # bytes of a file of measurements
QUICK, THOROUGH = 0.5, 3.0  # seconds for each of the two measurements of a setting
SLOWEST = 120.0  # maximum time of a setting in seconds, including its start
TOLERANCE = 1e-3  # allowed difference of scores between engines, as a share of the largest score


class Setting(BaseModel):
    """An engine, its number of threads, and their measurements."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    engine: Engine
    threads: int
    p50_ms: float  # of one tile, from pixels to score and map
    p95_ms: float
    p99_ms: float
    throughput: float  # tiles per second, in batches
    peak_mb: float | None  # peak memory of the process; None if the system does not report it
    difference: float  # largest difference of a score from ONNX Runtime's, as a share of the largest score


class Tuned(NamedTuple):
    """The measured settings, and the reasons why others could not be measured."""

    settings: list[Setting]
    failures: list[str]

    def best(self, budget_ms: float | None = None) -> Setting:
        """Return the setting with the lowest median; with a budget, the highest throughput among those within it.

        A setting is within the budget if its p99 is. If none is, the best has the lowest p99.
        """
        safe = [setting for setting in self.settings if setting.difference <= TOLERANCE]
        if budget_ms is None:
            return min(safe, key=lambda setting: setting.p50_ms)
        keeping = [setting for setting in safe if setting.p99_ms <= budget_ms]
        if keeping:
            return max(keeping, key=lambda setting: setting.throughput)
        return min(safe, key=lambda setting: setting.p99_ms)


def measure(graph: bytes, seconds: float = THOROUGH, progress: Progress = silent) -> Tuned:
    """Measure a serialised graph on every engine with 1, 2, 4, … threads, each in a separate process.

    AndonError when ONNX Runtime itself cannot run it.
    """
    height, width, channels, depth = Runtime(graph, threads=1).tiles
    settings, failures, exact = [], [], np.zeros(0)
    choices = [(engine, threads) for engine in get_args(Engine) for threads in _threads()]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        files.write(path, graph)
        trial = Trial(
            graph=path,
            shape=(height or 256, width or 256),
            channels=channels or 3,
            depth=depth or 8,
            threads=1,
            seconds=seconds,
        )
        for done, (engine, threads) in enumerate(choices):
            progress("measuring engines", done, len(choices))
            name = f"{engine}, {counted(threads, 'thread')}"
            if not importlib.util.find_spec(engine):
                failures.append(f"{name}: not installed")
                continue
            try:
                timing = clock.measure(name, trial.model_copy(update={"engine": engine, "threads": threads}), SLOWEST)
            except AndonError as error:
                failures.append(str(error))
                continue
            scores = np.array(timing.scores)
            exact = exact if exact.size else scores
            difference = float(np.abs(scores - exact).max() / max(float(np.abs(exact).max()), 1e-9))
            measured = timing.model_dump(exclude={"scores"})
            settings.append(Setting(engine=engine, threads=threads, difference=difference, **measured))
    progress("measuring engines", len(choices), len(choices))
    if not any(setting.engine == "onnxruntime" for setting in settings):
        raise AndonError(f"no engine could be measured: {'; '.join(failures)}")
    return Tuned(settings, failures)


def choose(bundle: str | Path, graph: bytes, progress: Progress = silent) -> Setting:
    """Return the setting stored for this machine. If there is none, measure briefly and store the best.

    If it cannot be stored, for example in a read-only folder, it is measured each time.
    """
    if kept := _kept(bundle).get(_key(graph)):
        return kept
    best = measure(graph, QUICK, progress).best()
    with suppress(AndonError):
        keep(bundle, graph, best)
    return best


def keep(bundle: str | Path, graph: bytes, setting: Setting) -> Path:
    """Store the setting beside the bundle, for this kind of machine. AndonError when it cannot be written."""
    kept = _kept(bundle) | {_key(graph): setting}
    machines = {key: value.model_dump() for key, value in sorted(kept.items())}
    path = place(bundle)
    files.write(path, (files.strict_json({"version": VERSION, "machines": machines}, indent=1) + "\n").encode())
    return path


def table(settings: Sequence[Setting], best: Setting) -> str:
    """Return the measurements as a table for people; the chosen one is marked."""
    lines = [
        f"  {'engine':12} threads   p50 ms   p95 ms   p99 ms  tiles/s in batches of {clock.BATCH}    MB  difference"
    ]
    for setting in settings:
        mark, memory = "*" if setting == best else " ", "–" if setting.peak_mb is None else f"{setting.peak_mb:.0f}"
        lines.append(
            f"{mark} {setting.engine:12} {setting.threads:7} {setting.p50_ms:8.2f} {setting.p95_ms:8.2f} "
            f"{setting.p99_ms:8.2f} {setting.throughput:24.1f} {memory:>5}  {setting.difference:.1e}"
        )
    return "\n".join(lines)


def _threads() -> Iterator[int]:
    """Return 1, 2, 4, … and the number of cores that this process may use."""
    cores = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, MAX_THREADS)
    threads = 1
    while threads < cores:
        yield threads
        threads *= 2
    yield cores


def place(bundle: str | Path) -> Path:
    """Return the path of the file of measurements beside a bundle."""
    path = Path(bundle)
    return path.with_name(f"{path.name}.tuned.json")


def _key(graph: bytes) -> str:
    """Return the key of a measurement: graph, processor and engines."""
    engines = [f"onnxruntime {onnxruntime.__version__}"]
    with suppress(PackageNotFoundError):
        engines.append(f"openvino {version('openvino')}")
    parts = [files.digest(graph)[:16], platform.system(), _processor(), f"{max(_threads())} cores", *engines]
    return "; ".join(parts)


def _processor() -> str:
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _kept(bundle: str | Path) -> dict[str, Setting]:
    """Return the settings in the file beside the bundle; none if it is missing or not a file of andon."""
    try:
        path = place(bundle)
        if not path.is_file() or path.stat().st_size > LARGEST:
            return {}
        content = json.loads(path.read_bytes())
        if content["version"] != VERSION:
            return {}
        return {str(key): Setting.model_validate(value) for key, value in content["machines"].items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ValidationError):
        return {}
