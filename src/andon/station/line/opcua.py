"""OPC UA after OPC 40100-1: clients prepare recipes, start jobs, and are told results, which they match by job."""

import asyncio
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from typing import Any

from asyncua import ua
from asyncua.server.server import Server

from andon import files
from andon.errors import AndonError, StorageError
from andon.station.entries import Row
from andon.station.events import Alarm, Event, Job, Notice, Outcome, Result, StationError, Transitioned
from andon.station.line.cameras import Cameras
from andon.station.line.served import Served
from andon.station.line.settings import OpcUa as Settings
from andon.station.line.shown import Shown, Value
from andon.station.line.vision import Space
from andon.station.station import Station
from andon.station.table import STATES

DONE, REFUSED, AWAY = 0, 1, 2
"""What `Error` means: done; refused, as the state or an argument does not permit it; records cannot be written now."""
SUBSTATES = ("Initialized", "Ready", "SingleExecution", "ContinuousExecution")
RESULT_STATES = {
    Outcome.PASS: 1,
    Outcome.REVIEW: 1,
    Outcome.REJECT: 1,
    Outcome.INVALID: -1,
    Outcome.LATE: -2,
    Outcome.ERROR: -3,
    Outcome.ABORTED: -4,
}
POLL_S = 0.2
CLIENT = "OPC UA"
"""Who activates bundles."""


