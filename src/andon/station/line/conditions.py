"""Errors of the station as OPC UA conditions, which clients acknowledge and confirm."""

from dataclasses import dataclass
from typing import Any

from asyncua import ua
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.status_codes import StatusCodes

from andon.station.entries import Entry
from andon.station.events import ALARMS, ERRORS
from andon.station.line.security import Permission
from andon.station.line.vision import Space
from andon.station.station import Station

WARNING, ERROR, PERSISTENT = "VisionWarningCondition", "VisionErrorCondition", "VisionPersistentErrorCondition"
LASTING = (*ERRORS, "CHALLENGE_FAILED")
"""The alarms with a begin and an end. Each is a condition."""
SEVERITIES = {WARNING: 500, ERROR: 800, PERSISTENT: 900}


@dataclass
class Condition:
    """One alarm as an OPC UA condition."""

    kind: str
    active: bool
    acknowledged: bool = False
    confirmed: bool = False
    event: bytes = b""
    """Id of its last event."""
    comment: str = ""

    @property
    def retained(self) -> bool:
        """Whether clients must still see it (Retain)."""
        return self.active or not (self.acknowledged and self.confirmed)

    def fields(self) -> dict[str, Any]:
        states = {
            "EnabledState": ("Enabled", True),
            "AckedState": ("Acknowledged" if self.acknowledged else "Unacknowledged", self.acknowledged),
            "ConfirmedState": ("Confirmed" if self.confirmed else "Unconfirmed", self.confirmed),
        }
        return {
            **{name: ua.LocalizedText(text) for name, (text, _) in states.items()},
            **{f"{name}/Id": set_ for name, (_, set_) in states.items()},
            "Retain": self.retained,
            "Quality": ua.StatusCode(ua.UInt32(StatusCodes.Good)),
            "Comment": ua.LocalizedText(self.comment),
            "StopReaction": self.active and self.kind != WARNING,
            "BlockReaction": self.active and self.kind != ERROR,
        }


class Conditions:
    """All conditions of a station. Methods must be called in the thread of the server's event loop."""

    def __init__(self, station: Station, space: Space, permission: Permission) -> None:
        self._station, self._space, self._permission = station, space, permission
        self._known: dict[str, Condition] = {}
        self._codes: dict[ua.NodeId, str] = {}

    async def build(self) -> None:
        """Create a node for each condition, and link the methods that clients call."""
        for code in LASTING:
            self._codes[await self._space.condition(code)] = code
        self._space.link(ObjectIds.AcknowledgeableConditionType_Acknowledge, self._acknowledge)
        self._space.link(ObjectIds.AcknowledgeableConditionType_Confirm, self._confirm)
        self._space.link(ObjectIds.ConditionType_ConditionRefresh, self._refresh)
        for code, until_reset in dict(self._station.machine.memory.errors).items():
            await self.changed(code, True, until_reset)

    async def changed(self, code: str, active: bool, until_reset: bool) -> None:
        """Note that an alarm has begun or ended. A new one is neither acknowledged nor confirmed."""
        if code not in LASTING:
            return
        before = self._known.get(code)
        if active:
            kind = WARNING if code not in ERRORS else PERSISTENT if until_reset else ERROR
            self._known[code] = Condition(kind, True)
        elif before:
            before.active = False
        if code in self._known:
            await self._tell(code)

    async def confirm_all(self, comment: str) -> None:
        """Acknowledge and confirm all conditions."""
        for code, each in self._known.items():
            if each.retained:
                each.acknowledged = each.confirmed = True
                each.comment = comment
                self._record("confirmed", code, comment)
                await self._tell(code)

    async def _acknowledge(self, node: ua.NodeId, event: bytes, comment: ua.LocalizedText) -> ua.StatusCode:
        return await self._mark(node, event, comment, "acknowledged", StatusCodes.BadConditionBranchAlreadyAcked)

    async def _confirm(self, node: ua.NodeId, event: bytes, comment: ua.LocalizedText) -> ua.StatusCode:
        return await self._mark(node, event, comment, "confirmed", StatusCodes.BadConditionBranchAlreadyConfirmed)

    async def _mark(self, node: ua.NodeId, event: bytes, comment: Any, what: str, again: int) -> ua.StatusCode:
        code = self._codes.get(node, "")
        condition = self._known.get(code)
        if condition is None:
            return _status(StatusCodes.BadNodeIdInvalid)
        if condition.event != event:
            return _status(StatusCodes.BadEventIdUnknown)
        if getattr(condition, what):
            return _status(again)
        self._permission.check(f"condition {what}")
        setattr(condition, what, True)
        condition.comment = str(getattr(comment, "Text", None) or "")
        self._record(what, code, condition.comment)
        await self._tell(code)
        return _status(StatusCodes.Good)

    async def _refresh(self, node: ua.NodeId, subscription: int) -> ua.StatusCode:
        """Send all retained conditions to one subscription."""
        await self._space.bracket("RefreshStartEventType", subscription)
        for code, each in self._known.items():
            if each.retained:
                await self._tell(code, subscription)
        await self._space.bracket("RefreshEndEventType", subscription)
        return _status(StatusCodes.Good)

    async def _tell(self, code: str, subscription: int | None = None) -> None:
        each = self._known[code]
        text = f"{code}: {ALARMS[code] if each.active else 'has ended'}"
        severity = SEVERITIES[each.kind] if each.active else 100
        each.event = await self._space.tell_condition(code, each.kind, text, severity, each.fields(), subscription)

    def _record(self, what: str, code: str, comment: str) -> None:
        facts = {"event": f"alarm {what}", "code": code, "comment": comment[:1000], "who": self._permission.who()}
        self._station.keeper.put(Entry("event", body=facts))


def _status(code: int) -> ua.StatusCode:
    return ua.StatusCode(ua.UInt32(code))
