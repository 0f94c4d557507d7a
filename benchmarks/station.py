"""A station measured: throughput, memory, time from trigger to result by a line protocol, `kill -9`, many products.

    python benchmarks/station.py part.andon PICTURES --requests 20000 --clients 4
    python benchmarks/station.py part.andon PICTURES --line modbus --requests 2000
    python benchmarks/station.py part.andon PICTURES --kills 50
    python benchmarks/station.py part.andon PICTURES --products 32
    python benchmarks/station.py part.andon PICTURES --set "workers.processes = 2" --set "workers.threads = 1"

Starts a station on loopback with copies of the bundle in a temporary folder. Every answer is a durable record. Run it
on an idle machine. Set TMPDIR to the station's disk. Exit code 1: something that must hold did not.
"""

import itertools
import os
import random
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import typer

import station_line
from andon.inspector import Inspector
from andon.station.reader import Reader

STEADY = 2000
"""Requests after which memory must not grow."""
DEADLINE_S = 2.0
SLACK_S = 0.05
"""Of a client's own clock: what the way of request and answer takes."""

IDLE_S = 3.0
"""After which a product is idle, in the measurement of many products."""
REST_S = 20

SETTINGS = ["frozen_after = 0", "http.requests_per_s = 100000.0", f"products.part.deadline_ms = {1000 * DEADLINE_S}"]
"""Of every station that is measured; `--set` adds more."""


def children(process: int) -> dict[int, float]:
    """A process and its children: resident memory, MB."""
    found = {}
    for status in Path("/proc").glob("[0-9]*/status"):
        try:
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if process in (int(fields["Pid"]), int(fields["PPid"])):
            found[int(fields["Pid"])] = int(fields.get("VmRSS", "0 kB").split()[0]) / 1000
    return found


def memory_mb(process: int) -> float:
    return sum(children(process).values())


def shared_mb(process: int) -> float:
    """Memory of all processes; what several of them share counts once."""
    rolls = [Path(f"/proc/{pid}/smaps_rollup").read_text() for pid in children(process)]
    return sum(int(roll.split("\nPss:")[1].split()[0]) for roll in rolls) / 1000


def busy_s(process: int) -> float:
    """Processor time of all processes."""
    times = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in children(process)]
    return sum(int(each) for pair in times for each in pair) / os.sysconf("SC_CLK_TCK")


class Served:
    """`andon serve`: process, address and key."""

    def __init__(self, place: Path, key: str = "") -> None:
        began = time.perf_counter()
        command = [sys.executable, "-m", "andon", "serve", str(place), "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        assert self.process.stderr is not None
        self.key, self.address = key, ""
        while not (self.key and self.address):
            line = self.process.stderr.readline()
            assert line, "the station ended"
            self.key = self.key or (line.split()[-1] if "key of" in line else "")
            self.address = self.address or (line.split()[-1] if "listening on" in line else "")
        threading.Thread(target=self.process.stderr.read, daemon=True).start()
        while httpx.get(f"{self.address}/readyz").status_code != 200:
            time.sleep(0.01)
        self.start_s = time.perf_counter() - began

    def worker(self) -> int:
        """The id of a process that inspects."""
        lines = {pid: Path(f"/proc/{pid}/cmdline").read_bytes() for pid in children(self.process.pid)}
        return next(pid for pid, line in lines.items() if b"andon.station.work" in line)

    def end(self) -> None:
        self.process.terminate()
        self.process.wait(30)


@contextmanager
def folder_of(bundle: Path, names: Sequence[str] = ("part",)) -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as folder:
        for name in names:
            shutil.copy(bundle, Path(folder) / f"{name}.andon")
        (Path(folder) / "station.toml").write_text("\n".join(SETTINGS))
        yield Path(folder)


class Clients:
    """Threads that send pictures; what was acknowledged, and how long it took.

    Args:
        pictures: sent in turn.
        count: how many in all; None: until `stop`.
        rate: most a second; None: one after another.
    """

    def __init__(
        self, served: Served, pictures: list[bytes], clients: int, count: int | None, rate: float | None
    ) -> None:
        self.times: list[float] = []
        self.acknowledged: dict[str, tuple[int, str]] = {}
        self.late = 0
        """A PASS that came after its deadline."""
        self.stopped = threading.Event()
        self._served, self._pictures, self._count, self._rate = served, pictures, count, rate
        self._numbers, self._began = itertools.count(), time.perf_counter()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._run) for _ in range(clients)]
        for thread in self._threads:
            thread.start()

    def join(self) -> float:
        """Wait until all is sent; requests a second."""
        for thread in self._threads:
            thread.join()
        return len(self.times) / (time.perf_counter() - self._began)

    def _run(self) -> None:
        served = self._served
        headers = {"Authorization": f"Bearer {served.key}", "Content-Type": "application/octet-stream"}
        with httpx.Client(base_url=served.address, headers=headers, timeout=60) as client:
            while not self.stopped.is_set():
                with self._lock:
                    number = next(self._numbers)
                if self._count is not None and number >= self._count:
                    return
                start = time.perf_counter()
                if self._rate:  # from when it should have been sent, whatever came before
                    start = self._began + number / self._rate
                    time.sleep(max(0.0, start - time.perf_counter()))
                try:
                    self._send(client, number, start)
                except httpx.TransportError:
                    return  # the service was killed

    def _send(self, client: httpx.Client, number: int, start: float) -> None:
        part = f"{self._served.process.pid} {number}"
        picture = self._pictures[number % len(self._pictures)]
        answer = client.post("/v1/products/part/inspections", params={"part": part}, content=picture)
        took = time.perf_counter() - start
        self.times.append(took)
        if answer.status_code == 201:
            found = answer.json()
            self.acknowledged[part] = (found["record"], found["verdict"])
            self.late += found["verdict"] == "PASS" and took > DEADLINE_S + SLACK_S and not self._rate
        else:
            assert answer.status_code in (409, 503), answer.text


