"""The detectors: name → class. The only list there is; a class is imported when it is asked for."""

from collections.abc import Callable
from typing import NamedTuple

from andon.detectors.base import Detector
from andon.errors import AndonError, RecipeError, unknown


class Entry(NamedTuple):
    """One detector of the list."""

    load: Callable[[], type[Detector]]
    summary: str  # one line; stands here too, so that listing the detectors imports none of them


def _memory_bank() -> type[Detector]:
    from andon.detectors.memory_bank import MemoryBank

    return MemoryBank


def _variation() -> type[Detector]:
    from andon.detectors.variation import Variation

    return Variation


def _nearest_image() -> type[Detector]:
    from andon.detectors.nearest_image import NearestImage

    return NearestImage


def _autoencoder() -> type[Detector]:
    from andon import nn  # noqa: F401  before torch: says how its threads wait
    from andon.detectors.autoencoder import Autoencoder

    return Autoencoder


DETECTORS: dict[str, Entry] = {
    "memory-bank": Entry(
        _memory_bank, "distance to the nearest remembered patches of good parts; no gradients, fits in seconds"
    ),
    "variation": Entry(
        _variation, "deviation of each pixel from the good images' mean; for parts that always lie the same"
    ),
    "nearest-image": Entry(
        _nearest_image, "difference to the most similar good image; for parts that lie the same and vary little"
    ),
    "autoencoder": Entry(
        _autoencoder, "error of a network that rebuilds good parts from a few numbers; for parts that lie alike"
    ),
}


def names() -> list[str]:
    """Return the names of all detectors."""
    return list(DETECTORS)


def get(name: str) -> type[Detector]:
    """Import and return the class of a detector."""
    if name not in DETECTORS:
        raise RecipeError(unknown("detector", name, DETECTORS))
    try:
        return DETECTORS[name].load()
    except ModuleNotFoundError as error:
        raise AndonError(f"{name} needs the package {error.name}. Install it: pip install 'andon[train]'") from None
