"""The recipe: a person's settings of input, geometry, detector, split and decision. A TOML file."""

import math
import re
import tomllib
from collections.abc import Iterator
from numbers import Integral
from pathlib import Path
from typing import Annotated, Any, Literal, Self, TypeVar, get_args

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from andon import files
from andon.errors import ImageError, RecipeError, unknown
from andon.geometry.registration import Register
from andon.geometry.views import Geometry, embedded

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
LONG_LINE = 1000  # characters; longer lines are shortened in a summary
BACKSLASH = "In double quotes a backslash begins an escape: write paths and patterns in single quotes, or paths with /."
Rate = Annotated[float, Field(gt=0, lt=1)]
Threshold = Annotated[float, Field(allow_inf_nan=False)]
SPECK = 4  # pixels of a tile: detectors do not resolve regions smaller than a square of this side
CROSS_BELOW = 500  # good parts; from this number on, a fifth of them supports the default rates


class Data(BaseModel):
    """The good images."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    images: str = ""
    """Folder of the images, relative to the recipe; for a data set in MVTec layout, train/good in it is used."""
    good: Annotated[tuple[str, ...], Field(strict=False)] = ()
    """Folders of good images, if their names do not indicate it; "*": all folders."""
    groups: str = ""
    """Assigns images to parts, lots or sessions: a CSV file, or a regular expression on the path."""


class InputRule(BaseModel):
    """The input from the camera. "auto": the value of the training images, which must all have the same."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    channels: Literal["auto", 1, 3] = "auto"
    """1: gray; 3: RGB."""
    depth: Literal["auto", 8, 16] = "auto"
    """Bits per sample."""
    maximum: Literal["auto", 1023, 4095, 16383, 65535] = "auto"
    """Largest value of 16-bit samples, from a 10-, 12-, 14- or 16-bit camera."""
    size: Literal["auto", "any"] = "auto"
    """"any": images of other sizes are accepted and resized."""
    unusual: Literal["tell", "invalid"] = "tell"
    """For an image that looks different from the good images: "tell" adds a note, "invalid" gives verdict INVALID."""
    light: Literal["as is", "gain", "field"] = "as is"
    """"gain": one factor brings the brightness of a picture to that of the good pictures; "field": a smooth field."""


class Augment(BaseModel):
    """Variations of training tiles that still show a good part.

    Used by detectors trained by gradient; `memory-bank` also stores the flips and quarter turns of good tiles.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    flip: bool = False
    """Left-right and up-down."""
    quarter_turns: bool = False
    """Rotations by 90, 180 and 270 degrees."""
    rotate: Annotated[float, Field(ge=0, le=180)] = 0.0
    """Largest rotation in degrees, in both directions; border pixels are repeated."""
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Largest relative change of brightness, in both directions."""


class Choice(BaseModel):
    """The detector and its settings (`andon detectors NAME` lists them)."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str = "memory-bank"
    preset: str = ""
    """Default: the detector's first preset."""
    settings: dict[str, Any] = {}
    """Settings that differ from those of the preset."""


