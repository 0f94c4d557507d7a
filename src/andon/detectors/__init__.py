"""The detectors: name → class. The only list there is; a class is imported when it is asked for."""

from collections.abc import Callable
from typing import NamedTuple

from andon.detectors.base import Detector
from andon.errors import RecipeError, unknown


class Entry(NamedTuple):
    """One detector of the list."""

    load: Callable[[], type[Detector]]
    summary: str  # one line; stands here too, so that listing the detectors imports none of them


def _memory_bank() -> type[Detector]:
    from andon.detectors.memory_bank import MemoryBank

    return MemoryBank


DETECTORS: dict[str, Entry] = {
    "memory-bank": Entry(
        _memory_bank, "distance to the nearest remembered patch of a good part; no gradients, fits in seconds"
    ),
}


def names() -> list[str]:
    """Return the names of all detectors."""
    return list(DETECTORS)


def get(name: str) -> type[Detector]:
    """Import and return the class of a detector."""
    if name not in DETECTORS:
        raise RecipeError(unknown("detector", name, DETECTORS))
    return DETECTORS[name].load()
