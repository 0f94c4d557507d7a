"""Program of a process that inspects: `python -m andon.station.work`. It reads tasks from standard input.

A message consists of the lengths of its two parts, a line of JSON, and bytes (a picture or a map). Received data are
never executed. The process ends when its input ends, even during an inspection, so it always ends with its station.
"""

import json
import os
import queue
import struct
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

from andon.errors import AndonError, ImageError
from andon.files import digest, strict_json

LENGTHS = struct.Struct("<IQ")
MOST_HEAD = 1 << 24  # maximum number of bytes of a line of JSON


def send(file: BinaryIO, head: dict[str, Any], data: bytes = b"") -> None:
    """Write one message."""
    line = strict_json(head).encode()
    file.write(LENGTHS.pack(len(line), len(data)) + line)
    file.write(data)
    file.flush()


def receive(file: BinaryIO, most: int) -> tuple[dict[str, Any], bytes]:
    """Read one message with at most `most` bytes of data. EOFError at the end, ValueError for an invalid message."""
    line, data = LENGTHS.unpack(_exactly(file, LENGTHS.size))
    if line > MOST_HEAD or data > most:
        raise ValueError(f"a message of {line} and {data} bytes; expected at most {MOST_HEAD} and {most}")
    head = json.loads(_exactly(file, line))
    if not isinstance(head, dict):
        raise ValueError(f"a message of {type(head).__name__}; expected an object")
    return head, _exactly(file, data)


def _exactly(file: BinaryIO, count: int) -> bytes:
    data = file.read(count)
    if len(data) < count:
        raise EOFError
    return data


class Worker:
    """An inspector that measures the stages of its inspections."""

    def __init__(self, bundle: str, engine: Any, threads: int) -> None:
        """Load the bundle and run its graph on a test tile. AndonError when it cannot be used."""
        import cv2
        import numpy as np

        from andon.bundle import versions
        from andon.inspector import Inspector

        if threads:
            cv2.setNumThreads(threads)
        self.inspector = Inspector.load(Path(bundle), engine, threads)
        kind, shape = self.inspector.manifest.input, self.inspector.recipe.geometry.input
        dtype: Any = np.uint8 if kind.depth == 8 else np.uint16
        most = np.iinfo(dtype).max
        self._tile = np.random.default_rng(0).integers(0, most, (1, *shape, kind.channels), dtype, endpoint=True)
        self._known: Any = None
        self.check()
        installed = versions()
        self.about = {
            "product": self.inspector.recipe.product,
            "bundle": self.inspector.digest,
            "decision": self.inspector.decision_digest,
            "software": f"andon {installed['andon']}",
            "engine": f"{engine} {installed[engine]}" if engine in installed else engine,
        }

    def check(self) -> None:
        """Run the graph on the test tile. ArithmeticError when the result differs from the first one."""
        import numpy as np

        scores = self.inspector.scorer.score(self._tile)
        if self._known is None:
            self._known = scores
        same = all(
            np.isfinite(now).all() and np.allclose(now, first, rtol=1e-3, atol=1e-3 * float(np.abs(first).max()))
            for now, first in zip(scores, self._known, strict=True)
        )
        if not same:
            raise ArithmeticError("the graph gives another result for the test tile than after loading")

    def inspect(self, data: bytes, name: str) -> tuple[dict[str, Any], bytes]:
        """Return the record and the map as bytes; the map is empty if the graph did not see the picture."""
        import numpy as np

        from andon.pictures import appearance
        from andon.station.answers import Map

        times = [time.perf_counter()]
        try:
            read = self.inspector.read(data, name)
            times.append(time.perf_counter())
            prepared = self.inspector.prepare(read)
            times.append(time.perf_counter())
            scan = self.inspector.score(prepared)
            times.append(time.perf_counter())
            inspection = self.inspector.judge(prepared, scan, times[0])
            times.append(time.perf_counter())
        except ImageError as error:
            refused = {"source": name, "digest": digest(data), "verdict": "INVALID", "error": str(error)}
            return {**refused, "stages": _stages(times)}, b""
        look = prepared.appearance or appearance.measure(read.pixels)
        shares = {key: getattr(look, key) / look.top for key in ("mean", "contrast", "sharpness")}
        record = {**inspection.record(), "stages": _stages(times), "appearance": shares}
        seen = scan is not None and np.isfinite(scan.score)
        return record, Map.of(scan.map).to_bytes() if scan and seen else b""


def _stages(times: list[float]) -> dict[str, float]:
    """Return the duration of each completed stage in milliseconds."""
    names = ("read", "prepare", "score", "judge")
    return {name: round(1000 * (b - a), 3) for name, a, b in zip(names, times, times[1:], strict=False)}


def _listen(file: BinaryIO, tasks: "queue.SimpleQueue[tuple[dict[str, Any], bytes]]") -> None:
    """Put received tasks into a queue; end the process when its input ends."""
    ended = 1  # exit code of any other error, such as out of memory
    try:
        while True:
            head, data = receive(file, 1 << 40)  # the station limits the size of its messages
            tasks.put((head, data))
    except (EOFError, OSError):
        ended = 0
    finally:
        os._exit(ended)


def main() -> None:
    """Load the bundle named by the first message, then answer tasks one after the other."""
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # output of libraries must not mix with answers
    with suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")  # out of memory: kill this, not the station
    tasks: queue.SimpleQueue[tuple[dict[str, Any], bytes]] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(os.fdopen(os.dup(0), "rb"), tasks), daemon=True).start()
    order, _ = tasks.get()
    try:
        worker = Worker(**order)
    except AndonError as error:
        send(answers, {"refused": str(error)})
        os._exit(0)
    send(answers, worker.about)
    while True:
        head, data = tasks.get()
        reply: dict[str, Any] = {}
        content = b""
        try:
            if "name" in head:
                reply, content = worker.inspect(data, head["name"])
            else:
                worker.check()
        except Exception as error:
            reply = {"fault": f"{type(error).__name__}: {error}"}
        send(answers, reply, content)


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:
        sys.exit(0)  # the station has ended
