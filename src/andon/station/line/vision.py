"""The address space of the OPC UA server: names and types of OPC 40100-1, as far as a station uses them.

The official NodeSet is not used. Browse names are in its namespace; node ids are this program's own.
"""

import time
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

from asyncua import ua
from asyncua.common.methods import uamethod
from asyncua.common.node import Node
from asyncua.common.structures104 import new_struct, new_struct_field
from asyncua.server.event_generator import EventGenerator
from asyncua.server.server import Server
from asyncua.ua.status_codes import StatusCodes

from andon.station.entries import stamp

MACHINE_VISION = "http://opcfoundation.org/UA/MachineVision"
OWN = "urn:andon:station"
EVENTS_SHOWN = 10

STRING, TEXT = ua.VariantType.String, ua.VariantType.LocalizedText

IDS = ("JobId", "MeasId", "PartId", "ProductId", "ResultId")
"""Ids with a text and a description."""
RECIPE_IDS = ("RecipeIdExternal", "RecipeIdInternal")
"""Ids that also name what they stand for by its digest."""

EVENTS: dict[str, tuple[tuple[str, str], ...]] = {
    "StateChanged": (),
    "Error": (),
    "ErrorResolved": (),
    "JobStarted": (("JobId", "JobId"),),
    "Ready": (("JobId", "JobId"),),
    "AcquisitionDone": (("JobId", "JobId"),),
    "RecipePrepared": (("ExternalId", "RecipeIdExternal"), ("InternalId", "RecipeIdInternal")),
    "ResultReady": (
        ("ResultId", "ResultId"),
        ("IsPartial", "Boolean"),
        ("ResultState", "Int32"),
        ("JobId", "JobId"),
        ("PartId", "PartId"),
        ("ExternalRecipeId", "RecipeIdExternal"),
        ("InternalRecipeId", "RecipeIdInternal"),
        ("CreationTime", "DateTime"),
        ("ResultContent", "Variant"),
    ),
}
"""Events and their fields."""

Argument = tuple[str, str]
"""Name and type."""
CAUSE: tuple[Argument, ...] = (("Cause", "Int32"), ("CauseDescription", "String"))
JOB: tuple[Argument, ...] = (
    ("MeasId", "MeasId"),
    ("PartId", "PartId"),
    ("RecipeId", "RecipeIdExternal"),
    ("ProductId", "ProductId"),
    ("Parameters", "Variant"),
)
ERROR: Argument = ("Error", "Int32")


class Method(NamedTuple):
    owner: str
    name: str
    inputs: tuple[Argument, ...]
    outputs: tuple[Argument, ...]


METHODS = (
    Method("VisionStateMachine", "Halt", CAUSE, (ERROR,)),
    Method("VisionStateMachine", "Reset", CAUSE, (ERROR,)),
    Method("VisionStateMachine", "SelectModeAutomatic", (), (ERROR,)),
    Method("AutomaticModeStateMachine", "StartSingleJob", JOB, (("JobId", "JobId"), ERROR)),
    Method("AutomaticModeStateMachine", "StartContinuous", JOB, (("JobId", "JobId"), ERROR)),
    Method("AutomaticModeStateMachine", "Stop", CAUSE, (ERROR,)),
    Method("AutomaticModeStateMachine", "Abort", CAUSE, (ERROR,)),
    Method(
        "RecipeManagement",
        "PrepareRecipe",
        (("ExternalId", "RecipeIdExternal"), ("InternalIdIn", "RecipeIdInternal")),
        (("InternalIdOut", "RecipeIdInternal"), ("IsCompleted", "Boolean"), ERROR),
    ),
    Method(
        "RecipeManagement",
        "UnprepareRecipe",
        (("ExternalId", "RecipeIdExternal"), ("InternalIdIn", "RecipeIdInternal")),
        (("InternalIdOut", "RecipeIdInternal"), ("IsCompleted", "Boolean"), ERROR),
    ),
    Method(
        "ResultManagement",
        "GetResultById",
        (("ResultId", "ResultId"), ("Timeout", "Int32")),
        (("ResultHandle", "UInt32"), ("Result", "Result"), ERROR),
    ),
)


