"""Modbus TCP against a simulated PLC: pymodbus' own client, on loopback."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from andon.errors import AndonError
from andon.station.config import Config
from andon.station.line import registers as at
from andon.station.line.cameras import Cameras
from andon.station.station import Station
from andon.streams.simulated import Simulated
from conftest import part, save, scratched
from service import lined, until, with_cameras

pytest.importorskip("pymodbus", reason="pymodbus is not installed: pip install 'andon[line]'")
from pymodbus.client import ModbusTcpClient

from andon.station.line.modbus import Modbus

CAMERA, FOLDER = 1, 2
PASS, REJECT, LATE, ERROR = 1, 3, 5, 6
OVERFLOW = 10  # number of the alarm


class Plc:
    """The program of a PLC: it writes its control word, and reads the whole status in one request."""

    def __init__(self, port: int) -> None:
        self.client = ModbusTcpClient("127.0.0.1", port=port)
        assert self.client.connect()

    def write(self, *bits: int, product: int = CAMERA, part: str = "", lot: str = "") -> None:
        ids = [self._words(part), self._words(lot)]
        answer = self.client.write_registers(at.CONTROL, [sum(bits), product, *[0] * 6, *ids[0], *ids[1]])
        assert not answer.isError()

    def read(self) -> dict[str, Any]:
        r = self.client.read_input_registers(at.STATUS, count=at.STATUSES).registers
        names = ("READY", "ACK", "BUSY", "VALID", "MISSED", "ERROR")
        return {
            **{name.lower(): bool(r[0] & getattr(at, name)) for name in names},
            "heartbeat": r[0] & at.HEARTBEAT,
            **dict(zip(("state", "alarm", "latched"), r[1:4], strict=True)),
            "missed_count": r[4] << 16 | r[5],
            "taken": r[6] << 16 | r[7],
            "job": r[8] << 16 | r[9],
            "output": r[10],
            "outcome": r[11],
            "product": r[12],
            "part": b"".join(word.to_bytes(2, "big") for word in r[20:36]).rstrip(b"\0").decode(),
            "digest": b"".join(word.to_bytes(2, "big") for word in r[40:56]).hex(),
        }

    def wait(self, **wanted: Any) -> dict[str, Any]:
        seen: dict[str, Any] = {}

        def there() -> bool:
            seen.update(self.read())
            return all(seen[name] == value for name, value in wanted.items())

        until(there, f"{wanted} does not come: {seen}")
        return seen

    def trigger(self, **ids: Any) -> int:
        """Wait for Ready, trigger, and see the acknowledgement; return the job."""
        self.wait(ready=True)
        self.write(at.ENABLE, at.TRIGGER, **ids)
        seen = self.read()
        assert seen["ack"] and not seen["missed"] and not seen["ready"]
        self.write(at.ENABLE, **ids)
        assert not self.read()["ack"]
        return int(seen["taken"])

    def acknowledge(self) -> None:
        self.write(at.ENABLE, at.RESULTS_ACK)
        assert not self.read()["valid"]
        self.write(at.ENABLE)

    @staticmethod
    def _words(text: str) -> list[int]:
        data = text.encode().ljust(2 * at.TEXT, b"\0")
        return [int.from_bytes(data[i : i + 2], "big") for i in range(0, len(data), 2)]


@pytest.fixture(scope="module")
def settings(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Config:
    """`ring` with a simulated camera, and `file` with a folder of pictures that have the names of parts."""
    modbus = {"port": 0, "products": ["ring", "file"]}
    return with_cameras(tmp_path_factory.mktemp("line"), bundle_file, modbus=modbus, depth=2)


@pytest.fixture(scope="module")
def line(settings: Config) -> Iterator[tuple[Station, Modbus]]:
    with lined(settings) as (station, lines):
        until(lambda: station.ready and len(station.loaded) == 2, f"not ready: {station.products.faults}")
        (modbus,) = (each for each in lines.all if isinstance(each, Modbus))
        yield station, modbus


@pytest.fixture
def plc(line: tuple[Station, Modbus]) -> Iterator[Plc]:
    plc = Plc(line[1].port)
    plc.write(at.ENABLE)
    yield plc
    plc.write(0)
    plc.client.close()
    for result in line[0].machine.memory.latched:
        line[0].acknowledge(result.job.id)


def test_a_part_goes_through_the_whole_handshake(line: tuple[Station, Modbus], plc: Plc) -> None:
    rest = plc.wait(ready=True)
    assert (rest["output"], rest["outcome"], rest["job"], rest["valid"]) == (REJECT, 0, 0, False)
    job = plc.trigger(part="Ä-17", lot="A7")
    seen = plc.wait(valid=True)
    assert (seen["job"], seen["part"], seen["outcome"], seen["output"]) == (job, "Ä-17", PASS, PASS)
    assert (seen["product"], seen["digest"]) == (CAMERA, line[0].machine.memory.products["ring"].digest)
    assert not seen["busy"]
    plc.wait(heartbeat=at.HEARTBEAT - rest["heartbeat"])  # other passes through a graph toggle it too
    shown = line[1].status()
    values = {value.place: value for value in shown.values}
    assert (shown.fault, shown.place) == ("", f"127.0.0.1:{line[1].port}")
    assert values["0"].meaning == "ENABLE" and values["1"].meaning == "ring"
    assert (values["8–23"].value, values["24–39"].value) == ("Ä-17", "A7")
    assert {"READY", "VALID"} <= set(values["100"].meaning.split()) and values["101"].meaning == "Ready"
    assert values["108–109"].value == f"{job}" and values["110"].meaning == values["111"].meaning == "PASS"
    assert (values["120–135"].value, values["140–155"].value) == ("Ä-17", seen["digest"])
    assert {**plc.read(), "heartbeat": 0} == {**seen, "heartbeat": 0}  # looking changes nothing
    plc.acknowledge()
    after = plc.read()
    assert (after["valid"], after["job"], after["output"], after["ready"]) == (False, 0, REJECT, True)
    (row,) = line[0].ledger.history(job=job)
    assert (row.part, row.lot, row.verdict) == ("Ä-17", "A7", "PASS")


def test_a_held_trigger_is_one_part(line: tuple[Station, Modbus], plc: Plc) -> None:
    plc.wait(ready=True)
    plc.write(at.ENABLE, at.TRIGGER, part="held")
    first = plc.wait(valid=True)
    for _ in range(3):
        plc.write(at.ENABLE, at.TRIGGER, part="held")
    held = plc.read()
    assert held["ack"] and not held["ready"] and held["latched"] == 1 and not held["busy"]
    assert (held["taken"], held["missed_count"]) == (first["taken"], first["missed_count"])
    plc.write(at.ENABLE)
    plc.wait(ready=True, ack=False)


def test_a_trigger_that_comes_twice_is_missed_and_counted_once(line: tuple[Station, Modbus], plc: Plc) -> None:
    before = plc.wait(ready=True)["missed_count"]
    job = plc.trigger(product=FOLDER, part="twice")  # no file comes yet: the station is not Ready
    plc.write(at.ENABLE, at.TRIGGER, product=FOLDER, part="twice")
    seen = plc.read()
    assert seen["missed"] and not seen["ack"] and seen["busy"] and seen["taken"] == job
    assert seen["missed_count"] == before + 1
    plc.write(at.ENABLE)
    assert not plc.read()["missed"]
    save(line[0].config.bundles / "incoming" / "other.png", part(101))
    save(line[0].config.bundles / "incoming" / "twice.png", scratched(201)[0])
    seen = plc.wait(valid=True)
    assert (seen["job"], seen["outcome"], seen["output"], seen["part"]) == (job, REJECT, REJECT, "twice")


def test_results_wait_for_a_plc_that_does_not_acknowledge_and_then_come_in_order(
    line: tuple[Station, Modbus], plc: Plc
) -> None:
    jobs = [plc.trigger(part="one"), plc.trigger(part="two")]
    seen = plc.wait(latched=2)
    assert seen["valid"] and seen["job"] == jobs[0] and not seen["ready"]
    plc.write(at.ENABLE, at.TRIGGER, part="three")
    full = plc.read()
    assert full["missed"] and full["missed_count"] == seen["missed_count"] + 1 and full["latched"] == 2
    assert (full["error"], full["state"], full["alarm"]) == (True, 3, OVERFLOW)
    plc.write(at.ENABLE)
    plc.write(at.ENABLE, at.RESULTS_ACK)
    between = plc.read()
    assert not between["valid"] and between["output"] == REJECT and between["latched"] == 1
    assert (between["error"], between["alarm"]) == (False, 0)
    plc.write(at.ENABLE, at.RESULTS_ACK)  # held: acknowledges nothing more
    assert plc.read()["latched"] == 1
    plc.write(at.ENABLE)
    last = plc.wait(valid=True)
    assert (last["job"], last["outcome"], last["output"]) == (jobs[1], PASS, REJECT)  # it waited through an error
    plc.acknowledge()
    assert plc.wait(ready=True)["latched"] == 0


def test_bits_can_be_written_one_by_one_and_read_in_the_same_request(plc: Plc) -> None:
    plc.wait(ready=True)
    plc.client.write_registers(at.PRODUCT, [CAMERA])
    assert not plc.client.mask_write_register(
        address=at.CONTROL, and_mask=0xFFFF ^ at.TRIGGER, or_mask=at.TRIGGER
    ).isError()
    assert plc.read()["ack"]
    answer = plc.client.readwrite_registers(
        read_address=at.STATUS, read_count=1, address=at.CONTROL, values=[at.ENABLE]
    )
    assert answer.registers[0] & at.ACK == 0
    plc.wait(valid=True)


def test_the_map_of_the_documentation_is_the_one_of_the_server() -> None:
    text = (Path(__file__).parents[1] / "docs" / "line-protocols.md").read_text()
    rows = re.findall(r"^\| \d \| (\d+) \| (\w+) \|", text, re.M)
    names = {"ResultsAck": "RESULTS_ACK"}
    assert len(rows) == 11
    assert all(getattr(at, names.get(name, name.upper())) == int(value) for value, name in rows)
    assert f"Read registers {at.STATUS} to {at.STATUS + at.STATUSES - 5}" in text


def test_acknowledging_nothing_does_nothing(plc: Plc) -> None:
    plc.write(at.ENABLE, at.RESULTS_ACK)
    assert plc.read()["latched"] == 0
    plc.write(at.ENABLE)
    plc.trigger(part="after")
    assert plc.wait(valid=True)["part"] == "after"


@pytest.mark.parametrize(
    "bits, product, part",
    [((), CAMERA, "off"), ((at.ENABLE,), 0, "zero"), ((at.ENABLE,), 3, "three"), ((at.ENABLE,), 2, "")],
)
def test_a_trigger_without_enable_product_or_needed_part_is_missed(
    plc: Plc, bits: tuple[int, ...], product: int, part: str
) -> None:
    before = plc.wait(ready=True)["missed_count"]
    plc.write(at.TRIGGER, *bits, product=product, part=part)
    seen = plc.read()
    assert seen["missed"] and not seen["ack"] and not seen["busy"] and seen["missed_count"] == before + 1


def test_a_part_whose_id_is_no_text_is_missed(plc: Plc) -> None:
    before = plc.wait(ready=True)["missed_count"]
    plc.client.write_registers(at.PART, [0xFFFE])
    plc.client.write_register(at.CONTROL, at.ENABLE | at.TRIGGER)
    assert plc.read()["missed_count"] == before + 1


def test_the_status_cannot_be_written_and_other_requests_are_refused(plc: Plc) -> None:
    assert plc.client.write_register(at.STATUS, at.READY | at.VALID).isError()
    assert plc.client.read_holding_registers(at.CONTROLS, count=1).isError()
    assert plc.client.write_coil(0, True).isError()
    assert plc.wait(ready=True)["valid"] is False


def test_an_error_rejects_what_was_a_pass_and_reset_ends_it(line: tuple[Station, Modbus], plc: Plc) -> None:
    station = line[0]
    plc.trigger(part="good")
    assert plc.wait(valid=True)["output"] == PASS
    station.do(lambda now: station.machine.fail("WORKER_DEAD", now, until_reset=True))
    seen = plc.read()
    assert (seen["error"], seen["alarm"], seen["state"], seen["ready"]) == (True, 2, 3, False)
    assert (seen["valid"], seen["outcome"], seen["output"]) == (True, PASS, REJECT)
    plc.write(at.ENABLE, at.RESET)
    plc.wait(error=False, alarm=0)
    plc.acknowledge()
    plc.wait(ready=True)


def test_a_part_without_an_id_is_named_after_its_job(plc: Plc) -> None:
    job = plc.trigger()
    assert plc.wait(valid=True)["part"] == f"job {job}"


def test_another_plc_after_a_broken_connection_finds_the_result(line: tuple[Station, Modbus], plc: Plc) -> None:
    job = plc.trigger(part="left")
    plc.client.close()
    other = Plc(line[1].port)
    assert other.wait(valid=True)["job"] == job
    other.client.close()
    assert plc.client.connect()


@pytest.mark.parametrize("held", [0, at.ENABLE, at.ENABLE | at.TRIGGER | at.RESULTS_ACK])
def test_bits_that_are_held_over_a_start_give_no_edges(line: tuple[Station, Modbus], plc: Plc, held: int) -> None:
    station, modbus = line
    job = plc.trigger(part="before")
    missed = plc.wait(valid=True)["missed_count"]
    restarted = Modbus(station, modbus._cameras, modbus._settings)
    restarted.start()
    other = Plc(restarted.port)
    assert other.read()["job"] == job  # shown before anything is written
    for _ in range(2):
        other.write(held, part=f"held {held}")
        seen = other.read()
        assert (seen["latched"], seen["taken"], seen["missed_count"]) == (1, 0, missed)
        assert (seen["ack"], seen["missed"]) == (False, bool(held & at.TRIGGER))
    other.write(at.ENABLE)
    seen = other.wait(valid=True)
    assert seen["job"] == job and not seen["missed"]
    other.acknowledge()
    other.trigger(part=f"held {held}")
    other.wait(valid=True)
    assert len(station.ledger.history(part=f"held {held}")) == 1
    other.client.close()
    restarted.close()


def test_a_product_that_was_idle_is_loaded_when_the_plc_chooses_it(line: tuple[Station, Modbus], plc: Plc) -> None:
    station = line[0]
    plc.write(at.ENABLE, product=FOLDER)
    plc.wait(ready=True)
    station.loaded["ring"].used -= 61 * 60
    until(lambda: "ring" in station.idle, "it does not sleep")
    plc.wait(ready=True)
    with station.products._changes:  # it cannot be loaded yet
        plc.write(at.ENABLE, product=CAMERA)
        assert not plc.read()["ready"]
        plc.write(at.ENABLE, at.TRIGGER, product=CAMERA, part="early")
        assert plc.read()["missed"]
        plc.write(at.ENABLE, product=CAMERA)
    job = plc.trigger(part="woken")
    seen = plc.wait(valid=True)
    assert (seen["job"], seen["outcome"]) == (job, PASS)


def test_a_port_that_is_taken_is_said(line: tuple[Station, Modbus]) -> None:
    station, modbus = line
    settings = station.config.modbus
    assert settings
    second = Modbus(station, modbus._cameras, settings.model_copy(update={"port": modbus.port}))
    with pytest.raises(AndonError, match=r"cannot listen there.*modbus\.port"):
        second.start()


def test_a_product_that_does_not_exist_is_shown(line: tuple[Station, Modbus]) -> None:
    station, modbus = line
    assert modbus.status().fault == ""
    settings = modbus._settings.model_copy(update={"products": ("ring", "rign")})
    other = Modbus(station, modbus._cameras, settings)
    other.start()
    assert other.status().fault.startswith("product 'rign' does not exist.")
    other.close()


def test_a_camera_that_is_lost_is_an_error_until_it_is_back(line: tuple[Station, Modbus], plc: Plc) -> None:
    camera = line[0].config.bundles / "camera"
    plc.wait(ready=True)
    camera.rename(camera.with_name("unplugged"))
    assert plc.wait(error=True)["alarm"] == 1
    plc.write(at.ENABLE, at.TRIGGER, part="dark")
    assert plc.read()["missed"]
    plc.write(at.ENABLE)
    camera.with_name("unplugged").rename(camera)
    plc.wait(ready=True, error=False)


def test_a_camera_that_is_lost_after_it_was_frozen_is_an_error_after_reset_too(
    line: tuple[Station, Modbus], plc: Plc
) -> None:
    station, camera = line[0], line[0].config.bundles / "camera"
    plc.wait(ready=True)
    station.do(lambda now: station.machine.fail("CAMERA_LOST", now, until_reset=True))  # as frozen pictures do
    camera.rename(camera.with_name("unplugged"))
    until(lambda: line[1]._cameras.status().fault, "it is not lost")
    plc.write(at.ENABLE, at.RESET)
    until(lambda: station.machine.memory.errors == {"CAMERA_LOST": False}, "Reset does not end what was frozen")
    seen = plc.read()
    assert (seen["error"], seen["alarm"], seen["ready"]) == (True, 1, False)
    plc.write(at.ENABLE)
    camera.with_name("unplugged").rename(camera)
    plc.wait(ready=True, error=False, alarm=0)


def test_products_with_the_same_camera_share_it(
    bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GigE camera gives itself to one program once: opened for each product, all but one would be lost."""
    opened: list[Simulated] = []
    first = Simulated.open
    monkeypatch.setattr(Simulated, "open", lambda camera: (opened.append(camera), first(camera))[1])
    settings = with_cameras(tmp_path, bundle_file, modbus={"port": 0, "products": ["ring", "file"]})
    place = settings.products["ring"]
    with lined(settings.model_copy(update={"products": {"ring": place, "file": place}})) as (station, lines):
        until(lambda: station.ready and len(station.loaded) == 2, f"not ready: {station.products.faults}")
        (cameras,) = (each for each in lines.all if isinstance(each, Cameras))
        jobs = {}
        for name in ("ring", "file"):
            until(lambda: station.ready, "not ready for the next part")
            jobs[cameras.trigger(name, f"part of {name}", None, latch=False).id] = name
        until(lambda: len(station.ledger.history(kind="inspection")) == 2, "no two records")
        assert {(row.job, row.product, row.verdict) for row in station.ledger.history(kind="inspection")} == {
            (job, name, "PASS") for job, name in jobs.items()
        }
        assert len(opened) == 1
        (tmp_path / "camera").rename(tmp_path / "unplugged")
        until(lambda: station.cameras_lost == {"ring", "file"}, "not lost for both")
        (tmp_path / "unplugged").rename(tmp_path / "camera")
        until(lambda: not station.cameras_lost and station.ready, "not back")
