"""A station over HTTP beside the same pictures in `Inspector.stream`: throughput, latency and memory.

    python benchmarks/station.py part.andon PICTURES --requests 2000 --clients 4

Starts `andon serve` on loopback with a copy of the bundle in a temporary folder. Every answer is a durable record. Run
it on an idle machine. Set TMPDIR to the station's disk.
"""

import itertools
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import httpx
import typer

from andon.inspector import Inspector


def memory_mb(process: int) -> float:
    """Resident memory of a process and its children, MB."""
    total = 0
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if process in (int(fields["Pid"]), int(fields["PPid"])):
            total += int(fields.get("VmRSS", "0 kB").split()[0])
    return total / 1000


def serve(folder: Path) -> tuple[subprocess.Popen[str], str, str]:
    """Start a station: process, address and key."""
    command = [sys.executable, "-m", "andon", "serve", str(folder), "--port", "0"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    key = address = ""
    while not (key and address):
        line = process.stderr.readline()
        assert line, "the station ended"
        key = key or (line.split()[-1] if "key of" in line else "")
        address = address or (line.split()[-1] if "listening on" in line else "")
    threading.Thread(target=process.stderr.read, daemon=True).start()
    while httpx.get(f"{address}/readyz").status_code != 200:
        time.sleep(0.2)
    return process, address, key


def requests(address: str, key: str, pictures: list[bytes], numbers: Iterator[int], times: list[float]) -> None:
    """Send pictures one after another until the numbers end."""
    with httpx.Client(base_url=address, headers={"Authorization": f"Bearer {key}"}, timeout=60) as client:
        for number in numbers:
            start = time.perf_counter()
            answer = client.post(
                "/v1/products/part/inspections",
                params={"part": f"part {number}"},
                content=pictures[number % len(pictures)],
                headers={"Content-Type": "application/octet-stream"},
            )
            times.append(time.perf_counter() - start)
            assert answer.status_code == 201, answer.text


def load(address: str, key: str, pictures: list[bytes], count: int, clients: int) -> tuple[float, list[float]]:
    """Requests a second, and the seconds that each took."""
    lock, counter, times = threading.Lock(), itertools.count(), []

    def numbers() -> Iterator[int]:
        while True:
            with lock:
                number = next(counter)
            if number >= count:
                return
            yield number

    threads = [
        threading.Thread(target=requests, args=(address, key, pictures, numbers(), times)) for _ in range(clients)
    ]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return len(times) / (time.perf_counter() - start), times


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by `andon train`.")],
    pictures: Annotated[Path, typer.Argument(help="A folder of pictures of the part.")],
    count: Annotated[int, typer.Option("--requests", min=100)] = 2000,
    clients: Annotated[int, typer.Option(min=1)] = 4,
) -> None:
    """Print throughput of both ways, latency of one client, and memory over the run."""
    contents = [path.read_bytes() for path in sorted(pictures.iterdir()) if path.is_file()]
    # The station has a frozen camera's alarm: no two pictures in a row may be the same.
    assert len(contents) > 1, "needs two pictures or more"
    inspector = Inspector.load(bundle)
    start = time.perf_counter()
    inspector.stream((contents[i % len(contents)] for i in range(count)), lambda outcome: None)
    stream = count / (time.perf_counter() - start)
    del inspector
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(bundle, Path(folder) / "part.andon")
        process, address, key = serve(Path(folder))
        try:
            load(address, key, contents, 100, 1)  # warm
            first = memory_mb(process.pid)
            through, times = load(address, key, contents, count, clients)
            last = memory_mb(process.pid)
            _, alone = load(address, key, contents, 300, 1)
        finally:
            process.terminate()
            process.wait(30)
    cuts = statistics.quantiles(alone, n=100)
    print(f"{os.cpu_count()} cores; {count} pictures, {clients} clients")
    print(f"Inspector.stream      {stream:8.1f} pictures/s")
    print(f"HTTP, durable records {through:8.1f} pictures/s, {through / stream:.0%} of it")
    print(f"one client: p50 {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms")
    print(f"{clients} clients: p50 {1000 * statistics.median(times):.1f} ms, worst {1000 * max(times):.1f} ms")
    print(f"memory of all processes: {first:.0f} MB before, {last:.0f} MB after")


if __name__ == "__main__":
    typer.run(main)
