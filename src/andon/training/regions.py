"""The page of `andon regions`: crop, region of interest and areas to ignore, drawn on a picture of a good part."""

import base64
import hashlib
import os
from importlib import resources
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import tomli_w
from markupsafe import Markup

from andon import pages, render
from andon.data import dataset
from andon.errors import DatasetError, ImageError, RecipeError, few
from andon.pictures import image
from andon.progress import Progress, silent
from andon.recipe import Recipe
from andon.training import preview

MOST = 4_000_000  # pixels of the picture on the page; larger ones are reduced by a whole factor
STATIC = resources.files("andon") / "station" / "pages" / "static"
DRAWN = ("crop", "include", "ignore")  # settings of the geometry that the page draws


class Drawable(NamedTuple):
    """A picture to draw on."""

    name: str
    frame: tuple[int, int]  # H, W of the picture whose pixels are the unit of the recipe
    pixels: render.Picture  # (h, w, 3), reduced
    reduced: int  # H / h

    def png(self) -> bytes:
        """Return the pixels as a PNG file."""
        return render.encode(self.pixels, "png")


def drawable(recipe: Recipe, progress: Progress = silent) -> Drawable:
    """Return the reference of the registration if the recipe uses one, else the first readable good picture.

    Errors: DatasetError when there is no good picture, or none can be read; as `preview.reference_of`.
    """
    if not recipe.data.images:
        raise RecipeError("the recipe names no images. Set [data] images to a folder of good images.")
    data = dataset.load(recipe.data.images, groups=recipe.data.groups or None, good=recipe.data.good)
    good, faults = data.training_images(), []
    reference = preview.reference_of(recipe, good, progress) if good else None
    if reference:
        return reduced(image.read(reference.data, Path(reference.name).name))
    for sample in good:
        try:
            return reduced(image.read(sample.path, sample.path.name))
        except ImageError as error:
            faults.append(str(error))
    what = f"none of {len(good)} good images can be read: {few(faults, 1)}" if good else "no good images"
    raise DatasetError(f"{data.root}: {what} Expected one as background. Add good images.")


def reduced(picture: image.Image) -> Drawable:
    """Return a picture for the page, as 8-bit RGB, with at most about `MOST` pixels."""
    h, w = picture.pixels.shape[:2]
    by = 1
    while (h // by) * (w // by) > MOST:
        by += 1
    size = (max(1, w // by), max(1, h // by))
    small = np.asarray(cv2.resize(picture.pixels, size, interpolation=cv2.INTER_AREA), picture.pixels.dtype)
    shown = render.display(small.reshape(size[1], size[0], -1))
    return Drawable(picture.name, (h, w), shown, by)


def shapes(recipe: Recipe) -> dict[str, Any]:
    """Return the shapes that the page draws at its start."""
    geometry = recipe.geometry.model_dump(mode="json")
    return {name: geometry[name] for name in DRAWN}


def page(recipe: Recipe, out: Path, progress: Progress = silent) -> bytes:
    """Return a self-contained HTML page that draws on a picture and writes the recipe `out`, with paths relative to it.

    Errors: as `drawable`.
    """
    picture = drawable(recipe, progress)
    values = recipe.model_dump(mode="json", exclude_none=True, exclude_defaults=True)
    values.setdefault("data", {})["images"] = _relative(recipe.data.images, out)
    if os.path.isabs(recipe.data.groups):  # noqa: PTH117 - it may be a regular expression
        values["data"]["groups"] = _relative(recipe.data.groups, out)
    geometry = {name: value for name, value in values.pop("geometry", {}).items() if name not in DRAWN}
    tables = {name: geometry.pop(name) for name in [*geometry] if isinstance(geometry[name], dict)}
    if reference := tables.get("registration", {}).get("reference"):
        tables["registration"]["reference"] = _relative(reference, out)
    script = (STATIC / "draw.js").read_text(encoding="utf-8")
    height, width = picture.frame
    return pages.render(
        "regions.html",
        _=str,
        name=recipe.product or out.stem,
        picture_name=picture.name,
        picture=pages.data(picture.png(), "png"),
        width=width,
        height=height,
        reduced=picture.reduced,
        shapes=shapes(recipe),
        before=tomli_w.dumps(values),
        keys=tomli_w.dumps(geometry).strip(),
        after="\n" + tomli_w.dumps({"geometry": tables}).strip() if tables else "",
        file=out.name,
        script=Markup(script),
        digest=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        style=Markup((STATIC / "draw.css").read_text(encoding="utf-8")),
    )


def _relative(path: str, out: Path) -> str:
    """Return a path relative to the folder of a file; unchanged if impossible, as on another drive of Windows."""
    try:
        return Path(os.path.relpath(path, out.resolve().parent)).as_posix()
    except ValueError:
        return path
