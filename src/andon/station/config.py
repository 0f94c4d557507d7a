"""The settings of a station: `station.toml`, or defaults for a folder of bundles. They contain no secrets."""

import os
import re
import tomllib
from datetime import UTC, datetime, time, timedelta
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar
from zoneinfo import ZoneInfo, available_timezones

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from andon import files
from andon.recipe import validate
from andon.station.entries import LONGEST_NAME
from andon.station.events import StationError
from andon.station.line.settings import Modbus, Mqtt, OpcUa, Watched, Webhook

S = TypeVar("S", bound=BaseModel)
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Count = Annotated[int, Field(ge=1)]
PRODUCT = r"[A-Za-z0-9][A-Za-z0-9_-]{0,63}"
"""Pattern of the names of products."""
RECORDS_VARIABLE = "ANDON_RECORDS"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Http(_Section):
    """The HTTP service."""

    host: str = "127.0.0.1"
    """Address to listen on. With the default, only programs on this computer can connect."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8420
    max_request_mb: Count = 64
    """Maximum size of a request; a batch is one request."""
    max_bundle_mb: Count = 1024
    """Maximum size of an uploaded bundle."""
    max_held_mb: Count = 512
    """Maximum total size of the requests in memory."""
    body_timeout_s: Positive = 30
    """Maximum time to receive the body of a request."""
    connections: Count = 256
    requests_per_s: Positive = 200
    """Maximum average rate of requests with one key; a burst may have twice as many."""
    draw_timeout_s: Positive = 20


class Processes(_Section):
    """The processes that inspect."""

    processes: Count = 1
    """Processes for each product."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of the engine in each process; 0: the number of cores divided by the number of processes."""
    restarts: Annotated[int, Field(ge=0)] = 5
    """Maximum number of restarts per minute; more are the error WORKER_DEAD."""


class Keeping(_Section):
    """Which pictures are kept."""

    days: Positive = 90
    max_gb: Positive = 50
    keep_one_in: Count = 20
    """One of this number of PASS pictures is kept, drawn at random; all other pictures are kept."""


class Pages(_Section):
    """The web pages."""

    idle_minutes: Positive = 30
    """Time without activity after which a person is signed out."""
    stay_signed_in: bool = False
    """An operator's screen stays signed in without activity."""
    zone: str = ""
    """Time zone of the plant, such as Europe/Berlin; empty: the time zone of this computer."""
    shifts: tuple[str, ...] = Field(default=("06:00", "14:00", "22:00"), strict=False)
    """When each shift begins, in the zone of the plant; it lasts until the next one begins."""

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        if zone and zone not in available_timezones():
            raise ValueError(f"'{zone}' is not a time zone; expected a name such as Europe/Berlin")
        return zone

    @field_validator("shifts", mode="before")
    @classmethod
    def _times(cls, shifts: Any) -> Any:
        times = shifts if isinstance(shifts, list | tuple) else [shifts]
        for each in times:
            if not isinstance(each, str) or not re.fullmatch("([01][0-9]|2[0-3]):[0-5][0-9]", each):
                raise ValueError(
                    f'\'{each}\' is no time of day; expected texts from "00:00" to "23:59" such as "06:00"'
                )
        if not times or len(set(times)) < len(times):
            raise ValueError(f"{', '.join(times) or 'an empty list'}; expected one or more different times of day")
        return shifts

    @property
    def place(self) -> ZoneInfo | None:
        """The zone of the plant; None: that of this computer."""
        return ZoneInfo(self.zone) if self.zone else None

    def shift(self, now: datetime) -> datetime:
        """When the shift began that `now` belongs to. On a day whose clock is changed a shift is shorter or longer."""
        today = now.astimezone(self.place).date()
        begins = (
            datetime.combine(today - timedelta(days=days), time.fromisoformat(each), self.place).astimezone(UTC)
            for days in range(3)  # a clock that is put forward at midnight moves a late begin to the next day
            for each in self.shifts
        )
        return max(each for each in begins if each <= now)


class ProductSettings(_Section):
    deadline_ms: Positive | None = None
    """Overrides the deadline of the recipe."""
    camera: str = ""
    """Source of the pictures for line protocols and teaching: a camera or folder, named as for `andon watch`."""
    camera_channels: Literal[1, 3] = 3
    """1: convert pictures with three equal channels to gray."""


