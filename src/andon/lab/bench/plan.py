"""The plan of a benchmark: TOML → cells. Impossible plans are refused before anything runs."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, NamedTuple

from pydantic import BaseModel, ConfigDict, Field

from andon import files
from andon.data import dataset, grouping
from andon.errors import AndonError, RecipeError
from andon.lab.datasets import table
from andon.recipe import Recipe, validate
from andon.training.train import construct

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._+-]*$")]  # used as a file name and in tables
OCCLUSIONS = "occlusion_images"  # a setting that is the path of a folder


class Contender(BaseModel):
    """A detector with its settings."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    label: Name | None = None  # name in tables; required if the plan has a detector twice
    preset: str = ""  # empty: the first of the detector
    settings: dict[str, Any] = {}

    @property
    def called(self) -> str:
        """Name in tables."""
        return self.label or self.name


class Product(BaseModel):
    """A folder with training and test images."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: Name
    folder: str  # relative to the plan, as all paths
    groups: str = ""  # CSV or expression, as in a recipe
    geometry: dict[str, Any] = {}  # as in a recipe, without the size
    augment: dict[str, Any] = {}  # as in a recipe: flip, quarter_turns, rotate, brightness
    equalise: bool = False  # whether test pictures get the median gray of training pictures, see `equalised`
    published: str = ""  # "dataset/product" in the published tables, if they contain this product
    dataset: str = ""  # a published data set (see `andon datasets`); its products take the place of this one


class Plan(BaseModel):
    """A plan: every detector on every product, at every size, with every seed."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    detectors: Annotated[list[Contender], Field(min_length=1)]
    products: Annotated[list[Product], Field(min_length=1)]
    sizes: Annotated[list[int], Field(min_length=1)] = [256]  # pixels a side
    seeds: Annotated[list[int], Field(min_length=1)] = [0]
    published: str = ""  # file of published figures for the report
    keep_bundles: bool = False  # whether bundles are kept after their evaluation


class Cell(NamedTuple):
    """One training and its evaluation."""

    product: str
    detector: str  # name in tables
    size: int
    seed: int
    recipe: Recipe

    @property
    def place(self) -> Path:
        """Path of its result in the folder of results, without suffix."""
        return Path(self.product, self.detector, f"{self.size}-{self.seed}")

    def __str__(self) -> str:
        return f"{self.product} · {self.detector} · {self.size}² · seed {self.seed}"


def load(path: str | Path, datasets: Sequence[tuple[str, str]] = ()) -> Plan:
    """Read a plan, with absolute paths. RecipeError names a wrong key, DatasetError an unknown data set.

    datasets: names and folders of published data sets, which take the place of the plan's products.
    """
    path = Path(path)
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8-sig"))  # Notepad writes a byte order mark
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{path}: cannot be read ({error}). Expected a plan, a TOML file.") from None
    except tomllib.TOMLDecodeError as error:
        raise RecipeError(f"{path}: not TOML: {error}. Correct the file.") from None
    if datasets:
        values["products"] = [
            {"name": name, "folder": str(Path(folder).expanduser().resolve()), "dataset": name, "published": name}
            for name, folder in datasets
        ]
    plan = _validated(values, str(path))
    for product in plan.products:
        if product.dataset:
            table.named(product.dataset)
    here = path.resolve().parent
    detectors = [
        entry.model_copy(update={"settings": _beside(here, entry.settings, OCCLUSIONS)}) for entry in plan.detectors
    ]
    products = [
        product.model_copy(
            update={
                "folder": str(here / product.folder),
                "groups": str(here / product.groups) if files.is_file(here / product.groups) else product.groups,
                "geometry": _beside(here, product.geometry, "registration", "reference"),
            }
        )
        for product in plan.products
    ]
    published = str(here / plan.published) if plan.published else ""
    if published and not files.is_file(published):
        raise RecipeError(f"{path}: published: there is no file {published}. Correct the path, or leave it out.")
    return plan.model_copy(update={"detectors": detectors, "products": products, "published": published})


def _beside(here: Path, values: dict[str, Any], key: str, *inner: str) -> dict[str, Any]:
    """Return the values, with the path at these keys, if any, made absolute from `here`."""
    value = values.get(key)
    if inner and isinstance(value, dict):
        return {**values, key: _beside(here, value, *inner)}
    return {**values, key: str(here / value)} if not inner and isinstance(value, str) and value else values


