"""The only list of detectors. `get` imports the class of one; listing their names imports none."""

from importlib import import_module
from typing import TYPE_CHECKING, NamedTuple

from andon import nn  # noqa: F401  before torch: it sets how torch's threads wait
from andon.errors import AndonError, RecipeError, unknown

if TYPE_CHECKING:
    from andon.detector import Detector


class Entry(NamedTuple):
    """One detector of the list. Its module has the same name, with underscores for hyphens."""

    kind: str  # name of the class
    summary: str  # one line


DETECTORS = {
    "memory-bank": Entry(
        "MemoryBank",
        "distance of each patch to the nearest stored patches of good parts; no gradients, fits in seconds",
    ),
    "variation": Entry(
        "Variation", "deviation of each pixel from the good images' mean; for parts in a fixed position"
    ),
    "nearest-image": Entry(
        "NearestImage", "difference to the most similar good image; for parts in a fixed position that vary little"
    ),
    "deep-knn": Entry(
        "DeepKnn", "distance of an image's deep features to those of the nearest good images; fits in seconds"
    ),
    "oc-svm": Entry(
        "OcSvm", "one-class support vector machine on an image's deep features; a baseline, fits in seconds"
    ),
    "autoencoder": Entry(
        "Autoencoder", "reconstruction error of an autoencoder with a narrow bottleneck; for aligned parts"
    ),
    "filtering-autoencoder": Entry(
        "FilteringAutoencoder",
        "reconstruction error of a network trained to repair corrupted images; for textures and parts",
    ),
    "vae": Entry("Vae", "reconstruction error of a variational autoencoder, a common baseline; for aligned parts"),
    "ganomaly": Entry(
        "Ganomaly", "distance between the latent vectors of an image and of its reconstruction; a baseline"
    ),
    "f-anogan": Entry("FAnogan", "reconstruction error of a GAN with an encoder; a baseline"),
    "anogan": Entry(
        "AnoGan", "error of the most similar image that a GAN generates, found by gradient descent; a slow baseline"
    ),
    "riad": Entry("Riad", "error of image areas that a network fills in from their surroundings; slow to train"),
    "draem": Entry("Draem", "a network repairs synthetic defects, and a second one marks what was repaired"),
    "cutpaste": Entry("CutPaste", "features of a network that recognises pasted patches and scars; a baseline"),
    "fcdd": Entry("Fcdd", "a network whose map is trained to be small on good parts and large on synthetic defects"),
    "patch-autoencoder": Entry(
        "PatchAutoencoder",
        "deep features of the reconstruction error, compared with those of good parts; for aligned parts",
    ),
    "capsule": Entry("Capsule", "classifies good and defective parts, with a few images of defects; for aligned parts"),
    "pyramid-autoencoder": Entry(
        "PyramidAutoencoder",
        "reconstruction error of an autoencoder with several resolutions; for aligned parts",
    ),
    "piade": Entry(
        "Piade", "reconstruction error in pixels, structure and features, with dynamic routing; for aligned parts"
    ),
    "transform-classification": Entry(
        "TransformClassification",
        "error of a network that classifies which erosion, dilation or rotation was applied to an image",
    ),
    "vt-adl": Entry("VTADL", "reconstruction error and patch likelihood of a transformer; slow to train"),
    "segmenter": Entry(
        "Segmenter", "segments defective pixels; trained on real defects with masks, or on synthetic defects"
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
