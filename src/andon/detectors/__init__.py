"""The detectors: the only list there is. A class is imported when it is asked for; listing them imports none."""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from andon import nn  # noqa: F401  before torch: says how its threads wait
from andon.errors import AndonError, RecipeError, unknown

if TYPE_CHECKING:
    from andon.detector import Detector


class Entry(NamedTuple):
    """One detector of the list. Its module has its name, with underscores."""

    kind: str  # name of the class
    summary: str  # one line


DETECTORS = {
    "memory-bank": Entry(
        "MemoryBank", "distance to the nearest remembered patches of good parts; no gradients, fits in seconds"
    ),
    "variation": Entry(
        "Variation", "deviation of each pixel from the good images' mean; for parts that always lie the same"
    ),
    "nearest-image": Entry(
        "NearestImage", "difference to the most similar good image; for parts that lie the same and vary little"
    ),
    "deep-knn": Entry(
        "DeepKnn", "distance of a picture's deep features to the nearest good pictures'; fits in seconds"
    ),
    "autoencoder": Entry(
        "Autoencoder", "error of a network that rebuilds good parts from a few numbers; for parts that lie alike"
    ),
    "filtering-autoencoder": Entry(
        "FilteringAutoencoder", "what a network changes that learnt to repair damaged pictures; for textures and parts"
    ),
    "vae": Entry("Vae", "error of a variational autoencoder, as comparisons quote it; for parts that lie alike"),
    "ganomaly": Entry(
        "Ganomaly", "GANomaly: how far the code of a picture is from that of its reconstruction; a comparison"
    ),
    "f-anogan": Entry(
        "FAnogan", "f-AnoGAN: what a generator of good parts cannot make of a picture; a comparison method"
    ),
    "patch-autoencoder": Entry(
        "PatchAutoencoder", "deep features of what a network cannot rebuild, against good parts'; for aligned parts"
    ),
    "capsule": Entry("Capsule", "learns good from defective with a few images of defects; for parts that lie alike"),
    "pyramid-autoencoder": Entry(
        "PyramidAutoencoder",
        "error of a network that rebuilds good parts from several resolutions; for parts that lie alike",
    ),
    "piade": Entry(
        "Piade", "error in pixels, structure and features of a network that routes features; for parts that lie alike"
    ),
    "transform-classification": Entry(
        "TransformClassification",
        "error of a network that tells which erosion, dilation or turn was applied to a picture",
    ),
    "vt-adl": Entry(
        "VTADL", "a transformer that rebuilds the picture and knows how likely each patch is; slow to learn"
    ),
    "segmenter": Entry(
        "Segmenter", "a network that marks defective pixels; taught by masks of real defects, or synthetic ones"
    ),
}


def names() -> list[str]:
    """Return the names of all detectors."""
    return list(DETECTORS)


def get(name: str) -> "type[Detector]":
    """Import and return the class of a detector."""
    if name not in DETECTORS:
        raise RecipeError(unknown("detector", name, DETECTORS))
    try:
        module = import_module(f"andon.detectors.{name.replace('-', '_')}")
    except ModuleNotFoundError as error:
        raise AndonError(f"{name} needs the package {error.name}. Install it: pip install 'andon[train]'") from None
    kind: type[Detector] = getattr(module, DETECTORS[name].kind)
    return kind
