"""Teaching at a station, as its pages see it: projects, their pictures, what runs beside the line, and the release."""

import json
import shutil
from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from andon import files
from andon.errors import AndonError, RecipeError, StorageError, unknown
from andon.recipe import Choice, Recipe, validate
from andon.station.aside import Aside
from andon.station.catalogue import Version
from andon.station.events import StationError
from andon.station.jobs import Jobs
from andon.station.products import Products
from andon.station.teaching import bringing, pictures, work
from andon.station.teaching.background import Action, Background
from andon.station.teaching.camera import Cameras
from andon.station.teaching.pictures import Pictures, Taken
from andon.station.teaching.projects import PICTURES, Project, Projects, fingerprint

THUMBNAIL = 240  # pixels of the longer side
OPEN_FACTOR = 5  # a bundle is calibrated anew in about five times the time in which a picture is drawn


class Kept(NamedTuple):
    """A result of something that ran beside the line."""

    content: dict[str, Any]
    current: bool
    """Whether pictures and recipe are still those that it was made from."""


class Teaching:
    """What can be done with projects.

    Args:
        jobs: of the station.
        products: of the station, which takes what is released.
    """

    def __init__(self, jobs: Jobs, products: Products) -> None:
        self._jobs, self._products, self.config = jobs, products, jobs.config
        self.projects = Projects(self.config.data / "teach")
        self.background = Background(self.projects.folder, jobs.tell)
        self.cameras = Cameras(self.config, jobs.tell)
        self._aside = Aside(OPEN_FACTOR * self.config.http.draw_timeout_s)

    def start(self) -> None:
        self.background.recover()

    def close(self) -> None:
        self.cameras.close()
        self.background.close()
        self._aside.close()

    # Pictures

    def pictures(self, project: Project) -> Pictures:
        return Pictures(self.projects.place(project))

    def upload(self, project: Project, file: Path, name: str, label: str) -> Taken:
        """Take one file, which lies on the same disk: a picture, or a ZIP archive of pictures."""
        found = self.pictures(project)
        if Path(name).suffix.lower() == ".zip":
            return bringing.zipped(found, file, label)
        return found.take_all([(file, name, _folder(label))])

    def from_folder(self, project: Project, folder: str, label: str) -> Taken:
        """Copy the pictures of a folder that the settings of the station name."""
        known = bringing.folders_of(self.config)
        if folder not in known:
            raise StationError(
                f"folder '{folder[:200]}': expected one of the folders in the settings of the station: "
                f"{', '.join(known) or 'none'}. Choose one, or name it in the settings."
            )
        return bringing.from_folder(self.pictures(project), known[folder], label)

    def from_camera(self, project: Project, product: str, count: int, every_s: float, label: str) -> Taken:
        """Take pictures from the camera of a product, a few seconds apart."""
        return self.cameras.take(self.pictures(project), product, count, every_s, _folder(label))

    def from_archive(self, project: Project, product: str, most: int, confirmed: bool) -> Taken:
        """Copy good pictures of production that the station has kept."""
        self._products.catalogue.product(product)
        place = self.pictures(project)
        return bringing.from_archive(place, self._jobs.ledger, self._jobs.archive, product, most, confirmed)

    def choose(self, project: Project, revision: int, who: str, drop: Sequence[str], keep: Sequence[str]) -> Project:
        """Leave pictures out, or let them count again. Conflict when somebody else has edited the project."""
        found = self.pictures(project)
        for name in (*drop, *keep):
            found.path(name)
        edited = self.projects.touch(project.name, revision, who)
        found.drop(list(drop))
        found.keep(list(keep))
        return edited

    def thumbnail(self, project: Project, name: str) -> bytes:
        """A picture as a small JPEG, drawn once. ImageError when it cannot be decoded."""
        return self._drawn_once(project, name, ".jpg", work.thumbnail, THUMBNAIL)

    def drawable(self, project: Project, name: str) -> bytes:
        """A picture to draw on, as PNG, made once. ImageError when it cannot be decoded."""
        return self._drawn_once(project, name, ".png", work.drawable)

    def _drawn_once(self, project: Project, name: str, suffix: str, draw: Callable[..., bytes], *more: Any) -> bytes:
        source = self.pictures(project).path(name)
        state = source.stat()
        key = files.digest(f"{name}\n{state.st_size}\n{state.st_mtime_ns}".encode(errors="surrogateescape"))
        path = self.projects.place(project) / "thumbnails" / f"{key[:32]}{suffix}"
        if not files.is_file(path):
            data = self._aside.call(draw, str(source), *more)
            files.make_folder(path.parent)
            files.write(path, data)
        return path.read_bytes()

    @cached_property
    def presets(self) -> dict[str, tuple[int, float]]:
        """The presets of the default detector: the size of its input in pixels, and its relative time."""
        return self._aside.call(work.presets, Choice().name)

    # Recipe

    def recipe(self, project: Project, revision: int, who: str, changes: dict[str, dict[str, Any]]) -> Project:
        """Change settings: section → key → value. Conflict as `choose`; RecipeError names a wrong value."""
        values = project.parsed().model_dump()
        for section, own in changes.items():
            values[section].update(own)
        recipe = validate(Recipe, values, "recipe")
        if recipe.detector.preset not in self.presets:
            raise RecipeError(f"recipe: detector.preset: {unknown('preset', recipe.detector.preset, self.presets)}")
        registration = recipe.geometry.registration
        if registration and registration.reference:
            self.pictures(project).path(registration.reference.removeprefix(f"{PICTURES}/"))
        return self.projects.change(project.name, revision, who, recipe)

    def reference(self, project: Project) -> str:
        """The name of the picture that regions are drawn on: the reference of the registration, or the first good one.

        StationError when there is none yet.
        """
        registration = project.parsed().geometry.registration
        if registration and registration.reference:
            return registration.reference.removeprefix(f"{PICTURES}/")
        good = [name for name in self.pictures(project).listed() if name.startswith(pictures.GOOD)]
        if not good:
            raise StationError(f"project '{project.name}' has no good pictures yet. Bring some first.")
        return good[0]

    # Beside the line

    def run(self, project: Project, action: Action, who: str) -> None:
        """Begin a check, a preview, an estimate or a training. StationError when another one goes on."""
        place = self.projects.place(project)
        files.write(place / work.RECIPE, project.recipe.encode())
        self.background.start(place, action, fingerprint(place, project.parsed()), who)

    def kept(self, project: Project, action: Action) -> Kept | None:
        """What the last run of an action that was done found; None when there is none."""
        path = {"check": work.CHECK, "expected": work.EXPECTED, "train": work.RESULT, "preview": work.PREVIEW}[action]
        place = self.projects.place(project)
        run = self.background.last(place, action)
        if run is None or not run.result:
            return None
        try:
            if action == "train" and _newer(place / work.BUNDLE, place / work.RESULT):  # killed while it saved rates
                self._aside.call(work.describe, str(place))
            data = (place / path).read_bytes()
        except (OSError, AndonError):
            return None
        content = {} if action == "preview" else json.loads(data)
        return Kept(content, run.result == fingerprint(place, project.parsed()))

    def drawn(self, project: Project, what: str) -> Path:
        """A picture that a run has drawn: `preview`, `highest`, or the number of a defect that was tried."""
        place = self.projects.place(project)
        names = {"preview": work.PREVIEW, "highest": work.HIGHEST}
        path = place / (names.get(what) or f"{work.TRIED}/{int(what) if what.isdecimal() else 0}.jpg")
        if not files.is_file(path):
            raise StationError(f"no picture '{what[:40]}' any more. Train again.")
        return path

    def decide(self, project: Project, revision: int, who: str, review_rate: float, reject_rate: float) -> Project:
        """Set the rates in the recipe, and in the bundle if there is one. Conflict as `choose`.

        StationError while a training of the project goes on.
        """
        if self.background.busy == (project.key, "train"):
            raise StationError(
                f"project '{project.name}' is being trained. Nothing was saved. Set the rates when that has ended."
            )
        changes = {"review_rate": review_rate, "reject_rate": reject_rate}
        trained = self.kept(project, "train")
        edited = self.recipe(project, revision, who, {"decision": dict(changes)})
        if trained:
            self._aside.call(work.redecide, str(self.projects.place(project)), changes)
        return edited

    # Release

    def trained(self, project: Project) -> Kept:
        """The result of the training. StationError when there is none that may be released."""
        found = self.kept(project, "train")
        if found is None:
            raise StationError(f"project '{project.name}' has no trained bundle. Train it first.")
        if not found.current:
            raise StationError(
                f"project '{project.name}': pictures or recipe have changed since its training. Train again."
            )
        return found

    def release(self, project: Project, who: str) -> Version:
        """Give the bundle to the station, and permit it to inspect. StationError names escapes that it lets through.

        StationError too when the bundle is another than the one whose result is shown.
        """
        shown, place = self.trained(project).content["digest"], self.projects.place(project)
        with self._products.archive.incoming() as copy:
            shutil.copyfile(place / work.BUNDLE, copy)
            file = self._products.archive.move(copy, ".andon")
        version = self._products.add(project.product, file, who)
        if version.digest != shown:
            self._aside.call(work.describe, str(place))
            raise StationError(
                f"project '{project.name}': bundle {version.digest[:12]} is not {shown[:12]}, whose result was shown. "
                "Nothing was released. Look at the result again, then release."
            )
        return self._products.release(project.product, version.digest, who)

    def activate(self, project: Project, who: str, golden: bool = False) -> None:
        """Let the released bundle inspect.

        golden: the good picture of the lowest score becomes the golden picture, as it does without one.
        """
        result, data = self.trained(project).content, None
        if golden or self._products.catalogue.product(project.product).golden is None:
            try:
                data = self.pictures(project).path(f"{pictures.GOOD}/{result['lowest']}").read_bytes()
            except OSError as error:
                raise StorageError(f"the golden picture cannot be read: {files.reason(error)}.") from error
        self._products.activate(project.product, result["digest"], who, data)

    def standing(self, project: Project) -> dict[str, bool]:
        """Which steps of a project are done, in their order."""
        found, geometry = self.pictures(project), project.parsed().geometry
        trained = self.kept(project, "train")
        good = [name for name in found.listed() if name.startswith(pictures.GOOD)]
        check = self.kept(project, "check")
        try:
            product = self._products.catalogue.product(project.product)
        except AndonError:
            product = None
        version = product.versions.get(trained.content["digest"]) if product and trained else None
        return {
            "pictures": len(good) > 1,
            "check": bool(check and check.current),
            "region": bool(geometry.crop or geometry.include or geometry.ignore or geometry.registration),
            "train": bool(trained and trained.current),
            "result": bool(trained and trained.current),
            "release": bool(product and version and product.active == version.digest),
        }


def _newer(one: Path, other: Path) -> bool:
    """Whether a file was written after another. OSError when one is not there."""
    return one.stat().st_mtime_ns > other.stat().st_mtime_ns


def _folder(label: str) -> str:
    """Where pictures belong that show good parts, or one kind of defect. StationError for a name that is none."""
    return pictures.GOOD if label in ("", "good") else pictures.defects(label)
