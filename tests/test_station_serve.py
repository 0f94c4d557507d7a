"""`andon serve` as a process of its own: first start, kill -9 under load, restart; settings and keys."""

import os
import random
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import IO

import httpx
import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import (
    content_type_conformance,
    not_a_server_error,
    response_schema_conformance,
    status_code_conformance,
)

from andon.errors import AndonError
from andon.station.config import Config
from andon.station.entries import Entry
from andon.station.events import Job, Memory, Outcome, StationError
from andon.station.keys import Keys, Role
from andon.station.ledger import Ledger
from andon.station.reader import Reader
from andon.station.station import Station
from conftest import part, save
from service import Service, config, served, until
from test_station_service import bad, good

DEADLINE_S = 2.0  # of the settings, when they say nothing


@pytest.fixture
def folder(bundle_file: Path, tmp_path: Path) -> Path:
    shutil.copy(bundle_file, tmp_path / "ring.andon")
    return tmp_path


class Process:
    """`andon serve` on a free port."""

    def __init__(self, *arguments: object) -> None:
        command = [sys.executable, "-m", "andon", "serve", *map(str, arguments), "--port", "0"]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        self.lines: list[str] = []
        assert self.process.stderr
        self._reader = threading.Thread(target=self._read, args=(self.process.stderr,))
        self._reader.start()
        until(lambda: self.find("http://") or self.process.poll() is not None, "it does not listen")
        self.url = self.find("http://")

    def _read(self, file: IO[str]) -> None:
        for line in file:
            self.lines.append(line)

    def find(self, what: str) -> str:
        """The last word of the line that holds a text."""
        return next((line.split()[-1] for line in self.lines if what in line), "")

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        code = self.process.wait(60)
        self._reader.join()
        assert self.process.stderr
        self.process.stderr.close()
        return code


@contextmanager
def client(process: Process, key: str) -> Iterator[httpx.Client]:
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "image/png"}
    with httpx.Client(base_url=process.url, headers=headers, timeout=60) as made:
        until(lambda: made.get("/readyz").status_code == 200, f"not ready: {process.lines}")
        yield made


def worker(station: int) -> int | None:
    """The process that inspects."""
    for status in Path("/proc").glob("[0-9]*/status"):
        with suppress(OSError):
            fields = dict(line.split(":", 1) for line in status.read_text().splitlines() if ":" in line)
            if int(fields["PPid"]) == station and b"andon.station.work" in (status.parent / "cmdline").read_bytes():
                return int(fields["Pid"])
    return None


def killed_under_load(
    process: Process, key: str, first: int, acknowledged: dict[str, tuple[int, str]], draw: random.Random
) -> None:
    """Inspect in three threads; kill the worker, then the service, at random moments."""
    before = len(acknowledged)

    def produce(line: int) -> None:
        try:
            with client(process, key) as made:
                for number in range(1000):
                    name = f"{line}-{number}"
                    data = (bad if number % 3 == 0 else good)(1000 * line + number)
                    answer = made.post("/v1/products/ring/inspections", params={"part": name}, content=data)
                    if answer.status_code == 201:
                        acknowledged[name] = (answer.json()["record"], answer.json()["verdict"])
        except httpx.TransportError:
            pass  # the service was killed

    lines = [threading.Thread(target=produce, args=(first + line,)) for line in range(3)]
    for line in lines:
        line.start()
    until(lambda: len(acknowledged) > before + 4, "nothing is acknowledged")
    time.sleep(draw.uniform(0, 0.2))
    while not (pid := worker(process.process.pid)):
        assert process.process.poll() is None
    os.kill(pid, signal.SIGKILL)
    until(lambda: len(acknowledged) > before + 9, "nothing is acknowledged")
    time.sleep(draw.uniform(0, 0.2))
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    for line in lines:
        line.join()


