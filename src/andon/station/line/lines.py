"""All line protocols in the settings of a station."""

from collections.abc import Iterator
from importlib.util import find_spec
from typing import Protocol

from andon.errors import AndonError
from andon.station.line.cameras import Cameras
from andon.station.line.shown import Shown
from andon.station.line.watcher import Watcher
from andon.station.line.webhook import Webhook
from andon.station.station import Station


class Line(Protocol):
    def status(self) -> Shown:
        """Return the values that another system sees now."""
        ...

    def start(self) -> None: ...

    def close(self) -> None: ...


class Lines:
    """Call `start` after the station has started, and `close` before it is closed."""

    def __init__(self, station: Station) -> None:
        self.all = list(_lines(station))

    def start(self) -> None:
        for line in self.all:
            line.start()

    def status(self) -> list[Shown]:
        """Return the values that other systems see now, by protocol."""
        return [line.status() for line in self.all]

    def close(self) -> None:
        for line in reversed(self.all):
            line.close()


def _lines(station: Station) -> Iterator[Line]:
    config = station.config
    cameras = Cameras(station)
    if config.modbus or config.opcua:
        yield cameras
    if config.modbus:
        _need("pymodbus")
        from andon.station.line.modbus import Modbus

        yield Modbus(station, cameras, config.modbus)
    if config.opcua:
        _need("asyncua")
        from andon.station.line.opcua import OpcUa

        yield OpcUa(station, cameras, config.opcua)
    if config.mqtt:
        _need("paho")
        from andon.station.line.mqtt import Mqtt

        yield Mqtt(station, config.mqtt)
    for each in config.webhook:
        yield Webhook(station, each)
    for folder in config.folder:
        yield Watcher(station, folder)


def _need(package: str) -> None:
    if not find_spec(package):
        raise AndonError(f"{package} is not installed; a line protocol needs it. Run: pip install 'andon[line]'.")
