"""Saturation of annotated defects: how many pixels of each must be found, as MVTec LOCO states in defects_config.json.

A missing screw may be marked anywhere in the area where it could lie, so its annotation is larger than what has to be
found. Each picture has a folder of masks, one file for each defect; the value of its pixels names its entry in
`defects_config.json`: `{"defect_name", "pixel_value", "saturation_threshold", "relative_saturation"}`. Source: Bergmann
et al. (2022), Beyond dents and scratches, section 4, and the authors' evaluation code.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from andon import files
from andon.data import folders
from andon.errors import DatasetError, ImageError
from andon.pictures import image

FILE = "defects_config.json"


class Saturation(BaseModel):
    """How many pixels of a defect are enough."""

    model_config = ConfigDict(frozen=True)

    defect_name: str
    pixel_value: Annotated[int, Field(ge=1, le=65535)]  # of its masks
    saturation_threshold: Annotated[float, Field(gt=0)]  # pixels, or the share of the annotated area if relative
    relative_saturation: bool

    def pixels(self, area: int) -> int:
        """The number of pixels of an annotation of `area` pixels that are enough: at least 1, at most all."""
        enough = self.saturation_threshold * (area if self.relative_saturation else 1)
        return max(1, min(int(enough), area))


_ENTRIES = TypeAdapter(list[Saturation])


def load(root: Path) -> dict[int, Saturation]:
    """Read `defects_config.json` in the folder of a product: value of pixels → saturation; empty without the file.

    Errors: DatasetError when it cannot be read, is not of this form, or has a value twice.
    """
    path = root / FILE
    if not files.is_file(path):
        return {}
    form = "a JSON list of entries with defect_name, pixel_value, saturation_threshold and relative_saturation"
    try:
        entries = _ENTRIES.validate_json(path.read_bytes())
    except OSError as error:
        raise DatasetError(f"{path}: cannot be read: {error.strerror}. Allow reading.") from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"]))
        problem = f"{where}: {first['msg']}" if where else first["msg"]
        raise DatasetError(
            f"{path}: {problem}; expected {form}. Copy it from the data set again, or remove it."
        ) from None
    table = {entry.pixel_value: entry for entry in entries}
    if len(table) < len(entries):
        raise DatasetError(f"{path}: a pixel_value is listed twice; expected each once. Copy it again, or remove it.")
    return table


def regions(folder: Path, table: dict[int, Saturation]) -> list[tuple[NDArray[np.bool_], Callable[[int], int]]]:
    """Read the masks in the folder of one picture: the area (H, W) of each defect, and its saturation.

    Errors: ImageError when a mask cannot be read, or has no value, several, or one that is not in the table.
    """
    found: list[tuple[NDArray[np.bool_], Callable[[int], int]]] = []
    for path in folders.scan(folder).images:
        pixels = image.read(path).pixels.max(axis=2)
        values = [int(value) for value in np.unique(pixels) if value]
        if len(values) != 1 or values[0] not in table:
            raise ImageError(
                f"{path.as_posix()}: marks defects with the values {values[:3]}; expected one value that is in {FILE}: "
                f"{sorted(table)[:8]}. Copy the mask from the data set again. It is not used."
            )
        found.append((pixels > 0, table[values[0]].pixels))
    return found
