"""The peer's side of the comparison: fit, score the test pictures, then inspect arrays when the runner asks.

Runs in the environment of a peer, so it needs NumPy only. `python ADAPTER.py JOB.json`; each event is one line of JSON
on the standard output that the process was started with; everything that libraries print goes to the standard error.

| event | contents |
|---|---|
| started | version, settings |
| fitted | seconds, cpu_seconds, peak_mb, details |
| scored | scores, one for each test picture; its map, if the peer has maps, is in maps/NUMBER.npy |
| ready | engines: name → null, or why it cannot be used |
| turn | milliseconds, one for each array; cpu_ms, of the processor for one array, mean; peak_mb |

The answer to a line `ENGINE COUNT` on the standard input is one turn.
"""

import json
import os
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple, Protocol, TextIO

import numpy as np


class Job(NamedTuple):
    """What a peer is asked to do."""

    peer: str
    train: str  # folder of good pictures
    test: list[str]  # pictures
    arrays: str  # file of pictures (n, size, size, 3), uint8, RGB: the input of the turns
    weights: str  # file of the backbone, see `weights.py`
    size: int  # pixels of a side
    bank: int  # memories
    seed: int
    seconds: float  # for training by gradient
    fit_threads: int
    threads: int  # of the turns
    folder: str  # for results


class Peer(Protocol):
    """A detector of a peer."""

    version: str
    settings: dict[str, Any]

    def fit(self) -> dict[str, Any]:
        """Learn from the good pictures; return details for the results."""
        ...

    def score(self, path: str) -> tuple[float, np.ndarray | None]:
        """Return score and map (h, w) of a picture; higher is more anomalous."""
        ...

    def engines(self) -> dict[str, Callable[[np.ndarray], object] | str]:
        """Return for each engine the inspection of an array (size, size, 3), or why there is none."""
        ...


def serve(make: Callable[[Job], Peer]) -> None:
    """Work through the job whose file is the first argument, then answer turns until the input ends."""
    events = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)
    job = Job(**json.loads(Path(sys.argv[1]).read_text()))
    cores = sorted(os.sched_getaffinity(0))
    os.sched_setaffinity(0, cores[: job.fit_threads])
    peer = make(job)
    _tell(events, "started", version=peer.version, settings=peer.settings)
    wall, processor = time.perf_counter(), time.process_time()
    details = peer.fit()
    spent = {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - processor}
    _tell(events, "fitted", **spent, peak_mb=_peak_mb(), details=details)
    maps = Path(job.folder, "maps")
    maps.mkdir(exist_ok=True)
    scores = []
    for number, path in enumerate(job.test):
        score, anomaly_map = peer.score(path)
        scores.append(float(score))
        if anomaly_map is not None:
            np.save(maps / f"{number}.npy", np.asarray(anomaly_map, np.float32))
    _tell(events, "scored", scores=scores)
    os.sched_setaffinity(0, cores)
    engines = peer.engines()
    _tell(events, "ready", engines={name: each if isinstance(each, str) else None for name, each in engines.items()})
    arrays = np.load(job.arrays)
    for line in sys.stdin:
        name, count = line.split()
        inspect = engines[name]
        assert not isinstance(inspect, str)
        laps, processor = [], time.process_time()
        for number in range(int(count)):
            start = time.perf_counter()
            inspect(arrays[number % len(arrays)])
            laps.append(1000 * (time.perf_counter() - start))
        cpu_ms = 1000 * (time.process_time() - processor) / len(laps)
        _tell(events, "turn", milliseconds=laps, cpu_ms=cpu_ms, peak_mb=_peak_mb())


def _peak_mb() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def _tell(events: TextIO, event: str, **contents: Any) -> None:
    events.write(json.dumps({"event": event, **contents}) + "\n")
