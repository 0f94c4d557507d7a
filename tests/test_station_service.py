"""The service over real HTTP: inspections, records, keys, limits, what goes wrong."""

import io
import json
import os
import shutil
import signal
import socket
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import httpx
import numpy as np
import pytest

from andon.bundle import Bundle
from andon.files import digest
from andon.station.events import Outcome
from conftest import part, save, scratched
from service import Service, config, served, until

SMALL = {"body_timeout_s": 1.0, "max_request_mb": 1, "requests_per_s": 1000.0}


def png(pixels: np.ndarray) -> bytes:
    return cv2.imencode(".png", pixels[..., ::-1])[1].tobytes()


def good(seed: int) -> bytes:
    return png(part(seed))


def bad(seed: int) -> bytes:
    return png(scratched(seed)[0])


@pytest.fixture(scope="module")
def service(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """Two products: `ring`, and `hurry`, whose deadline nobody can meet."""
    folder = tmp_path_factory.mktemp("line")
    for name in ("ring", "hurry"):
        shutil.copy(bundle_file, folder / f"{name}.andon")
    save(folder / "ring.golden.png", part(100))
    hurry = {"hurry": {"deadline_ms": 0.5}}
    with served(config(folder, products=hurry, http=SMALL, pictures={"keep_one_in": 1})) as service:
        until(lambda: len(service.station.loaded) == 2, "not all products are loaded")
        yield service


def record(service: Service, answer: httpx.Response) -> dict:
    return service.operator.get(answer.json()["links"]["record"]).json()


def test_a_picture_as_the_body_gives_a_verdict_with_a_durable_record(service: Service) -> None:
    data = bad(201)
    answer = service.inspect(data, "p/1", lot="A7")
    assert answer.status_code == 201 and answer.json()["verdict"] == "REJECT"
    kept = record(service, answer)
    assert (kept["kind"], kept["part"], kept["lot"], kept["verdict"]) == ("inspection", "p/1", "A7", "REJECT")
    assert kept["body"]["digest"] == digest(data) == answer.json()["digest"]
    assert answer.json()["regions"] and answer.json()["score"] > answer.json()["thresholds"]["reject"]
    assert {"software", "engine", "decision", "bundle", "stages"} <= set(kept["body"])
    assert service.station.ledger.verify() == []


def test_a_form_gives_the_same_verdict_as_the_body(service: Service) -> None:
    files = {"picture": ("x.png", good(101), "image/png")}
    answer = service.operator.post("/v1/products/ring/inspections", files=files, data={"part": "form", "lot": "B"})
    assert answer.status_code == 201
    assert answer.json()["score"] == service.inspect(good(101), "form").json()["score"]
    assert (answer.json()["part"], answer.json()["lot"], answer.json()["verdict"]) == ("form", "B", "PASS")


def test_a_batch_answers_for_each_picture_in_order(service: Service) -> None:
    sent = [("a", good(102)), ("b", bad(202)), ("c", b"no picture"), ("d", good(103))]
    files = [("pictures", (name, data, "image/png")) for name, data in sent]
    answer = service.operator.post("/v1/products/ring/batch", files=files, data={"lot": "C"})
    results = answer.json()["results"]
    assert [(r["part"], r["verdict"]) for r in results] == [
        *(("a", "PASS"), ("b", "REJECT")),
        *(("c", "INVALID"), ("d", "PASS")),
    ]
    assert {r["lot"] for r in results} == {"C"}


def test_picture_and_heat_map_are_shown_as_png(service: Service) -> None:
    links = service.inspect(bad(203), "shown").json()["links"]
    shown = service.operator.get(links["picture"])
    assert shown.headers["content-type"] == "image/png"
    decoded = cv2.imdecode(np.frombuffer(shown.content, np.uint8), cv2.IMREAD_COLOR)
    assert np.array_equal(decoded[..., ::-1], scratched(203)[0])
    drawn = cv2.imdecode(np.frombuffer(service.operator.get(links["map"]).content, np.uint8), cv2.IMREAD_COLOR)
    assert drawn.shape[0] == 768 and not np.array_equal(drawn[:, :768], cv2.resize(decoded, (768, 768)))
    first = service.operator.get("/v1/records/1/picture.png")
    assert first.status_code == 404 and "not kept" in first.json()["detail"]


def test_the_history_pages_backwards_through_filters(service: Service) -> None:
    for number in range(5):
        service.inspect(good(110 + number), f"page {number}", lot="pages")
    found, after = [], {}
    while True:
        page = service.operator.get("/v1/records", params={"lot": "pages", "limit": 2, **after}).json()
        found += [each["part"] for each in page["records"]]
        if page["next"] is None:
            break
        after = {"after": page["next"]}
    assert found == [f"page {number}" for number in range(4, -1, -1)]
    one = service.operator.get("/v1/records", params={"lot": "pages", "part": "page 3"}).json()["records"]
    assert [each["part"] for each in one] == ["page 3"]
    score = one[0]["score"]
    params = {"lot": "pages", "score_min": score, "score_max": score}
    assert [r["part"] for r in service.operator.get("/v1/records", params=params).json()["records"]] == ["page 3"]
    later = {"lot": "pages", "since": one[0]["time"], "verdict": "PASS"}
    assert len(service.operator.get("/v1/records", params=later).json()["records"]) == 2


def test_an_override_is_a_new_record_with_who_and_why(service: Service) -> None:
    answer = service.inspect(bad(204), "overridden")
    link = answer.json()["links"]["record"]
    refused = service.operator.post(f"{link}/decisions", json={"decision": "override", "verdict": "PASS"})
    assert refused.status_code == 422 and "reason" in refused.json()["detail"]
    decision = {"decision": "override", "verdict": "PASS", "reason": "dust"}
    made = service.operator.post(f"{link}/decisions", json=decision)
    assert made.status_code == 201
    rows = service.operator.get("/v1/parts/overridden").json()
    assert [(row["kind"], row["verdict"]) for row in rows] == [("inspection", "REJECT"), ("decision", "PASS")]
    assert (rows[1]["body"]["who"], rows[1]["body"]["reason"]) == ("the operator", "dust")
    again = service.operator.post(f"{made.headers['location']}/decisions", json={"decision": "confirm"})
    assert again.status_code == 422


def test_a_verdict_after_the_deadline_is_late(service: Service) -> None:
    answer = service.inspect(good(104), "late", "hurry")
    assert answer.status_code == 201 and answer.json()["verdict"] == "LATE"
    assert record(service, answer)["verdict"] == "LATE"
    assert "deadline" in answer.json()["error"]


def header_of_a_bomb() -> bytes:
    """A PNG that says it has 60,000 × 60,000 pixels."""
    ihdr = b"IHDR" + (60_000).to_bytes(4, "big") * 2 + bytes([8, 2, 0, 0, 0])
    data = b"IDAT" + zlib.compress(bytes(1000))
    chunks = [len(c[4:]).to_bytes(4, "big") + c + zlib.crc32(c).to_bytes(4, "big") for c in (ihdr, data, b"IEND")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)


@pytest.mark.parametrize(
    "data",
    [good(1)[:500], b"GIF89a", header_of_a_bomb(), png(part(1, side=48)), png(part(1))[:-1] + b"x"],
    ids=["cut", "not a picture", "bomb", "another size", "damaged"],
)
def test_a_picture_that_cannot_be_used_is_invalid_and_on_record(service: Service, data: bytes) -> None:
    answer = service.inspect(data, "unusable")
    assert answer.status_code == 201 and answer.json()["verdict"] == "INVALID"
    assert answer.json()["error"] and record(service, answer)["verdict"] == "INVALID"
    assert service.station.ready


@pytest.mark.parametrize(
    ("path", "content", "kind", "status"),
    [
        ("/v1/products/ring/inspections?part=1", b"", "image/png", 422),
        ("/v1/products/ring/inspections", b"x", "image/png", 422),
        ("/v1/products/ring/inspections?part=1", b"{}", "application/json", 415),
        ("/v1/products/rong/inspections?part=1", b"x", "image/png", 404),
        ("/v1/products/..%2F..%2Fetc/inspections?part=1", b"x", "image/png", 404),
        ("/v1/products/ring/inspections?part=1", b"x" * (1 << 20) + b"x", "image/png", 413),
        ("/v1/products/ring/batch", b"x", "image/png", 415),
        ("/v1/products/ring/inspections?part=1", b"--", "multipart/form-data", 400),
        ("/v1/nothing", b"", "image/png", 404),
    ],
)
def test_a_request_that_is_none_is_a_problem_and_no_job(
    service: Service, path: str, content: bytes, kind: str, status: int
) -> None:
    before = service.station.machine.memory.next_job
    answer = service.operator.post(path, content=content, headers={"Content-Type": kind})
    assert answer.status_code == status
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json()["status"] == status and answer.json()["detail"]
    assert service.station.machine.memory.next_job == before


def test_a_body_without_a_length_is_bounded_too(service: Service) -> None:
    pieces = (b"x" * 65536 for _ in range(32))
    answer = service.operator.post("/v1/products/ring/inspections?part=1", content=pieces)
    assert answer.status_code == 413


def test_a_slow_client_is_given_up_and_holds_nobody_up(service: Service) -> None:
    host, port = service.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))) as slow:
        head = "POST /v1/products/ring/inspections?part=1 HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n"
        key = service.keys[min(service.keys)]
        slow.sendall(f"{head}Authorization: Bearer {key}\r\n\r\nabc".encode())
        before = service.station.machine.memory.next_job
        assert service.inspect(good(105), "meanwhile").json()["verdict"] == "PASS"
        assert slow.recv(4096).startswith(b"HTTP/1.1 408")
        assert service.station.machine.memory.next_job == before + 1


