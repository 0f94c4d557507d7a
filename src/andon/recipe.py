"""The decisions of a person: product, input, geometry, detector and settings, decision. Written as TOML."""

import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from andon import files
from andon.errors import ImageError, RecipeError, unknown
from andon.geometry.registration import Register
from andon.geometry.views import Geometry, embedded

M = TypeVar("M", bound=BaseModel)
WIDE = 1000  # characters of a line that is shown whole
BACKSLASH = "In double quotes a backslash begins an escape: write paths and patterns in single quotes, or paths with /."
Rate = Annotated[float, Field(gt=0, lt=1)]
Threshold = Annotated[float, Field(allow_inf_nan=False)]
SPECK = 4  # pixels of a tile: a region smaller than a square of this side is finer than detectors resolve
CROSS_BELOW = 500  # good parts; of as many or more, a fifth held out supports the default rates


class Data(BaseModel):
    """Where the good images are."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    images: str = ""  # a folder, relative to the recipe; a data set in MVTec layout gives its train/good
    good: Annotated[
        tuple[str, ...], Field(strict=False)
    ] = ()  # folders of good images whose names say nothing; "*" all
    groups: str = ""  # which images show one part, lot or session: a CSV file, or a regular expression on the path


class InputRule(BaseModel):
    """What the camera gives. "auto": read off the training images, which must agree."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    channels: Literal["auto", 1, 3] = "auto"
    depth: Literal["auto", 8, 16] = "auto"  # bits
    maximum: Literal["auto", 1023, 4095, 16383, 65535] = (
        "auto"  # of 16-bit samples: what a 10-, 12- or 14-bit camera gives
    )
    size: Literal["auto", "any"] = "auto"  # any: images of other sizes are taken too, resized by the geometry
    unusual: Literal["tell", "invalid"] = "tell"  # an image that looks like no good one: a note, or INVALID
    # gain: a picture's brightness is brought to that of the good ones by one factor; field: by a smooth field
    light: Literal["as is", "gain", "field"] = "as is"


class Augment(BaseModel):
    """How training tiles may be varied without becoming a different product.

    Used by detectors trained by gradient; `memory-bank` also remembers the flips and turns of good tiles.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    flip: bool = False  # left-right and up-down
    quarter_turns: bool = False
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0  # up to so many degrees either way; the edge is repeated
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0  # times 1 ± up to this share


class Choice(BaseModel):
    """Which detector, and its settings (`andon detectors NAME` lists them)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = "memory-bank"
    preset: str = ""  # the detector's first, if not given
    settings: dict[str, Any] = {}


class Decision(BaseModel):
    """How verdicts are made from scores. A threshold, where given, overrides the one found from its rate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    review_rate: Rate = 0.05  # share of good parts that may get REVIEW or REJECT
    reject_rate: Rate = 0.01  # share of good parts that may get REJECT
    pixel_rate: Rate = 0.05  # share of good images that may show any region
    review_threshold: Threshold | None = None  # raw score
    reject_threshold: Threshold | None = None
    pixel_threshold: Threshold | None = None
    per: Literal["image", "part"] = "image"  # unit of the rates: any one image of a new part, or its worst image
    reject_unsupported: bool = False  # REJECT beyond all held-out parts, though they are too few for reject_rate
    # pixels of the image; smaller regions are counted, not shown. "auto": what SPECK × SPECK pixels of a tile cover
    min_area: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.reject_rate > self.review_rate:
            raise ValueError(f"reject_rate = {self.reject_rate} must not exceed review_rate = {self.review_rate}")
        review, reject = self.review_threshold, self.reject_threshold
        if review is not None and reject is not None and review > reject:
            raise ValueError(f"review_threshold = {review:g} must not exceed reject_threshold = {reject:g}")
        return self


class Split(BaseModel):
    """How good images serve both learning and calibration; seeded, and groups are never divided.

    `split` holds some parts out. `cross` divides them into folds: each is scored by a detector that learnt from the
    others, and the bundle's detector learns from all. It takes folds + 1 fits, and few parts support lower rates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Literal["auto", "split", "cross"] = "auto"  # auto: cross below CROSS_BELOW parts, where a fit is cheap
    calibrate: Annotated[float, Field(gt=0, le=0.9)] = 0.2  # split: share of the parts held out for thresholds
    folds: Annotated[int, Field(ge=2, le=50)] = 5  # cross: how many; at most as many as there are parts


