"""The plan of a plant: TOML → one job for each product. An impossible plan is refused before anything runs."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, model_validator

from andon import files
from andon.errors import AndonError, RecipeError, unknown
from andon.fleet.product import Job
from andon.recipe import Recipe, validate
from andon.training.train import compose, construct

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]  # used as the name of a folder


class Needs(BaseModel):
    """Resources of the training of one product."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    cpus: Annotated[int, Field(ge=1)] = 1
    """Processor cores; also the number of threads of the training."""
    gpus: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 0.0
    """GPUs; 0.5: two products share one."""
    memory_mb: Annotated[int, Field(ge=1)] = 1000
    """Memory in megabytes: a node starts no more products than fit."""
    retries: Annotated[int, Field(ge=0, le=100)] = 3
    """How often a product is started again when its process or its node dies."""


class Product(BaseModel):
    """One product: a recipe file, or a folder of good images with sections of a recipe."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name
    file: str = ""
    """A recipe file, relative to the plan, as all paths."""
    images: str = ""
    """Folder of good images, or a data set."""
    test: str = ""
    """Folder of labelled images to evaluate on; default: the test split of `images`, if it has one."""
    recipe: dict[str, Any] = {}
    """Sections of a recipe; they override those of the plan."""
    resources: dict[str, Any] = {}
    """Resources that differ from those of the plan."""

    @model_validator(mode="after")
    def _one_source(self) -> Self:
        if bool(self.file) == bool(self.images):
            raise ValueError("expected either file = 'a recipe' or images = 'a folder'; set one of them")
        if self.file and self.recipe:
            raise ValueError("has a recipe file and sections of a recipe; write the sections into the file")
        return self


class Plan(BaseModel):
    """The products of a plant."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    products: Annotated[list[Product], Field(min_length=1)]
    recipe: dict[str, Any] = {}
    """Sections of a recipe, for every product without a recipe file."""
    resources: Needs = Needs()


class Plant(NamedTuple):
    """The products of a plan, and where their results are."""

    name: str  # of the file of the plan
    out: Path  # folder of the results
    products: list[str]  # all names in the plan
    jobs: list[tuple[Job, Needs]]  # of the products that are asked for


def load(path: str | Path, out: str | Path, only: Sequence[str] = ()) -> Plant:
    """Read a plan: the job of each product, with its folder below `out`, and its resources.

    only: names of the products that are asked for; empty: all.
    Errors: RecipeError for a file that is no plan, an unknown key or product, a product that is listed twice, an
    impossible recipe, and a folder that is not there.
    """
    path, out = Path(path), Path(out).resolve()
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}). Expected a plan, a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not TOML: {error}. Correct the file.") from None
    plan = _validated(values, str(path))
    _check_names(plan, path, only)
    here = path.resolve().parent
    jobs = []
    for product in plan.products:
        if not only or product.name in only:
            where = f"{path}: product '{product.name}'"
            needs = validate(Needs, {**plan.resources.model_dump(), **product.resources}, f"{where}: resources")
            jobs.append((_job(product, plan, needs, here, out, where), needs))
    return Plant(path.name, out, [product.name for product in plan.products], jobs)


def _validated(values: dict[str, Any], name: str) -> Plan:
    """Build the plan; errors also name unknown keys inside the list of products."""
    entries = values.get("products")
    for entry in entries if isinstance(entries, list) else []:
        if isinstance(entry, dict):
            validate(Product, entry, f"{name}: product '{entry.get('name', '?')}'")
    return validate(Plan, values, name)


def _check_names(plan: Plan, path: Path, only: Sequence[str]) -> None:
    names = [product.name for product in plan.products]
    small = [name.lower() for name in names]  # some file systems do not distinguish case
    twice = next((name for j, name in enumerate(names) if name.lower() in small[:j]), None)
    if twice:
        raise RecipeError(f"{path}: product '{twice}' is listed twice; expected each once. Remove or rename one.")
    for name in only:
        if name not in names:
            raise RecipeError(f"{path}: {unknown('product', name, names)}")


def _job(product: Product, plan: Plan, needs: Needs, here: Path, out: Path, where: str) -> Job:
    if product.file:
        recipe = Recipe.load(here / product.file).model_copy(update={"product": product.name})
    else:
        values = _merged(plan.recipe, product.recipe)
        values = _merged(values, {"product": product.name, "data": {"images": product.images}})
        recipe = Recipe.parse(tomli_w.dumps(values), where, here).located(here)
    try:
        recipe = construct(compose(recipe))[1]
    except AndonError as error:
        raise RecipeError(f"{where}: {error}") from None
    test = str(here / product.test) if product.test else ""
    for folder in filter(None, (recipe.data.images, test)):
        if not files.is_folder(folder):
            raise RecipeError(
                f"{where}: there is no folder {folder}; expected images, relative to the plan. Correct it."
            )
        if out.is_relative_to(Path(folder).resolve()):
            raise RecipeError(f"{where}: the results would be written to its images, {folder}. Choose another --out.")
    return Job(product.name, recipe, test, out / product.name, needs.cpus, needs.gpus)


def _merged(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Return nested tables with the values of the second before those of the first."""
    both = {
        key: _merged(first[key], value) if isinstance(value, dict) and isinstance(first.get(key), dict) else value
        for key, value in second.items()
    }
    return {**first, **both}