@pytest.fixture
def nobody(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=service.url) as client:
        yield client


def test_keys_and_roles(service: Service, nobody: httpx.Client) -> None:
    assert nobody.get("/healthz").status_code == nobody.get("/readyz").status_code == 200
    assert nobody.get("/openapi.json").status_code == 200
    for path in ("/v1/records", "/v1/station", "/metrics", "/v1/events"):
        answer = nobody.get(path)
        assert (answer.status_code, answer.headers["www-authenticate"]) == (401, "Bearer")
    digits = service.station.loaded["ring"].version.digest
    assert service.operator.post(f"/v1/products/ring/bundles/{digits}/release").status_code == 403
    assert service.quality.post(f"/v1/products/ring/bundles/{digits}/release").status_code == 200
    octets = {"Content-Type": "application/octet-stream"}
    assert service.quality.post("/v1/products/new/bundles", content=b"x", headers=octets).status_code == 403
    assert service.quality.get("/v1/keys").status_code == 403
    made = service.engineer.post("/v1/keys", json={"name": "Grace", "role": "operator"}).json()
    grace = {"Authorization": f"Bearer {made['key']}"}
    assert nobody.get("/v1/station", headers=grace).status_code == 200
    assert nobody.get("/v1/keys", headers=grace).status_code == 403
    listed = service.engineer.get("/v1/keys")
    assert made["key"].split("_")[-1] not in listed.text and made["id"] in listed.text
    assert service.engineer.delete(f"/v1/keys/{made['id']}").status_code == 200
    assert nobody.get("/v1/station", headers=grace).status_code == 401
    text = service.station.keys.path.read_text()
    assert not any(key.split("_", 2)[2] in text for key in service.keys.values())
    assert service.station.keys.path.stat().st_mode & 0o077 == 0
    wrong = {"Authorization": "Bearer andon_00000000_wrong"}
    statuses = [nobody.get("/v1/station", headers=wrong).status_code for _ in range(20)]
    assert statuses[0] == 401 and statuses[-1] == 429
    assert service.operator.get("/v1/station").status_code == 200


