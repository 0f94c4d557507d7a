"""Maintenance while the line runs, which takes minutes: verify, back up, recalibrate."""

import json
import re
import shutil
import time
from datetime import datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from platform import platform, python_version
from typing import Any, NamedTuple

import sqlalchemy as sa

from andon import files
from andon.errors import AndonError, StorageError
from andon.progress import Progress, silent
from andon.station import backup, floor, schema
from andon.station.archive import Archive
from andon.station.background import Background, Report, Work
from andon.station.catalogue import Version
from andon.station.config import Config
from andon.station.entries import stamp
from andon.station.events import StationError
from andon.station.products import Products
from andon.station.reader import Reader

VERIFY, BACKUP = "verification", "backup"
ROOM = 1 << 30
"""Bytes that must remain free after a backup."""
BACKUP_NAME = re.compile(r"\d{8}-\d{6}")
SHOWN = ("andon", "fastapi", "numpy", "onnxruntime", "opencv-python-headless", "openvino", "sqlalchemy")


class Backup(NamedTuple):
    """A complete backup on the disk of the station."""

    name: str
    time: str
    size: int
    """Bytes."""
    records: int


class Upkeep:
    """Maintenance in the background: one task of each kind at a time; one recalibration for each product.

    Args:
        config, ledger, products: of the station.
    """

    def __init__(self, config: Config, ledger: Reader, products: Products) -> None:
        self._config, self._ledger, self._products = config, ledger, products
        self.work = Background()
        self.backups_folder = config.data / "backups"

    def close(self) -> None:
        self.work.close()

    def verify(self, who: str, pictures: bool) -> None:
        """Verify the chain of the records, and the pictures that they name; see `verified` for the result."""
        archive = self._config.data / "pictures" if pictures else None
        self.work.start(VERIFY, who, _verify, self._config.database(), self._config.name, archive)

    def back_up(self, who: str, pictures: bool) -> None:
        """Copy records, bundles and keys to a new folder in `backups_folder`; `pictures`: whether to copy these too."""
        config, data = self._config, self._config.data
        also = [path for path in (data / "bundles", data / "keys.json", data / "drift") if path.exists()]
        needed = ROOM + sum(_size(path) for path in (*also, *([data / "pictures"] if pictures else [])))
        if file := schema.file_of(self._ledger.engine):
            needed += _size(file)
        free = shutil.disk_usage(data).free
        if free < needed:
            raise StorageError(
                f"{data}: {free >> 20} MiB are free; the backup needs {needed >> 20} MiB, including 1 GiB that must "
                "remain free. Free space, or leave the pictures out."
            )
        out = self.backups_folder / time.strftime("%Y%m%d-%H%M%S", time.gmtime())
        self.work.start(BACKUP, who, _back_up, config.database(), out, data / "pictures" if pictures else None, also)

    def backups(self) -> list[Backup]:
        """Return the backups on this disk, the newest first."""
        found = []
        for path in sorted(self.backups_folder.glob("*"), reverse=True):
            if BACKUP_NAME.fullmatch(path.name):
                try:
                    manifest = json.loads((path / backup.MANIFEST).read_bytes())
                    found.append(Backup(path.name, manifest["time"], _size(path), sum(manifest["records"].values())))
                except (OSError, ValueError, KeyError, AttributeError):
                    continue  # not complete
        return found

    def backup_of(self, name: str) -> Path:
        """Return the folder of a backup. StationError when there is none."""
        if name not in {each.name for each in self.backups()}:
            raise StationError(f"backup '{name[:40]}': no such backup. Use a name from the list of backups.")
        return self.backups_folder / name

    def remove_backup(self, name: str) -> None:
        try:
            shutil.rmtree(self.backup_of(name))
        except OSError as error:
            raise StorageError(f"{name}: cannot be removed: {files.reason(error)}. Allow writing there.") from error

    # Recalibration

    def recalibrate(self, product: str, since: datetime | None, who: str) -> None:
        """Recalibrate the active bundle of a product on parts confirmed good, inspected since a time.

        StationError when it has no active bundle. The active bundle does not change; see `adopt`.
        """
        known = self._products.catalogue.product(product)
        if known.active is None:
            raise StationError(f"product '{product}' has no active bundle. Activate one, then recalibrate it.")
        bundle = self._products.archive.path(known.versions[known.active].file)
        data, name = self._config.data, self._config.name
        out = self._recalibrated(product)
        files.make_folder(out.parent)
        arguments = (self._config.database(), name, product, bundle, data / "pictures", since, out)
        self.work.start(_work(product), who, _recalibrate, *arguments)

    def recalibration(self, product: str) -> Work | None:
        """Return the last recalibration of a product since the start of the station. Its result: see `_recalibrate`."""
        return self.work.find(_work(product))

    def adopt(self, product: str, who: str) -> Version:
        """Add the recalibrated bundle as a new version, which is not released."""
        done = self.recalibration(product)
        if done is None or done.result is None:
            raise StationError(f"product '{product}': no recalibration has succeeded. Start one.")
        with self._products.archive.incoming() as place:
            shutil.copyfile(self._recalibrated(product), place)
            file = self._products.archive.move(place, ".andon")
        return self._products.add(product, file, who)

    def dismiss(self, product: str) -> None:
        """Discard a recalibration; cancel it if it runs."""
        self.work.cancel(_work(product))
        self.work.forget(_work(product))
        self._recalibrated(product).unlink(missing_ok=True)

    def _recalibrated(self, product: str) -> Path:
        return self._config.data / "recalibrations" / f"{product}.andon"


