"""Test images that are no new observations: the bundle learnt from them or for its thresholds; and equal files."""

from collections.abc import Sequence
from typing import Protocol

from andon.errors import counted, few
from andon.evaluate.deciding import Judged
from andon.inspector import Inspector


class Inspected(Judged, Protocol):
    """A labelled image of a file, and its verdict."""

    @property
    def name(self) -> str:
        """The path relative to the root of the data set."""
        ...

    @property
    def digest(self) -> str:
        """SHA-256 of the file."""
        ...


def sentences(inspector: Inspector, rows: Sequence[Inspected]) -> list[str]:
    """Sentences on images that the bundle knows: learnt from, or for its thresholds; and on equal files.

    Of equal files, those that have both labels are listed apart.
    """
    calibrated = set(inspector.calibration.digests)
    learnt = inspector.manifest.learnt_from(row.digest for row in rows)
    found = []
    if trained := sum(learnt):
        found.append(
            f"The bundle was trained on {trained} of these {counted(len(rows), 'image')}, so the figures are too good. "
            "Evaluate on other images."
        )
    good = [(row, known) for row, known in zip(rows, learnt, strict=True) if row.good]
    if held_out := [row.name for row, known in good if row.digest in calibrated and not known]:
        found.append(
            f"{len(held_out)} of {counted(len(good), 'good image')} set the thresholds, which fixes how many of these "
            f"are stopped. Evaluate on other good images: {few(held_out)}"
        )
    same: dict[str, list[Inspected]] = {}
    for row in rows:
        same.setdefault(row.digest, []).append(row)
    copies = [each for each in same.values() if len(each) > 1]
    contradictory = [each for each in copies if len({row.good for row in each}) > 1]
    for sets, words in (
        ([each for each in copies if each not in contradictory], "in several equal files. Keep one of each:"),
        (contradictory, "labelled good and defective, in equal files. Delete the wrong ones:"),
    ):
        if sets:
            names = [" = ".join(row.name for row in each) for each in sets]
            found.append(f"{counted(len(names), 'image')} {words} {few(names)}")
    return found
