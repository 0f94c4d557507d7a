"""Folder in, folder out."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from andon.errors import AndonError
from andon.files import digest
from andon.station.config import Config
from andon.station.line.settings import Watched
from andon.station.station import Station
from conftest import part, save, scratched
from service import config, lined, until


@contextmanager
def line(config: Config, told: list[str]) -> Iterator[Station]:
    with lined(config, told) as (station, _):
        yield station


def read(path: Path) -> dict[str, Any]:
    until(path.exists, f"{path.name} does not come")
    return dict(json.loads(path.read_text()))


def test_each_picture_gets_its_result_once_also_after_a_restart(bundle_file: Path, tmp_path: Path) -> None:
    shutil.copy(bundle_file, tmp_path / "ring.andon")
    pictures, results = tmp_path / "in", tmp_path / "in" / "out"
    good = save(pictures / "shift" / "good.png", part(101))
    folder = Watched(product="ring", pictures=pictures, results=results, settle_s=0.0)
    settings = config(tmp_path, http={"max_request_mb": 1}).model_copy(update={"folder": (folder,)})
    told: list[str] = []
    with line(settings, told) as station:
        first = read(results / "shift" / "good.png.json")
        assert (first["verdict"], first["part"], first["digest"]) == ("PASS", "good", digest(good.read_bytes()))
        away = tmp_path / "away"  # a file comes whole: nothing waits for what is being written
        save(away / "bad.png", scratched(201)[0])
        (away / "torn.png").write_bytes(good.read_bytes()[:500])
        (away / "huge.png").write_bytes(bytes((1 << 20) + 1))
        for file in sorted(away.iterdir()):
            file.rename(pictures / file.name)
        bad = read(results / "bad.png.json")
        assert bad["verdict"] == "REJECT" and bad["regions"]
        torn = read(results / "torn.png.json")
        assert torn["verdict"] == "INVALID" and torn["error"]
        huge = read(results / "huge.png.json")
        assert huge["verdict"] == "ERROR" and "max_request_mb" in huge["error"]
        assert station.ledger.record(bad["record"]).key == bad["key"]
    save(pictures / "later.png", part(102))
    with lined(settings, told) as (station, lines):
        assert read(results / "later.png.json")["verdict"] == "PASS"
        kept = station.ledger.history(kind="inspection", limit=10)
        assert sorted(row.part for row in kept) == ["bad", "good", "later", "torn"]
        until(lambda: lines.status()[0].values[-1].name == "last result", "it is not shown")
        (shown,) = lines.status()
        assert (shown.place, shown.fault) == (str(pictures), "")
        assert shown.values[-1][:3] == ("later.png.json", "last result", "PASS")


def test_a_folder_of_a_product_that_does_not_exist_is_said_once_and_waits_for_it(
    bundle_file: Path, tmp_path: Path
) -> None:
    shutil.copy(bundle_file, tmp_path / "ring.andon")
    places = {name: tmp_path / name for name in ("in", "out", "rings")}
    folders = (
        Watched(product="rign", pictures=places["in"], results=places["out"], settle_s=0.0),
        Watched(product="ring", pictures=places["in"], results=places["rings"], settle_s=0.0),
    )
    save(places["in"] / "good.png", part(101))
    settings = config(tmp_path).model_copy(update={"folder": folders})
    told: list[str] = []
    with lined(settings, told) as (station, lines):
        assert read(places["rings"] / "good.png.json")["product"] == "ring"
        said = "product 'rign' does not exist. Upload, release and activate a bundle, or correct the settings."
        until(lambda: f"folder: {said} The pictures wait." in told, f"it is not said: {told}")
        assert [shown.fault for shown in lines.status()] == [said, ""]
        file = station.products.archive.put(bundle_file.read_bytes(), ".andon")
        version = station.products.add("rign", file, "x")
        until(lambda: any("'rign' has no active bundle" in each for each in told), f"it is not said: {told}")
        station.products.golden("rign", save(tmp_path / "golden.png", part(100)).read_bytes(), "x")
        station.products.release("rign", version.digest, "x")
        station.products.activate("rign", version.digest, "x")
        assert read(places["out"] / "good.png.json")["product"] == "rign"
        assert not any(shown.fault for shown in lines.status())
    assert len([each for each in told if "pictures wait" in each]) == 2


def test_a_folder_that_is_missing_is_said(tmp_path: Path) -> None:
    folder = Watched(product="ring", pictures=tmp_path / "none", results=tmp_path / "out")
    with (
        pytest.raises(AndonError, match="no such folder"),
        line(config(tmp_path).model_copy(update={"folder": (folder,)}), []),
    ):
        pass