class Config(_Section):
    """All settings. Paths are relative to the file."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)] = "station"
    """The identity of the station in its records."""
    bundles: Path = Field(Path(), strict=False)
    """Folder of bundles: NAME.andon for the product NAME, NAME.golden.png for its golden picture."""
    data: Path = Field(Path("station"), strict=False)
    """Folder for records, pictures, bundles and keys."""
    records: str = ""
    """Database of the records; empty: a file in `data`. Put a URL with a password into ANDON_RECORDS or a file."""
    records_file: Path | None = Field(default=None, strict=False)
    """File that contains the database's URL."""
    deadline_ms: Positive = 2000
    """Maximum time from trigger to verdict, if neither the product nor the recipe sets it."""
    depth: Count = 8
    """Maximum number of jobs that wait or whose result is not acknowledged."""
    heartbeat_s: Positive = 10
    """Maximum time without a picture or test tile passing through the graph."""
    frozen_after: Annotated[int, Field(ge=0)] = 3
    """Number of successive parts with the same picture after which the camera counts as lost; 0: never."""
    idle_minutes: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60
    """Time without use after which the processes of a product end; the next use starts them again. 0: never."""
    http: Http = Http()
    workers: Processes = Processes()
    pictures: Keeping = Keeping()
    pages: Pages = Pages()
    products: dict[Annotated[str, Field(pattern=f"^{PRODUCT}$")], ProductSettings] = {}
    log: Literal["text", "json"] = "text"
    modbus: Modbus | None = None
    mqtt: Mqtt | None = None
    webhook: tuple[Webhook, ...] = Field(default=(), strict=False)
    folder: tuple[Watched, ...] = Field(default=(), strict=False)
    opcua: OpcUa | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.records and self.records_file:
            raise ValueError("records and records_file are both set; expected one of them")
        if "@" in self.records and ":" in self.records.split("@")[0].partition("://")[2]:
            raise ValueError(f"records contains a password; put the URL into {RECORDS_VARIABLE} or records_file")
        hooks = [each.name.upper() for each in self.webhook]
        if len(set(hooks)) < len(hooks):
            raise ValueError("two webhooks have the same name; expected different names")
        results = [os.path.realpath(each.results) for each in self.folder]
        for number, each in enumerate(self.folder):
            if results[number] in results[:number]:
                raise ValueError(
                    f"two [[folder]] have the same results, '{each.results}', where each would overwrite those of the "
                    "other; expected different folders"
                )
        channels: dict[str, int] = {}
        for name, product in self.products.items():
            number = product.camera_channels
            if product.camera and channels.setdefault(product.camera, number) != number:
                raise ValueError(
                    f"product '{name}' has the camera '{product.camera}' with camera_channels = {number}, and another "
                    f"product has it with {channels[product.camera]}; expected the same for both"
                )
        return self

    @classmethod
    def load(cls, place: str | Path) -> Self:
        """Read a TOML file. For a folder of bundles, return the default settings."""
        path = Path(place)
        if files.is_folder(path):
            return cls(bundles=path, data=path / "station")
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise StationError(
                f"{path}: cannot be read: {error}. Expected a folder of bundles, or a station's settings as TOML."
            ) from None
        given = validate(cls, values, str(path))
        return validate(cls, given._below(path.resolve().parent), str(path))  # equal places are seen only now

    def _below(self, folder: Path) -> dict[str, Any]:
        """Return the settings with relative paths resolved against a folder."""
        places: dict[str, Any] = {"bundles": folder / self.bundles, "data": folder / self.data}
        if self.records_file:
            places["records_file"] = folder / self.records_file
        if self.mqtt:
            places["mqtt"] = _below(self.mqtt, folder)
        if self.opcua:
            places["opcua"] = _below(self.opcua, folder)
        places["webhook"] = tuple(_below(each, folder) for each in self.webhook)
        places["folder"] = tuple(_below(each, folder) for each in self.folder)
        places["products"] = {
            name: each.model_copy(update={"camera": _place(each.camera, folder)})
            for name, each in self.products.items()
        }
        return {**dict(self), **places}

    def targets(self) -> tuple[str, ...]:
        """The targets of the outbox, to which records are delivered."""
        return (*(("mqtt",) if self.mqtt else ()), *(each.target for each in self.webhook))

    def database(self) -> str:
        """Return the URL of the records: from a file, the environment, the settings, or SQLite in `data`."""
        if self.records_file:
            try:
                return self.records_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise StationError(
                    f"{self.records_file}: cannot be read: {error}. Expected a file that contains a database's URL."
                ) from None
        return os.environ.get(RECORDS_VARIABLE, "") or self.records or str(self.data / "records.db")

    def deadline_s(self, product: str, recipe_ms: float | None) -> float:
        """Return the deadline of a product: from its settings, else its recipe, else the station's settings."""
        own = self.products.get(product, ProductSettings()).deadline_ms
        return (own or recipe_ms or self.deadline_ms) / 1000


def _below(section: S, folder: Path) -> S:
    """Return a section with relative paths resolved against a folder."""
    paths = {name: folder / value for name, value in section if isinstance(value, Path)}
    return section.model_copy(update=paths)


def _place(camera: str, folder: Path) -> str:
    """Return a camera's name; a relative path in it is resolved against a folder."""
    kind, colon, rest = camera.partition(":")
    if colon and kind == "simulated":
        return f"simulated:{os.path.normpath(folder / rest)}"
    return camera if not camera or colon or camera.isdecimal() else os.path.normpath(folder / camera)
