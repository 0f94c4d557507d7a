"""OPC UA after OPC 40100-1 against asyncua's own client, on loopback."""

import asyncio
import gc
import json
import subprocess
import sys
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from andon.errors import AndonError
from andon.station.entries import Row, decided
from andon.station.events import Job, Outcome
from andon.station.flight import Flight
from andon.station.keys import Role
from andon.station.line.settings import OpcUa as Settings
from andon.station.station import Station
from conftest import part, save
from service import WAIT_S, config, lined, until, with_cameras

pytest.importorskip("asyncua", reason="asyncua is not installed: pip install 'andon[line]'")
from asyncua import Client, ua
from asyncua.crypto.cert_gen import (
    dump_private_key_as_pem,
    generate_private_key,
    generate_self_signed_app_certificate,
)
from asyncua.crypto.security_policies import SecurityPolicyBasic256Sha256
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509.oid import ExtendedKeyUsageOID

from andon.station.line import methods
from andon.station.line.cameras import Cameras
from andon.station.line.model import CONDITIONS, EVENTS, MACHINE_VISION, SYSTEM_STATES
from andon.station.line.opcua import OpcUa

MACHINE, AUTOMATIC = ("VisionStateMachine",), ("VisionStateMachine", "AutomaticModeStateMachine")
LATE, ABORTED = -2, -4


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
        self.subscription = await self.client.create_subscription(20, self)
        await self.subscription.subscribe_events(self.system, types)

    async def watch_conditions(self) -> None:
        parent = self.client.get_node(ua.ObjectIds.AcknowledgeableConditionType)
        parent = await parent.get_child(f"{self._index}:VisionConditionType")
        types = [await parent.get_child(f"{self._index}:{name}Type") for name in CONDITIONS]
        self._names |= {node.nodeid: name for node, name in zip(types, CONDITIONS, strict=True)}
        await self.subscription.subscribe_alarms_and_conditions(self.system, types)

    async def value(self, *path: str) -> Any:
        node = await self.system.get_child([f"{self._index}:{name}" for name in path])
        return await node.read_value()

    async def comment(self, event: Any, method: int) -> None:
        """Acknowledge or confirm a condition."""
        node = self.client.get_node(event.NodeId)
        text = ua.Variant(ua.LocalizedText("seen"), ua.VariantType.LocalizedText)
        await node.call_method(ua.NodeId(method), ua.Variant(event.EventId, ua.VariantType.ByteString), text)

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
        return await self.happens(name, lambda event: job is None or event.JobId.Id == job)

    async def happens(self, name: str, right: Callable[[Any], bool]) -> Any:
        """Wait for an event that is right."""
        async with asyncio.timeout(WAIT_S):
            while True:
                for found, event in self.events:
                    if found == name and right(event):
                        return event
                await asyncio.sleep(0.01)

    async def comes(self, owner: tuple[str, ...], state: str) -> None:
        async with asyncio.timeout(WAIT_S):
            while await self.state(owner) != state:
                await asyncio.sleep(0.01)


async def prepared_for_none(client: Client) -> None:
    """A client without security."""


def run(
    port: int,
    program: Callable[[Plc], Awaitable[None]],
    prepare: Callable[[Client], Awaitable[None]] = prepared_for_none,
) -> None:
    async def main() -> None:
        client = Client(f"opc.tcp://127.0.0.1:{port}/andon")
        await prepare(client)
        async with client:
            plc = Plc(client)
            await plc.connect()
            await plc.comes(AUTOMATIC, "Ready")
            await program(plc)

    asyncio.run(main())


def test_a_client_runs_a_whole_job(line: tuple[Station, int]) -> None:
    station, port = line

    async def program(plc: Plc) -> None:
        for product in ("file", "ring"):
            assert (await plc.recipe("UnprepareRecipe", product))[1:] == [0]
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


ANY, NONE = ua.Variant(2, ua.VariantType.Int32), ua.Variant(0, ua.VariantType.Int32)
RESULTS, CONFIGURATIONS = ("ResultManagement",), ("ConfigurationManagement",)


def page(most: int, start: int) -> tuple[ua.Variant, ...]:
    return *(ua.Variant(each, ua.VariantType.UInt32) for each in (most, start)), NONE


