"""States and transitions after OPC 40100-1 v1.0.0, as plain data."""

from typing import NamedTuple

STATES = {
    "Preoperational": 1,
    "Halted": 2,
    "Error": 3,
    "Operational": 4,
    "Initialized": 5,
    "Ready": 6,
    "SingleExecution": 7,
    "ContinuousExecution": 8,
}


class Transition(NamedTuple):
    number: int
    name: str
    source: str
    target: str
    method: str | None
    """The method that causes it; None: automatic."""
    events: tuple[str, ...]


TRANSITIONS = (
    Transition(120, "PreoperationalToHaltedAuto", "Preoperational", "Halted", None, ("StateChanged",)),
    Transition(121, "PreoperationalToHalted", "Preoperational", "Halted", "Halt", ("StateChanged",)),
    Transition(130, "PreoperationalToErrorAuto", "Preoperational", "Error", None, ("Error", "StateChanged")),
    Transition(140, "PreoperationalToOperationalAuto", "Preoperational", "Operational", None, ("StateChanged",)),
    Transition(
        141, "PreoperationalToOperational", "Preoperational", "Operational", "SelectModeAutomatic", ("StateChanged",)
    ),
    Transition(150, "PreoperationalToInitializedAuto", "Preoperational", "Initialized", None, ("StateChanged",)),
    Transition(
        151, "PreoperationalToInitialized", "Preoperational", "Initialized", "SelectModeAutomatic", ("StateChanged",)
    ),
    Transition(210, "HaltedToPreoperationalAuto", "Halted", "Preoperational", None, ("StateChanged",)),
    Transition(211, "HaltedToPreoperational", "Halted", "Preoperational", "Reset", ("StateChanged",)),
    Transition(310, "ErrorToPreoperationalAuto", "Error", "Preoperational", None, ("StateChanged",)),
    Transition(311, "ErrorToPreoperational", "Error", "Preoperational", "Reset", ("StateChanged",)),
    Transition(320, "ErrorToHaltedAuto", "Error", "Halted", None, ("StateChanged",)),
    Transition(321, "ErrorToHalted", "Error", "Halted", "Halt", ("StateChanged",)),
    Transition(340, "ErrorToOperationalAuto", "Error", "Operational", None, ("ErrorResolved", "StateChanged")),
    Transition(410, "OperationalToPreoperationalAuto", "Operational", "Preoperational", None, ("StateChanged",)),
    Transition(411, "OperationalToPreoperational", "Operational", "Preoperational", "Reset", ("StateChanged",)),
    Transition(420, "OperationalToHaltedAuto", "Operational", "Halted", None, ("StateChanged",)),
    Transition(421, "OperationalToHalted", "Operational", "Halted", "Halt", ("StateChanged",)),
    Transition(430, "OperationalToErrorAuto", "Operational", "Error", None, ("StateChanged",)),
    Transition(560, "InitializedToReadyAuto", "Initialized", "Ready", None, ("StateChanged",)),
    Transition(
        561, "InitializedToReadyRecipe", "Initialized", "Ready", "PrepareRecipe", ("RecipePrepared", "StateChanged")
    ),
    Transition(
        562, "InitializedToReadyProduct", "Initialized", "Ready", "PrepareProduct", ("RecipePrepared", "StateChanged")
    ),
    Transition(650, "ReadyToInitializedAuto", "Ready", "Initialized", None, ("StateChanged",)),
    Transition(651, "ReadyToInitializedRecipe", "Ready", "Initialized", "UnprepareRecipe", ("StateChanged",)),
    Transition(652, "ReadyToInitializedProduct", "Ready", "Initialized", "UnprepareProduct", ("StateChanged",)),
    Transition(670, "ReadyToSingleExecutionAuto", "Ready", "SingleExecution", None, ("JobStarted", "StateChanged")),
    Transition(
        671, "ReadyToSingleExecution", "Ready", "SingleExecution", "StartSingleJob", ("JobStarted", "StateChanged")
    ),
    Transition(
        680, "ReadyToContinuousExecutionAuto", "Ready", "ContinuousExecution", None, ("JobStarted", "StateChanged")
    ),
    Transition(
        681,
        "ReadyToContinuousExecution",
        "Ready",
        "ContinuousExecution",
        "StartContinuous",
        ("JobStarted", "StateChanged"),
    ),
    Transition(760, "SingleExecutionToReadyAuto", "SingleExecution", "Ready", None, ("Ready", "StateChanged")),
    Transition(761, "SingleExecutionToReadyStop", "SingleExecution", "Ready", "Stop", ("Ready", "StateChanged")),
    Transition(762, "SingleExecutionToReadyAbort", "SingleExecution", "Ready", "Abort", ("Ready", "StateChanged")),
    Transition(860, "ContinuousExecutionToReadyAuto", "ContinuousExecution", "Ready", None, ("Ready", "StateChanged")),
    Transition(
        861, "ContinuousExecutionToReadyStop", "ContinuousExecution", "Ready", "Stop", ("Ready", "StateChanged")
    ),
    Transition(
        862, "ContinuousExecutionToReadyAbort", "ContinuousExecution", "Ready", "Abort", ("Ready", "StateChanged")
    ),
)