def test_what_was_acknowledged_survives_kill_9_under_load(folder: Path) -> None:
    """`benchmarks/station.py --kills 50` does more of it."""
    draw, acknowledged = random.Random(7), dict[str, tuple[int, str]]()
    first = Process(folder)
    key = first.find("shown once")
    killed_under_load(first, key, 0, acknowledged, draw)
    second = Process(folder)
    assert not second.find("shown once")
    killed_under_load(second, key, 3, acknowledged, draw)
    last = Process(folder)
    assert not last.find("shown once")
    with client(last, key) as made:
        assert made.get("/v1/station").json()["output"] == "REJECT"
        for name, (record, verdict) in acknowledged.items():
            row = made.get(f"/v1/records/{record}").json()
            assert (row["part"], row["verdict"]) == (name, verdict)
            if verdict == "PASS":
                assert row["body"]["stages"]["total"] <= 1000 * DEADLINE_S
            if verdict == "REJECT":
                assert made.get(f"/v1/records/{record}/picture.png").status_code == 200
        answer = made.post("/v1/products/ring/inspections", params={"part": "after"}, content=good(1)).json()
        jobs = [
            row["job"]
            for row in made.get("/v1/records", params={"kind": "inspection", "limit": 1000}).json()["records"]
        ]
        assert answer["job"] == max(jobs) and len(set(jobs)) == len(jobs)
    assert last.end(signal.SIGTERM) == 0
    with Reader(str(folder / "station/records.db"), "station") as reader:
        assert reader.verify() == []
        assert reader.history(limit=1)[0].body["event"] == "stopped"


def serve(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "andon", "serve", *map(str, arguments)], capture_output=True, text=True, timeout=60
    )


def test_a_second_station_of_one_identity_and_a_port_in_use_are_refused(tmp_path: Path) -> None:
    with served(config(tmp_path), ready=False) as service:
        second = serve(tmp_path, "--port", 0)
        assert second.returncode == 2 and "expected no other writer" in second.stderr
        port = service.url.rsplit(":", 1)[1]
        (tmp_path / "other.toml").write_text(f'data = "other"\nbundles = "none"\nhttp.port = {port}\n')
        taken = serve(tmp_path / "other.toml")
        assert taken.returncode == 2 and "cannot listen there" in taken.stderr and "Traceback" not in taken.stderr


def test_a_restart_ends_jobs_without_a_record_and_keeps_those_with_one(tmp_path: Path) -> None:
    def job(id: int, latch: bool) -> Job:
        return Job(id=id, product="ring", digest="d", part=f"p{id}", started=0.0, deadline=1.0, latch=latch)

    waiting = (job(1, True), job(2, False), job(3, False), job(4, True), replace(job(5, True), challenge=True))
    (tmp_path / "station").mkdir()
    with Ledger(str(tmp_path / "station/records.db"), "station") as ledger:
        assert ledger.reserve(10) == 1
        rows = [Entry("inspection", n, "ring", f"p{n}", None, "PASS") for n in (1, 2)]
        rows.append(Entry("challenge", 5, "ring", "p5", None, "PASS"))
        memory = Memory(next_job=6, waiting=waiting, counts={"PASS": 7})
        ledger.append(rows, state={"memory": memory.plain()})
    station = Station(config(tmp_path), lambda sentence: None)
    station.start()
    try:
        latched = [(r.job.id, r.outcome) for r in station.machine.memory.latched]
        assert latched == [(1, Outcome.PASS), (4, Outcome.ERROR)]
        assert station.machine.memory.counts == {"PASS": 9, "ERROR": 2}
        assert station.output() == Outcome.REJECT
        assert station.machine.memory.next_job == 11
        ended = {3: "ERROR", 4: "ERROR", 1: "PASS", 2: "PASS"}
        history = station.ledger.history
        until(lambda: len(history(kind="inspection")) == 4, "no record of the jobs that the restart ended")
        assert {row.job: row.verdict for row in history(kind="inspection")} == ended
    finally:
        station.close()


def test_settings_that_are_not_there_are_refused(tmp_path: Path) -> None:
    with pytest.raises(StationError, match=r"nowhere\.toml: cannot be read"):
        Config.load(tmp_path / "nowhere.toml")


