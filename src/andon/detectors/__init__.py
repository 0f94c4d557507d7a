"""The detectors: name → class. The only list there is; a class is imported when it is asked for."""

from collections.abc import Callable
from typing import NamedTuple

from andon.detector import Detector
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


def _deep_knn() -> type[Detector]:
    from andon.detectors.deep_knn import DeepKnn

    return DeepKnn


def _autoencoder() -> type[Detector]:
    from andon import nn  # noqa: F401  before torch: says how its threads wait
    from andon.detectors.autoencoder import Autoencoder

    return Autoencoder


def _vae() -> type[Detector]:
    from andon import nn  # noqa: F401
    from andon.detectors.vae import Vae

    return Vae


def _ganomaly() -> type[Detector]:
    from andon import nn  # noqa: F401
    from andon.detectors.ganomaly import Ganomaly

    return Ganomaly


def _f_anogan() -> type[Detector]:
    from andon import nn  # noqa: F401
    from andon.detectors.f_anogan import FAnogan

    return FAnogan


def _patch_autoencoder() -> type[Detector]:
    from andon import nn  # noqa: F401
    from andon.detectors.patch_autoencoder import PatchAutoencoder

    return PatchAutoencoder


def _filtering_autoencoder() -> type[Detector]:
    from andon import nn  # noqa: F401  before torch: says how its threads wait
    from andon.detectors.filtering_autoencoder import FilteringAutoencoder

    return FilteringAutoencoder


def _capsule() -> type[Detector]:
    from andon import nn  # noqa: F401
    from andon.detectors.capsule import Capsule

    return Capsule


def _pyramid_autoencoder() -> type[Detector]:
    from andon import nn  # noqa: F401
    from andon.detectors.pyramid_autoencoder import PyramidAutoencoder

    return PyramidAutoencoder


def _piade() -> type[Detector]:
    from andon import nn  # noqa: F401
    from andon.detectors.piade import Piade

    return Piade


def _transform_classification() -> type[Detector]:
    from andon import nn  # noqa: F401
    from andon.detectors.transform_classification import TransformClassification

    return TransformClassification


def _vt_adl() -> type[Detector]:
    from andon import nn  # noqa: F401  before torch: says how its threads wait
    from andon.detectors.vt_adl import VTADL

    return VTADL


def _segmenter() -> type[Detector]:
    from andon import nn  # noqa: F401  before torch: says how its threads wait
    from andon.detectors.segmenter import Segmenter

    return Segmenter


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
    "deep-knn": Entry(
        _deep_knn, "distance of a picture's deep features to the nearest good pictures'; fits in seconds"
    ),
    "autoencoder": Entry(
        _autoencoder, "error of a network that rebuilds good parts from a few numbers; for parts that lie alike"
    ),
    "filtering-autoencoder": Entry(
        _filtering_autoencoder,
        "what a network changes that learnt to repair damaged pictures; for textures and parts",
    ),
    "vae": Entry(_vae, "error of a variational autoencoder, as comparisons quote it; for parts that lie alike"),
    "ganomaly": Entry(
        _ganomaly, "GANomaly: how far the code of a picture is from that of its reconstruction; a comparison"
    ),
    "f-anogan": Entry(
        _f_anogan, "f-AnoGAN: what a generator of good parts cannot make of a picture; a comparison method"
    ),
    "patch-autoencoder": Entry(
        _patch_autoencoder, "deep features of what a network cannot rebuild, against good parts'; for aligned parts"
    ),
    "capsule": Entry(_capsule, "learns good from defective with a few images of defects; for parts that lie alike"),
    "pyramid-autoencoder": Entry(
        _pyramid_autoencoder,
        "error of a network that rebuilds good parts from several resolutions; for parts that lie alike",
    ),
    "piade": Entry(
        _piade, "error in pixels, structure and features of a network that routes features; for parts that lie alike"
    ),
    "transform-classification": Entry(
        _transform_classification,
        "error of a network that tells which erosion, dilation or turn was applied to a picture",
    ),
    "vt-adl": Entry(
        _vt_adl, "a transformer that rebuilds the picture and knows how likely each patch is; slow to learn"
    ),
    "segmenter": Entry(
        _segmenter, "a network that marks defective pixels; taught by masks of real defects, or synthetic ones"
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
