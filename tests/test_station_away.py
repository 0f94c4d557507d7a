"""What the service needs goes away and comes back: a clear state meanwhile, nothing acknowledged lost, no help."""

import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from andon.errors import AndonError
from andon.station.entries import Entry
from andon.station.events import StationError
from andon.station.line.lines import Lines
from andon.station.station import Station
from disk import Disk
from postgres import Cluster
from service import Service, config, served, until
from test_line_outbox import Broker, Reader
from test_station_service import bad, good

ROOMY = "size=200m"
MOST = 400
"""Requests, far more than a disk that is full takes."""


def parts(answers: list[httpx.Response]) -> dict[str, tuple[int, str]]:
    """Record and verdict of each part that was acknowledged."""
    found = [answer.json() for answer in answers if answer.status_code == 201]
    return {each["part"]: (each["record"], each["verdict"]) for each in found}


def test_an_error_that_nobody_expected_does_not_end_the_records(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with served(config(folder, data=tmp_path / "data")) as service:
        keeper, append = service.station.keeper, service.station.ledger.append
        begun = threading.Event()

        def broken(*arguments: Any, **options: Any) -> Any:
            begun.set()
            raise RuntimeError("a driver's own error")

        monkeypatch.setattr(service.station.ledger, "append", broken)
        keeper.put(Entry("event", body={"event": "first"}), lambda row: 1 / 0)  # whoever waits for it fails, too
        assert begun.wait(30)
        until(lambda: service.station.machine.state == "Error", "not in Error")
        monkeypatch.setattr(service.station.ledger, "append", append)
        until(lambda: keeper.depth == 0, "it is not written")
        keeper.put(Entry("event", body={"event": "second"}))
        until(lambda: keeper.depth == 0, "the next one is not written")
        assert service.station.ledger.history(limit=1)[0].body["event"] == "second"
    left = [tmp_path / "data/bundles/1.part", tmp_path / "data/backups/.old.12.part/records.db"]  # of a killed process
    for path in left:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"half")
    with served(config(folder, data=tmp_path / "data")) as service, pytest.raises(AndonError, match="another station"):
        assert not any(path.exists() for path in left)
        Station(config(folder, name="other", data=tmp_path / "data"), print)


def outage(service: Service, begin: Callable[[], object], end: Callable[[], object]) -> None:
    """Inspect before, while and after the storage is away."""
    station = service.station
    answers = [service.inspect(bad(701), "before 1"), service.inspect(good(702), "before 2")]
    assert {answer.status_code for answer in answers} == {201}
    begin()
    for number in range(MOST):
        answers.append(service.inspect(bad(710 + number % 20), f"meanwhile {number}"))
        if answers[-1].status_code != 201:
            break
    assert answers[-1].status_code == 503 and int(answers[-1].headers["retry-after"]) > 0
    until(lambda: station.machine.state == "Error", "not in Error")
    shown = service.operator.get("/readyz")
    assert shown.status_code == 503 and [each["code"] for each in shown.json()["alarms"]] == ["STORAGE"]
    with pytest.raises(StationError, match="in state Error"):
        station.trigger("ring", "refused")
    assert service.inspect(good(703), "refused").status_code == 503
    end()
    service.ready()
    answers.append(service.inspect(good(704), "after"))
    assert answers[-1].json()["verdict"] == "PASS"
    until(lambda: station.keeper.depth == 0, "records wait")
    for part, (record, verdict) in parts(answers).items():
        row = station.ledger.record(record)
        assert row and (row.part, row.verdict) == (part, verdict)
        picture = row.body["kept"]["picture"]
        assert len(station.archive.open(picture)) > 0
    assert station.ledger.verify() == []


@pytest.fixture
def folder(bundle_file: Path, tmp_path: Path) -> Path:
    (tmp_path / "bundles").mkdir()
    shutil.copy(bundle_file, tmp_path / "bundles" / "ring.andon")
    return tmp_path / "bundles"


KEPT = {"keep_one_in": 1}


def test_a_disk_that_is_full_for_a_while(folder: Path, disk: Disk) -> None:
    disk.remount(ROOMY)
    with served(config(folder, data=disk.folder / "data", pictures=KEPT)) as service:
        outage(service, disk.fill, lambda: (disk.folder / "filler").unlink())


def test_a_folder_of_pictures_that_is_read_only_for_a_while(folder: Path, disk: Disk) -> None:
    disk.remount(ROOMY)
    with served(config(folder, data=disk.folder / "data", pictures=KEPT)) as service:
        outage(service, lambda: disk.lock("data/pictures"), lambda: disk.unlock("data/pictures"))


def test_a_folder_of_data_that_is_read_only_is_said_at_the_start(folder: Path, disk: Disk) -> None:
    disk.remount("ro")
    with pytest.raises(AndonError, match="read-only"):
        Station(config(folder, data=disk.folder / "data"), lambda sentence: None)
    disk.remount("rw")
    assert list(disk.folder.iterdir()) == []


def test_a_postgres_that_is_away_for_a_while(folder: Path, postgres: Cluster, tmp_path: Path) -> None:
    settings = config(folder, data=tmp_path / "data", pictures=KEPT, records=postgres.database())
    with served(settings) as service:
        try:
            outage(service, postgres.stop, postgres.start)
        finally:
            if not postgres.runs:
                postgres.start()


def test_a_broker_that_is_away_stops_no_inspection_and_gets_every_record(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ANDON_MQTT_PASSWORD", "secret")
    (tmp_path / "broker").mkdir()
    broker = Broker(tmp_path / "broker")
    broker.start()
    reader = Reader(broker.port)
    broker.stop()  # it keeps what comes for the reader
    mqtt = {"port": broker.port, "prefix": "works", "user": "line"}
    try:
        with served(config(folder, data=tmp_path / "data", name="line/1", mqtt=mqtt)) as service:
            lines = Lines(service.station)
            lines.start()
            try:
                sent = [f"part {number}" for number in range(3)]
                for number, part in enumerate(sent):
                    assert service.inspect(good(720 + number), part).status_code == 201
                assert service.station.ready
                metrics = service.operator.get("/metrics").text
                (waiting,) = [line for line in metrics.splitlines() if 'queue="outbox mqtt"' in line]
                assert float(waiting.split()[-1]) >= 3
                broker.start()
                until(lambda: not service.station.ledger.backlog(), "the outbox is not emptied")
                until(lambda: inspected(reader) == sent, f"not all come, in order: {reader.messages}")
            finally:
                lines.close()
    finally:
        reader.close()
        broker.stop()


def inspected(reader: Reader) -> list[str]:
    """Parts in the order in which their records came first."""
    found = [text["part"] for topic, text, _ in reader.messages if topic == "records/inspection"]
    return list(dict.fromkeys(found))
