"""The address space of the OPC UA server: the names and types of OPC 40100-1 that a station uses.

The official NodeSet is not used. Browse names are in its namespace; node ids are in andon's own namespace.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import Any

from asyncua import ua
from asyncua.common.methods import uamethod
from asyncua.common.node import Node
from asyncua.common.structures104 import new_struct, new_struct_field
from asyncua.server.event_generator import EventGenerator
from asyncua.server.server import Server
from asyncua.ua.object_ids import ObjectIds
from asyncua.ua.status_codes import StatusCodes

from andon.station.entries import stamp
from andon.station.line.model import (
    CONDITION,
    CONDITIONS,
    EVENTS,
    MACHINE_VISION,
    METHODS,
    OUTPUTS,
    REACTIONS,
    STRUCTURES,
    Field,
    Method,
)

OWN = "urn:andon:station"
EVENTS_SHOWN = 10
TEXT = ua.VariantType.LocalizedText
NEVER = datetime(1970, 1, 1, tzinfo=UTC)


class Space:
    """The nodes that clients see. Call `build` first."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._types: dict[str, ua.NodeId] = {}
        self._classes: dict[str, type] = {}
        self._events: dict[str, EventGenerator] = {}
        self._nodes: dict[str, Node] = {}
        self.states: dict[str, tuple[str, str, str]] = {}
        """State machine → name, value and meaning of its present state, for display."""
        self.last: deque[tuple[str, str, str]] = deque(maxlen=EVENTS_SHOWN)
        """Time, name and message of the last events, for display."""

    async def build(self, call: Callable[..., Awaitable[tuple[Any, ...]]]) -> None:
        """Create all nodes. `call` receives the name of a method and its arguments, and returns its results."""
        server = self._server
        self._vision = await server.register_namespace(MACHINE_VISION)
        self._own = await server.register_namespace(OWN)
        for kind, fields in STRUCTURES.items():
            await self._structure(kind, fields)
        await server.load_data_type_definitions()
        self._classes = {kind: getattr(ua, f"{kind}DataType") for kind in self._types}
        types = await self._event_types()
        self.system = await server.nodes.objects.add_object(*self._named("VisionSystem"))
        for name, node in types.items():
            self._events[name] = await server.get_event_generator(node.nodeid, self.system.nodeid)
        for name in ("RefreshStartEventType", "RefreshEndEventType"):
            known = _known(getattr(ObjectIds, name))
            self._events[name] = await server.get_event_generator(known, self.system.nodeid)
        for name, fields in EVENTS.items():
            for field in fields:  # asyncua would derive the type from the empty value
                self._events[name].event.data_types[field.name] = self._variant(field.kind)
        machine = await self._object(self.system, "VisionStateMachine")
        automatic = await self._object(machine, "AutomaticModeStateMachine")
        for owner in (machine, automatic):
            await self._state(owner)
        for name in ("RecipeManagement", "ResultManagement", "ConfigurationManagement", "Conditions"):
            await self._object(self.system, name)
        await self._variable(self.system, "SystemState", "SystemStateDescription")
        await self._variable(self._nodes["ConfigurationManagement"], "ActiveConfiguration", "Configuration")
        for method in METHODS:
            await self._method(method, call)

    def made(self, kind: str, **fields: Any) -> Any:
        """Return a structure; missing fields are empty."""
        empty = {field.name: NEVER for field in STRUCTURES[kind] if field.kind == "DateTime"}
        return self._classes[kind](**{**empty, **fields})

    def results(self, method: str, values: dict[str, Any]) -> tuple[ua.Variant, ...]:
        """Return all results of a method as variants; missing results are empty."""
        return tuple(self._result(field, values.get(field.name)) for field in OUTPUTS[method])

    def _result(self, field: Field, value: Any) -> ua.Variant:
        kind = self._variant(field.kind)
        if field.array:
            return ua.Variant(value or [], kind, is_array=True)
        if value is None:
            empty: dict[str, Any] = {"DateTime": NEVER, "Boolean": False}
            value = self.made(field.kind) if field.kind in self._types else empty.get(field.kind, 0)
        return ua.Variant(value, kind)

    def _variant(self, kind: str) -> ua.VariantType:
        return ua.VariantType["ExtensionObject" if kind in self._types else kind]

    async def show(self, owner: str, name: str, number: int, active: bool = True) -> None:
        """Set the state of one of the two state machines. An inactive one has no state."""
        code = StatusCodes.Good if active else StatusCodes.BadStateNotActive
        self.states[owner] = ("Number", f"{number}" if active else "Bad_StateNotActive", name)
        for part, value in (
            ("CurrentState", ua.Variant(ua.LocalizedText(name), TEXT)),
            ("CurrentState.Number", ua.Variant(number, ua.VariantType.UInt32)),
        ):
            node = self._nodes[f"{owner}.{part}"]
            await self._server.write_attribute_value(node.nodeid, ua.DataValue(value, ua.StatusCode(ua.UInt32(code))))

    async def set(self, name: str, value: Any) -> None:
        """Set the value of a variable."""
        await self._server.write_attribute_value(self._nodes[name].nodeid, ua.DataValue(ua.Variant(value)))

    async def tell(self, name: str, message: str, severity: int = 100, **fields: Any) -> None:
        """Send an event."""
        generator = self._events[name]
        for field, value in fields.items():
            setattr(generator.event, field, value)
        generator.event.Severity = severity
        await generator.trigger(message=message)
        self.last.append((stamp(time.time()), name, message))

    async def tell_condition(
        self, name: str, kind: str, message: str, severity: int, fields: dict[str, Any], subscription: int | None = None
    ) -> bytes:
        """Send an event of a condition to all subscriptions or to one; return its id."""
        generator = self._events[kind]
        for field, value in fields.items():
            setattr(generator.event, field, value)
        generator.event.NodeId, generator.event.ConditionName = self._nodes[name].nodeid, name
        generator.event.Severity = severity
        await generator.trigger(message=message, subscription_id=subscription)
        return bytes(generator.event.EventId.Value)

    async def bracket(self, name: str, subscription: int) -> None:
        """Send the start or end of a refresh to one subscription."""
        await self._events[name].trigger(subscription_id=subscription)

    async def condition(self, name: str) -> ua.NodeId:
        """Create the node of a condition; return its id."""
        return (await self._object(self._nodes["Conditions"], name)).nodeid

    def link(self, method: int, call: Callable[..., Awaitable[Any]]) -> None:
        """Link a standard method of OPC UA to `call`, whose first argument is the node of the call."""
        self._server.link_method(self._server.get_node(_known(method)), uamethod(call))

    def _named(self, path: str, name: str = "") -> tuple[ua.NodeId, ua.QualifiedName]:
        return self._node_id(path), ua.QualifiedName(name or path, self._vision)

    def _node_id(self, path: str) -> ua.NodeId:
        return ua.NodeId(ua.String(path), ua.Int16(self._own))

    async def _structure(self, kind: str, fields: tuple[Field, ...]) -> None:
        node_id, name = self._named(f"{kind}DataType")
        members = [new_struct_field(f.name, self._type(f.kind), f.array, f.optional) for f in fields]
        node, _ = await new_struct(self._server, node_id, name, members)
        self._types[kind] = node.nodeid

    async def _event_types(self) -> dict[str, Node]:
        found: dict[str, Node] = {}
        for name, fields in EVENTS.items():
            found[name] = await self._server.nodes.base_event_type.add_object_type(*self._named(f"{name}EventType"))
            for field in fields:
                place = self._named(f"{name}EventType.{field.name}", field.name)
                await found[name].add_property(*place, ua.Variant(), datatype=self._type(field.kind))
        acknowledgeable = self._server.get_node(_known(ObjectIds.AcknowledgeableConditionType))
        parent = await acknowledgeable.add_object_type(*self._named(f"{CONDITION}Type"))
        for name in REACTIONS:
            await parent.add_property(*self._named(f"{CONDITION}Type.{name}", name), False)
        for name in CONDITIONS:
            found[name] = await parent.add_object_type(*self._named(f"{name}Type"))
        return found

    async def _object(self, parent: Node, name: str) -> Node:
        self._nodes[name] = await parent.add_object(*self._named(name))
        return self._nodes[name]

    async def _variable(self, parent: Node, name: str, kind: str) -> None:
        self._nodes[name] = await parent.add_variable(
            *self._named(name), ua.Variant(self.made(kind)), datatype=self._type(kind)
        )

    async def _state(self, owner: Node) -> None:
        name = (await owner.read_browse_name()).Name
        path = f"{name}.CurrentState"
        state = await owner.add_variable(self._node_id(path), ua.QualifiedName("CurrentState", 0), ua.LocalizedText(""))
        number = await state.add_property(
            self._node_id(f"{path}.Number"),
            ua.QualifiedName("Number", 0),
            ua.Variant(0, ua.VariantType.UInt32),
        )
        self._nodes |= {path: state, f"{path}.Number": number}

    async def _method(self, method: Method, call: Callable[..., Awaitable[tuple[Any, ...]]]) -> None:
        @uamethod
        async def called(parent: ua.NodeId, *arguments: Any) -> tuple[Any, ...]:
            return await call(method.name, *arguments)

        places = self._named(f"{method.owner}.{method.name}", method.name)
        inputs, outputs = ([self._argument(each) for each in fields] for fields in (method.inputs, method.outputs))
        await self._nodes[method.owner].add_method(*places, called, inputs, outputs)

    def _type(self, kind: str) -> ua.NodeId:
        """Return the id of a structure, or of a basic type of OPC UA; Variant: any type."""
        return self._types.get(kind) or ua.NodeId(ua.Int32(ua.VariantType[kind].value))

    def _argument(self, field: Field) -> ua.Argument:
        argument = ua.Argument()
        argument.Name = field.name
        argument.DataType = self._type(field.kind)
        argument.ValueRank = 1 if field.array else -1
        return argument


def _known(number: int) -> ua.NodeId:
    """Return the id of a standard node of OPC UA."""
    return ua.NodeId(ua.Int32(number))