class Decision(BaseModel):
    """The rates or thresholds that determine verdicts. A threshold overrides its rate."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    review_rate: Rate = 0.05
    """Allowed share of good parts that get REVIEW or REJECT."""
    reject_rate: Rate = 0.01
    """Allowed share of good parts that get REJECT."""
    pixel_rate: Rate = 0.05
    """Allowed share of good images with a region."""
    review_threshold: Threshold | None = None
    """Raw score; a higher score gets REVIEW."""
    reject_threshold: Threshold | None = None
    """Raw score; a higher score gets REJECT."""
    pixel_threshold: Threshold | None = None
    """Raw value of the anomaly map; higher values form regions."""
    per: Literal["image", "part"] = "image"
    """Unit of the rates: any one image of a new part, or its worst image."""
    reject_unsupported: bool = False
    """Give REJECT to scores above all held-out scores, even if the held-out parts are too few for `reject_rate`."""
    min_area: Literal["auto"] | Annotated[int, Field(ge=0)] = "auto"
    """Pixels of the image; smaller regions are counted and not listed. "auto": the area of 4 × 4 pixels of a tile."""

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.reject_rate > self.review_rate:
            raise ValueError(f"reject_rate = {self.reject_rate} must not exceed review_rate = {self.review_rate}")
        review, reject = self.review_threshold, self.reject_threshold
        if review is not None and reject is not None and review > reject:
            raise ValueError(f"review_threshold = {review:g} must not exceed reject_threshold = {reject:g}")
        return self


class Split(BaseModel):
    """Division of the good images into training and calibration; seeded. Groups are never divided.

    "split": some parts are held out for calibration. "cross": parts are divided into folds; each fold is scored by a
    detector that is trained on the other folds, and the detector of the bundle is trained on all parts. This needs
    folds + 1 fits, and few parts support lower rates.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    method: Literal["auto", "split", "cross"] = "auto"
    """"auto": cross for fewer than 500 parts if the detector fits quickly, else split."""
    calibrate: Annotated[float, Field(gt=0, le=0.9)] = 0.2
    """For "split": share of the parts that is held out."""
    folds: Annotated[int, Field(ge=2, le=50)] = 5
    """For "cross": number of folds; at most the number of parts."""


class Recipe(BaseModel):
    """All settings of one product. Every setting has a default, except the images."""

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
        """Read a recipe; paths in it are relative to its folder. RecipeError names the wrong key and the reason."""
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8-sig")  # Windows editors write a byte order mark
        except (OSError, UnicodeDecodeError) as error:
            raise RecipeError(f"{path}: cannot be read ({error}). Expected a recipe, a TOML file.") from None
        folder = path.resolve().parent
        recipe = cls.parse(text, str(path), folder).located(folder)
        return recipe.model_copy(update={"product": recipe.product or path.stem})

    def located(self, folder: Path) -> Self:
        """Return a copy whose paths, relative to `folder` until now, are absolute."""
        data = self.data.model_copy(update={"images": str(folder / self.data.images)} if self.data.images else {})
        if data.groups and files.is_file(folder / data.groups):
            data = data.model_copy(update={"groups": str(folder / data.groups)})
        recipe, registration = self.model_copy(update={"data": data}), self.geometry.registration
        if not registration or not registration.reference:
            return recipe
        reference = str(folder / registration.reference)
        return recipe.with_registration(registration.model_copy(update={"reference": reference}))

    def without_paths(self) -> Self:
        """Return a copy without the paths of images: the settings that affect decisions."""
        bare, registration = self.model_copy(update={"data": Data()}), self.geometry.registration
        return bare.with_registration(registration.model_copy(update={"reference": ""})) if registration else bare

    def with_registration(self, registration: Register) -> Self:
        """Return a copy with these settings of the registration."""
        return self.model_copy(update={"geometry": self.geometry.model_copy(update={"registration": registration})})

    def with_maximum(self, maximum: int) -> Self:
        """Return a copy with this largest value of 16-bit samples."""
        return self.model_copy(update={"input": self.input.model_copy(update={"maximum": maximum})})

    @classmethod
    def parse(cls, text: str, name: str, folder: Path | None = None) -> Self:
        """Read a recipe from text. A picture of the region, relative to `folder`, is embedded in it.

        Errors: RecipeError as `load`.
        """
        try:
            values = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            hint = f" {BACKSLASH}" if re.search(r'"[^"\n]*\\', text) else ""
            raise RecipeError(f"{name}: not TOML: {error}.{hint}") from None
        except RecursionError:
            raise RecipeError(f"{name}: brackets nested too deeply; expected a recipe. Check the file.") from None
        for key, value in _leaves(values, str):
            if key.startswith(("data.", "geometry.")) and re.search(r"[\x00-\x1f]", value):
                raise RecipeError(f"{name}: {key} = {value!r}: contains a control character. {BACKSLASH}")
        geometry = values.get("geometry")
        if folder and isinstance(geometry, dict) and isinstance(picture := geometry.get("include"), str):
            try:
                geometry["region"] = embedded(folder / picture)
                del geometry["include"]
            except ImageError as error:
                raise RecipeError(f"{name}: geometry.include: {error}") from None
        return validate(cls, values, name)

    def summary(self) -> str:
        """Return the recipe as TOML for people, with long lines (embedded pictures) shortened."""
        lines = self.dump().splitlines()
        return "\n".join(line if len(line) < LONG_LINE else f"{line[:60]}… ({len(line)} characters)" for line in lines)

    def dump(self) -> str:
        """Return the recipe as TOML, defaults included."""
        text = tomli_w.dumps(self.model_dump(mode="json", exclude_none=True))
        return text.encode(errors="replace").decode()  # the name of a folder may be invalid Unicode


