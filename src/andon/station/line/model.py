"""The names and types of OPC 40100-1 that a station uses, as plain data."""

from typing import NamedTuple

MACHINE_VISION = "http://opcfoundation.org/UA/MachineVision"


class Field(NamedTuple):
    """A field of a structure or event, or an argument of a method."""

    name: str
    kind: str
    """Name of a structure below, or of a basic type of OPC UA; Variant: any type."""
    array: bool = False
    optional: bool = False


_ID = (Field("Id", "String"),)
_HASH = (Field("Hash", "ByteString", optional=True), Field("HashAlgorithm", "String", optional=True))
_DESCRIPTION = (Field("Description", "LocalizedText", optional=True),)

_RESULT = (
    Field("ResultId", "ResultId"),
    Field("IsPartial", "Boolean"),
    Field("ResultState", "Int32"),
    Field("JobId", "JobId"),
    Field("PartId", "PartId"),
    Field("ExternalRecipeId", "RecipeIdExternal"),
    Field("InternalRecipeId", "RecipeIdInternal"),
    Field("InternalConfigurationId", "ConfigurationId"),
    Field("CreationTime", "DateTime"),
    Field("ProcessingTimes", "ProcessingTimes"),
    Field("ResultContent", "Variant", array=True),
)

STRUCTURES: dict[str, tuple[Field, ...]] = {
    **dict.fromkeys(("JobId", "MeasId", "PartId", "ProductId", "ResultId"), (*_ID, *_DESCRIPTION)),
    **dict.fromkeys(("RecipeIdExternal", "RecipeIdInternal", "ConfigurationId"), (*_ID, *_HASH, *_DESCRIPTION)),
    "ProcessingTimes": (
        Field("StartTime", "DateTime"),
        Field("EndTime", "DateTime"),
        Field("ProcessingDuration", "Double", optional=True),
    ),
    "Configuration": (Field("InternalId", "ConfigurationId"), Field("LastModified", "DateTime")),
    "SystemStateDescription": (Field("State", "Int32"), Field("StateDescription", "String", optional=True)),
    "Result": _RESULT,
}
"""Structure → its fields. A structure uses only structures before it."""

EVENTS: dict[str, tuple[Field, ...]] = {
    "StateChanged": (),
    "Error": (),
    "ErrorResolved": (),
    "JobStarted": (Field("JobId", "JobId"),),
    "Ready": (Field("JobId", "JobId"),),
    "AcquisitionDone": (Field("JobId", "JobId"),),
    "RecipePrepared": (Field("ExternalId", "RecipeIdExternal"), Field("InternalId", "RecipeIdInternal")),
    "ResultReady": _RESULT,
}
"""Event → its fields."""

CONDITION = "VisionCondition"
CONDITIONS = ("VisionWarningCondition", "VisionErrorCondition", "VisionPersistentErrorCondition")
REACTIONS = ("StopReaction", "BlockReaction")
"""Properties of these conditions in addition to those of every OPC UA condition."""

SYSTEM_STATES = {"PRD": 1, "SBY": 2, "ENG": 3, "SDT": 4, "UDT": 5, "NST": 6}
"""SEMI E10: productive, standby, engineering, scheduled and unscheduled downtime, non-scheduled time."""

_CAUSE = (Field("Cause", "Int32"), Field("CauseDescription", "String"))
_JOB = (
    Field("MeasId", "MeasId"),
    Field("PartId", "PartId"),
    Field("RecipeId", "RecipeIdExternal"),
    Field("ProductId", "ProductId"),
    Field("Parameters", "Variant", array=True),
)
_RECIPE = (Field("ExternalId", "RecipeIdExternal"), Field("InternalIdIn", "RecipeIdInternal"))
_PAGE = (Field("MaxResults", "UInt32"), Field("StartIndex", "UInt32"), Field("Timeout", "Int32"))
_PART_OF = (Field("IsComplete", "Boolean"), Field("ResultCount", "UInt32"))
_ERROR = (Field("Error", "Int32"),)


class Method(NamedTuple):
    owner: str
    name: str
    inputs: tuple[Field, ...]
    outputs: tuple[Field, ...]


