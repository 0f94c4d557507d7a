"""Cameras of 10, 12 and 14 bits in 16-bit files: the range in use is learnt, applied on every path, and held to."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andon import Inspector
from andon.bundle import Bundle
from andon.data.dataset import Sample
from andon.data.store import Store
from andon.data.survey import DefectTiles
from andon.errors import ImageError, RecipeError
from andon.inspection import Pixels
from andon.pictures import image
from andon.pictures.image import Image, Input
from andon.recipe import Data, InputRule, Recipe
from andon.training import calibrating
from andon.training import train as training
from conftest import part, save

FAST: dict[str, Any] = {"preset": "fast", "settings": {"bank": 100}}


def twelve(seed: int) -> Pixels:
    """A part as a 12-bit camera gives it, (64, 64, 1)."""
    return part(seed, 64, 1, 16) >> 4


def full(pixels: Pixels) -> Pixels:
    """The same over all 16 bits."""
    return np.rint(pixels * (65535 / 4095)).astype(np.uint16)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path]:
    for seed in range(12):
        save(tmp_path / "twelve" / f"{seed:02}.png", twelve(seed))
        save(tmp_path / "full" / f"{seed:02}.png", full(twelve(seed)))
    return tmp_path / "twelve", tmp_path / "full"


@pytest.mark.parametrize(
    ("highest", "bits", "maximum"),
    [
        (900, 0x3FF, 1023),
        (1023, 0x3FF, 1023),
        (1024, 0x7FF, 4095),
        (4095, 0xFFF, 4095),
        (4096, 0x1FFF, 16383),
        (16383, 0x3FFF, 16383),
        (16384, 0x7FFF, None),
        (65535, 0xFFFF, None),
        (12000, 0x3FF0, None),  # shifted up by the camera, and dark
        (0, 0, None),
    ],
)
def test_the_range_in_use(highest: int, bits: int, maximum: int | None) -> None:
    assert image.used_range(highest, bits) == maximum


def test_samples_are_spread_over_all_bits_and_none_is_beyond() -> None:
    read = Image(np.arange(4096, dtype=np.uint16).reshape(64, 64, 1), "a.png")
    spread = image.rescale(read, 4095).pixels
    np.testing.assert_array_equal(spread, full(read.pixels))
    assert image.rescale(read, None) is read and image.rescale(read, 65535) is read
    once = image.rescale(read, 4095)
    assert image.rescale(once, 4095) is once  # an image that `Inspector.read` gave is not spread again
    eight = Image(np.zeros((8, 8, 1), np.uint8), "b.png")
    assert image.rescale(eight, 4095) is eight
    with pytest.raises(ImageError, match=r"^a.png: values up to 4095; expected at most 1023, as in the training"):
        image.rescale(read, 1023)


@pytest.mark.parametrize("registration", ["", "[geometry.registration]\n"], ids=["plain", "registered"])
def test_a_bundle_of_12_bits_is_that_of_the_same_pictures_at_16(
    folders: tuple[Path, Path], tmp_path: Path, registration: str
) -> None:
    bundles, told = [], []
    for folder in folders:
        recipe = tmp_path / f"{folder.name}.toml"
        recipe.write_text(f"[data]\nimages = '{folder}'\n[geometry]\nsize = 64\n{registration}")
        bundles.append(training.train(recipe, tmp_path / f"{folder.name}.andon", tell=told.append, **FAST))
    narrow, wide = bundles
    same = {"digests": []}  # the files differ
    assert narrow.graph == wide.graph
    assert narrow.calibration.model_copy(update=same) == wide.calibration.model_copy(update=same)
    assert narrow.reference == wide.reference
    assert (narrow.manifest.input.maximum, wide.manifest.input.maximum) == (4095, None)
    assert str(narrow.manifest.input).endswith("with values up to 4095")
    assert sum("16-bit files with values up to 4095" in sentence for sentence in told) == 1
    assert narrow.digest() != wide.digest()

    inspector = Inspector(Bundle.load(tmp_path / "twelve.andon"))
    assert inspector.manifest.input.maximum == 4095
    first, second = inspector.inspect(twelve(50)), Inspector(wide).inspect(full(twelve(50)))
    assert first.score == second.score
    bright = twelve(50)
    bright[30, 30] = 5000
    with pytest.raises(ImageError, match=r"^x: values up to 5000; expected at most 4095, .* input.maximum = 16383\.$"):
        inspector.inspect(bright, "x")
    again = calibrating.recalibrate(inspector.bundle, _more(tmp_path))
    assert again.manifest.input.maximum == 4095


def _more(folder: Path) -> Path:
    for seed in range(60, 66):
        save(folder / "more" / f"{seed}.png", twelve(seed))
    return folder / "more"


def test_images_of_defects_are_scaled_too(tmp_path: Path) -> None:
    save(tmp_path / "bad.png", twelve(3))
    sample = Sample(tmp_path / "bad.png", "train", "bad", None, "bad")
    rule = Input(channels=1, depth=16, size=(64, 64), maximum=4095)
    tiles = DefectTiles([sample], Recipe().geometry.model_copy(update={"size": 64}), rule, Store(), print)
    (batch,) = list(tiles)
    np.testing.assert_array_equal(batch[0][0], full(twelve(3)))


def test_the_recipe_may_state_the_range(folders: tuple[Path, Path], tmp_path: Path) -> None:
    def trained(folder: Path, maximum: Any) -> Bundle:
        recipe = Recipe(data=Data(images=str(folder)), input=InputRule(maximum=maximum))
        return training.train(recipe, tmp_path / "a.andon", size=64, **FAST)

    assert trained(folders[0], 65535).manifest.input.maximum is None
    assert trained(folders[0], 16383).manifest.input.maximum == 16383
    for seed in range(4):
        save(tmp_path / "eight" / f"{seed}.png", part(seed, 64, 1))
    with pytest.raises(RecipeError, match=r"input.maximum = 4095, but the training images have 8 bits"):
        trained(tmp_path / "eight", 4095)


def test_inputs_of_older_bundles_still_load() -> None:
    assert Input.model_validate_json('{"channels": 1, "depth": 16, "size": [64, 64], "order": "RGB"}').maximum is None


SHORT = """
import resource, sys
import andon.training.train, andon.detectors.memory_bank
from andon import cli
from andon.pictures import image
image.read(sys.argv[2] + "/01.png")
used = next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmSize")) * 1024
resource.setrlimit(resource.RLIMIT_AS, (used + 20 * 2**20, -1))
cli.main()
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="limits of memory as Linux sets them")
def test_a_training_without_memory_writes_no_bundle(tmp_path: Path) -> None:
    save(tmp_path / "good" / "00.png", np.zeros((4000, 4000, 3), np.uint8))
    for seed in range(1, 12):
        save(tmp_path / "good" / f"{seed:02}.png", part(seed, 64))
    out = tmp_path / "a.andon"
    command = [sys.executable, "-c", SHORT, "train", tmp_path / "good", "-o", out]
    done = subprocess.run(command, timeout=120, capture_output=True, text=True)
    assert done.returncode == 2
    assert "andon: out of memory." in done.stderr and "damaged" not in done.stderr
    assert not out.exists()
