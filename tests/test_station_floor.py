"""Learning from the floor: good parts join the next calibration, escapes become test cases of the next bundle."""

import shutil
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import httpx
import pytest

from andon import cli
from andon.bundle import Bundle
from andon.files import digest
from andon.station import floor
from andon.station.archive import Archive
from andon.station.entries import Entry
from andon.station.events import StationError
from andon.station.ledger import Held
from service import Service, config, served
from test_station_products import decided, upload
from test_station_service import bad, good

LENIENT = {"review_threshold": 1e6, "reject_threshold": 1e6}


def decide(service: Service, answer: httpx.Response, verdict: str) -> httpx.Response:
    """Confirm the verdict of an inspection, or override it."""
    confirmed = verdict == answer.json()["verdict"]
    body = {"decision": "confirm"} if confirmed else {"decision": "override", "verdict": verdict, "reason": "looked"}
    made = service.operator.post(f"{answer.json()['links']['record']}/decisions", json=body)
    assert made.status_code == 201, made.text
    return made


def release(service: Service, bundle: str) -> httpx.Response:
    return service.quality.post(f"/v1/products/ring/bundles/{bundle}/release")


def escapes(service: Service) -> dict[str, str]:
    return {each["part"]: each["picture"] for each in service.operator.get("/v1/products/ring").json()["escapes"]}


@pytest.fixture
def lenient(bundle_file: Path, tmp_path: Path) -> Iterator[Service]:
    """A station whose bundle passes everything."""
    decided(bundle_file, tmp_path / "ring.andon", **LENIENT)
    with served(config(tmp_path, pictures={"keep_one_in": 1})) as service:
        yield service


def test_a_bundle_is_released_only_when_it_catches_all_escapes(
    lenient: Service, bundle_file: Path, tmp_path: Path
) -> None:
    through = lenient.inspect(bad(301), "e1")
    assert through.json()["verdict"] == "PASS"
    decide(lenient, through, "REJECT")
    decide(lenient, lenient.inspect(good(302), "fine"), "PASS")
    mistaken = lenient.inspect(good(303), "e2")
    decide(lenient, mistaken, "REJECT")
    assert escapes(lenient) == {"e1": digest(bad(301)), "e2": digest(good(303))}
    for each in (through, mistaken):  # the archive of pictures forgets, the test cases stay
        lenient.station.archive.remove(each.json()["digest"])

    also_lenient = upload(lenient, decided(bundle_file, tmp_path / "other", **LENIENT, pixel_rate=0.2))
    refused = release(lenient, also_lenient)
    assert refused.status_code == 409
    assert "does not catch 2 of 2 escapes: e1 (record " in refused.json()["detail"]
    assert "e2 (record " in refused.json()["detail"] and "fine" not in refused.json()["detail"]
    strict = upload(lenient, bundle_file.read_bytes())
    refused = release(lenient, strict)
    assert refused.status_code == 409 and "1 of 2 escapes: e2 (record" in refused.json()["detail"]
    assert "e1" not in refused.json()["detail"]
    shown = lenient.operator.get("/v1/products/ring").json()["bundles"]
    assert {each["digest"] for each in shown if each["released"] is None} == {also_lenient, strict}

    decide(lenient, mistaken, "PASS")  # the last word counts
    assert list(escapes(lenient)) == ["e1"]
    assert release(lenient, strict).status_code == 200
    (row,) = lenient.station.ledger.history(kind="change", product="ring", limit=1)
    assert row.body["change"] == "release"
    assert row.body["caught"] == [int(through.json()["record"])] and row.body["untested"] == []


def test_escapes_are_known_after_a_restart_and_bind_what_is_put_into_the_folder(
    bundle_file: Path, tmp_path: Path
) -> None:
    decided(bundle_file, tmp_path / "ring.andon", **LENIENT)
    settings = config(tmp_path, pictures={"keep_one_in": 1})
    with served(settings) as service:
        decide(service, service.inspect(bad(304), "e1"), "REJECT")
        before = service.operator.get("/v1/products/ring").json()["active"]
    decided(bundle_file, tmp_path / "ring.andon", **LENIENT, pixel_rate=0.2)
    told: list[str] = []
    with served(settings, told) as service:
        assert escapes(service) == {"e1": digest(bad(304))}
        assert service.operator.get("/v1/products/ring").json()["active"] == before
        assert any("does not catch 1 of 1 escape: e1" in sentence for sentence in told)


def test_an_escape_whose_picture_was_not_kept_is_told(bundle_file: Path, tmp_path: Path) -> None:
    decided(bundle_file, tmp_path / "ring.andon", **LENIENT)
    with served(config(tmp_path, pictures={"keep_one_in": 10**9})) as service:
        through = service.inspect(bad(305), "e1")
        decide(service, through, "REJECT")
        assert escapes(service) == {"e1": ""}
        strict = upload(service, bundle_file.read_bytes())
        assert release(service, strict).status_code == 200
        (row,) = service.station.ledger.history(kind="change", product="ring", limit=1)
        assert row.body["caught"] == [] and row.body["untested"] == [int(through.json()["record"])]