def _validated(values: dict[str, Any], name: str) -> Plan:
    """Build the plan; errors also name unknown keys inside lists."""
    for key, model in (("detectors", Contender), ("products", Product)):
        entries = values.get(key)
        for entry in entries if isinstance(entries, list) else []:
            if isinstance(entry, dict):
                validate(model, entry, f"{name}: {key} '{entry.get('label') or entry.get('name', '?')}'")
    return validate(Plan, values, name)


def cells(plan: Plan) -> list[Cell]:
    """All cells in the order of the run: seeds outermost, so that an early table has every detector and product.

    Errors: RecipeError for the first impossible cell, with its entry of the plan.
    """
    cells = combined(plan)
    for product in plan.products:
        _check_folder(product)
    return cells


def combined(plan: Plan) -> list[Cell]:
    """All cells, as `cells`, without reading the folders of the products. RecipeError for the first impossible cell."""
    _distinct("detector", [entry.called.lower() for entry in plan.detectors], "Give each its own label.")
    _distinct("product", [entry.name.lower() for entry in plan.products], "Give each its own name.")
    _distinct("size", plan.sizes, "List it once.")
    _distinct("seed", plan.seeds, "List it once.")
    cells: list[Cell] = []
    for seed in plan.seeds:
        for size in plan.sizes:
            for product in plan.products:
                cells += [
                    Cell(product.name, entry.called, size, seed, _recipe(entry, product, size, seed))
                    for entry in plan.detectors
                ]
    first: dict[tuple[str, bool], Cell] = {}
    equalised = {product.name: product.equalise for product in plan.products}
    for cell in cells:
        content = cell.recipe.model_copy(update={"product": ""}).dump(), equalised[cell.product]
        same = first.setdefault(content, cell)
        if same is not cell:
            raise RecipeError(f"the plan has the same cell twice: {same} and {cell}. Remove one of them.")
    return cells


def _recipe(entry: Contender, product: Product, size: int, seed: int) -> Recipe:
    where = f"plan: product '{product.name}', detector '{entry.called}'"
    if "size" in product.geometry:
        raise RecipeError(
            f"{where}: geometry.size is a setting of the whole plan. Set sizes = [{product.geometry['size']}]."
        )
    values = {
        "product": product.name,
        "seed": seed,
        "data": {"images": product.folder, "groups": product.groups},
        "geometry": {**product.geometry, "size": size},
        "augment": product.augment,
        "detector": entry.model_dump(exclude={"label"}),
        "split": {"method": "split"},  # every detector learns from the same images, also those with a quick fit
    }
    recipe = validate(Recipe, values, where)
    try:
        recipe = construct(recipe)[1]
    except AndonError as error:
        raise RecipeError(f"{where}: {error}") from None
    reference, folder = outside(recipe)
    if reference and not files.is_file(reference):
        raise RecipeError(
            f"{where}: geometry.registration.reference: there is no file {reference}; expected a picture, relative to "
            "the plan. Correct the path, or leave it out."
        )
    if folder and not files.is_folder(folder):
        raise RecipeError(
            f"{where}: settings.{OCCLUSIONS}: there is no folder {folder}; expected a folder of pictures, relative to "
            "the plan. Correct the path, or leave it out."
        )
    return recipe


def outside(recipe: Recipe) -> tuple[str, str]:
    """Paths that training reads besides the images: reference picture and folder of occlusions; "" for none."""
    registration = recipe.geometry.registration
    return registration.reference if registration else "", recipe.detector.settings.get(OCCLUSIONS, "")


def _check_folder(product: Product) -> None:
    """Raise RecipeError for a folder without training and test images: evaluation would use training images."""
    if product.equalise and grouping.is_table(product.groups):
        raise RecipeError(
            f"plan: product '{product.name}': equalise renames test pictures to .png, so {product.groups} no longer "
            "names them; expected groups as an expression. Set one, or leave equalise out."
        )
    try:
        data = dataset.load(product.folder, groups=product.groups or None)
    except AndonError as error:
        raise RecipeError(f"plan: product '{product.name}': {error}") from None
    test = [sample for sample in data.samples if sample.split == "test"]
    if not data.good("train") or not any(sample.defect == "good" for sample in test) or not data.defective("test"):
        raise RecipeError(
            f"plan: product '{product.name}': {product.folder} has {len(data.good('train'))} good images under train "
            f"and {len(test)} images under test. A benchmark needs train/good, test/good and test/<defect>."
        )


def _distinct(kind: str, values: Sequence[object], mend: str) -> None:
    twice = next((value for j, value in enumerate(values) if value in values[:j]), None)
    if twice is not None:
        raise RecipeError(f"plan: {kind} {twice} is listed twice; expected each once. {mend}")