def test_lists_of_recipes_and_results_are_filtered_and_paged(line: tuple[Station, int]) -> None:
    station, port = line

    async def program(plc: Plc) -> None:
        async def recipes(product: str, prepared: ua.Variant, most: int = 0, start: int = 0) -> Any:
            ids = ua.RecipeIdExternalDataType(Id=product), ua.ProductIdDataType()
            return await plc.call(("RecipeManagement",), "GetRecipeListFiltered", *ids, prepared, *page(most, start))

        complete, count, _, found, error = await recipes("", ANY)
        assert (complete, count, error) == (True, 2, 0)
        assert {each.Description.Text for each in found} == {"ring", "file"}
        assert (await recipes("", ANY, 1))[:2] == [False, 1] and (await recipes("", ANY, 1, 1))[:2] == [True, 1]
        assert (await recipes("ring", NONE))[1] == 0 and (await recipes("ring", ua.Variant(1, ua.VariantType.Int32)))[1]
        assert (await recipes("no such product", ANY))[1:4] == [0, 0, []]

        async def results(state: int = 0, part: str = "", job: str = "", bundle: str = "", most: int = 0) -> Any:
            return await plc.call(
                RESULTS,
                "GetResultListFiltered",
                ua.Variant(state, ua.VariantType.Int32),
                ua.MeasIdDataType(),
                ua.PartIdDataType(Id=part),
                ua.RecipeIdExternalDataType(),
                ua.RecipeIdInternalDataType(Id=bundle),
                ua.ConfigurationIdDataType(),
                ua.ConfigurationIdDataType(),
                ua.ProductIdDataType(Id="ring"),
                ua.JobIdDataType(Id=job),
                *page(most, 0),
            )

        jobs = []
        for _ in range(3):
            await plc.comes(AUTOMATIC, "Ready")
            job, error = await plc.start("listed")
            assert error == 0
            jobs.append(job)
            await plc.told("ResultReady", job)
        complete, count, _, found, error = await results(part="listed")
        assert (complete, count, error) == (True, 3, 0)
        assert [each.JobId.Id for each in found] == jobs[::-1]
        complete, count, _, found, error = await results(part="listed", most=2)
        assert (complete, count, [each.JobId.Id for each in found]) == (False, 2, jobs[:0:-1])
        bundle = station.loaded["ring"].version.digest
        assert (await results(1, "listed", jobs[0], bundle))[1] == 1
        assert (
            (await results(-1, "listed"))[1] == (await results(bundle="f" * 64))[1] == (await results(job="x"))[1] == 0
        )

        one = await plc.call(RESULTS, "GetResultComponentsById", ua.ResultIdDataType(Id=jobs[0]), NONE)
        (row,) = station.ledger.history(job=int(jobs[0]))
        assert len(one) == 17 and one[16] == 0 and one[:4] == [False, 0, False, False]
        assert (one[6].Id, one[7].Id, one[9].Id, one[12].Id) == ("listed", "ring", "ring", jobs[0])
        assert one[14].ProcessingDuration == row.body["stages"]["total"]
        assert [each.Value for each in one[15]] == [row.verdict, row.score, row.p_value]
        assert (await plc.call(RESULTS, "GetResultComponentsById", ua.ResultIdDataType(Id="x"), NONE))[16] == 1

    run(port, program)


def test_a_result_is_that_of_the_machine_as_the_station_corrected_it(
    server: tuple[Station, OpcUa], monkeypatch: pytest.MonkeyPatch
) -> None:
    station, opcua = server
    data = (station.config.bundles / "camera" / "101.png").read_bytes()
    rows = [station.inspect("ring", "corrected", None, data).result(WAIT_S).row for _ in range(3)]
    row = rows[0]

    def told() -> tuple[Any, ...]:
        one = opcua._methods.GetResultById(SimpleNamespace(Id=f"{row.job}"), 0)["Result"]
        return one.InternalRecipeId.Id, one.ResultState, [each.Value for each in one.ResultContent]

    def listed(state: int = 0, job: int | None = row.job) -> tuple[bool, list[int]]:
        ids = ["", "corrected", "ring", "", "", "", "", str(job or "")]
        found = opcua._methods.GetResultListFiltered(state, *(SimpleNamespace(Id=each) for each in ids), 0, 0, 0)
        return found["IsComplete"], [each.ResultState for each in found["ResultList"]]

    passed = (row.body["bundle"], 1, ["PASS", row.score, row.p_value])
    for decision in (("override", "quality", "REJECT", "scratch"), ("dispute", "quality")):
        assert told() == passed and listed() == (True, [1])
        station.keep(decided(row, *decision))
    assert told() == passed and listed() == (True, [1])
    station.keep(Flight(Job(row.job or 0, "ring", "", "corrected", 0.0, 0.0), row=row, ended=Outcome.LATE).superseded())
    assert told() == (row.body["bundle"], LATE, ["LATE", row.score, row.p_value])
    assert listed() == listed(LATE) == (True, [LATE]) and listed(1) == (True, [])
    assert listed(job=None) == (True, [1, 1, LATE])
    monkeypatch.setattr(methods, "PAGE", 2)
    monkeypatch.setattr(methods, "LOOKED", 2)  # the two newest are examined
    assert listed(LATE, None) == (False, []) and listed(1, None) == (False, [1, 1])