def test_an_escape_whose_picture_aged_out_before_the_decision_is_told(
    lenient: Service, bundle_file: Path, tmp_path: Path
) -> None:
    through = lenient.inspect(bad(308), "e1")
    lenient.station.archive.remove(through.json()["digest"])
    decide(lenient, through, "REJECT")
    assert escapes(lenient) == {"e1": ""}
    again = lenient.inspect(bad(309), "e2")
    decide(lenient, again, "REJECT")  # one that can be tried still is
    other = upload(lenient, decided(bundle_file, tmp_path / "other", **LENIENT, pixel_rate=0.2))
    refused = release(lenient, other)
    assert refused.status_code == 409 and "does not catch 1 of 1 escape: e2" in refused.json()["detail"]
    assert release(lenient, upload(lenient, bundle_file.read_bytes())).status_code == 200
    (row,) = lenient.station.ledger.history(kind="change", product="ring", limit=1)
    records = {part: int(answer.json()["record"]) for part, answer in (("e1", through), ("e2", again))}
    assert row.body["untested"] == [records["e1"]] and row.body["caught"] == [records["e2"]]


def test_a_decision_that_became_durable_after_its_answer_was_given_up_binds_a_release(
    lenient: Service, bundle_file: Path, tmp_path: Path
) -> None:
    row = lenient.station.ledger.record(lenient.inspect(bad(307), "e1").json()["record"])
    assert row
    copied = lenient.station.products.archive.put(bad(307))
    said = {"decision": "override", "record": row.sequence, "was": "PASS", "who": "somebody", "picture": copied}
    lenient.station.keep(Entry("decision", row.job, "ring", row.part, verdict="REJECT", body=said))
    other = upload(lenient, decided(bundle_file, tmp_path / "other", **LENIENT, pixel_rate=0.2))
    refused = release(lenient, other)
    assert refused.status_code == 409 and "escape: e1 (record " in refused.json()["detail"]


def test_a_reject_that_is_confirmed_is_no_escape(bundle_file: Path, tmp_path: Path) -> None:
    shutil.copy(bundle_file, tmp_path / "ring.andon")
    with served(config(tmp_path)) as service:
        caught = service.inspect(bad(306), "caught")
        assert caught.json()["verdict"] == "REJECT"
        decide(service, caught, "REJECT")
        assert escapes(service) == {}


def test_a_disputed_pass_is_no_escape_until_somebody_decides(lenient: Service) -> None:
    answer = lenient.inspect(bad(306), "doubtful")
    assert answer.json()["verdict"] == "PASS"
    dispute = f"{answer.json()['links']['record']}/decisions"
    assert lenient.operator.post(dispute, json={"decision": "dispute"}).status_code == 201
    assert escapes(lenient) == {}
    ledger, archive = lenient.station.ledger, lenient.station.archive
    assert floor.confirmed(ledger, archive, "ring") == floor.Confirmed({}, 0, 0)
    decide(lenient, answer, "REJECT")
    assert escapes(lenient) == {"doubtful": digest(bad(306))}
    assert lenient.operator.post(dispute, json={"decision": "dispute"}).status_code == 201
    assert list(escapes(lenient)) == ["doubtful"]  # a dispute takes nothing back
    decide(lenient, answer, "PASS")
    assert escapes(lenient) == {} and list(floor.confirmed(ledger, archive, "ring").pictures.values()) == ["doubtful"]


def test_a_picture_that_ages_out_meanwhile_is_left_out_and_a_lost_one_is_told(lenient: Service) -> None:
    ledger, archive = lenient.station.ledger, lenient.station.archive
    kept = lenient.inspect(good(430), "kept").json()["digest"]
    with floor.folder({kept: "kept", digest(good(431)): "aged out"}, ledger, archive) as (place, aged):
        assert [path.name for path in place.iterdir()] == [f"1_{kept}.png"] and aged == 1
    archive.remove(kept)
    with pytest.raises(StationError, match="no picture"), floor.folder({kept: "lost"}, ledger, archive):
        pass