def report(times: list[float], name: str) -> None:
    cuts = statistics.quantiles(times, n=100)
    print(f"{name}: p50 {1000 * cuts[49]:.1f} ms, p99 {1000 * cuts[98]:.1f} ms, worst {1000 * max(times):.1f} ms")


def longest(times: list[float], name: str) -> None:
    print(f"{name}: median {1000 * statistics.median(times):.0f} ms, longest {1000 * max(times):.0f} ms")


def kept(records: str, acknowledged: dict[str, tuple[int, str]]) -> list[str]:
    """What is wrong with the record of a station."""
    with Reader(records, "station") as reader:
        wrong = [f"record {each.sequence}: {each.what}" for each in reader.verify()]
        rows = {row.sequence: row for row in reader.walk(kind="inspection")}
    jobs = [row.job for row in rows.values()]
    if len(set(jobs)) < len(jobs):
        wrong.append(f"{len(jobs) - len(set(jobs))} jobs have two records")
    for part, (sequence, verdict) in acknowledged.items():
        row = rows.get(sequence)
        if row is None or (row.part, row.verdict) != (part, verdict):
            wrong.append(f"part {part}: acknowledged as record {sequence}, {verdict}; it is not there")
    return wrong


def requests(bundle: Path, contents: list[bytes], count: int, clients: int) -> list[str]:
    """Throughput of both ways, latency alone and at half load, memory over the run."""
    inspector = Inspector.load(bundle)
    start = time.perf_counter()
    inspector.stream((contents[i % len(contents)] for i in range(min(count, STEADY))), lambda outcome: None)
    stream = min(count, STEADY) / (time.perf_counter() - start)
    del inspector
    with folder_of(bundle) as folder:
        served = Served(folder / "station.toml")
        try:
            first = Clients(served, contents, clients, min(count, STEADY), None)
            through, before = first.join(), memory_mb(served.process.pid)
            rest = Clients(served, contents, clients, max(0, count - STEADY), None)
            rest.join()
            after = memory_mb(served.process.pid)
            alone = Clients(served, contents, 1, 300, None)
            alone.join()
            half = Clients(served, contents, clients, 600, through / 2)
            half.join()
        finally:
            served.end()
        every = {}
        for each in (first, rest, alone, half):
            every |= {str(record): (part, verdict) for part, (record, verdict) in each.acknowledged.items()}
        sent = sum(len(each.times) for each in (first, rest, alone, half))
        wrong = kept(str(folder / "station/records.db"), {})
        if len(every) < sent:
            wrong.append(f"{sent} requests, {len(every)} records")
    print(f"{os.cpu_count()} cores; {count} pictures, {clients} clients")
    print(f"Inspector.stream      {stream:8.1f} pictures/s")
    print(f"HTTP, durable records {through:8.1f} pictures/s, {through / stream:.0%} of it")
    report(first.times, f"{clients} clients")
    report(alone.times, "one client")
    report(half.times, "at half load, from when each should be sent")
    print(f"memory of all processes: {before:.0f} MB after {min(count, STEADY)}, {after:.0f} MB after {count} requests")
    return wrong


def kills(bundle: Path, contents: list[bytes], count: int, clients: int) -> list[str]:
    """`kill -9` of a worker or of the service, in turn, at random moments under load."""
    draw, key, wrong = random.Random(0), "", []
    acknowledged: dict[str, tuple[int, str]] = {}
    starts, late = [], 0
    with folder_of(bundle) as folder:
        for number in range(0, count, 2):
            served = Served(folder / "station.toml", key)
            key = served.key
            if number:
                starts.append(served.start_s)
            load = Clients(served, contents, clients, None, None)
            time.sleep(draw.uniform(0.0, 1.0))
            os.kill(served.worker(), signal.SIGKILL)
            time.sleep(draw.uniform(0.0, 1.0))
            served.process.kill()
            served.process.wait()
            load.stopped.set()
            load.join()
            acknowledged |= load.acknowledged
            late += load.late
        served = Served(folder / "station.toml", key)
        starts.append(served.start_s)
        output = httpx.get(f"{served.address}/v1/station", headers={"Authorization": f"Bearer {key}"}).json()["output"]
        served.end()
        wrong += kept(str(folder / "station/records.db"), acknowledged)
    if late or output != "REJECT":
        wrong.append(f"{late} PASS were seen after their deadline; the output after a restart is {output}")
    print(f"{count} kills, {len(acknowledged)} acknowledged records, all there: {not wrong}")
    print(f"start until Ready: median {statistics.median(starts):.2f} s, longest {max(starts):.2f} s")
    return wrong