def verified(chain: Reader, archive: Archive | None = None, progress: Progress = silent) -> dict[str, Any]:
    """Verify the records of a station, and the pictures in an archive; `wrong` lists all findings."""
    sequence, digest = chain.head()
    wrong = [f"record {each.sequence}: {each.what}" for each in chain.verify(progress)]
    if archive:
        expected, lost = sorted(chain.kept().union(chain.pictures())), dict[str, str]()
        for number, picture in enumerate(expected):
            progress("verifying pictures", number, len(expected))
            try:
                archive.open(picture)
            except StationError as error:
                lost[picture] = str(error)
        kept = chain.kept() if lost else ()  # what has aged out meanwhile is not lost
        wrong += [what for picture, what in lost.items() if picture in kept or chain.holds(picture)]
    return {"station": chain.station, "records": sequence, "digest": digest, "wrong": wrong}


def software(reader: Reader) -> dict[str, str]:
    """Return names and versions of the software of a station."""
    found = {"python": python_version(), "system": platform(terse=True)}
    for name in SHOWN:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    lite = reader.engine.dialect.name == "sqlite"
    with reader.reading() as connection:
        found[reader.engine.dialect.name] = str(
            connection.execute(sa.text("SELECT sqlite_version()" if lite else "SHOW server_version")).scalar_one()
        )
        found["version of the records"] = str(
            connection.execute(sa.text("SELECT version_num FROM alembic_version")).scalar_one()
        )
    return found


def _verify(report: Report, url: str, station: str, pictures: Path | None) -> dict[str, Any]:
    with Reader(url, station) as chain:
        return verified(chain, Archive(pictures) if pictures else None, report.progress)


def _back_up(report: Report, url: str, out: Path, pictures: Path | None, also: list[Path]) -> dict[str, Any]:
    return {**backup.backup(url, out, pictures, also, report.progress)._asdict(), "name": out.name}


def _recalibrate(
    report: Report,
    url: str,
    station: str,
    product: str,
    bundle: Path,
    pictures: Path,
    since: datetime | None,
    out: Path,
) -> dict[str, Any]:
    """Write the new bundle to `out`; return thresholds before and after and, by picture, part, score and verdicts."""
    from andon.bundle import Bundle
    from andon.calibration import judge
    from andon.training import calibrating

    with Reader(url, station) as chain:
        before, after, parts = floor.recalibrate(
            Bundle.load(bundle), chain, Archive(pictures), product, since, report.progress, report.tell, report.warn
        )
    after.save(out)
    old, new = (each.calibration.thresholds(each.recipe.decision) for each in (before, after))
    scores = after.calibration.scores
    return {
        "before": {"digest": before.digest(), **old._asdict(), "images": before.calibration.images},
        "after": {"digest": after.digest(), **new._asdict(), "images": after.calibration.images},
        "parts": [
            (part, score, str(judge(score, old)), str(judge(score, new)))
            for part, score in zip(parts, scores, strict=True)
            if part
        ],
        "usual": before.calibration.scores,
        "sentences": calibrating.before_and_after(before, after),
        "promises": after.calibration.describe(after.recipe.decision),
        "at": stamp(time.time()),
    }


def _work(product: str) -> str:
    return f"recalibration of {product}"


def _size(path: Path) -> int:
    """Return the size of a file, or of all files in a folder, in bytes."""
    try:
        return sum(each.stat().st_size for each in ([path] if path.is_file() else path.rglob("*")) if each.is_file())
    except OSError as error:
        raise AndonError(f"{path}: cannot be read: {files.reason(error)}. Allow reading.") from error
