"""All findings on a folder of images before a training: the check of the folder, suspects and resolution."""

from typing import NamedTuple

from andon.data import check
from andon.data.check import Report
from andon.data.dataset import Dataset
from andon.evaluate import crude
from andon.progress import Progress, silent
from andon.recipe import Recipe
from andon.training import resolution, suspects
from andon.training.suspects import Judged
from andon.training.train import compose, construct


class Checked(NamedTuple):
    """The report, and the good images; those that look most like defects are first."""

    report: Report
    judged: list[Judged]


def check_images(
    data: Dataset, recipe: Recipe, smallest_defect: float | None = None, progress: Progress = silent
) -> Checked:
    """Check a folder of images for a recipe. `smallest_defect`: its side in pixels; None: not known."""
    judged = suspects.look(data, progress)
    model, recipe = construct(compose(recipe))
    further = [
        *suspects.findings(judged, data),
        *crude.findings(data, progress),
        *resolution.findings(recipe, data.training_images(), model.stride, smallest_defect),
    ]
    return Checked(check.check(data, progress, further), judged)
