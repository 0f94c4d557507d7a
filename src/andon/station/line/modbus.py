"""Modbus TCP: a PLC triggers, reads results and acknowledges them. See docs/line-protocols.md for its handshake."""

import asyncio

from pymodbus.constants import ExcCodes
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from andon.errors import AndonError
from andon.station.events import ALARMS, Outcome, Result, StationError
from andon.station.line import registers as at
from andon.station.line.cameras import Cameras
from andon.station.line.served import Served
from andon.station.line.settings import Modbus as Settings
from andon.station.line.shown import Shown, lacking
from andon.station.station import Station
from andon.station.table import STATES

READ, WRITE = (3, 4), (6, 16, 22, 23)
ALARM_NUMBERS = {code: number for number, code in enumerate(ALARMS, 1)}


class Modbus(Served):
    """The Modbus server.

    Args:
        station: station to control.
        cameras: sources of its pictures.
        settings: settings of the server.
    """

    def __init__(self, station: Station, cameras: Cameras, settings: Settings) -> None:
        super().__init__("modbus")
        self._station, self._cameras, self._settings = station, cameras, settings
        self._control = 0
        self._first = True
        """The PLC has not written a control word since the start."""
        self._written = [0] * at.CONTROLS
        self._ack = self._missed = False
        self._accepted = self._chosen = 0
        self._shown: Result | None = None

    def status(self) -> Shown:
        values = self.ask(lambda: at.shown(self._written, self._status(), self._settings.products))
        faults = filter(None, (lacking(self._station, each) for each in self._settings.products))
        return Shown("Modbus TCP", f"{self._settings.host}:{self.port}", " ".join(faults), values)

    async def _open(self) -> None:
        address = (self._settings.host, self._settings.port)
        device = SimDevice(
            0,
            simdata=[
                SimData(0, count=at.CONTROLS, datatype=DataType.REGISTERS),
                SimData(at.STATUS, count=at.STATUSES, datatype=DataType.REGISTERS, readonly=True),
            ],
            action=self._request,
        )
        self._server = ModbusTcpServer(device, address=address)
        try:
            await self._server.serve_forever(background=True)
        except RuntimeError:
            raise AndonError(
                f"modbus: {address[0]}:{address[1]}: cannot listen there. Expected a free port; ports below 1024 need "
                "a special permission. Set modbus.port."
            ) from None
        listening = self._server.transport
        assert isinstance(listening, asyncio.Server)
        self.port = listening.sockets[0].getsockname()[1]

    async def _close(self) -> None:
        await self._server.shutdown()  # type: ignore[no-untyped-call]

    async def _request(
        self, function: int, first: int, address: int, count: int, values: list[int], new: list[int] | list[bool] | None
    ) -> ExcCodes | None:
        """Handle a request of a PLC to read or write registers, and update the status registers."""
        if function not in READ + WRITE:
            return ExcCodes.ILLEGAL_FUNCTION
        if new:
            values[address : address + count] = [int(each) for each in new]
            self._written = values[: at.CONTROLS]
            if address == at.CONTROL:
                self._obey(values)
        self._chosen = values[at.PRODUCT]
        values[at.STATUS : at.STATUS + at.STATUSES] = self._status().registers()
        return None

    def _obey(self, values: list[int]) -> None:
        """Act on the rising edges of the bits of the control word. The first one since the start has none.

        A PLC can hold its bits over a restart of the station, which has acted on them before.
        """
        first, self._first = self._first, False
        before, self._control = self._control, values[at.CONTROL]
        risen = 0 if first else self._control & ~before
        self._look()
        if risen & at.RESULTS_ACK and self._shown:
            done, self._shown = self._shown, None
            try:
                self._station.acknowledge(done.job.id)
            except StationError as error:
                self._station.tell(f"modbus: {error}")
        if risen & at.RESET:
            self._loop.run_in_executor(None, self._reset)
        if not self._control & at.TRIGGER:
            self._ack = self._missed = False
        elif first:
            self._missed = True
        elif risen & at.TRIGGER:
            self._trigger(values)

    def _reset(self) -> None:
        try:
            self._station.call("reset")
        except AndonError as error:
            self._station.tell(f"modbus: {error}")

    def _trigger(self, values: list[int]) -> None:
        number, products = values[at.PRODUCT], self._settings.products
        try:
            part, lot = (at.text(values[place : place + at.TEXT]) for place in (at.PART, at.LOT))
            if not self._control & at.ENABLE or not 1 <= number <= len(products):
                raise ValueError
        except ValueError:  # includes: not UTF-8
            self._station.miss()
            self._missed = True
            return
        try:
            job = self._cameras.trigger(products[number - 1], part, lot or None, latch=True)
        except StationError:  # the station has counted it as missed
            self._missed = True
            return
        self._ack, self._accepted = True, job.id

    def _look(self) -> None:
        """Show the oldest result, after the PLC has cleared RESULTS_ACK of the previous one."""
        latched, before = self._station.machine.memory.latched, self._shown
        self._shown = next((each for each in latched if before and each.job.id == before.job.id), None)
        if self._shown is None and latched and not self._control & at.RESULTS_ACK:
            self._shown = latched[0]

    def _sleeps(self) -> bool:
        """Whether the product chosen by the PLC is idle. It begins to load, and is not unloaded while it is chosen."""
        products, number = self._settings.products, self._chosen
        if not self._control & at.ENABLE or not 1 <= number <= len(products):
            return False
        return not self._station.products.idle.use(products[number - 1]) and products[number - 1] in self._station.idle

    def _status(self) -> at.Status:
        station = self._station
        with station.lock:
            self._look()
            machine, shown = station.machine, self._shown
            memory = machine.memory
            bits = {
                at.READY: self._control & (at.ENABLE | at.TRIGGER) == at.ENABLE
                and station.ready
                and not self._sleeps(),
                at.ACK: self._ack,
                at.BUSY: any(not job.challenge for job in memory.waiting),
                at.VALID: shown,
                at.MISSED: self._missed,
                at.ERROR: machine.state == "Error",
                at.HEARTBEAT: machine.heartbeat,
            }
            return at.Status(
                word=sum(bit for bit, is_set in bits.items() if is_set),
                state=STATES[machine.state],
                alarm=min((ALARM_NUMBERS[code] for code in memory.errors), default=0),
                latched=len(memory.latched),
                missed=memory.missed,
                taken=self._accepted,
                job=shown.job.id if shown else 0,
                output=at.OUTCOMES[station.output() if shown else Outcome.REJECT],
                outcome=at.OUTCOMES[shown.outcome] if shown else 0,
                product=self._number(shown.job.product) if shown else 0,
                part=shown.job.part if shown else "",
                digest=shown.job.digest if shown else "",
            )

    def _number(self, product: str) -> int:
        products = self._settings.products
        return products.index(product) + 1 if product in products else 0
