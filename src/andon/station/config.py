"""The settings of a station: `station.toml`, or defaults for a folder of bundles. Secrets come from elsewhere."""

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
"""What the name of a product looks like."""
RECORDS_VARIABLE = "ANDON_RECORDS"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class Http(_Section):
    """The service."""

    host: str = "127.0.0.1"
    """Address to listen on. Others than this computer reach it only when this is another address."""
    port: Annotated[int, Field(ge=0, le=65535)] = 8420
    max_request_mb: Count = 64
    """Largest request; a batch is one request."""
    max_bundle_mb: Count = 1024
    """Largest upload of a bundle."""
    max_held_mb: Count = 512
    """Most megabytes of all requests together that are held in memory."""
    body_timeout_s: Positive = 30
    """A request whose body takes longer is given up."""
    connections: Count = 256
    requests_per_s: Positive = 200
    """Most requests per second for one key, on average; twice as many at once."""
    draw_timeout_s: Positive = 20


class Processes(_Section):
    """How pictures are inspected."""

    processes: Count = 1
    """Processes for each product."""
    threads: Annotated[int, Field(ge=0)] = 0
    """Threads of the engine in each; 0: the cores, shared among the processes."""
    restarts: Annotated[int, Field(ge=0)] = 5
    """Most restarts within a minute; more is an error of the station."""


class Keeping(_Section):
    """Which pictures are kept."""

    days: Positive = 90
    max_gb: Positive = 50
    keep_one_in: Count = 20
    """Of the pictures that passed; all others are kept."""


class Pages(_Section):
    """The pages for people."""

    idle_minutes: Positive = 30
    """A person who does nothing for so long is signed out."""
    stay_signed_in: bool = False
    """Whether the screen of an operator stays signed in all the same."""
    zone: str = ""
    """Time zone of the plant, such as Europe/Berlin; empty: that of this computer."""
    shifts: tuple[str, ...] = Field(default=("06:00", "14:00", "22:00"), strict=False)
    """When each shift begins, in the zone of the plant; it lasts until the next one begins."""

    @field_validator("zone")
    @classmethod
    def _known(cls, zone: str) -> str:
        if zone and zone not in available_timezones():
            raise ValueError(f"'{zone}' is no time zone; expected one such as Europe/Berlin")
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
    """Overrides that of the recipe."""
    camera: str = ""
    """Where pictures come from when a line protocol triggers: as `andon watch` names cameras and folders."""
    camera_channels: Literal[1, 3] = 3
    """1: gray pictures of cameras that give three equal channels."""


class Config(_Section):
    """All settings. Paths are relative to the file."""

    name: Annotated[str, Field(min_length=1, max_length=LONGEST_NAME)] = "station"
    """The identity of the station in its records."""
    bundles: Path = Field(Path(), strict=False)
    """Folder of bundles, NAME.andon for the product NAME; NAME.golden.png beside it shows a good part."""
    data: Path = Field(Path("station"), strict=False)
    """Folder for records, pictures, bundles and keys."""
    records: str = ""
    """Database of the records; empty: a file in `data`. One with a password belongs into ANDON_RECORDS, or a file."""
    records_file: Path | None = Field(default=None, strict=False)
    """File that holds the database's URL."""
    deadline_ms: Positive = 2000
    """Milliseconds from trigger to verdict, where neither the recipe nor the product says another."""
    depth: Count = 8
    """Most jobs that wait or whose result is not acknowledged."""
    heartbeat_s: Positive = 10
    """Most seconds without a pass through the graph."""
    frozen_after: Annotated[int, Field(ge=0)] = 3
    """So many parts in a row with the same picture mean that the camera is lost; 0: never."""
    idle_minutes: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 60
    """A product that nobody uses for so long gives its processes back until it is used again; 0: never."""
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
            raise ValueError("records and records_file are both given; expected one of them")
        if "@" in self.records and ":" in self.records.split("@")[0].partition("://")[2]:
            raise ValueError(f"records holds a password; put the URL into {RECORDS_VARIABLE} or records_file")
        hooks = [each.name.upper() for each in self.webhook]
        if len(set(hooks)) < len(hooks):
            raise ValueError("two webhooks have the same name; expected different names")
        return self

    @classmethod
    def load(cls, place: str | Path) -> Self:
        """Read a TOML file; a folder is one of bundles, with all settings at their defaults."""
        path = Path(place)
        if files.is_folder(path):
            return cls(bundles=path, data=path / "station")
        try:
            values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
        except (OSError, UnicodeDecodeError, ValueError, RecursionError) as error:
            raise StationError(
                f"{path}: cannot be read: {error}. Expected a folder of bundles, or a station's settings as TOML."
            ) from None
        return validate(cls, values, str(path)).below(path.resolve().parent)

    def below(self, folder: Path) -> Self:
        """With its paths in a folder."""
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
        return self.model_copy(update=places)

    def targets(self) -> tuple[str, ...]:
        """Whom records are delivered to, by way of the outbox."""
        return (*(("mqtt",) if self.mqtt else ()), *(each.target for each in self.webhook))

    def database(self) -> str:
        """The URL of the records: from the environment, a file, the settings, or SQLite in `data`."""
        if self.records_file:
            try:
                return self.records_file.read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise StationError(
                    f"{self.records_file}: cannot be read: {error}. Expected a database's URL."
                ) from None
        return os.environ.get(RECORDS_VARIABLE, "") or self.records or str(self.data / "records.db")

    def deadline_s(self, product: str, recipe_ms: float | None) -> float:
        """Of a product: what its settings say, else its recipe, else the station."""
        own = self.products.get(product, ProductSettings()).deadline_ms
        return (own or recipe_ms or self.deadline_ms) / 1000


def _below(section: S, folder: Path) -> S:
    """A section, with its paths in a folder."""
    paths = {name: folder / value for name, value in section if isinstance(value, Path)}
    return section.model_copy(update=paths)


def _place(camera: str, folder: Path) -> str:
    """The name of a camera, with its path in a folder when it has one."""
    kind, colon, rest = camera.partition(":")
    if colon and kind == "simulated":
        return f"simulated:{folder / rest}"
    return camera if not camera or colon or camera.isdecimal() else str(folder / camera)
