"""Folder as a protocol: each new picture in a folder is a part; its result is a file in another folder."""

import json
import os
from concurrent.futures import TimeoutError as Waiting
from concurrent.futures import wait
from pathlib import Path
from typing import Any

from andon import files
from andon.errors import AndonError
from andon.station.entries import LONGEST_TEXT, check_text
from andon.station.events import Outcome, StationError
from andon.station.flight import Finished
from andon.station.line.running import Running
from andon.station.line.settings import Watched
from andon.station.line.shown import Shown, Value, lacking
from andon.station.station import Station
from andon.streams.folder import Folder
from andon.streams.frames import Control, Report

LOOK_S = 0.1
AGAIN_S = 1.0


class Watcher(Running):
    """Inspects the pictures of one folder in order. Pictures without a result are inspected after the next start.

    Args:
        station: station that inspects.
        settings: settings of this folder. AndonError when the folder of pictures is missing.
    """

    def __init__(self, station: Station, settings: Watched) -> None:
        super().__init__(station, f"folder {settings.pictures}")
        self._settings = settings
        self._control = Control(Report(), self._stop, self._tell)
        self._source = Folder(settings.pictures, watch=True, settle=settings.settle_s, skip=settings.results)
        files.make_folder(settings.results)
        self._fault = ""
        self._last: Value | None = None
        """The last result."""

    def status(self) -> Shown:
        settings, last = self._settings, self._last
        values = [Value("results", "folder", str(settings.results)), Value("product", "name", settings.product)]
        fault = self._fault or lacking(self._station, settings.product)
        return Shown("Folder", str(settings.pictures), fault, [*values, *([last] if last else [])])

    def _tell(self, sentence: str) -> None:
        self._station.tell(f"folder: {sentence}")

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                for frame in self._source.frames(self._control):
                    assert isinstance(frame.content, Path)
                    self._fault = ""
                    self._picture(frame.content)
            except AndonError as error:
                self._fault = str(error)
                self._tell(self._fault)
                self._stop.wait(AGAIN_S)

    def _picture(self, path: Path) -> None:
        place = self._settings.results / f"{path.relative_to(self._settings.pictures)}.json"
        try:
            data = self._read(path)
        except OSError as error:
            self._tell(f"{path}: cannot be read: {files.reason(error)}. It was not inspected.")
            return
        except StationError as error:
            facts = {"product": self._settings.product, "part": path.stem, "verdict": Outcome.ERROR}
            self._write(place, {**facts, "error": str(error)})
            return
        if not _done(place, files.digest(data)) and (found := self._inspect(path.stem, data)):
            self._write(place, _shown(found))
            self._last = Value(place.name, "last result", found.outcome.value, f"{found.row.time[:19]}Z")

    def _read(self, path: Path) -> bytes:
        """Read a file. StationError when it is too large, or its name cannot be the id of a part."""
        check_text("part", path.stem, LONGEST_TEXT)
        most = self._station.config.http.max_request_mb << 20
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            if size > most:
                raise StationError(f"{size} bytes; expected at most {most}. See http.max_request_mb.")
            return file.read()

    def _inspect(self, part: str, data: bytes) -> Finished | None:
        """Inspect when the station is ready; None when the station ends first."""
        station, product = self._station, self._settings.product
        while not self._stop.is_set():
            self._note(lacking(station, product))
            if station.products.idle.use(product) and station.ready:
                try:
                    future = station.inspect(product, part, None, data)
                    while not future.done() and not self._stop.is_set():
                        wait([future], AGAIN_S)
                    return future.result(0)
                except Waiting:
                    return None
                except AndonError as error:  # another trigger came first, or records cannot be written
                    self._tell(f"part {part}: {error} andon tries again.")
                    self._stop.wait(AGAIN_S)
            self._stop.wait(LOOK_S)
        return None

    def _note(self, fault: str) -> None:
        """Note why pictures wait, or that they need not; tell it once."""
        if fault and fault != self._fault:
            self._tell(f"{fault} The pictures wait.")
        self._fault = fault

    def _write(self, place: Path, result: dict[str, Any]) -> None:
        """Write a result, with repeated attempts."""
        told = False
        while not self._stop.is_set():
            try:
                files.make_folder(place.parent)
                files.write(place, files.strict_json(result, indent=2).encode())
                return
            except AndonError as error:
                if not told:
                    self._tell(f"{error} andon tries again.")
                told = True
            self._stop.wait(AGAIN_S)


def _done(place: Path, digest: str) -> bool:
    """Whether this picture already has a result."""
    try:
        return bool(json.loads(place.read_text())["digest"] == digest)
    except (OSError, ValueError, KeyError, TypeError):
        return False


def _shown(found: Finished) -> dict[str, Any]:
    row = found.row
    return {
        "product": row.product,
        "part": row.part,
        "verdict": found.outcome,
        "job": row.job,
        "key": row.key,
        "record": row.sequence,
        "time": row.time,
        "score": row.score,
        "p_value": row.p_value,
        **{name: row.body.get(name) for name in ("digest", "bundle", "thresholds", "regions", "error")},
    }
