"""Products that nobody uses: their processes end, and are there again for the next part, without a wrong verdict."""

import shutil
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from andon.station.drift import Change
from andon.station.events import Challenge, Outcome, StationError
from andon.station.station import Station
from conftest import part, save
from service import Service, config, served, until
from test_station_products import parts, present
from test_station_service import bad, good

IDLE_MINUTES = 60


@pytest.fixture(scope="module")
def service(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("idle")
    for name in ("ring", "other"):
        shutil.copy(bundle_file, folder / f"{name}.andon")
    save(folder / "ring.golden.png", part(100))
    with served(config(folder, idle_minutes=IDLE_MINUTES)) as service:
        until(lambda: len(service.station.loaded) == 2, "not all products are loaded")
        yield service


def slept(station: Station, name: str) -> list[int]:
    """Let the time pass that a product needs to be idle; return the processes that it had."""
    until(lambda: name in station.loaded, f"{name} is not loaded")
    for each in station.loaded.values():  # the one that was used last never sleeps
        each.used = time.monotonic() - (61 * IDLE_MINUTES if each.product == name else 0)
    pids = station.loaded[name].workers.pids
    until(lambda: name in station.idle and name not in station.loaded, f"{name} does not sleep")
    return pids


def test_a_request_for_an_idle_product_waits_for_it_and_is_judged(service: Service) -> None:
    station = service.station
    digest = station.loaded["ring"].version.digest
    pids = slept(station, "ring")
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in pids), "its processes run")
    shown = service.operator.get("/v1/station").json()
    assert shown["idle"] == ["ring"] and list(shown["loaded"]) == ["other"] and shown["ready"]
    assert shown["loaded"]["other"]["megabytes"] > 1 and shown["loaded"]["other"]["load_s"] > 0
    metrics = service.operator.get("/metrics").text
    assert 'andon_product_loaded{product="ring"} 0.0' in metrics
    assert 'andon_product_loaded{product="other"} 1.0' in metrics and 'andon_product_bytes{product="other"}' in metrics
    missed = station.machine.memory.missed
    for data, verdict in ((bad(601), "REJECT"), (good(602), "PASS")):
        answer = service.inspect(data, "woken")
        assert (answer.status_code, answer.json()["verdict"], answer.json()["bundle"]) == (201, verdict, digest)
    assert station.machine.memory.missed == missed and not station.idle


def test_a_batch_and_a_challenge_part_wake_a_product_and_its_challenge_stands(service: Service) -> None:
    station = service.station
    assert service.quality.put("/v1/products/ring/challenge", json=parts()).status_code == 200
    present(service, "scratch", bad(240))
    assert present(service, "golden", good(141))["stands"] == "PASSED"
    slept(station, "ring")
    files = [("pictures", (name, good(603), "image/png")) for name in ("a", "b")]
    results = service.operator.post("/v1/products/ring/batch", files=files).json()["results"]
    assert len(results) == 2 and results[0]["verdict"] == "PASS"
    assert station.machine.memory.products["ring"].challenge == Challenge.PASSED
    slept(station, "ring")
    assert present(service, "scratch", bad(240))["right"]
    empty = {"every_h": 1, "parts": []}
    assert service.quality.put("/v1/products/ring/challenge", json=empty).status_code == 200
    service.ready()


def test_a_product_that_cannot_be_loaded_in_time_gets_503_and_is_missed(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    station = service.station
    slept(station, "ring")
    missed = station.machine.memory.missed
    with station.products._changes, monkeypatch.context() as patch:  # nothing is loaded meanwhile
        patch.setattr(type(station.config), "deadline_s", lambda *_: 0.05)
        answer = service.inspect(good(604), "too soon")
    assert answer.status_code == 503 and int(answer.headers["retry-after"]) > 0 and "idle" in answer.json()["detail"]
    assert station.machine.memory.missed == missed + 1
    until(lambda: "ring" in station.machine.memory.products, "it is not loaded again")
    assert service.inspect(good(604), "again").json()["verdict"] == "PASS"


def test_a_line_protocol_is_refused_while_a_product_loads(service: Service) -> None:
    station = service.station
    slept(station, "ring")
    missed = station.machine.memory.missed
    with station.products._changes:
        assert not station.products.idle.use("ring")
        with pytest.raises(StationError, match="ring"):
            station.trigger("ring", "early")
    assert station.machine.memory.missed == missed + 1
    assert station.products.idle.awake("ring", 60)
    job = station.trigger("ring", "later")
    assert station.picture(job.id, good(605)).result(60).outcome == Outcome.PASS
    station.acknowledge(job.id)


def test_the_drift_of_an_idle_product_is_told_and_goes_on(service: Service) -> None:
    station = service.station
    until(lambda: "ring" in station.loaded, "it is not loaded")
    station.loaded["ring"].drift.change = change = Change("brightness", "lower", 30, 12)
    slept(station, "ring")
    assert service.operator.get("/v1/station").json()["drift"] == {"ring": str(change)}
    assert service.operator.get("/v1/products/ring/drift").json()["change"] == change._asdict()
    assert 'andon_drift{product="ring"} 1.0' in service.operator.get("/metrics").text
    assert station.products.idle.awake("ring", 60)
    assert station.loaded["ring"].drift.change == change
    slept(station, "ring")
    with ThreadPoolExecutor(4) as pool:
        answers = list(pool.map(lambda _: service.quality.post("/v1/products/ring/drift/end"), range(4)))
    assert sorted(answer.status_code for answer in answers) == [200, 409, 409, 409]
    assert station.products.idle.awake("ring", 60) and station.loaded["ring"].drift.change is None


def test_preparing_wakes_and_what_was_unprepared_stays_so(service: Service) -> None:
    station = service.station
    slept(station, "ring")
    assert station.products.prepare("ring").digest == station.loaded["ring"].version.digest
    assert "ring" in station.machine.memory.products and not station.idle
    station.products.unprepare("ring")
    for each in station.loaded.values():
        each.used = time.monotonic() - (61 * IDLE_MINUTES if each.product == "ring" else 0)
    until(lambda: "ring" not in station.loaded, "it does not give its processes back")
    assert not station.products.idle.use("ring") and not station.idle
    assert service.inspect(good(606), "unprepared").status_code == 409
    station.products.prepare("ring")
    assert service.inspect(good(606), "prepared").json()["verdict"] == "PASS"


def test_a_job_that_waits_and_the_product_used_last_keep_their_processes(service: Service) -> None:
    station = service.station
    until(lambda: len(station.loaded) == 2, "not all are loaded")
    job = station.trigger("ring", "waits")
    for each in station.loaded.values():
        each.used = time.monotonic() - 61 * IDLE_MINUTES - (each.product == "ring")
    looked = station.loaded["other"].drift
    station.products.look()
    assert set(station.loaded) == {"ring", "other"} and station.loaded["other"].drift is looked
    assert station.picture(job.id, good(607)).result(60).outcome == Outcome.PASS
    station.acknowledge(job.id)