def test_records_of_jobs_that_ended_without_a_verdict_are_not_held(server: tuple[Station, OpcUa]) -> None:
    station, opcua = server

    async def program(plc: Plc) -> None:
        for number in range(3):
            await plc.comes(AUTOMATIC, "Ready")
            job, _ = await plc.start(f"let go {number}", "file")
            await plc.cause(AUTOMATIC, "Abort")
            await plc.told("ResultReady", job)
        await plc.comes(AUTOMATIC, "Ready")
        job, _ = await plc.start("last")
        result = await plc.told("ResultReady", job)
        assert result.ResultContent[0].Value == "PASS"

    run(opcua.port, program)
    until(lambda: len(station.ledger.history(verdict="ABORTED")) >= 3, "they are not on record")
    held = [each for each in gc.get_objects() if type(each) is Row and str(each.part).startswith("let go")]
    assert len(held) <= 1


def test_the_settings_are_the_one_configuration(line: tuple[Station, int]) -> None:
    async def program(plc: Plc) -> None:
        complete, count, _, (one,), error = await plc.call(CONFIGURATIONS, "GetConfigurationList", *page(0, 0))
        assert (complete, count, error) == (True, 1, 0) and one.InternalId.Hash.hex() == one.InternalId.Id
        assert (await plc.value(*CONFIGURATIONS, "ActiveConfiguration")).InternalId == one.InternalId
        _, again, error = await plc.call(CONFIGURATIONS, "GetConfigurationById", one.InternalId, NONE)
        assert error == 0 and again.InternalId == one.InternalId
        assert await plc.call(CONFIGURATIONS, "ActivateConfiguration", one.InternalId) == 0
        other = ua.ConfigurationIdDataType(Id="f" * 64)
        assert await plc.call(CONFIGURATIONS, "ActivateConfiguration", other) == 1
        job, _ = await plc.start("configured")
        assert (await plc.told("ResultReady", job)).InternalConfigurationId == one.InternalId

    run(line[1], program)


def test_an_error_is_a_condition_that_clients_acknowledge_and_confirm(line: tuple[Station, int]) -> None:
    station, port = line

    async def program(plc: Plc) -> None:
        await plc.watch_conditions()
        assert (await plc.value("SystemState")).State == SYSTEM_STATES["SBY"]
        station.do(lambda now: station.machine.fail("WORKER_DEAD", now, until_reset=True))
        begun = await plc.happens("VisionPersistentErrorCondition", lambda e: e.ConditionName == "WORKER_DEAD")
        assert (begun.Retain, begun.StopReaction, begun.BlockReaction) == (True, True, True)
        assert await plc.value("SystemState") == ua.SystemStateDescriptionDataType(State=5, StateDescription="UDT")
        with pytest.raises(ua.UaStatusCodeError, match="BadEventIdUnknown"):
            await plc.comment(ua_event(begun, b"another"), ua.ObjectIds.AcknowledgeableConditionType_Acknowledge)
        await plc.comment(begun, ua.ObjectIds.AcknowledgeableConditionType_Acknowledge)
        seen = await plc.happens("VisionPersistentErrorCondition", lambda e: getattr(e, "AckedState/Id"))
        assert seen.Comment.Text == "seen" and not getattr(seen, "ConfirmedState/Id") and seen.Retain
        with pytest.raises(ua.UaStatusCodeError, match="BadConditionBranchAlreadyAcked"):
            await plc.comment(seen, ua.ObjectIds.AcknowledgeableConditionType_Acknowledge)
        plc.events.clear()
        refresh = ua.Variant(plc.subscription.subscription_id, ua.VariantType.UInt32)
        node = plc.client.get_node(ua.ObjectIds.ConditionType)
        await node.call_method(ua.NodeId(ua.ObjectIds.ConditionType_ConditionRefresh), refresh)
        await plc.told("VisionPersistentErrorCondition")
        assert await plc.cause(MACHINE, "Reset") == 0
        ended = await plc.happens("VisionPersistentErrorCondition", lambda e: not e.StopReaction)
        assert ended.Retain and "has ended" in ended.Message.Text
        comment = ua.Variant(ua.LocalizedText("all clear"), ua.VariantType.LocalizedText)
        await plc.call(MACHINE, "ConfirmAll", comment)
        last = await plc.happens("VisionPersistentErrorCondition", lambda e: not e.Retain)
        assert getattr(last, "ConfirmedState/Id") and last.Comment.Text == "all clear"

    run(port, program)

    def comments() -> list[str]:
        said = [row.body for row in station.ledger.history(kind="event", limit=20)]
        return [each["comment"] for each in said if each["event"].startswith("alarm ")]

    until(lambda: comments() == ["all clear", "seen"], f"not on record: {comments()}")


