"""Products of a published data set as folders that andon reads: train/good, test/good, test/<defect>, ground_truth.

Layouts that andon reads are used in place. The files of others are linked, or copied where the disk has no links.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from andon import files
from andon.errors import AndonError, DatasetError, few
from andon.lab.bench.writing import link, whole
from andon.lab.datasets.checking import Checked, check
from andon.progress import Progress, silent

Tell = Callable[[str], None]


class Folder(NamedTuple):
    """A product of a data set, as a folder with train and test."""

    product: str
    path: Path
    groups: str  # expression for pictures of one part; "": there are none


def arrange(
    name: str, root: str | Path, out: str | Path, progress: Progress = silent, tell: Tell = lambda sentence: None
) -> list[Folder]:
    """Return the folders of the products of a data set that are on this disk, made below `out` if they must.

    Products that are not there are told. Pictures for validation, without a label, or outside the layout are not used.
    Errors: DatasetError as `check`, and when a product is incomplete; AndonError when `out` cannot be written.
    """
    report = check(name, root, progress)
    missing = [checked.product for checked in report.products if not checked.place]
    there = [checked for checked in report.products if checked.place]
    if incomplete := [checked for checked in there if not checked.complete]:
        first = incomplete[0]
        raise DatasetError(
            f"{root}: {len(incomplete)} of {len(there)} products of {report.published.title} are not as published. "
            f"{first.product}: {first.sentences()[0]}. Complete them; `andon datasets check {name} {root}` lists what "
            "is missing. Or use their folders as products of your own."
        )
    if missing:
        tell(
            f"{report.published.title}: {len(missing)} of {len(report.products)} products are not in {root}: "
            f"{few(missing, 30)}"
        )
    if report.published.in_place:
        return [Folder(checked.product, place, "") for checked in there if (place := checked.place)]
    found = []
    for done, checked in enumerate(there):
        progress(f"arranging {name}"[:16], done, len(there))
        target = Path(out) / checked.product
        try:
            _lay_out(checked, target)
        except OSError as error:
            raise AndonError(
                f"{target}: cannot be written: {files.reason(error)}. Free space or allow writing there, or choose "
                "another folder."
            ) from None
        found.append(Folder(checked.product, target, report.published.groups))
    progress(f"arranging {name}"[:16], len(there), len(there))
    return found


def _lay_out(checked: Checked, target: Path) -> None:
    """Write the folder of one product; an earlier one is replaced."""
    place = checked.place
    used = [p for p in checked.content.pictures if p.split in ("train", "test") and p.defect]
    names = Counter((p.split, p.defect, p.path.stem.lower()) for p in used)
    same = max(names.values(), default=1) > 1
    files.make_folder(target.parent)
    if target.exists() and not (files.is_folder(target / "train") and files.is_folder(target / "test")):
        raise AndonError(f"{target}: andon did not make this folder; expected nothing here. Choose another folder.")
    with whole(target.with_name(f".{target.name}.part"), target) as half:
        for picture in used:
            name = "_".join(picture.path.relative_to(place or target).parts) if same else picture.path.name
            copy = half / picture.split / picture.defect / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            link(picture.path, copy)
            if picture.mask:
                mask = (
                    half
                    / "ground_truth"
                    / picture.split
                    / picture.defect
                    / f"{Path(name).stem}_mask{picture.mask.suffix}"
                )
                mask.parent.mkdir(parents=True, exist_ok=True)
                link(picture.mask, mask)