def test_teaching_takes_kept_pictures_and_tells_the_damaged_and_the_aged_ones(lenient: Service) -> None:
    station = lenient.station
    answers = [lenient.inspect(good(seed), f"again {seed}").json() for seed in range(440, 444)]
    project = station.teaching.projects.create("again", "again", "Ada")
    assert station.teaching.from_archive(project, "ring", 2, confirmed=False).added == 2
    first, second = (station.ledger.record(answer["record"]) for answer in answers[:2])
    assert first and second
    station.archive.path(second.body["digest"]).write_bytes(b"damaged")
    station.archive.remove(first.body["digest"])  # its record still names it, as while it ages out
    taken = station.teaching.from_archive(project, "ring", 4, confirmed=False)
    assert taken.refused[0].startswith("2 pictures missing or damaged: ")
    station.ledger.forget([Held(first.body["digest"], first.time, 1)], "days")
    damaged, gone = station.teaching.from_archive(project, "ring", 4, confirmed=False).refused
    assert damaged.startswith("1 picture missing or damaged: ") and "differ from the digest in its name" in damaged
    assert gone == "1 picture not kept, or aged out"
    names = station.teaching.pictures(project).listed()
    assert sorted(name[:20] for name in names) == ["train/good/again 442", "train/good/again 443"]
    assert all(name.endswith(".png") for name in names)


def recalibrate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, bundle: Path, out: Path, *options: str) -> int:
    data = tmp_path / "station"
    where = ("--records", data / "records.db", "--pictures", data / "pictures")
    arguments = ("andon", "station", "recalibrate", "ring", bundle, "-o", out, *where, *options)
    monkeypatch.setattr(sys, "argv", list(map(str, arguments)))
    try:
        cli.main()
    except SystemExit as done:
        return int(done.code or 0)
    return 0


def test_parts_confirmed_good_and_no_others_make_the_next_calibration(
    bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    before = shutil.copy(bundle_file, tmp_path / "ring.andon")
    after, data = tmp_path / "after.andon.new", tmp_path / "station"
    with served(config(tmp_path, pictures={"keep_one_in": 1})) as service:
        assert recalibrate(monkeypatch, tmp_path, before, after) == 2
        assert "no picture of a part confirmed good" in capsys.readouterr().err
        sent = {f"good {seed}": good(seed) for seed in range(400, 424)}
        answers = {part: service.inspect(picture, part) for part, picture in sent.items()}
        for answer in answers.values():
            decide(service, answer, "PASS")
        for part in ("good 400", "good 401"):  # the last word counts
            decide(service, answers[part], "REJECT")
        decide(service, answers["good 401"], "PASS")
        decide(service, service.inspect(bad(425), "overridden"), "PASS")
        decide(service, service.inspect(bad(426), "defective"), "REJECT")
        service.inspect(good(427), "not looked at")
        decide(service, service.inspect(good(402), "the same picture"), "REJECT")
        challenged = Entry("challenge", job=9001, product="ring", part="golden", verdict="PASS", score=1.0)
        spoken = replace(challenged, kind="decision", score=None)
        presented, _ = service.station.keep(challenged, spoken)
        refused = service.operator.post(f"/v1/records/{presented.sequence}/decisions", json={"decision": "confirm"})
        assert refused.status_code == 422 and "expected an inspection" in refused.json()["detail"]
        service.station.archive.remove(answers["good 403"].json()["digest"])
    capsys.readouterr()
    assert recalibrate(monkeypatch, tmp_path, before, after) == 0
    said = capsys.readouterr().err
    wanted = [*(sent[part] for part in sent if part not in ("good 400", "good 402", "good 403")), bad(425)]
    old, new = Bundle.load(before), Bundle.load(after)
    assert sorted(new.calibration.digests) == sorted(map(digest, wanted))
    assert "22 pictures of parts confirmed good" in said
    assert "has scores by other detectors, those of its folds. The new good images replace it" in said
    assert "1 confirmed part: the picture was not kept, or aged out" in said
    assert "1 confirmed part: the same picture was also found defective" in said
    assert "of these 22 good images: " in said and "threshold: " in said
    assert new.digest() != old.digest() and new.graph == old.graph and Bundle.load(before).digest() == old.digest()
    assert old.digest() in new.manifest.history[-2]
    assert all(digest(picture) in new.manifest.history[-1] for picture in wanted)
    assert digest(sent["good 400"]) not in new.manifest.history[-1]

    assert recalibrate(monkeypatch, tmp_path, before, after) == 2
    assert "already exists; expected a new file" in capsys.readouterr().err
    assert recalibrate(monkeypatch, tmp_path, after, tmp_path / "third") == 2
    assert "not a bundle of product 'ring'" in capsys.readouterr().err
    assert recalibrate(monkeypatch, tmp_path, before, tmp_path / "third", "--since", "2999-01-01") == 2
    assert "no picture of a part confirmed good" in capsys.readouterr().err
    Archive(data / "pictures").path(digest(sent["good 404"])).write_bytes(b"damaged")
    assert recalibrate(monkeypatch, tmp_path, before, tmp_path / "third") == 2
    assert "differ from the digest in its name" in capsys.readouterr().err and not (tmp_path / "third").exists()
    assert recalibrate(monkeypatch, tmp_path / "nowhere", before, tmp_path / "third") == 2
    assert not (tmp_path / "nowhere").exists()
