"""Projects: what is known of a product that is being taught. One folder each, below the station's data.

The folder's name is a digest of the project's name, so that a name in any script never becomes a path. In it are

- `project.json`: name, product, revision and recipe;
- `pictures/train/good`, `pictures/test/KIND`: the pictures, in the layout that `andon train` reads;
- `left-out/…`: pictures that were dropped, in the same layout;
- `thumbnails`, `run`, `new`: what can be made again.
"""

import re
import threading
import unicodedata
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from andon import files
from andon.errors import AndonError, StorageError, few
from andon.recipe import Choice, Data, Recipe
from andon.station.config import PRODUCT
from andon.station.events import StationError

LONGEST = 64  # characters of a name
MOST_PROJECTS = 1000
PICTURES = "pictures"


class Conflict(StationError):
    """An edit of a project that somebody else has changed since it was read. Nothing was changed."""


@dataclass(frozen=True)
class Project:
    """One project."""

    name: str
    """In any script."""
    product: str
    """Name of the product at the station, as line protocols and URLs use it."""
    recipe: str
    """TOML; `images` is relative to the folder of the project."""
    revision: int = 1
    """Grows by 1 at each edit; whoever edits says which revision that was made for."""
    by: str = ""
    """Who made the last edit."""
    changed: str = ""
    """When: UTC, ISO 8601."""

    @property
    def key(self) -> str:
        """Name of the folder: 16 hexadecimal digits."""
        return _key(self.name)

    def parsed(self) -> Recipe:
        """The recipe. RecipeError when the file was damaged."""
        return Recipe.parse(self.recipe, f"recipe of '{self.name}'")


_JSON = TypeAdapter(Project)


class Projects:
    """All projects of a station.

    Args:
        folder: made when the first project is.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._lock = threading.Lock()

    def all(self) -> list[Project]:
        """All projects, by name. Damaged ones are left out."""
        found = []
        for path in sorted(self.folder.glob("*/project.json")):
            try:
                found.append(_read(path))
            except StationError:
                continue
        return sorted(found, key=lambda each: each.name.casefold())

    def get(self, name: str) -> Project:
        """A project by its name. StationError when there is none."""
        path = self.folder / _key(_checked(name)) / "project.json"
        if not files.is_file(path):
            names = [each.name for each in self.all()]
            raise StationError(f"no project '{name[:LONGEST]}'; there are: {few(names, 8) or 'none'}. Create it first.")
        return _read(path)

    def place(self, project: Project) -> Path:
        """The folder of a project."""
        return self.folder / project.key

    def create(self, name: str, product: str, who: str) -> Project:
        """Begin a project. StationError when a name cannot be used, or is in use."""
        name, product = _checked(name), product.strip()
        if not re.fullmatch(PRODUCT, product):
            raise StationError(
                f"product '{product[:LONGEST]}': expected 1 to 64 of the letters a to z and A to Z, digits, - and _, "
                "beginning with a letter or digit. Line protocols use this name."
            )
        recipe = Recipe(product=product, data=Data(images=PICTURES), detector=Choice(preset="standard"))
        with self._lock:
            known = self.all()
            if len(known) >= MOST_PROJECTS:
                raise StationError(f"there are {len(known)} projects; expected fewer than {MOST_PROJECTS}. Remove one.")
            if any(each.key == _key(name) for each in known):
                raise StationError(f"there is a project '{name}' already. Open it, or choose another name.")
            return self._write(Project(name, product, recipe.dump(), 1, who, _now()))

    def change(self, name: str, revision: int, who: str, recipe: Recipe) -> Project:
        """Set the recipe. Conflict when the project's revision is another one than `revision`."""
        return self._edit(name, revision, who, recipe.dump())

    def touch(self, name: str, revision: int, who: str) -> Project:
        """Count an edit of the pictures. Conflict as `change`."""
        return self._edit(name, revision, who, None)

    def _edit(self, name: str, revision: int, who: str, recipe: str | None) -> Project:
        with self._lock:
            project = self.get(name)
            if project.revision != revision:
                raise Conflict(
                    f"project '{project.name}': {project.by or 'somebody'} changed it meanwhile: it has "
                    f"revision {project.revision}, and this change was made for revision {revision}. Nothing was "
                    "changed. Load the page again, and repeat the change if it is still wanted."
                )
            edited = replace(project, revision=revision + 1, by=who, changed=_now(), recipe=recipe or project.recipe)
            return self._write(edited)

    def _write(self, project: Project) -> Project:
        try:
            files.make_folder(self.place(project))
            files.write(self.place(project) / "project.json", files.strict_json(asdict(project), 1).encode())
        except AndonError as error:
            raise StorageError(str(error)) from None
        return project


def fingerprint(place: Path, recipe: Recipe) -> str:
    """Identifies what a training sees: the pictures by name, size and time, and the recipe without its decision."""
    parts: list[Any] = [recipe.model_dump_json(exclude={"decision"})]
    for path in sorted((place / PICTURES).rglob("*")):
        if files.is_file(path):
            state = path.stat()
            parts.append((path.relative_to(place).as_posix(), state.st_size, state.st_mtime_ns))
    return files.digest(repr(parts).encode(errors="surrogateescape"))


def _checked(name: str) -> str:
    """A name in one Unicode form, without spaces around it. StationError when it cannot be used."""
    found = unicodedata.normalize("NFC", name).strip()
    kinds = {unicodedata.category(letter)[0] for letter in found}
    if not found or len(found) > LONGEST or "C" in kinds or not kinds & {"L", "N"} or "/" in found:
        raise StationError(
            f"name {name[: 2 * LONGEST]!r}: expected 1 to {LONGEST} characters in any script, with a letter or a "
            "digit, and without / and control characters."
        )
    return found


def _key(name: str) -> str:
    return files.digest(unicodedata.normalize("NFC", name).strip().encode(errors="surrogatepass"))[:16]


def _read(path: Path) -> Project:
    try:
        return _JSON.validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        why = files.reason(error) if isinstance(error, OSError) else "it is damaged"
        raise StationError(f"{path}: cannot be read: {why}. Restore it from a backup, or remove its folder.") from None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