class OpcUa(Served):
    """The server.

    Args:
        station: that clients use.
        cameras: where its pictures come from.
        settings: its own.
    """

    def __init__(self, station: Station, cameras: Cameras, settings: Settings) -> None:
        super().__init__("opc ua")
        self._station, self._cameras, self._settings = station, cameras, settings
        self._feed = station.subscribe()
        self._rows: dict[int, Row] = {}

    def status(self) -> Shown:
        values = self.ask(
            lambda: [
                *(Value(f"{owner}.CurrentState", *each) for owner, each in self._space.states.items()),
                *(Value("event", name, message, f"{when[:19]}Z") for when, name, message in reversed(self._space.last)),
            ]
        )
        return Shown("OPC UA", f"opc.tcp://{self._settings.host}:{self.port}/andon", "", values)

    async def _open(self) -> None:
        settings = self._settings
        server = self._server = Server()
        await server.init()
        server.set_server_name(f"andon {self._station.config.name}")
        server.set_endpoint(f"opc.tcp://{settings.host}:{settings.port}/andon")
        server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
        server.set_identity_tokens([ua.AnonymousIdentityToken])
        self._space = Space(server)
        await self._space.build(self._called)
        await self._show()
        try:
            await server.start()
        except OSError as error:
            raise AndonError(
                f"opcua: {settings.host}:{settings.port}: cannot be listened on: {files.reason(error)}. "
                "Set opcua.port to a free one."
            ) from None
        listening = server.bserver and server.bserver._server
        assert isinstance(listening, asyncio.Server)
        self.port = listening.sockets[0].getsockname()[1]
        self._pump = asyncio.create_task(self._tell())

    async def _close(self) -> None:
        self._pump.cancel()
        with suppress(asyncio.CancelledError):
            await self._pump
        await self._server.stop()
        self._station.unsubscribe(self._feed)

    # Methods

    async def _called(self, method: str, *arguments: Any) -> tuple[Any, ...]:
        """Call the station in another thread: it may have to load a bundle."""
        calls: dict[str, Callable[..., tuple[Any, ...]]] = {
            "StartSingleJob": self._start,
            "StartContinuous": self._continue,
            "PrepareRecipe": self._prepare,
            "UnprepareRecipe": self._unprepare,
            "GetResultById": self._result,
        }
        name = {"SelectModeAutomatic": "select_mode_automatic"}.get(method, method.lower())
        call = calls.get(method) or (lambda *_: self._method(name))
        try:
            found, error = await asyncio.get_running_loop().run_in_executor(None, call, *arguments), DONE
        except StorageError as problem:
            found, error = self._nothing(method), self._refused(method, problem, AWAY)
        except AndonError as problem:
            found, error = self._nothing(method), self._refused(method, problem, REFUSED)
        return (*found, ua.Variant(error, ua.VariantType.Int32))

    def _refused(self, method: str, problem: AndonError, error: int) -> int:
        self._station.tell(f"opcua: {method}: {problem}")
        return error

    def _nothing(self, method: str) -> tuple[Any, ...]:
        """What a method returns when it is refused."""
        space = self._space
        if method in ("StartSingleJob", "StartContinuous"):
            return (space.made("JobId"),)
        if method in ("PrepareRecipe", "UnprepareRecipe"):
            return (space.made("RecipeIdInternal"), False)
        return (_handle(0), space.made("Result")) if method == "GetResultById" else ()

    def _method(self, name: str) -> tuple[Any, ...]:
        self._station.call(name)
        return ()

    def _continue(self, *_: Any) -> tuple[Any, ...]:
        with self._station.lock:
            self._station.call("start_continuous")
            job = self._station.machine.memory.next_job - 1
        return (self._space.made("JobId", Id=str(job)),)

    def _start(self, meas: Any, part: Any, recipe: Any, product: Any, parameters: Any) -> tuple[Any, ...]:
        job = self._cameras.trigger(_id(recipe) or _id(product), _id(part), None, latch=False)
        return (self._space.made("JobId", Id=str(job.id)),)

    def _prepare(self, external: Any, internal: Any) -> tuple[Any, ...]:
        """Prepare a product, with the bundle whose digest is given when one is."""
        products, name = self._station.products, _id(external)
        if _id(internal):
            products.activate(name, _id(internal), CLIENT)
        version = products.prepare(name)
        prepared = name in self._station.machine.memory.products
        return (self._internal(version.digest), prepared)

    def _unprepare(self, external: Any, internal: Any) -> tuple[Any, ...]:
        name = _id(external)
        version = self._station.products.prepare(name)
        self._station.products.unprepare(name)
        return (self._internal(version.digest), True)

    def _result(self, result: Any, timeout: Any) -> tuple[Any, ...]:
        """A result by its id, from the records."""
        text = _id(result)
        rows = self._station.ledger.history(job=int(text), limit=1) if text.isdecimal() and len(text) < 19 else []
        if not rows or rows[0].verdict is None:
            raise StationError(f"result '{text[:40]}': there is no such result. Expected the id of a job that ended.")
        row = rows[0]
        digest = str(row.body.get("bundle") or "")
        job = Job(row.job or 0, row.product or "", digest, row.part or "", 0.0, 0.0)
        facts = self._facts(job, Outcome(str(row.verdict)), row)
        return (_handle(0), self._space.made("Result", **facts))

    # What happens

    async def _tell(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            what = await loop.run_in_executor(None, self._feed.get, POLL_S)
            if what is None:
                continue
            try:
                await self._happened(what)
            except Exception as error:  # the next event must be told all the same
                self._station.tell(f"opcua: an event cannot be told: {error!r}")

    async def _happened(self, what: Event | Row) -> None:
        space = self._space
        match what:
            case Row(kind="inspection", job=int(job)):
                self._rows[job] = what
            case Transitioned(number, source, target):
                await self._show()
                await space.tell("StateChanged", f"{number}: {source} to {target}")
            case Notice("RecipePrepared", _, product, digest):
                external = space.made("RecipeIdExternal", Id=product)
                internal = self._internal(digest or "")
                await space.tell("RecipePrepared", f"{product} is prepared", ExternalId=external, InternalId=internal)
            case Notice("Error" | "ErrorResolved" as name):
                await space.tell(name, f"{sorted(self._station.machine.memory.errors)}", 800)
            case Notice(name, job):
                await space.tell(name, f"job {job}", JobId=space.made("JobId", Id=str(job or "")))
            case Alarm(code, text, active) if active:
                await space.tell("Error", f"{code}: {text}", 600)
            case Result(job=job) if not job.challenge:
                facts = self._facts(job, self._station.counts(what), self._rows.pop(job.id, None))
                await space.tell("ResultReady", f"job {job.id}, part {job.part}: {what.outcome}", **facts)

    async def _show(self) -> None:
        state = self._station.machine.state
        active = state in SUBSTATES
        parent = "Operational" if active else state
        await self._space.show("VisionStateMachine", parent, STATES[parent])
        await self._space.show("AutomaticModeStateMachine", state if active else "", STATES[state], active)

    def _facts(self, job: Job, outcome: Outcome, row: Row | None) -> dict[str, Any]:
        """The fields of a result."""
        space, text = self._space, str(job.id)
        numbers = (row.score, row.p_value) if row else (None, None)
        content = [
            ua.Variant(outcome.value),
            *(ua.Variant(each, ua.VariantType.Double) for each in numbers if each is not None),
        ]
        return {
            "ResultId": space.made("ResultId", Id=text),
            "IsPartial": False,
            "ResultState": RESULT_STATES[outcome],
            "JobId": space.made("JobId", Id=text),
            "PartId": space.made("PartId", Id=job.part),
            "ExternalRecipeId": space.made("RecipeIdExternal", Id=job.product),
            "InternalRecipeId": self._internal(job.digest),
            "CreationTime": datetime.fromisoformat(row.time) if row else datetime.now().astimezone(),
            "ResultContent": content,
        }

    def _internal(self, digest: str) -> Any:
        fields = {"Hash": bytes.fromhex(digest), "HashAlgorithm": "SHA-256"} if digest else {}
        return self._space.made("RecipeIdInternal", Id=digest, **fields)


def _id(value: Any) -> str:
    """The text of an id that a client gave; empty when it is none."""
    return str(getattr(value, "Id", None) or "")


def _handle(number: int) -> ua.Variant:
    return ua.Variant(number, ua.VariantType.UInt32)
