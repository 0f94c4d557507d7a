"""OPC UA server after OPC 40100-1. Clients prepare recipes, start jobs, and receive results, matched by job."""

import asyncio
from contextlib import suppress
from typing import Any

from asyncua import ua
from asyncua.server.server import Server

from andon import files
from andon.errors import AndonError, StorageError
from andon.station.entries import Row
from andon.station.events import Alarm, Challenge, Event, Notice, Result, Transitioned
from andon.station.line.cameras import Cameras
from andon.station.line.conditions import Conditions
from andon.station.line.methods import Methods
from andon.station.line.model import SYSTEM_STATES
from andon.station.line.security import Internal, Permission, secure
from andon.station.line.served import Served
from andon.station.line.settings import OpcUa as Settings
from andon.station.line.shown import Shown, Value
from andon.station.line.vision import OWN, Space
from andon.station.station import Station
from andon.station.table import STATES

DONE, REFUSED, AWAY = 0, 1, 2
"""Values of `Error`: done; refused because of the state or an argument; records cannot be written now."""
SUBSTATES = ("Initialized", "Ready", "SingleExecution", "ContinuousExecution")
E10 = {
    "Preoperational": "NST",
    "Halted": "SDT",
    "Error": "UDT",
    "Initialized": "SBY",
    "Ready": "SBY",
    "SingleExecution": "PRD",
    "ContinuousExecution": "PRD",
}
"""State → state of SEMI E10. Also SDT while challenge parts are due, and UDT when they have failed."""
POLL_S = 0.2


class OpcUa(Served):
    """The OPC UA server.

    Args:
        station: station to control.
        cameras: sources of its pictures.
        settings: settings of the server.
    """

    def __init__(self, station: Station, cameras: Cameras, settings: Settings) -> None:
        super().__init__("opc ua")
        self._station, self._cameras, self._settings = station, cameras, settings
        self._feed = station.subscribe()
        self._row: Row | None = None
        """The last record of an inspection. A result that is told with its record follows this record directly."""

    def status(self) -> Shown:
        values = self.ask(
            lambda: [
                *(Value(f"{owner}.CurrentState", *each) for owner, each in self._space.states.items()),
                *(Value("event", name, message, f"{when[:19]}Z") for when, name, message in reversed(self._space.last)),
            ]
        )
        return Shown("OPC UA", f"opc.tcp://{self._settings.host}:{self.port}/andon", "", values)

    async def _open(self) -> None:
        settings, station = self._settings, self._station
        server = self._server = Server(Internal())
        uri = f"{OWN}:{files.digest(station.config.name.encode())[:16]}"
        secured = settings.security != "None"
        if secured:
            await secure(server, settings, station.keys, station.config.data, uri)
        else:
            server.set_security_policy([ua.SecurityPolicyType.NoSecurity])
            server.set_identity_tokens([ua.AnonymousIdentityToken])
        await server.init()
        server.set_server_name(f"andon {station.config.name}")
        await server.set_application_uri(uri)
        server.set_endpoint(f"opc.tcp://{settings.host}:{settings.port}/andon")
        self._permission = Permission(station.keys if secured else None)
        self._space = Space(server)
        await self._space.build(self._called)
        self._methods = Methods(station, self._cameras, self._space, self._permission)
        self._conditions = Conditions(station, self._space, self._permission)
        await self._conditions.build()
        await self._space.set("ActiveConfiguration", self._methods.configuration())
        await self._show()
        try:
            await server.start()
        except OSError as error:
            raise AndonError(
                f"opcua: {settings.host}:{settings.port}: cannot listen there: {files.reason(error)}. "
                "Set opcua.port to a free port."
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

    async def _called(self, method: str, *arguments: Any) -> tuple[Any, ...]:
        """Call a method in another thread, because it may block: it may load a bundle."""
        found: dict[str, Any] = {}
        try:
            self._permission.check(method)
            if method == "ConfirmAll":
                await self._conditions.confirm_all(str(getattr(arguments[0], "Text", None) or ""))
            else:
                # The thread has the same context variables, which identify the caller.
                found = await asyncio.to_thread(getattr(self._methods, method), *arguments)
            error = DONE
        except AndonError as problem:
            self._station.tell(f"opcua: {method}: {problem}")
            error = AWAY if isinstance(problem, StorageError) else REFUSED
        return self._space.results(method, {**found, "Error": error})

    # Events

    async def _tell(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            what = await loop.run_in_executor(None, self._feed.get, POLL_S)
            if what is None:
                continue
            try:
                await self._happened(what)
            except Exception as error:  # later events must still be sent
                self._station.tell(f"opcua: an event cannot be sent: {error!r}")

    async def _happened(self, what: Event | Row) -> None:
        space = self._space
        match what:
            case Row(kind="inspection"):
                self._row = what
            case Transitioned(number, source, target):
                await self._show()
                await space.tell("StateChanged", f"{number}: {source} to {target}")
            case Notice("RecipePrepared", _, product, digest):
                external = space.made("RecipeIdExternal", Id=product)
                internal = self._methods.internal(digest or "")
                await space.tell("RecipePrepared", f"{product} is prepared", ExternalId=external, InternalId=internal)
            case Notice("Error" | "ErrorResolved" as name):
                await space.tell(name, f"{sorted(self._station.machine.memory.errors)}", 800)
            case Notice(name, job):
                await space.tell(name, f"job {job}", JobId=space.made("JobId", Id=str(job or "")))
            case Alarm(code, text, active):
                if active:
                    await space.tell("Error", f"{code}: {text}", 600)
                kept = self._station.machine.memory.errors.get(code, False)
                await self._conditions.changed(code, active, kept)
                await self._show()
            case Result(job=job) if not job.challenge:
                row = self._row if self._row and self._row.job == job.id else None
                facts = self._methods.facts(job, self._station.counts(what), row)
                await space.tell("ResultReady", f"job {job.id}, part {job.part}: {what.outcome}", **facts)

    async def _show(self) -> None:
        machine = self._station.machine
        state, stands = machine.state, {each.challenge for each in machine.memory.products.values()}
        active = state in SUBSTATES
        parent = "Operational" if active else state
        await self._space.show("VisionStateMachine", parent, STATES[parent])
        await self._space.show("AutomaticModeStateMachine", state if active else "", STATES[state], active)
        e10 = E10[state]
        if state == "Initialized" and stands & {Challenge.DUE, Challenge.FAILED}:
            e10 = "UDT" if Challenge.FAILED in stands else "SDT"
        described = self._space.made("SystemStateDescription", State=SYSTEM_STATES[e10], StateDescription=e10)
        await self._space.set("SystemState", described)
