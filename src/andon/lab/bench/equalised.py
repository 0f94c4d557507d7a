"""Products whose test pictures are brought to the light of the training pictures.

If good and defective test pictures differ in light, as in `screw` of MVTec AD, image figures measure light. Here each
test picture is multiplied by one factor, so that its median gray is the median over the good training pictures. Where
the background is more than half of a picture, that is the gray of its background. Masks and training pictures stay.
"""

import shutil
from pathlib import Path

import numpy as np

from andon import files
from andon.data import dataset
from andon.errors import AndonError, DatasetError
from andon.inspection import Pixels
from andon.lab.bench.plan import Plan
from andon.lab.bench.writing import link, whole
from andon.pictures import image
from andon.progress import Progress, silent


def equalise(plan: Plan, out: Path, progress: Progress = silent) -> Plan:
    """Replace the folder of every product that has `equalise` by a copy in `out`/equalised, with PNG test pictures.

    The copies are written again in each run; equal pixels give equal files, so finished cells stay finished. Errors: as
    `write`.
    """
    products = [
        product.model_copy(update={"folder": str(write(product.folder, out / "equalised" / product.name, progress))})
        if product.equalise
        else product
        for product in plan.products
    ]
    return plan.model_copy(update={"products": products})


def scaled(pixels: Pixels, target: float, name: str) -> Pixels:
    """Scale a picture (H, W, c), uint8 or uint16, to the median gray `target`; round and clip. Errors: as `median`."""
    top = np.iinfo(pixels.dtype).max
    result: Pixels = np.clip(np.rint(pixels * (target / median(pixels, name))), 0, top).astype(pixels.dtype)
    return result


def median(pixels: Pixels, name: str) -> float:
    """Median over the pixels of the mean of the channels of a picture (H, W, c). DatasetError when it is 0."""
    value = float(np.median(pixels.mean(axis=2)))
    if value == 0:
        raise DatasetError(
            f"{name}: the median gray is 0, so no factor changes it; expected a picture whose background is not black. "
            "Remove equalise from this product."
        )
    return value


def write(folder: str | Path, place: Path, progress: Progress = silent) -> Path:
    """Write the data set of a folder to `place`, its test pictures equalised and in PNG, the other files as links.

    Errors: DatasetError for a picture whose median is 0, ImageError for one that cannot be read, AndonError when
    nothing can be written there.
    """
    stage = f"equalising {place.name}"[:16]
    data = dataset.load(folder)
    training = [sample.path for sample in data.good("train")]
    test = [sample.path for sample in data.samples if sample.split == "test"]
    grays = []
    for done, path in enumerate(training):
        progress(stage, done, len(training) + len(test))
        grays.append(median(image.read(path).pixels, str(path)))
    target = float(np.median(grays))
    kept = [*training, *(sample.mask for sample in data.samples if sample.mask)]
    try:
        files.make_folder(place.parent)
        with whole(place.with_name(f".{place.name}.part"), place) as half:
            for path in kept:
                copy = half / path.relative_to(data.root)
                copy.parent.mkdir(parents=True, exist_ok=True)
                link(path, copy)
            for done, path in enumerate(test):
                progress(stage, len(training) + done, len(training) + len(test))
                copy = (half / path.relative_to(data.root)).with_suffix(".png")
                copy.parent.mkdir(parents=True, exist_ok=True)
                copy.write_bytes(image.png(scaled(image.read(path).pixels, target, str(path))))
    except (OSError, shutil.Error) as error:
        raise AndonError(
            f"{place}: cannot be written: {error}. Free space or allow writing there, or choose another output folder."
        ) from error
    return place
