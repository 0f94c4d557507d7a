"""OPC UA after OPC 40100-1 against asyncua's own client, on loopback."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from andon.errors import AndonError
from andon.station.line.settings import OpcUa as Settings
from andon.station.station import Station
from service import WAIT_S, lined, until, with_cameras

pytest.importorskip("asyncua", reason="asyncua is not installed: pip install 'andon[line]'")
from asyncua import Client, ua

from andon.station.line.cameras import Cameras
from andon.station.line.opcua import OpcUa
from andon.station.line.vision import EVENTS, MACHINE_VISION

MACHINE, AUTOMATIC = ("VisionStateMachine",), ("VisionStateMachine", "AutomaticModeStateMachine")
ABORTED = -4


@pytest.fixture(scope="module")
def server(bundle_file: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Station, OpcUa]]:
    """`ring` with a simulated camera; `file` with a folder into which no file comes."""
    with lined(with_cameras(tmp_path_factory.mktemp("line"), bundle_file, opcua={"port": 0})) as (station, lines):
        until(lambda: station.ready and len(station.loaded) == 2, f"not ready: {station.products.faults}")
        (server,) = (each for each in lines.all if isinstance(each, OpcUa))
        yield station, server


@pytest.fixture
def line(server: tuple[Station, OpcUa]) -> tuple[Station, int]:
    return server[0], server[1].port


class Plc:
    """A client: it calls methods, and keeps the events it is told."""

    def __init__(self, client: Client) -> None:
        self.client = client
        self.events: list[tuple[str, Any]] = []

    async def connect(self) -> None:
        self._index = await self.client.get_namespace_index(MACHINE_VISION)
        await self.client.load_data_type_definitions()
        self.system = await self.client.nodes.objects.get_child([f"{self._index}:VisionSystem"])
        types = [await self.client.nodes.base_event_type.get_child(f"{self._index}:{n}EventType") for n in EVENTS]
        self._names = {node.nodeid: name for node, name in zip(types, EVENTS, strict=True)}
        subscription = await self.client.create_subscription(20, self)
        await subscription.subscribe_events(self.system, types)

    def event_notification(self, event: Any) -> None:
        self.events.append((self._names[event.EventType], event))

    async def call(self, owner: tuple[str, ...], method: str, *arguments: Any) -> Any:
        node = await self.system.get_child([f"{self._index}:{name}" for name in owner])
        return await node.call_method(f"{self._index}:{method}", *arguments)

    async def start(self, part: str, product: str = "ring", method: str = "StartSingleJob") -> tuple[str, int]:
        job, error = await self.call(
            AUTOMATIC,
            method,
            ua.MeasIdDataType(),
            ua.PartIdDataType(Id=part),
            ua.RecipeIdExternalDataType(Id=product),
            ua.ProductIdDataType(),
            ua.Variant([], ua.VariantType.Variant, is_array=True),
        )
        return job.Id, error

    async def recipe(self, method: str, product: str, internal: str = "") -> Any:
        ids = ua.RecipeIdExternalDataType(Id=product), ua.RecipeIdInternalDataType(Id=internal)
        return await self.call(("RecipeManagement",), method, *ids)

    async def cause(self, owner: tuple[str, ...], method: str) -> int:
        return int(await self.call(owner, method, ua.Variant(0, ua.VariantType.Int32), "a test"))

    async def state(self, owner: tuple[str, ...] = MACHINE) -> str:
        node = await self.system.get_child([*(f"{self._index}:{name}" for name in owner), "0:CurrentState"])
        return str((await node.read_value()).Text)

    async def told(self, name: str, job: str | None = None) -> Any:
        """Wait for an event."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for found, event in self.events:
                    if found == name and (job is None or event.JobId.Id == job):
                        return event
                await asyncio.sleep(0.01)

    async def comes(self, owner: tuple[str, ...], state: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while await self.state(owner) != state:
                await asyncio.sleep(0.01)


def run(port: int, program: Callable[[Plc], Awaitable[None]]) -> None:
    async def main() -> None:
        async with Client(f"opc.tcp://127.0.0.1:{port}/andon") as client:
            plc = Plc(client)
            await plc.connect()
            await plc.comes(AUTOMATIC, "Ready")
            await program(plc)

    asyncio.run(main())


def test_a_client_runs_a_whole_job(line: tuple[Station, int]) -> None:
    station, port = line

    async def program(plc: Plc) -> None:
        for product in ("file", "ring"):
            assert (await plc.recipe("UnprepareRecipe", product))[1:] == [True, 0]
        await plc.comes(AUTOMATIC, "Initialized")
        assert await plc.start("early") == ("", 1)
        internal, completed, error = await plc.recipe("PrepareRecipe", "ring")
        assert (completed, error) == (True, 0)
        prepared = await plc.told("RecipePrepared")
        assert prepared.ExternalId.Id == "ring"
        assert prepared.InternalId.Hash == internal.Hash == bytes.fromhex(station.loaded["ring"].version.digest)
        await plc.comes(AUTOMATIC, "Ready")
        job, error = await plc.start("part 1")
        assert error == 0
        for name in ("JobStarted", "AcquisitionDone", "Ready"):
            await plc.told(name, job)
        result = await plc.told("ResultReady", job)
        assert (result.PartId.Id, result.ExternalRecipeId.Id, result.ResultState) == ("part 1", "ring", 1)
        assert result.InternalRecipeId.Hash == internal.Hash and not result.IsPartial
        (row,) = station.ledger.history(job=int(job))
        assert [each.Value for each in result.ResultContent] == ["PASS", row.score, row.p_value]
        _, again, error = await plc.call(
            ("ResultManagement",), "GetResultById", result.ResultId, ua.Variant(0, ua.VariantType.Int32)
        )
        assert error == 0 and (again.JobId, again.PartId) == (result.JobId, result.PartId)
        assert again.ResultContent == result.ResultContent
        assert (await plc.recipe("PrepareRecipe", "file"))[2] == 0

    run(port, program)
    assert not station.machine.memory.latched


def test_people_see_what_clients_see(server: tuple[Station, OpcUa]) -> None:
    _, opcua = server

    async def program(plc: Plc) -> None:
        job, _ = await plc.start("looked at")
        await plc.told("ResultReady", job)
        await plc.comes(AUTOMATIC, "Ready")
        shown = await asyncio.to_thread(opcua.status)
        assert shown.place == f"opc.tcp://127.0.0.1:{opcua.port}/andon" and not shown.fault
        states = {value.place: (value.value, value.meaning) for value in shown.values}
        assert states["VisionStateMachine.CurrentState"] == ("4", "Operational")
        assert states["AutomaticModeStateMachine.CurrentState"] == ("6", "Ready")
        events = {(value.name, value.value) for value in shown.values if value.place == "event"}
        assert ("ResultReady", f"job {job}, part looked at: PASS") in events

    run(opcua.port, program)


def test_two_jobs_are_told_apart_by_their_ids(line: tuple[Station, int]) -> None:
    async def program(plc: Plc) -> None:
        jobs = {}
        for name in ("a", "b"):
            await plc.comes(AUTOMATIC, "Ready")
            jobs[name], error = await plc.start(name)
            assert error == 0
        assert jobs["a"] != jobs["b"]
        for name, job in jobs.items():
            assert (await plc.told("ResultReady", job)).PartId.Id == name

    run(line[1], program)


def test_abort_ends_a_job_and_the_next_one_runs(line: tuple[Station, int]) -> None:
    station, port = line

    async def program(plc: Plc) -> None:
        missed = station.machine.memory.missed
        job, _ = await plc.start("stuck", "file")
        await plc.comes(AUTOMATIC, "SingleExecution")
        assert await plc.start("second") == ("", 1)
        assert station.machine.memory.missed == missed + 1
        assert await plc.cause(AUTOMATIC, "Abort") == 0
        result = await plc.told("ResultReady", job)
        assert result.ResultState == ABORTED and result.ResultContent[0].Value == "ABORTED"
        assert await plc.cause(AUTOMATIC, "Abort") == 1
        await plc.comes(AUTOMATIC, "Ready")
        job, _ = await plc.start("next")
        assert (await plc.told("ResultReady", job)).ResultState == 1

    run(port, program)


def test_parts_of_a_continuous_job_are_jobs_of_their_own(line: tuple[Station, int]) -> None:
    async def program(plc: Plc) -> None:
        job, error = await plc.start("", method="StartContinuous")
        assert error == 0 and (await plc.told("JobStarted", job))
        await plc.comes(AUTOMATIC, "ContinuousExecution")
        first, second = (await plc.start("one"))[0], (await plc.start("two"))[0]
        assert len({job, first, second}) == 3
        assert await plc.cause(AUTOMATIC, "Stop") == 0
        assert (await plc.told("ResultReady", first)).PartId.Id == "one"
        assert (await plc.told("ResultReady", second)).PartId.Id == "two"

    run(line[1], program)


def test_halt_and_reset(line: tuple[Station, int]) -> None:
    async def program(plc: Plc) -> None:
        assert await plc.cause(MACHINE, "Halt") == 0
        await plc.comes(MACHINE, "Halted")
        with pytest.raises(ua.UaStatusCodeError, match="BadStateNotActive"):
            await plc.state(AUTOMATIC)
        assert await plc.start("halted") == ("", 1)
        assert await plc.cause(MACHINE, "Reset") == 0
        await plc.comes(MACHINE, "Operational")
        await plc.comes(AUTOMATIC, "Ready")
        await plc.told("StateChanged")

    run(line[1], program)


def test_an_error_of_the_station_is_told(line: tuple[Station, int]) -> None:
    station, port = line

    async def program(plc: Plc) -> None:
        station.do(lambda now: station.machine.fail("WORKER_DEAD", now, until_reset=True))
        await plc.comes(MACHINE, "Error")
        assert "WORKER_DEAD" in (await plc.told("Error")).Message.Text
        assert await plc.cause(MACHINE, "Reset") == 0
        await plc.comes(MACHINE, "Operational")

    run(port, program)


def test_what_is_unknown_is_refused(line: tuple[Station, int]) -> None:
    async def program(plc: Plc) -> None:
        assert await plc.start("x", "no such product") == ("", 1)
        assert (await plc.recipe("PrepareRecipe", "no such product"))[2] == 1
        assert (await plc.recipe("PrepareRecipe", "ring", "f" * 64))[2] == 1
        for text in ("", "abc", "999999", "9" * 40):
            timeout = ua.Variant(0, ua.VariantType.Int32)
            answer = await plc.call(("ResultManagement",), "GetResultById", ua.ResultIdDataType(Id=text), timeout)
            assert answer[2] == 1

    run(line[1], program)


CLIENT = """
import asyncio, json, sys
from asyncua import Client, ua
async def main():
    async with Client(sys.argv[1]) as client:
        await client.load_data_type_definitions()
        index = await client.get_namespace_index(sys.argv[2])
        node = await client.nodes.objects.get_child([f"{index}:VisionSystem", f"{index}:ResultManagement"])
        wait = ua.Variant(0, ua.VariantType.Int32)
        id = ua.ResultIdDataType(Id=sys.argv[3])
        handle, result, error = await node.call_method(f"{index}:GetResultById", id, wait)
        print(json.dumps([result.PartId.Id, result.ResultContent[0].Value, result.InternalRecipeId.Hash.hex(), error]))
asyncio.run(main())
"""


def test_another_program_reads_the_types_from_the_server(line: tuple[Station, int]) -> None:
    station, port = line
    found = station.inspect("ring", "outside", None, (station.config.bundles / "camera" / "101.png").read_bytes())
    row = found.result(WAIT_S).row
    command = [sys.executable, "-c", CLIENT, f"opc.tcp://127.0.0.1:{port}/andon", MACHINE_VISION, str(row.job)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=WAIT_S)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == ["outside", "PASS", row.body["bundle"], 0]


def test_a_port_that_is_taken_is_said(line: tuple[Station, int]) -> None:
    station, port = line
    second = OpcUa(station, Cameras(station), Settings(port=port))
    with pytest.raises(AndonError, match=r"cannot be listened on.*opcua\.port"):
        second.start()