def test_a_full_station_refuses_and_counts_until_results_are_acknowledged(service: Service) -> None:
    station = service.station
    jobs = [station.trigger("ring", f"plc {i}") for i in range(0)]
    while station.ready:
        job = station.trigger("ring", f"plc {len(jobs)}")
        jobs.append(job)
        station.picture(job.id, good(300 + len(jobs))).result()
    missed = station.machine.memory.missed
    refused = service.inspect(good(106), "one too many")
    assert refused.status_code == 503 and int(refused.headers["retry-after"]) > 0
    assert station.machine.memory.missed == missed + 1
    assert service.operator.get("/readyz").status_code == 503
    assert [r.job.id for r in station.machine.memory.latched] == [job.id for job in jobs]
    assert station.output() == Outcome.PASS
    for job in jobs:
        assert service.operator.post(f"/v1/results/{job.id}/acknowledge").status_code == 200
    assert service.operator.post(f"/v1/results/{jobs[0].id}/acknowledge").status_code == 409
    assert service.inspect(good(106), "after that").status_code == 201
    until(
        lambda: any("missed" in str(row.body) for row in station.ledger.history(kind="event", limit=5)),
        "missed triggers are not on record",
    )


def test_a_camera_that_shows_one_picture_again_and_again_is_lost(service: Service) -> None:
    data = good(107)
    assert [service.inspect(data, "same").json()["verdict"] for _ in range(4)] == ["PASS"] * 4
    answers = [service.inspect(data, f"frozen {i}").json() for i in range(2)]
    assert [answer["verdict"] for answer in answers] == ["ERROR", "ERROR"]
    assert "same picture" in answers[0]["error"]
    until(lambda: service.station.machine.state == "Error", "not in Error")
    refused = service.inspect(good(108), "refused")
    assert refused.status_code == 409 and refused.json()["alarms"] == ["CAMERA_LOST"]
    assert service.operator.post("/v1/station/reset").json()["ready"]
    assert service.inspect(good(108), "again").json()["verdict"] == "PASS"