def ua_event(event: Any, id: bytes) -> Any:
    """The same condition with another event's id."""
    return SimpleNamespace(NodeId=event.NodeId, EventId=id)


def test_a_secured_server_admits_clients_with_a_key_and_asks_for_their_role(bundle_file: Path, tmp_path: Path) -> None:
    settings = with_cameras(tmp_path, bundle_file, opcua={"port": 0, "security": "Basic256Sha256"})
    save(tmp_path / "ring.golden.png", part(100))
    with lined(settings) as (station, lines):
        until(lambda: station.ready and len(station.loaded) == 2, f"not ready: {station.products.faults}")
        (port,) = (each.port for each in lines.all if isinstance(each, OpcUa))
        keys = {role: station.keys.make(f"the {role.name.lower()}", role) for role in (Role.OPERATOR, Role.QUALITY)}
        bundle = station.loaded["ring"].version.digest
        digits = bytes.fromhex(bundle)

        def with_key(text: str) -> Callable[[Client], Awaitable[None]]:
            async def prepare(client: Client) -> None:
                client.application_uri = "urn:client"
                key = generate_private_key()
                names = [x509.UniformResourceIdentifier("urn:client")]
                usage = [ExtendedKeyUsageOID.CLIENT_AUTH]
                made = generate_self_signed_app_certificate(key, "client", {}, names, usage)
                (tmp_path / "client.der").write_bytes(made.public_bytes(Encoding.DER))
                (tmp_path / "client.pem").write_bytes(dump_private_key_as_pem(key))
                await client.set_security(
                    SecurityPolicyBasic256Sha256,
                    str(tmp_path / "client.der"),
                    str(tmp_path / "client.pem"),
                    mode=ua.MessageSecurityMode.SignAndEncrypt,
                )
                client.set_user("a PLC")
                client.set_password(text)

            return prepare

        async def operator(plc: Plc) -> None:
            job, error = await plc.start("secured")
            assert error == 0 and (await plc.told("ResultReady", job)).InternalRecipeId.Hash == digits
            assert (await plc.recipe("PrepareRecipe", "ring", bundle))[2] == 1
            station.keys.revoke(keys[Role.OPERATOR][0].id)
            assert await plc.start("revoked") == ("", 1)

        async def quality(plc: Plc) -> None:
            assert (await plc.recipe("PrepareRecipe", "ring", bundle))[2] == 0

        station.keys.make("the engineer", Role.ENGINEER)
        run(port, operator, with_key(keys[Role.OPERATOR][1]))
        run(port, quality, with_key(keys[Role.QUALITY][1]))
        with pytest.raises(ua.UaStatusCodeError, match="BadUserAccessDenied"):
            run(port, quality, with_key(keys[Role.OPERATOR][1]))
        with pytest.raises((ua.UaError, ConnectionError, asyncio.TimeoutError)):
            run(port, quality)
        assert (station.config.data / "opcua.pem").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("damage", ["missing", "no certificate"])
def test_a_certificate_that_cannot_be_used_is_said(tmp_path: Path, damage: str) -> None:
    certificate, key = tmp_path / "c.der", tmp_path / "k.pem"
    if damage != "missing":
        certificate.write_bytes(b"no certificate")
    opcua = {"port": 0, "security": "Basic256Sha256", "certificate": certificate, "private_key": key}
    with pytest.raises(AndonError, match=r"c\.der: cannot be used"), lined(config(tmp_path, opcua=opcua)):
        pass


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
    with pytest.raises(AndonError, match=r"cannot listen there.*opcua\.port"):
        second.start()