class Space:
    """Everything that clients see, once `build` is done."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._types: dict[str, ua.NodeId] = {}
        self._classes: dict[str, type] = {}
        self._events: dict[str, EventGenerator] = {}
        self._nodes: dict[str, Node] = {}
        self.states: dict[str, tuple[str, str, str]] = {}
        """Of each state machine: name, value and meaning of what clients read now."""
        self.last: deque[tuple[str, str, str]] = deque(maxlen=EVENTS_SHOWN)
        """Time, name and message of the last events."""

    async def build(self, call: Callable[..., Awaitable[tuple[Any, ...]]]) -> None:
        """`call` is given the name of a method and its arguments, and returns its results."""
        server = self._server
        self._vision = await server.register_namespace(MACHINE_VISION)
        self._own = await server.register_namespace(OWN)
        await self._structures()
        events: dict[str, Node] = {}
        for name, fields in EVENTS.items():
            node = await server.nodes.base_event_type.add_object_type(*self._named(f"{name}EventType"))
            for field, kind in fields:
                place = self._named(f"{name}EventType.{field}", field)
                await node.add_property(*place, ua.Variant(), datatype=self._type(kind))
            events[name] = node
        self.system = await server.nodes.objects.add_object(*self._named("VisionSystem"))
        self._events = {
            name: await server.get_event_generator(node.nodeid, self.system.nodeid) for name, node in events.items()
        }
        for name, fields in EVENTS.items():
            for field, kind in fields:  # asyncua would take the type of the empty value above
                own = kind in self._types
                self._events[name].event.data_types[field] = ua.VariantType["ExtensionObject" if own else kind]
        machine = await self._object(self.system, "VisionStateMachine")
        automatic = await self._object(machine, "AutomaticModeStateMachine")
        for owner in (machine, automatic):
            await self._state(owner)
        for name in ("RecipeManagement", "ResultManagement"):
            await self._object(self.system, name)
        for method in METHODS:
            await self._method(method, call)

    def made(self, kind: str, **fields: Any) -> Any:
        """A structure; ids that are not given are empty."""
        return self._classes[kind](**fields)

    async def show(self, owner: str, name: str, number: int, active: bool = True) -> None:
        """The state of one of the two state machines. One that is not active has none."""
        code = StatusCodes.Good if active else StatusCodes.BadStateNotActive
        self.states[owner] = ("Number", f"{number}" if active else "Bad_StateNotActive", name)
        for part, value in (
            ("CurrentState", ua.Variant(ua.LocalizedText(name), TEXT)),
            ("CurrentState.Number", ua.Variant(number, ua.VariantType.UInt32)),
        ):
            node = self._nodes[f"{owner}.{part}"]
            await self._server.write_attribute_value(node.nodeid, ua.DataValue(value, ua.StatusCode(ua.UInt32(code))))

    async def tell(self, name: str, message: str, severity: int = 100, **fields: Any) -> None:
        """Raise an event."""
        generator = self._events[name]
        for field, value in fields.items():
            setattr(generator.event, field, value)
        generator.event.Severity = severity
        await generator.trigger(message=message)
        self.last.append((stamp(time.time()), name, message))

    def _named(self, path: str, name: str = "") -> tuple[ua.NodeId, ua.QualifiedName]:
        return self._node_id(path), ua.QualifiedName(name or path, self._vision)

    def _node_id(self, path: str) -> ua.NodeId:
        return ua.NodeId(ua.String(path), ua.Int16(self._own))

    async def _structures(self) -> None:
        describing = [new_struct_field("Description", TEXT, optional=True)]
        hashing = [
            new_struct_field("Hash", ua.VariantType.ByteString, optional=True),
            new_struct_field("HashAlgorithm", STRING, optional=True),
        ]
        for kind in IDS:
            await self._structure(kind, [new_struct_field("Id", STRING), *describing])
        for kind in RECIPE_IDS:
            await self._structure(kind, [new_struct_field("Id", STRING), *hashing, *describing])
        result = [
            new_struct_field(name, self._type(kind), array=name == "ResultContent")
            for name, kind in EVENTS["ResultReady"]
        ]
        await self._structure("Result", result)
        await self._server.load_data_type_definitions()
        self._classes = {kind: getattr(ua, f"{kind}DataType") for kind in self._types}

    async def _structure(self, kind: str, fields: list[ua.StructureField]) -> None:
        node_id, name = self._named(f"{kind}DataType")
        node, _ = await new_struct(self._server, node_id, name, fields)
        self._types[kind] = node.nodeid

    async def _object(self, parent: Node, name: str) -> Node:
        self._nodes[name] = await parent.add_object(*self._named(name))
        return self._nodes[name]

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
        inputs, outputs = (
            [self._argument(*each) for each in arguments] for arguments in (method.inputs, method.outputs)
        )
        await self._nodes[method.owner].add_method(*places, called, inputs, outputs)

    def _type(self, kind: str) -> ua.NodeId:
        """One of its own, or a type of OPC UA itself; Variant: any."""
        return self._types.get(kind) or ua.NodeId(ua.Int32(ua.VariantType[kind].value))

    def _argument(self, name: str, kind: str) -> ua.Argument:
        argument = ua.Argument()
        argument.Name = name
        argument.DataType = self._type(kind)
        argument.ValueRank = 1 if name == "Parameters" else -1
        return argument