class Recipe(BaseModel):
    """Everything a person decides about one product; every part has a default but the images."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    product: str = ""
    deadline_ms: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = (
        None  # from trigger to verdict, at a station
    )
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    data: Data = Data()
    input: InputRule = InputRule()
    geometry: Geometry = Geometry()
    augment: Augment = Augment()
    detector: Choice = Choice()
    decision: Decision = Decision()
    split: Split = Split()

    @classmethod
    def load(cls, path: str | Path) -> Self:
        """Read a recipe; paths in it are relative to its folder. RecipeError says which key is wrong and why."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")  # Windows editors put a mark of the encoding first
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read ({error}). Expected a recipe, a TOML file.") from None
        folder = path.resolve().parent
        recipe = cls.parse(text, str(path), folder)
        data = recipe.data.model_copy(update={"images": str(folder / recipe.data.images)} if recipe.data.images else {})
        if data.groups and files.is_file(folder / data.groups):
            data = data.model_copy(update={"groups": str(folder / data.groups)})
        registration = recipe.geometry.registration
        if registration and registration.reference:
            recipe = recipe.registering(
                registration.model_copy(update={"reference": str(folder / registration.reference)})
            )
        return recipe.model_copy(update={"product": recipe.product or path.stem, "data": data})

    def anywhere(self) -> Self:
        """The recipe without where its images lie: what of it makes decisions."""
        bare, registration = self.model_copy(update={"data": Data()}), self.geometry.registration
        return bare.registering(registration.model_copy(update={"reference": ""})) if registration else bare

    def registering(self, registration: Register) -> Self:
        """The recipe with parts registered in this way."""
        return self.model_copy(update={"geometry": self.geometry.model_copy(update={"registration": registration})})

    def up_to(self, maximum: int) -> Self:
        """The recipe for 16-bit samples of this range."""
        return self.model_copy(update={"input": self.input.model_copy(update={"maximum": maximum})})

    @classmethod
    def parse(cls, text: str, name: str, folder: Path | None = None) -> Self:
        """Read a recipe from text; a picture of the region, relative to `folder`, is taken into it."""
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            hint = f" {BACKSLASH}" if re.search(r'"[^"\n]*\\', text) else ""
            raise RecipeError(f"{name}: not TOML: {error}.{hint}") from None
        except RecursionError:
            raise RecipeError(f"{name}: brackets nested too deep; expected a recipe. Check the file.") from None
        for key, value in _strings(values):
            if key.startswith(("data.", "geometry.")) and re.search(r"[\x00-\x1f]", value):
                raise RecipeError(f"{name}: {key} = {value!r}: holds a control character. {BACKSLASH}")
        geometry = values.get("geometry")
        if folder and isinstance(geometry, dict) and isinstance(picture := geometry.get("include"), str):
            try:
                geometry["region"] = embedded(folder / picture)
                del geometry["include"]
            except ImageError as error:
                raise RecipeError(f"{name}: geometry.include: {error}") from None
        return validate(cls, values, name)

    def shown(self) -> str:
        """The recipe as TOML to look at: a picture in it is cut short."""
        lines = self.dump().splitlines()
        return "\n".join(line if len(line) < WIDE else f"{line[:60]}… ({len(line)} characters)" for line in lines)

    def dump(self) -> str:
        """Write the recipe as TOML, defaults included, so that a bundle tells all that was decided."""
        text = tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
        return text.encode(errors="replace").decode()  # a folder's name need not be valid Unicode


def validate(model: type[M], values: dict[str, Any], name: str) -> M:
    """Build a model; RecipeError names key, value and expectation, and for an unknown key the nearest known one."""
    for path, value in _floats(values):
        if not math.isfinite(value):
            raise RecipeError(f"{name}: {path} = {value}: expected a finite number.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors()
        within = {tuple(fault["loc"][:depth]) for fault in faults for depth in range(1, len(fault["loc"]))}
        # A list is also called too short when its items are wrong; that is no fault of its own.
        told = [fault for fault in faults if fault["type"] != "too_short" or tuple(fault["loc"]) not in within]
        raise RecipeError("; ".join(_explain(model, fault, name) for fault in told)) from None


def _floats(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, float]]:
    """Every float in tables and lists, with the keys that lead to it."""
    if isinstance(values, float):
        yield ".".join(path), values
    elif isinstance(values, dict | list | tuple):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _floats(value, (*path, str(key)))


def _strings(values: Any, path: tuple[str, ...] = ()) -> Iterator[tuple[str, str]]:
    """Every string in tables and lists, with the keys that lead to it."""
    if isinstance(values, str):
        yield ".".join(path), values
    elif isinstance(values, dict | list):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _strings(value, (*path, str(key)))


def _explain(model: type[BaseModel], error: Any, name: str) -> str:
    """Put one of pydantic's errors into words that name the key."""
    path = [str(step) for step in error["loc"]]
    where = f"{name}: {'.'.join(path) or 'recipe'}"
    if error["type"] == "extra_forbidden":
        owner: type[BaseModel] = model
        for step in path[:-1]:
            inner = owner.model_fields[step].annotation
            models = [
                kind for kind in (inner, *get_args(inner)) if isinstance(kind, type) and issubclass(kind, BaseModel)
            ]
            owner = models[0] if models else owner
        return f"{where}: {unknown('key', path[-1], owner.model_fields)}"
    if error["type"] == "missing":
        return f"{where}: not there; it must be given"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{where} = {error['input']!r}: expected a section, [{'.'.join(path)}], with keys of its own"
    if error["type"] in ("list_type", "tuple_type") and isinstance(error["input"], dict):
        return f"{where}: expected a list, each entry under [[{'.'.join(path)}]]; found a single section"
    message = error["msg"].removeprefix("Value error, ")
    return f"{where}: {message}" if error["type"] == "value_error" else f"{where} = {error['input']!r}: {message}"