def test_a_killed_worker_costs_one_part_at_most(service: Service) -> None:
    workers = service.station.loaded["ring"].workers
    (pid,) = workers.pids
    os.kill(pid, signal.SIGKILL)
    verdicts = [service.inspect(good(400 + i), f"after the kill {i}").json()["verdict"] for i in range(3)]
    assert verdicts.count("PASS") >= 2 and set(verdicts) <= {"PASS", "ERROR"}
    assert workers.pids != [pid]


def test_a_database_that_is_away_is_an_error_that_ends_by_itself(service: Service) -> None:
    station = service.station
    place = station.config.data / "records.db"
    away = place.rename(place.with_suffix(".away"))
    answer = service.inspect(good(109), "away")
    assert answer.status_code == 503
    assert station.machine.state == "Error" and "STORAGE" in station.machine.memory.errors
    assert service.operator.get("/readyz").json()["alarms"][0]["code"] == "STORAGE"
    away.rename(place)
    service.ready()
    until(lambda: len(station.ledger.story("away")) == 2, "the job is not on record")
    assert [row.verdict for row in station.ledger.story("away")] in (["PASS", "ERROR"], ["ERROR"])
    assert service.inspect(good(122), "back").json()["verdict"] == "PASS"
    assert station.ledger.verify() == []


def test_events_are_told_as_they_happen(service: Service) -> None:
    seen: list[str] = []
    begun = threading.Event()

    def read() -> None:
        with service.operator.stream("GET", "/v1/events") as answer:
            assert answer.headers["content-type"].startswith("text/event-stream")
            for line in answer.iter_lines():
                begun.set()
                seen.append(line)
                if '"outcome": "PASS"' in line:
                    return

    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(read)
        begun.wait()
        number = service.inspect(good(120), "told").json()["record"]
        reading.result(30)
    assert "event: state" in seen and f"id: {number}" in seen
    until(lambda: not service.station._feeds, "the feed is still there")


def test_metrics_and_openapi_tell_what_there_is(service: Service) -> None:
    service.inspect(good(121), "measured")
    text = service.operator.get("/metrics").text
    for name in (
        'andon_stage_seconds_bucket{le="0.001",product="ring",stage="score"}',
        'andon_verdicts_total{outcome="PASS",product="ring"}',
        "andon_missed_triggers_total",
        'andon_queue{queue="jobs"}',
        "andon_disk_free_bytes",
        'andon_state{state="Ready"} 1.0',
    ):
        assert name in text
    api = service.operator.get("/openapi.json").json()
    schemas = api["components"]["schemas"]
    assert schemas["Inspection"]["examples"] and schemas["Details"]["properties"]["detail"]
    post = api["paths"]["/v1/products/{product}/inspections"]["post"]
    assert {"201", "401", "409", "413", "503"} <= set(post["responses"])
    assert post["responses"]["503"]["content"].keys() == {"application/problem+json"}
    assert "image/png" in post["requestBody"]["content"]