def products(bundle: Path, contents: list[bytes], count: int) -> list[str]:
    """Many products in one station: memory, first and next inspection, and the same once they are idle."""
    names = [f"part-{number:02}" for number in range(count)]

    def inspect(client: httpx.Client) -> list[float]:
        """The time until the verdict of one part of each product."""
        times = []
        for name, picture in zip(names, itertools.cycle(contents), strict=False):
            start, answer = time.perf_counter(), None
            while answer is None or answer.status_code == 503:  # loading takes longer than the deadline
                answer = client.post(f"/v1/products/{name}/inspections", params={"part": "1"}, content=picture)
            times.append(time.perf_counter() - start)
            assert answer.status_code == 201, answer.text
        return times

    def until(client: httpx.Client, true: Callable[[dict[str, Any]], bool]) -> None:
        while not true(client.get("/v1/station").json()):
            time.sleep(0.05)

    with folder_of(bundle, names) as folder:
        settings = folder / "station.toml"
        settings.write_text("\n".join(["idle_minutes = 0", *SETTINGS]))
        began = time.perf_counter()
        served = Served(settings)
        headers = {"Authorization": f"Bearer {served.key}", "Content-Type": "application/octet-stream"}
        try:
            with httpx.Client(base_url=served.address, headers=headers, timeout=60) as client:
                until(client, lambda state: len(state["loaded"]) == count)
                print(f"{os.cpu_count()} cores; {count} products, load {os.getloadavg()[0]:.1f}")
                loaded_s = time.perf_counter() - began
                print(f"start until Ready: {served.start_s:.1f} s, until all are loaded: {loaded_s:.1f} s")
                longest(inspect(client), "first inspection of each")
                longest(inspect(client), "next inspection of each")
                busy, used = time.perf_counter(), busy_s(served.process.pid)
                time.sleep(REST_S)
                share = (busy_s(served.process.pid) - used) / (time.perf_counter() - busy)
                print(f"at rest: {share:.0%} of one core")
                print(f"memory, all loaded: {shared_mb(served.process.pid):.0f} MB")
        finally:
            served.end()
        settings.write_text("\n".join([f"idle_minutes = {IDLE_S / 60}", *SETTINGS]))
        served = Served(settings, served.key)
        try:
            with httpx.Client(base_url=served.address, headers=headers, timeout=60) as client:
                until(client, lambda state: len(state["idle"]) == count - 1)
                time.sleep(IDLE_S)  # processes that retire have ended
                print(f"memory, all but one idle: {shared_mb(served.process.pid):.0f} MB")
                longest(inspect(client)[: count - 1], "first inspection of one that is idle")
        finally:
            served.end()
        return kept(str(folder / "station/records.db"), {})


def main(
    bundle: Annotated[Path, typer.Argument(help="A bundle made by `andon train`.")],
    pictures: Annotated[Path, typer.Argument(help="A folder of pictures of the part.")],
    count: Annotated[int, typer.Option("--requests", min=100)] = 2000,
    clients: Annotated[int, typer.Option(min=1)] = 4,
    line: Annotated[str, typer.Option(help="modbus or opcua: time from trigger to valid result.")] = "",
    many: Annotated[int, typer.Option("--products", help="Load so many copies of the bundle.", min=0)] = 0,
    killed: Annotated[int, typer.Option("--kills", help="Kill so many processes under load.", min=0)] = 0,
    more: Annotated[list[str] | None, typer.Option("--set", help="A line of station.toml.")] = None,
) -> None:
    """Measure a station; each run measures one thing."""
    SETTINGS.extend(more or [])
    contents = [path.read_bytes() for path in sorted(pictures.iterdir()) if path.is_file()]
    assert contents, "needs a picture or more"
    if many:
        wrong = products(bundle, contents, many)
    elif killed:
        wrong = kills(bundle, contents, killed, clients)
    elif line:
        assert line in ("modbus", "opcua"), line
        with folder_of(bundle) as folder:
            above, total = station_line.measure(folder, contents, "modbus" if line == "modbus" else "opcua", count)
        report(above, f"{line}, trigger to valid result, above the inspection itself")
        report(total, f"{line}, trigger to valid result")
        wrong = []
    else:
        wrong = requests(bundle, contents, count, clients)
    for sentence in wrong:
        print(f"WRONG: {sentence}")
    raise typer.Exit(bool(wrong))


if __name__ == "__main__":
    typer.run(main)