METHODS = (
    Method("VisionStateMachine", "Halt", _CAUSE, _ERROR),
    Method("VisionStateMachine", "Reset", _CAUSE, _ERROR),
    Method("VisionStateMachine", "SelectModeAutomatic", (), _ERROR),
    Method("VisionStateMachine", "ConfirmAll", (Field("Comment", "LocalizedText"),), ()),
    Method("AutomaticModeStateMachine", "StartSingleJob", _JOB, (Field("JobId", "JobId"), *_ERROR)),
    Method("AutomaticModeStateMachine", "StartContinuous", _JOB, (Field("JobId", "JobId"), *_ERROR)),
    Method("AutomaticModeStateMachine", "Stop", _CAUSE, _ERROR),
    Method("AutomaticModeStateMachine", "Abort", _CAUSE, _ERROR),
    Method(
        "RecipeManagement",
        "GetRecipeListFiltered",
        (
            Field("ExternalId", "RecipeIdExternal"),
            Field("ProductId", "ProductId"),
            Field("IsPrepared", "Int32"),
            *_PAGE,
        ),
        (*_PART_OF, Field("RecipeHandle", "UInt32"), Field("RecipeList", "RecipeIdInternal", array=True), *_ERROR),
    ),
    Method(
        "RecipeManagement",
        "PrepareRecipe",
        _RECIPE,
        (Field("InternalIdOut", "RecipeIdInternal"), Field("IsCompleted", "Boolean"), *_ERROR),
    ),
    Method(
        "RecipeManagement",
        "UnprepareRecipe",
        _RECIPE,
        (Field("InternalIdOut", "RecipeIdInternal"), *_ERROR),
    ),
    Method(
        "ResultManagement",
        "GetResultById",
        (Field("ResultId", "ResultId"), Field("Timeout", "Int32")),
        (Field("ResultHandle", "UInt32"), Field("Result", "Result"), *_ERROR),
    ),
    Method(
        "ResultManagement",
        "GetResultComponentsById",
        (Field("ResultId", "ResultId"), Field("Timeout", "Int32")),
        (
            Field("HasTransferableDataOnFile", "Boolean"),
            Field("ResultHandle", "UInt32"),
            Field("IsPartial", "Boolean"),
            Field("IsSimulated", "Boolean"),
            Field("ResultState", "Int32"),
            Field("MeasId", "MeasId"),
            Field("PartId", "PartId"),
            Field("ExternalRecipeId", "RecipeIdExternal"),
            Field("InternalRecipeId", "RecipeIdInternal"),
            Field("ProductId", "ProductId"),
            Field("ExternalConfigurationId", "ConfigurationId"),
            Field("InternalConfigurationId", "ConfigurationId"),
            Field("JobId", "JobId"),
            Field("CreationTime", "DateTime"),
            Field("ProcessingTimes", "ProcessingTimes"),
            Field("ResultContent", "Variant", array=True),
            *_ERROR,
        ),
    ),
    Method(
        "ResultManagement",
        "GetResultListFiltered",
        (
            Field("ResultState", "Int32"),
            Field("MeasId", "MeasId"),
            Field("PartId", "PartId"),
            Field("ExternalRecipeId", "RecipeIdExternal"),
            Field("InternalRecipeId", "RecipeIdInternal"),
            Field("ExternalConfigurationId", "ConfigurationId"),
            Field("InternalConfigurationId", "ConfigurationId"),
            Field("ProductId", "ProductId"),
            Field("JobId", "JobId"),
            *_PAGE,
        ),
        (*_PART_OF, Field("ResultHandle", "UInt32"), Field("ResultList", "Result", array=True), *_ERROR),
    ),
    Method(
        "ConfigurationManagement",
        "GetConfigurationList",
        _PAGE,
        (
            *_PART_OF,
            Field("ConfigurationHandle", "UInt32"),
            Field("ConfigurationList", "Configuration", array=True),
            *_ERROR,
        ),
    ),
    Method(
        "ConfigurationManagement",
        "GetConfigurationById",
        (Field("InternalId", "ConfigurationId"), Field("Timeout", "Int32")),
        (Field("ConfigurationHandle", "UInt32"), Field("Configuration", "Configuration"), *_ERROR),
    ),
    Method("ConfigurationManagement", "ActivateConfiguration", (Field("InternalId", "ConfigurationId"),), _ERROR),
)
OUTPUTS = {method.name: method.outputs for method in METHODS}
