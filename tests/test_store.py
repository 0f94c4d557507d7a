"""The store of tiles: exact copies, a budget, a full disk, and nothing left in the folder."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from andon import inspector
from andon.data import dataset, survey
from andon.data.store import Memo, Store
from andon.data.whole import Pictures
from andon.errors import AndonError, TrainingError
from andon.inspection import Array, Pixels, Scores
from andon.pictures import image
from andon.recipe import Recipe
from conftest import part, save


def test_arrays_come_back_as_they_were_put() -> None:
    store, rng = Store(), np.random.default_rng(0)
    arrays = [
        rng.integers(0, 255, (5, 7, 3)).astype(np.uint8),
        rng.integers(0, 65535, (9, 4, 1)).astype(np.uint16),
        rng.random((3, 3)) > 0.5,
    ]
    first = store.put(arrays[0])
    early = store[first]
    slots = [first, *map(store.put, arrays[1:])]
    arrays[1].flags.writeable = False
    for slot, array in zip(slots, arrays, strict=True):
        np.testing.assert_array_equal(store[slot], array)
        assert store[slot].dtype == array.dtype and not store[slot].flags.writeable
    np.testing.assert_array_equal(early, arrays[0])  # also after the store grew


def test_a_part_of_a_picture_is_copied() -> None:
    store, picture = Store(), np.zeros((100, 100, 3), np.uint8)
    slot = store.put(picture[10:20, 30:40])
    picture[:] = 9
    assert store.size < 400 and not store[slot].any()


def test_the_budget_is_held() -> None:
    store = Store(megabytes=1)
    store.put(np.zeros(900_000, np.uint8))
    with pytest.raises(TrainingError, match="need about 5 MB of temporary storage; this training may use 1 MB"):
        store.put(np.zeros(200_000, np.uint8), part=0.25)
    store.clear()
    store.put(np.zeros(900_000, np.uint8))


@pytest.mark.parametrize("megabytes", [1, 100])
def test_values_of_a_tile_are_computed_once_while_there_is_room(megabytes: int) -> None:
    memo, batches = Memo(Store(megabytes)), []
    tiles = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)

    def compute(batch: Pixels) -> list[Array]:
        batches.append(len(batch))
        values = batch.astype(np.float32).mean(axis=(1, 2, 3))
        return [values, np.repeat(values, 100_000).reshape(len(batch), -1)]  # 0.4 MB a tile

    for rows in ([0, 1, 2], [3, 4, 5], [5, 0], [2, 1, 3]):
        mean, wide = memo("mean", tiles[rows], compute)
        np.testing.assert_array_equal(mean, tiles[rows].mean(axis=(1, 2, 3), dtype=np.float32))
        np.testing.assert_array_equal(wide[:, -1], mean)
    assert batches == ([3, 3] if megabytes == 100 else [3, 3, 2, 3])
    memo("other", tiles[:1], compute)
    assert batches[-1] == 1


def test_a_folder_that_cannot_be_used_is_named(tmp_path: Path) -> None:
    with pytest.raises(AndonError, match=r"nowhere: the tiles of the training images cannot be stored there"):
        Store(folder=tmp_path / "nowhere")
    if Path("/dev/full").exists():
        store = Store(folder=tmp_path)
        os.dup2(os.open("/dev/full", os.O_WRONLY), store._file._file.fileno())
        with pytest.raises(AndonError, match="cannot be stored there: no space left"):
            slot = store.put(np.zeros(1_000_000, np.uint8))
            _ = store[slot]


def test_a_killed_process_leaves_nothing(tmp_path: Path) -> None:
    code = (
        "import sys, os, signal, numpy as np; from pathlib import Path; from andon.data.store import Memo, Store\n"
        "store = Store(folder=Path(sys.argv[1])); slot = store.put(np.ones(1_000_000, np.uint8)); store[slot]\n"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -9
    assert not list(tmp_path.iterdir())


class Mean:
    """Scores a tile by its brightness."""

    def score(self, tiles: Pixels) -> Scores:
        maps = tiles.mean(axis=3, dtype=np.float32)
        return Scores(maps.max(axis=(1, 2)), maps)


@pytest.mark.parametrize(
    "geometry", [{"size": 64}, {"size": 64, "tiles": True, "ignore": [[[0, 0], [90, 0], [0, 90]]]}]
)
def test_a_picture_scores_from_the_store_as_from_its_file(tmp_path: Path, geometry: dict[str, object]) -> None:
    for seed in range(3):
        save(tmp_path / "good" / f"{seed}.png", part(seed, side=150))
    recipe = Recipe.model_validate({"geometry": geometry})
    samples = dataset.load(tmp_path / "good").training_images()
    seen = survey.survey_images(samples, recipe, Store(), lambda *_: None)
    for sample in samples:
        kept = seen.prepared(sample, recipe.geometry)
        stored = inspector.scan_tiles(kept.placement, kept.tiles, (64, 64), Mean())
        scanned = inspector.scan(image.read(sample.path).pixels, recipe.geometry, Mean(), "part")
        assert stored.score == scanned.score
        np.testing.assert_array_equal(stored.anomaly_map, scanned.anomaly_map)


def test_a_whole_picture_in_the_store_is_not_in_memory_too() -> None:
    pictures, read = Pictures(Store()), image.read(part(1))
    pictures.keep(Path("a.png"), read)
    bare, _ = pictures._stored[Path("a.png")]
    assert bare.pixels.size == 0 and bare.pixels.base is None
    np.testing.assert_array_equal(pictures.read(Path("a.png")).pixels, read.pixels)