def test_settings_are_read_and_refused_with_what_is_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "station.toml"
    path.write_text('bundles = "b"\n[http]\nport = 80\n[products.ring]\ndeadline_ms = 300.0\n')
    found = Config.load(path)
    assert found.bundles == tmp_path / "b" and found.http.host == "127.0.0.1"
    assert found.deadline_s("ring", 100.0) == 0.3
    assert found.deadline_s("nut", 100.0) == 0.1 and found.deadline_s("nut", None) == 2.0
    assert found.database() == str(tmp_path / "station/records.db")
    monkeypatch.setenv("ANDON_RECORDS", "postgresql://me:secret@there/db")
    assert found.database() == "postgresql://me:secret@there/db"
    (tmp_path / "url").write_text("postgresql://you:secret@there/db\n")
    path.write_text('records_file = "url"')
    assert Config.load(path).database() == "postgresql://you:secret@there/db"
    for text, words in {
        "[http]\nprot = 80": "Did you mean 'port'",
        'records = "postgresql://me:secret@there/db"': "ANDON_RECORDS",
        "depth = 0": "depth",
        "deadline_ms = nan": "finite",
        '[products."../x"]\ndeadline_ms = 1.0': "products",
        "[http": "cannot be read",
    }.items():
        path.write_text(text)
        with pytest.raises(AndonError, match=r"station\.toml") as refused:
            Config.load(path)
        assert words in str(refused.value) and "secret@" not in str(refused.value)


def test_keys_are_kept_as_digests_and_a_damaged_file_is_told(tmp_path: Path) -> None:
    keys = Keys(tmp_path / "keys.json")
    made, text = keys.make("Ada", Role.ENGINEER)
    assert Keys(tmp_path / "keys.json").find(text) == made
    for wrong in ("", "andon", text[:-1], text.replace("andon", "other"), text.replace(made.id, "00000000"), "a_b_c"):
        assert keys.find(wrong) is None
    with pytest.raises(StationError, match="last key of an engineer"):
        keys.revoke(made.id)
    other, _ = keys.make("Grace", Role.ENGINEER)
    keys.revoke(made.id)
    assert keys.find(text) is None and [key.id for key in keys] == [other.id]
    for damage in (
        '{"keys": [{}]}',
        "[]",
        "{",
        '{"keys": [{"id": 1, "name": "", "role": "god", "made": "", "digest": ""}]}',
    ):
        (tmp_path / "keys.json").write_text(damage)
        with pytest.raises(StationError, match="damaged"):
            Keys(tmp_path / "keys.json")


def test_no_request_that_the_schema_permits_is_a_server_error(folder: Path) -> None:
    save(folder / "ring.golden.png", part(100))
    with served(config(folder, http={"requests_per_s": 1e6})) as service, requests.Session() as session:
        check_all_routes(service, session)


CHECKS = [not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance]


def check_all_routes(service: Service, session: requests.Session) -> None:
    headers = {"Authorization": f"Bearer {service.keys[Role.ENGINEER]}"}
    document = service.operator.get("/openapi.json").json()
    api = schemathesis.openapi.from_dict(document)
    api.config.update(base_url=service.url)
    operations = [found.ok() for found in api.get_all_operations()]
    assert len(operations) == sum(len(methods) for methods in document["paths"].values()) > 25
    for operation in operations:
        if operation.path == "/v1/events":  # it does not end: test_events_are_told_as_they_happen
            continue
        service.operator.post("/v1/station/reset")
        for mode in GenerationMode:

            @given(case=operation.as_strategy(generation_mode=mode))
            @settings(
                max_examples=4,
                derandomize=True,
                deadline=None,
                database=None,
                phases=[Phase.explicit, Phase.generate],
                suppress_health_check=list(HealthCheck),
            )
            def request(case: schemathesis.Case) -> None:
                answer = case.call(session=session, headers=headers)
                if case.path == "/readyz":  # 503: a trigger would be refused
                    assert answer.status_code in (200, 503)
                else:
                    case.validate_response(answer, checks=CHECKS)

            with suppress(*([Unsatisfiable] if mode == GenerationMode.NEGATIVE else [])):  # nothing can be wrong
                request()