def test_a_lamp_that_dims_is_told_as_drift(bundle_file: Path, tmp_path: Path) -> None:
    shutil.copy(bundle_file, tmp_path / "ring.andon")
    with served(config(tmp_path)) as service:  # its own: drift learns from what other tests present
        loaded = service.station.loaded["ring"]
        usual = record(service, service.inspect(good(500), "usual"))
        look, rng = usual["body"]["appearance"], np.random.default_rng(0)
        scores = Bundle.load(bundle_file).calibration.scores
        for _ in range(520):  # what the station has seen before
            noise = 1 + 0.02 * rng.standard_normal(2)
            shares = {"mean": look["mean"] * noise[0], "sharpness": look["sharpness"] * noise[1]}
            assert loaded.watch({"score": float(rng.choice(scores)), "appearance": shares}) is None
        loaded.keep()
        kept = loaded.drift.state()
        assert (
            kept["references"]["brightness"]
            and json.loads(next((service.station.config.data / "drift").iterdir()).read_text()) == kept
        )
        for number in range(40):
            dimmed = (part(510 + number) * 0.7).astype(np.uint8)
            assert service.inspect(png(dimmed), f"dim {number}").status_code == 201
            if loaded.drift.change:
                break
        told = service.operator.get("/v1/station").json()["drift"]
        assert list(told) == ["ring"]
        assert service.operator.get("/v1/products/ring/drift").json()["change"]["measure"] == told["ring"].split(":")[0]
        assert 'andon_drift{product="ring"} 1.0' in service.operator.get("/metrics").text
        events = service.station.ledger.history
        until(
            lambda: [r for r in events(kind="event", product="ring") if r.body["event"] == "drift"], "no record of it"
        )
        assert service.station.ready
    with served(config(tmp_path)) as service:  # a restart forgets no drift; the quality ends it
        assert service.operator.get("/v1/station").json()["drift"] == told
        end = "/v1/products/ring/drift/end"
        assert service.operator.post(end).status_code == 403
        assert service.quality.post(end).json() == {"change": None, "charts": {}}
        refused = service.quality.post(end)
        assert refused.status_code == 409 and "no drift was found" in refused.json()["detail"]
        assert service.operator.get("/v1/station").json()["drift"] == {}
        records = service.station.ledger.history(kind="event", product="ring")
        assert [row.body["event"] for row in records] == ["drift ended", "drift"]
        assert records[0].body["who"] == "the quality"
    shutil.rmtree(tmp_path / "station" / "drift")
    (tmp_path / "station" / "drift").write_bytes(b"")
    with served(config(tmp_path)) as service:  # no drift; what is learnt cannot be stored, and inspection goes on
        assert service.operator.get("/v1/station").json()["drift"] == {}
        assert service.inspect(good(500), "goes on").json()["verdict"] == "PASS"
        until(lambda: "is not stored" in str(service.station.log), "it is not told")
        service.station.products.look()
        assert service.station.ready and not service.station.machine.memory.errors
        assert sum("is not stored" in text for _, text in service.station.log) == 1


def test_rate_and_memory_are_bounded(bundle_file: Path, tmp_path: Path) -> None:
    with served(config(tmp_path, http={"requests_per_s": 1.0, "max_held_mb": 1}), ready=False) as service:
        answers = [service.operator.get("/v1/station") for _ in range(8)]
        assert answers[0].status_code == 200
        assert answers[-1].status_code == 429 and "retry-after" in answers[-1].headers
        huge = service.engineer.post("/v1/products/ring/inspections?part=1", content=io.BytesIO(bytes(2 << 20)))
        assert huge.status_code == 503 and "hold" in huge.json()["detail"]
