"""Folders of pictures that a benchmark writes: complete or not there, and without copies where the disk has links."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def link(source: Path, target: Path) -> None:
    """Make a hard link to a file, or a copy if the disk has no links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


@contextmanager
def whole(half: Path, place: Path) -> Iterator[Path]:
    """Fill the folder `half`; it replaces `place` if the block succeeds, and is removed if it fails."""
    old = half.with_name(f"{half.name}.old")
    for left in (half, old):
        shutil.rmtree(left, ignore_errors=True)
    try:
        yield half
        if place.exists():  # renamed first: a partly removed folder would have no mark
            place.rename(old)
        half.rename(place)
    finally:
        for left in (half, old):
            shutil.rmtree(left, ignore_errors=True)
