"""Work beside the line: verification, backup, recalibration; cancelled, failed, and twice at once."""

import shutil
import tarfile
from collections.abc import Iterator
from datetime import datetime
from io import BytesIO
from pathlib import Path

import pytest

from andon.bundle import Bundle
from andon.errors import AndonError, StorageError
from andon.station import backup, upkeep
from andon.station.background import Background, Work
from andon.station.events import StationError
from andon.station.retention import Usage
from background_steps import steps
from service import BESIDE_S, Service, config, served, until
from test_station_floor import decide
from test_station_service import bad, good


def ended(work: Background, name: str) -> Work:
    until(lambda: (found := work.find(name)) and not found.runs, f"{name} does not end", BESIDE_S)
    found = work.find(name)
    assert found
    return found


def test_work_in_a_process_of_its_own_tells_how_it_goes_and_ends(tmp_path: Path) -> None:
    work, left = Background(), tmp_path / "left"
    assert work.find("a") is None
    for name, count in (("a", 3), ("b", -1)):
        work.start(name, "Ada", steps, count, "")
    done = ended(work, "a")
    assert (done.result, done.error, done.who) == (6, "", "Ada")
    assert (done.stage, done.share, done.said, done.warned) == ("counting", 0.75, ("counted 3",), ("nearly done",))
    assert ended(work, "b").error == "expected a number from 0" and ended(work, "b").result is None
    work.start("a", "Bob", steps, 0, str(left))
    until(left.exists, "it does not begin")
    with pytest.raises(StationError, match="a: already started by Bob"):
        work.start("a", "Ada", steps, 1, "")
    work.forget("a")  # what runs is not forgotten
    assert work.find("a")
    work.cancel("a")
    assert (found := work.find("a")) and not found.runs and found.error == "cancelled, or its process was killed."
    assert not left.exists()
    work.forget("a")
    assert work.find("a") is None
    work.close()


@pytest.fixture(scope="module")
def service(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    """A station with twelve parts confirmed good, one reject, and a key."""
    folder = tmp_path_factory.mktemp("upkeep")
    shutil.copy(bundle_file, folder / "ring.andon")
    (folder / "ring.golden.png").write_bytes(good(500))
    with served(config(folder, pictures={"keep_one_in": 1})) as service:
        for seed in range(501, 513):
            decide(service, service.inspect(good(seed), f"part {seed}"), "PASS")
        assert service.inspect(bad(520), "bad").json()["verdict"] == "REJECT"
        yield service


def test_a_chain_is_verified_beside_the_line(service: Service) -> None:
    station = service.station
    station.upkeep.verify("Ada", pictures=True)
    done = ended(station.upkeep.work, upkeep.VERIFY)
    sequence, digest = station.ledger.head()
    assert done.error == "" and done.result["wrong"] == []
    assert done.result["records"] <= sequence and done.result["station"] == "station"
    kept = station.ledger.history(kind="inspection", limit=1)[0].body["kept"]["picture"]
    data = station.archive.open(kept)
    path = station.archive.path(kept)
    try:
        path.write_bytes(b"another")
        with station.ledger.reading():
            found = upkeep.verified(station.ledger, station.archive)
        assert len(found["wrong"]) == 1 and kept in found["wrong"][0]
    finally:
        path.write_bytes(data)
    assert digest


def test_a_backup_is_whole_and_comes_back_from_one_file(service: Service, tmp_path: Path) -> None:
    care = service.station.upkeep
    assert care.backups() == []
    care.back_up("Ada", pictures=True)
    done = ended(care.work, upkeep.BACKUP)
    assert done.error == "" and done.result["missing"] == {} and done.result["breaks"] == {}
    (found,) = care.backups()
    assert found.name == done.result["name"] and found.records == done.result["records"]["station"]
    data = b"".join(backup.packed(care.backup_of(found.name)))
    assert len(data) > found.size
    with tarfile.open(fileobj=BytesIO(data)) as tar:
        tar.extractall(tmp_path, filter="data")
    copied = backup.restore(tmp_path / found.name, str(tmp_path / "new.db"), tmp_path / "pictures")
    assert copied.records == done.result["records"] and copied.pictures == done.result["pictures"] > 12
    for name in ("../" + found.name, "20260101-000000", ""):
        with pytest.raises(StationError, match="no such backup"):
            care.backup_of(name)
    (care.backup_of(found.name) / backup.MANIFEST).unlink()
    assert care.backups() == []  # not whole


def test_a_backup_without_room_is_refused(service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(service.station.config.data)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=upkeep.ROOM))
    with pytest.raises(StorageError, match="1024 MiB are free; the backup needs 10"):
        service.station.upkeep.back_up("Ada", pictures=False)


def test_a_product_is_recalibrated_on_confirmed_parts_and_rolled_back(service: Service) -> None:
    station = service.station
    care, products = station.upkeep, station.products
    before = products.catalogue.product("ring").active
    with pytest.raises(StationError, match="no recalibration has succeeded"):
        care.adopt("ring", "Ada")
    care.recalibrate("ring", None, "Ada")
    done = care.recalibration("ring")
    assert done and done.who == "Ada"
    done = ended(care.work, "recalibration of ring")
    assert done.error == "" and done.said[0] == "12 pictures of parts confirmed good"
    found = done.result
    assert {part for part, *_ in found["parts"]} == {f"part {seed}" for seed in range(501, 513)}
    scores = {row.part: row.score for row in station.ledger.walk(product="ring", kind="inspection")}
    assert all(score == pytest.approx(scores[part], rel=1e-3) for part, score, *_ in found["parts"])
    assert found["before"]["digest"] == before and found["after"]["images"] == 12
    version = care.adopt("ring", "Ada")
    assert version.digest == found["after"]["digest"] and version.released is None and version.by == "Ada"
    bundle = Bundle.load(products.archive.path(version.file))
    assert bundle.calibration.thresholds(bundle.recipe.decision).review == found["after"]["review"]
    products.release("ring", version.digest, "Ada")
    assert products.activate("ring", version.digest, "Ada").active == version.digest
    assert products.roll_back("ring", "Ada").active == before
    care.dismiss("ring")
    assert care.recalibration("ring") is None
    care.recalibrate("ring", time_after_all(), "Ada")
    assert "no picture of a part confirmed good" in ended(care.work, "recalibration of ring").error
    with pytest.raises(AndonError, match="unknown product"):
        care.recalibrate("rong", None, "Ada")


def time_after_all() -> datetime:
    return datetime.fromisoformat("2999-01-01T00:00:00+00:00")


def test_what_is_kept_and_what_runs_is_told(service: Service) -> None:
    usage = service.station.retention.usage()
    assert [each.worth for each in usage] == [0, 2] and usage[0].files > usage[1].files >= 2
    size = sum(path.stat().st_size for path in service.station.archive.walk())
    assert sum(each.size for each in usage) == size and all(isinstance(each, Usage) for each in usage)
    software = upkeep.software(service.station.ledger)
    assert software["andon"] and software["version of the records"] == "0002" and "." in software["sqlite"]
    service.station.tell("the lamp is new")
    when, sentence = service.station.log[-1]
    assert sentence == "the lamp is new" and when.endswith("Z")
