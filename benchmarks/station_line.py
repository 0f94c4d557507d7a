"""Time from a trigger to a valid result by a line protocol. `benchmarks/station.py --line` calls this.

The station runs in a process of its own. Its camera gives a picture at once, so that nothing but the station is
measured: acknowledgement, inspection, durable record, and the way of the result to the client.
"""

import asyncio
import multiprocessing
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal

from andon.station.config import Config
from andon.station.events import Job
from andon.station.line import registers as at
from andon.station.line.cameras import Cameras
from andon.station.reader import Reader
from andon.station.station import Station

STAGES = ("read", "prepare", "score", "judge")
CYCLE_S = 0.001  # pause of the simulated PLC between two readings
Protocol = Literal["modbus", "opcua"]


class AtOnce(Cameras):
    """A camera whose picture is there when the trigger comes."""

    def __init__(self, station: Station, pictures: list[bytes]) -> None:
        super().__init__(station)
        self._pictures, self._pool = pictures, ThreadPoolExecutor(1)

    def trigger(self, product: str, part: str, lot: str | None, latch: bool) -> Job:
        job = self._station.trigger(product, part or "part", lot, latch)
        self._pool.submit(self._station.picture, job.id, self._pictures[job.id % len(self._pictures)])
        return job


def serve(folder: Path, pictures: list[bytes], protocol: Protocol, port: Any, end: Any) -> None:
    """Run a station until `end` is set; put the port of the protocol into a queue."""
    sections = {"modbus": {"port": 0, "products": ["part"]}, "opcua": {"port": 0}}
    settings: dict[str, Any] = {"bundles": folder, "data": folder / "station", "frozen_after": 0}
    config = Config.model_validate({**settings, protocol: sections[protocol]})
    station = Station(config, print)
    station.start()
    while not station.ready:
        time.sleep(0.05)
    cameras = AtOnce(station, pictures)
    if config.modbus:
        from andon.station.line.modbus import Modbus

        server: Any = Modbus(station, cameras, config.modbus)
    else:
        from andon.station.line.opcua import OpcUa

        assert config.opcua
        server = OpcUa(station, cameras, config.opcua)
    server.start()
    port.put(server.port)
    end.wait()
    server.close()
    station.close()


def measure(folder: Path, pictures: list[bytes], protocol: Protocol, count: int) -> tuple[list[float], list[float]]:
    """Seconds from trigger to valid result of each part: above the stages of its inspection, and in all."""
    spawn = multiprocessing.get_context("spawn")
    port, end = spawn.Queue(), spawn.Event()
    station = spawn.Process(target=serve, args=(folder, pictures, protocol, port, end))
    station.start()
    try:
        found = modbus(port.get(), count) if protocol == "modbus" else asyncio.run(opcua(port.get(), count))
    finally:
        end.set()
        station.join(30)
    with Reader(str(folder / "station/records.db"), "station") as reader:
        rows = {row.job: row for row in reader.walk(kind="inspection")}
    own = {job: sum(row.body["stages"][stage] for stage in STAGES) / 1000 for job, row in rows.items()}
    return [took - own[job] for job, took in found.items()], list(found.values())


def modbus(port: int, count: int) -> dict[int, float]:
    """A PLC that polls as fast as it can: seconds of each job."""
    from pymodbus.client import ModbusTcpClient

    client = ModbusTcpClient("127.0.0.1", port=port)
    assert client.connect()

    def control(*bits: int) -> None:
        client.write_registers(at.CONTROL, [sum(bits), 1])

    def wait(bit: int, value: bool) -> list[int]:
        while True:
            read: list[int] = client.read_holding_registers(at.STATUS, count=12).registers
            if bool(read[0] & bit) == value:
                return read
            time.sleep(CYCLE_S)

    found = {}
    for _ in range(count):
        control(at.ENABLE)
        wait(at.READY, True)
        start = time.perf_counter()
        control(at.ENABLE, at.TRIGGER)
        seen = wait(at.VALID, True)
        found[seen[8] << 16 | seen[9]] = time.perf_counter() - start
        control(at.ENABLE, at.RESULTS_ACK)
        wait(at.VALID, False)
    client.close()
    return found


async def opcua(port: int, count: int) -> dict[int, float]:
    """A client that waits for the event ResultReady: seconds of each job."""
    from asyncua import Client, ua

    from andon.station.line.model import MACHINE_VISION

    came: dict[str, asyncio.Future[float]] = {}

    class Told:
        def event_notification(self, event: Any) -> None:
            came.setdefault(event.JobId.Id, asyncio.get_running_loop().create_future()).set_result(time.perf_counter())

    found = {}
    async with Client(f"opc.tcp://127.0.0.1:{port}/andon") as client:
        index = await client.get_namespace_index(MACHINE_VISION)
        await client.load_data_type_definitions()
        system = await client.nodes.objects.get_child([f"{index}:VisionSystem"])
        ready = await client.nodes.base_event_type.get_child(f"{index}:ResultReadyEventType")
        await (await client.create_subscription(1, Told())).subscribe_events(system, ready)
        machine = await system.get_child([f"{index}:VisionStateMachine", f"{index}:AutomaticModeStateMachine"])
        state = await machine.get_child("0:CurrentState")
        start_job = await machine.get_child(f"{index}:StartSingleJob")
        for number in range(count):
            while (await state.read_value()).Text != "Ready":
                pass
            start = time.perf_counter()
            job, error = await machine.call_method(
                start_job,
                ua.MeasIdDataType(),
                ua.PartIdDataType(Id=f"part {number}"),
                ua.RecipeIdExternalDataType(Id="part"),
                ua.ProductIdDataType(),
                ua.Variant([], ua.VariantType.Variant, is_array=True),
            )
            assert error == 0, error
            done = came.setdefault(job.Id, asyncio.get_running_loop().create_future())
            found[int(job.Id)] = await done - start
    return found