def plain(value: Any) -> Any:
    """Return a whole number of another type, such as NumPy's, as an int; other values unchanged."""
    return int(value) if isinstance(value, Integral) and not isinstance(value, bool) else value


def validate(model: type[M], values: dict[str, Any], name: str) -> M:
    """Build a model. RecipeError names key, value and expectation, and for an unknown key the nearest known key."""
    for path, value in _leaves(values, float):
        if not math.isfinite(value):
            raise RecipeError(f"{name}: {path} = {value}: expected a finite number.")
    try:
        return model.model_validate(values)
    except ValidationError as error:
        faults = error.errors()
        parents = {tuple(fault["loc"][:depth]) for fault in faults for depth in range(1, len(fault["loc"]))}
        # pydantic also calls a list too short when its items are wrong: not a separate fault
        separate = [fault for fault in faults if fault["type"] != "too_short" or tuple(fault["loc"]) not in parents]
        raise RecipeError("; ".join(_explain(model, fault, name) for fault in separate)) from None


def _leaves(values: Any, kind: type[T], path: tuple[str, ...] = ()) -> Iterator[tuple[str, T]]:
    """Yield all values of a type in tables and lists, each with its path of keys."""
    if isinstance(values, kind):
        yield ".".join(path), values
    elif isinstance(values, dict | list | tuple):
        for key, value in values.items() if isinstance(values, dict) else enumerate(values):
            yield from _leaves(value, kind, (*path, str(key)))


def _explain(model: type[BaseModel], error: Any, name: str) -> str:
    """Return one error of pydantic as a message that names the key."""
    path = [str(step) for step in error["loc"]]
    where = f"{name}: {'.'.join(path) or 'recipe'}"
    if error["type"] == "extra_forbidden":
        owner: type[BaseModel] = model
        for step in path[:-1]:
            if step not in owner.model_fields:  # an index of a list, or a name in a table
                continue
            inner = owner.model_fields[step].annotation
            models = [
                kind for kind in (inner, *get_args(inner)) if isinstance(kind, type) and issubclass(kind, BaseModel)
            ]
            owner = models[0] if models else owner
        return f"{where}: {unknown('key', path[-1], owner.model_fields)}"
    if error["type"] == "missing":
        return f"{where}: missing; it is required"
    if error["type"] in ("model_type", "model_attributes_type", "dict_type"):
        return f"{where} = {error['input']!r}: expected a section [{'.'.join(path)}] with keys"
    if error["type"] in ("list_type", "tuple_type"):
        if isinstance(error["input"], dict):
            return f"{where}: a single section; expected a list, each entry under [[{'.'.join(path)}]]"
        return f"{where} = {error['input']!r}: expected a list, such as [{error['input']!r}]"
    message = error["msg"].removeprefix("Value error, ").replace("Input should be", "expected")
    return f"{where}: {message}" if error["type"] == "value_error" else f"{where} = {error['input']!r}: {message}"
