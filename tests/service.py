"""A real station with its service on loopback, for the tests of both."""

import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

from andon.station.config import Config
from andon.station.http.app import Server
from andon.station.keys import Role
from andon.station.line.lines import Lines
from andon.station.station import Station
from andon.station.teaching import work
from andon.station.teaching.background import Run
from andon.station.teaching.pictures import GOOD
from andon.station.teaching.projects import Project, fingerprint
from conftest import part, save

WAIT_S = 60
BESIDE_S = 300
"""For what runs beside the line: at the lowest priority, so it starves beside other work."""


def until(true: Callable[[], object], what: str, wait_s: float = WAIT_S) -> None:
    """Wait for something that other threads or processes do."""
    end = time.monotonic() + wait_s
    while not true():
        assert time.monotonic() < end, what
        time.sleep(0.01)


class Service:
    """A station, its address, and a client for each role."""

    def __init__(self, station: Station, url: str) -> None:
        self.station, self.url = station, url
        self.keys = {role: station.keys.make(f"the {role.name.lower()}", role)[1] for role in Role}
        self.operator, self.quality, self.engineer = (self.client(self.keys[role]) for role in Role)

    def client(self, key: str) -> httpx.Client:
        return httpx.Client(base_url=self.url, headers={"Authorization": f"Bearer {key}"}, timeout=WAIT_S)

    def inspect(self, data: bytes, part: str, product: str = "ring", **query: str) -> httpx.Response:
        return self.operator.post(
            f"/v1/products/{product}/inspections",
            params={"part": part, **query},
            content=data,
            headers={"Content-Type": "image/png"},
        )

    def ready(self) -> None:
        until(lambda: self.station.ready, f"not ready: {self.station.machine.state}, {self.station.products.faults}")


def taught(station: Station, name: str, product: str, bundle_file: Path, count: int = 1) -> tuple[Project, Path]:
    """A project that was trained: with the shared bundle, in less time."""
    teaching = station.teaching
    project = teaching.projects.create(name, product, "Ada")
    place = teaching.projects.place(project)
    for seed in range(count):
        save(place / "pictures" / GOOD / f"{seed:03}.png", part(seed))
    (place / work.TRIED).mkdir(parents=True)
    (place / work.TRIED / "tried.json").write_text("[]")
    shutil.copyfile(bundle_file, place / work.BUNDLE)
    work.describe(str(place))
    seen = fingerprint(place, project.parsed())
    teaching.background._keep(place, Run("train", seen, "Ada", "done"))
    return project, place


@contextmanager
def served(config: Config, told: list[str] | None = None, ready: bool = True) -> Iterator[Service]:
    """Run a station and its service until the block ends."""
    sentences: list[str] = [] if told is None else told
    station = Station(config, sentences.append)
    try:
        station.start()
        lines = Lines(station)
        lines.start()
        server = Server(station, sentences.append, lines)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            addresses: list[str] = []
            until(lambda: addresses.extend(s for s in sentences if "http://" in s) or addresses, "no address is told")
            service = Service(station, addresses[0].split()[-1])
            if ready:
                service.ready()
            yield service
            for client in (service.operator, service.quality, service.engineer):
                client.close()
        finally:
            station.closing = True
            server.should_exit = True
            thread.join()
            lines.close()
    finally:
        station.close()


@contextmanager
def lined(config: Config, told: list[str] | None = None) -> Iterator[tuple[Station, Lines]]:
    """Run a station and its line protocols, without the service, until the block ends."""
    station = Station(config, ([] if told is None else told).append)
    try:
        station.start()
        lines = Lines(station)
        try:
            lines.start()
            yield station, lines
        finally:
            lines.close()
    finally:
        station.close()


def with_cameras(folder: Path, bundle_file: Path, **settings: Any) -> Config:
    """`ring` with a simulated camera, and `file` with an empty folder, for pictures that have the names of parts."""
    for name in ("ring", "file"):
        shutil.copy(bundle_file, folder / f"{name}.andon")
    for seed in range(101, 104):
        save(folder / "camera" / f"{seed}.png", part(seed))
    (folder / "incoming").mkdir()
    products = {"ring": {"camera": f"simulated:{folder}/camera"}, "file": {"camera": str(folder / "incoming")}}
    return config(folder, products=products, frozen_after=0, **settings)


def config(folder: Path, **settings: Any) -> Config:
    """Settings for a folder of bundles, on a free port."""
    values: dict[str, Any] = {"bundles": folder, "data": folder / "station", "deadline_ms": 20_000.0, **settings}
    http = {"port": 0, **values.pop("http", {})}
    return Config.model_validate({**values, "http": http})
