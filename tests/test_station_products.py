"""Bundles that are exchanged while the line runs, and challenge parts, over real HTTP."""

import shutil
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from andon import cli
from andon.bundle import Bundle
from andon.recipe import Decision
from conftest import part, save, scratched
from service import Service, config, served, until
from test_station_service import bad, good

OCTETS = {"Content-Type": "application/octet-stream"}


@pytest.fixture(scope="module")
def service(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    folder = tmp_path_factory.mktemp("products")
    shutil.copy(bundle_file, folder / "ring.andon")
    with served(config(folder)) as service:
        yield service


def decided(bundle_file: Path, path: Path, **decision: float) -> bytes:
    """The same bundle with another decision, so that it has another digest."""
    bundle = Bundle.load(bundle_file)
    recipe = bundle.recipe.model_copy(update={"decision": Decision(**{"reject_rate": 0.03, **decision})})
    replace(bundle, recipe=recipe).save(path)
    return path.read_bytes()


def upload(service: Service, data: bytes, product: str = "ring") -> str:
    answer = service.engineer.post(f"/v1/products/{product}/bundles", content=data, headers=OCTETS)
    assert answer.status_code == 201, answer.text
    return str(answer.json()["digest"])


def activate(service: Service, digest: str, product: str = "ring"):
    return service.quality.post(f"/v1/products/{product}/bundles/{digest}/activate")


def active(service: Service) -> str:
    return str(service.operator.get("/v1/products/ring").json()["active"])


def test_a_bundle_is_uploaded_released_checked_activated_and_rolled_back_without_a_lost_request(
    service: Service, bundle_file: Path, tmp_path: Path
) -> None:
    first = active(service)
    second = upload(service, decided(bundle_file, tmp_path / "second.andon", review_rate=0.2))
    assert second != first
    unreleased = activate(service, second)
    assert unreleased.status_code == 409 and "not released" in unreleased.json()["detail"]
    assert service.quality.post(f"/v1/products/ring/bundles/{second[:8]}/release").status_code == 200
    unchecked = activate(service, second)
    assert unchecked.status_code == 409 and "golden picture" in unchecked.json()["detail"]
    golden = {"Content-Type": "image/png"}
    assert service.quality.put("/v1/products/ring/golden", content=good(100), headers=golden).status_code == 200
    answers, stop = [], threading.Event()

    def line() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            answers.append(service.inspect(good(1000 + number), f"switched {number}"))

    producing = threading.Thread(target=line)
    producing.start()
    try:
        assert activate(service, second).json()["active"] == second
        until(lambda: answers and answers[-1].json().get("bundle") == second, "the second bundle does not inspect")
        assert service.quality.post("/v1/products/ring/rollback").json()["active"] == first
        until(lambda: answers[-1].json().get("bundle") == first, "the first bundle does not inspect again")
    finally:
        stop.set()
        producing.join()
    assert {answer.status_code for answer in answers} == {201}
    assert {answer.json()["verdict"] for answer in answers} <= {"PASS", "REVIEW"}
    assert {answer.json()["bundle"] for answer in answers} == {first, second}
    changes = service.operator.get("/v1/records", params={"kind": "change", "product": "ring"}).json()["records"]
    assert [change["body"]["change"] for change in changes[:5]] == ["roll back", "activate", "golden", "release", "add"]
    assert changes[4]["body"]["who"] == "the engineer" and changes[0]["body"]["who"] == "the quality"
    until(lambda: len(service.station.loaded["ring"].workers.pids) == 1, "no process")


def test_a_bundle_that_rejects_the_golden_picture_is_not_activated(
    service: Service, bundle_file: Path, tmp_path: Path
) -> None:
    golden = {"Content-Type": "image/png"}
    assert service.quality.put("/v1/products/ring/golden", content=good(100), headers=golden).status_code == 200
    before = active(service)
    thresholds = {"review_threshold": 0.0, "reject_threshold": 0.0}
    strict = upload(service, decided(bundle_file, tmp_path / "strict.andon", **thresholds))
    service.quality.post(f"/v1/products/ring/bundles/{strict}/release")
    refused = activate(service, strict)
    assert refused.status_code == 409 and "golden picture: REJECT" in refused.json()["detail"]
    assert active(service) == before
    assert service.inspect(good(130), "still").json()["bundle"] == before


@pytest.mark.parametrize("declared", [{"size": (480, 640)}, {"depth": 16, "maximum": 4095}, {"channels": 1}])
def test_a_bundle_for_another_camera_is_not_activated(
    service: Service, bundle_file: Path, tmp_path: Path, declared: dict
) -> None:
    bundle = Bundle.load(bundle_file)
    manifest = bundle.manifest.model_copy(update={"input": bundle.manifest.input.model_copy(update=declared)})
    recipe = bundle.recipe.model_copy(update={"product": f"another camera {declared}"})
    replace(bundle, manifest=manifest, recipe=recipe).save(tmp_path / "other.andon")
    other = upload(service, (tmp_path / "other.andon").read_bytes())
    service.quality.post(f"/v1/products/ring/bundles/{other}/release")
    refused = activate(service, other)
    assert refused.status_code == 409, refused.text
    assert active(service) != other and service.station.ready


def test_what_is_no_bundle_is_refused_and_leaves_nothing(service: Service, bundle_file: Path) -> None:
    data = bundle_file.read_bytes()
    for content in (b"", b"PK\x03\x04", data[:-100], data.replace(b"recipe", b"recipt")):
        answer = service.engineer.post("/v1/products/new/bundles", content=content, headers=OCTETS)
        assert answer.status_code == 422 and answer.json()["detail"]
    wrong = service.engineer.post("/v1/products/ring/bundles", content=data, headers={"Content-Type": "text/plain"})
    assert wrong.status_code == 415
    assert service.operator.get("/v1/products/new").status_code == 404
    assert not list((service.station.config.data / "bundles").glob("*.part"))
    assert activate(service, "0" * 64).status_code == 409


def parts(**changes: object) -> dict:
    expires = (datetime.now(UTC) + timedelta(days=1)).isoformat()
    golden = {"name": "golden", "expected": "PASS", "expires": expires}
    scratch = {
        "name": "scratch",
        "expected": "REJECT",
        "expires": expires,
        "region": [10, 10, 60, 60],
        "kind": "scratch",
    }
    return {"every_h": 8, "parts": [golden, {**scratch, **changes}]}


def present(service: Service, name: str, data: bytes) -> dict:
    path = f"/v1/products/ring/challenge/parts/{name}"
    answer = service.operator.post(path, content=data, headers={"Content-Type": "image/png"})
    assert answer.status_code == 200, answer.text
    return answer.json()


def test_a_damaged_bundle_in_the_folder_is_named_where_it_lies(bundle_file: Path, tmp_path: Path) -> None:
    shutil.copy(bundle_file, tmp_path / "ring.andon")
    torn = tmp_path / "torn.andon"
    torn.write_bytes(bundle_file.read_bytes()[:3000])
    with served(config(tmp_path)) as service:
        until(lambda: service.station.products.faults, "no fault is told")
        (name, fault), *others = service.station.products.faults.items()
        assert (name, others) == ("torn.andon", []) and fault.startswith(f"{torn}: truncated or damaged")
        assert service.inspect(good(1), "1").status_code == 201


def test_challenge_parts_block_the_line_until_they_pass(service: Service) -> None:
    counts = dict(service.station.machine.memory.counts)
    only_bad = {"parts": parts()["parts"][1:]}
    assert service.quality.put("/v1/products/ring/challenge", json=only_bad).status_code == 409
    assert service.operator.put("/v1/products/ring/challenge", json=parts()).status_code == 403
    assert service.quality.put("/v1/products/ring/challenge", json=parts()).status_code == 200
    refused = service.inspect(good(140), "while due")
    assert refused.status_code == 409 and refused.json()["state"] == "Initialized"
    answer = present(service, "scratch", bad(240))
    assert (answer["verdict"], answer["right"], answer["stands"]) == ("REJECT", True, "DUE")
    answer = present(service, "golden", bad(241))
    assert (answer["right"], answer["stands"]) == (False, "FAILED")
    alarm = {"event": "alarm", "code": "CHALLENGE_FAILED", "active": True}
    history = service.station.ledger.history
    until(lambda: alarm in [row.body for row in history(kind="event", limit=20)], "the alarm is not on record")
    present(service, "golden", good(141))
    answer = present(service, "scratch", bad(240))
    assert answer["stands"] == "PASSED" and answer["margin"] > 0
    assert service.inspect(good(142), "after").json()["verdict"] == "PASS"
    standing = service.operator.get("/v1/products/ring/challenge").json()
    assert standing["escape_bounds"]["scratch"] == pytest.approx(0.95)
    trend = service.operator.get("/v1/products/ring/challenge/parts/scratch").json()
    assert len(trend) == 2 and trend[0]["margin"] == answer["margin"]
    assert service.station.machine.memory.counts == {**counts, "PASS": counts.get("PASS", 0) + 1}
    rows = service.operator.get("/v1/records", params={"kind": "challenge"}).json()["records"]
    assert len(rows) == 4 and all("kept" not in row["body"] or not row["body"]["kept"] for row in rows)
    assert service.operator.post("/v1/products/ring/challenge/due").json()["stands"] == "DUE"
    assert not service.station.ready
    unknown = service.operator.post("/v1/products/ring/challenge/parts/other", content=b"x", headers=OCTETS)
    assert unknown.status_code == 409


def run(monkeypatch: pytest.MonkeyPatch, service: Service, *arguments: object) -> int:
    monkeypatch.setenv("ANDON_KEY", service.keys[max(service.keys)])
    monkeypatch.setattr(sys, "argv", ["andon", "challenge", *map(str, arguments), "--url", service.url])
    try:
        cli.main()
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def test_the_commands_define_run_and_show_challenge_parts(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    expires = (datetime.now(UTC) + timedelta(days=1)).isoformat(timespec="seconds")
    toml = tmp_path / "parts.toml"
    toml.write_text(
        f'every_h = 4\n[[parts]]\nname = "golden"\nexpected = "PASS"\nexpires = {expires}\n'
        f'[[parts]]\nname = "scratch"\nexpected = "REJECT"\nexpires = {expires}\nregion = [10, 10, 60, 60]\n'
    )
    assert run(monkeypatch, service, "define", "ring", toml) == 0
    assert run(monkeypatch, service, "show", "ring") == 1
    assert run(monkeypatch, service, "run", "ring", tmp_path) == 2
    assert "no picture of golden, scratch" in capsys.readouterr().err
    save(tmp_path / "now/golden.png", part(143))
    save(tmp_path / "now/scratch.png", part(144))
    assert run(monkeypatch, service, "run", "ring", tmp_path / "now") == 1
    assert "WRONG  scratch: PASS" in capsys.readouterr().out
    save(tmp_path / "now/scratch.png", scratched(144)[0])
    assert run(monkeypatch, service, "run", "ring", tmp_path / "now") == 0
    assert "ring: PASSED" in capsys.readouterr().out
    assert run(monkeypatch, service, "show", "ring") == 0
    assert service.station.ready
    assert run(monkeypatch, service, "due", "ring") == 0
    assert not service.station.ready
    toml.write_text("every_h = ")
    assert run(monkeypatch, service, "define", "ring", toml) == 2
    toml.write_text("every_h = 1\nparts = []")
    assert run(monkeypatch, service, "define", "ring", toml) == 0
    service.ready()


def test_a_restart_keeps_what_a_person_decided_and_names_a_bundle_of_the_folder_that_was_refused(
    bundle_file: Path, tmp_path: Path
) -> None:
    shutil.copy(bundle_file, tmp_path / "ring.andon")
    save(tmp_path / "ring.golden.png", part(100))
    with served(config(tmp_path)) as service:
        first, golden = active(service), {"Content-Type": "image/png"}
        assert service.quality.put("/v1/products/ring/golden", content=good(101), headers=golden).status_code == 200
        chosen = service.operator.get("/v1/products/ring").json()["golden"]
    decided(bundle_file, tmp_path / "ring.andon", review_threshold=0.0, reject_threshold=0.0)
    for said in ("golden picture: REJECT", "has never inspected"):  # refused, and then known as such
        with served(config(tmp_path)) as service:
            shown = service.operator.get("/v1/products/ring").json()
            assert said in shown["fault"] and (shown["active"], shown["golden"]) == (first, chosen)
            assert service.inspect(good(102), "1").json()["bundle"] == first
