"""Learning from images of defects: which are taken, how their masks travel, and what is said when there are none."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from andon import dataset, training
from andon.detectors.base import Labelled
from andon.errors import DatasetError
from andon.geometry import Geometry
from andon.image import Input
from andon.survey import DefectTiles
from conftest import part, save, scratched

torch = pytest.importorskip("torch")

from andon.nn.labelled import LabelledTiles, parted  # noqa: E402

RULE = Input(channels=3, depth=8, size=(96, 96))


@pytest.fixture
def scratches(tmp_path: Path) -> Path:
    """Good parts and three scratched ones in train, the last without a mask."""
    root = tmp_path / "ring"
    for seed in range(4):
        save(root / "train/good" / f"{seed}.png", part(seed))
    for seed in range(10, 13):
        pixels, mask = scratched(seed)
        save(root / "train/scratch" / f"{seed}.png", pixels)
        if seed < 12:
            save(root / "ground_truth/scratch" / f"{seed}_mask.png", mask[..., None])
    return root


def tiles_of(root: Path, settings: Geometry, told: list[str]) -> DefectTiles:
    return DefectTiles(dataset.load(root).defective("train"), settings, RULE, told.append)


def joined(defects: DefectTiles) -> Labelled:
    return Labelled(*(np.concatenate(part) for part in zip(*defects, strict=True)))


def test_masks_go_the_way_of_their_image(scratches: Path) -> None:
    found = joined(tiles_of(scratches, Geometry(size=96), []))
    _, mask = scratched(10)
    np.testing.assert_array_equal(found.masks[0], mask > 0)
    np.testing.assert_array_equal(found.pixels[0], scratched(10)[0])
    assert found.known.tolist() == [True, True, False]
    assert found.masks[2].all()
    small = joined(tiles_of(scratches, Geometry(size=64, crop=(16, 16, 64, 64)), []))
    np.testing.assert_array_equal(small.masks[0], mask[16:80, 16:80] > 0)


def test_tiles_of_a_large_image_know_which_of_them_show_the_defect(scratches: Path) -> None:
    found = joined(tiles_of(scratches, Geometry(size=64, tiles=True), []))
    assert len(found.pixels) == len(tiles_of(scratches, Geometry(size=64, tiles=True), [])) == 12
    np.testing.assert_array_equal(found.masks[3], scratched(10)[1][32:, 32:] > 0)


def test_a_mask_of_another_size_leaves_its_image_out(scratches: Path) -> None:
    save(scratches / "ground_truth/scratch/11_mask.png", np.full((50, 96, 1), 255, np.uint8))
    told: list[str] = []
    assert len(tiles_of(scratches, Geometry(size=96), told)) == 2
    assert len(told) == 1 and "11_mask.png" in told[0] and "expected equal sizes" in told[0]


class Good:
    """Two good tiles, and what is given as defects."""

    side, channels, depth, groups = 96, 3, 8, (0, 1)

    def __init__(self, defects: DefectTiles | None) -> None:
        self.defects = defects

    def __len__(self) -> int:
        return 2

    def __iter__(self) -> object:
        yield np.stack([part(0), part(1)])


def test_labelled_tiles_carry_the_mask_as_a_channel(scratches: Path) -> None:
    tiles = LabelledTiles(Good(tiles_of(scratches, Geometry(size=96), [])))
    stock = np.concatenate(list(tiles))
    assert stock.shape == (5, 96, 96, 4) and len(tiles) == 5 and tiles.count == 3
    assert not stock[:2, ..., 3].any()
    pixels, masks = parted(torch.tensor(stock).permute(0, 3, 1, 2) / 255)
    assert pixels.shape == (5, 3, 96, 96)
    np.testing.assert_array_equal(masks[2].numpy(), scratched(10)[1] > 0)
    assert len(set(tiles.groups)) == 5
    assert len(LabelledTiles(Good(tiles.__dict__["_tiles"].defects), need_masks=True)) == 4


@pytest.mark.parametrize("defects", [None, ()])
def test_no_defects_is_an_error(defects: Sequence[Labelled] | None) -> None:
    with pytest.raises(DatasetError, match="expected some in train/DEFECT"):
        LabelledTiles(Good(defects))  # type: ignore[arg-type]


def test_a_detector_of_good_parts_says_that_it_leaves_defects_out(scratches: Path, tmp_path: Path) -> None:
    told: list[str] = []
    training.train(scratches, tmp_path / "a.andon", detector="variation", size=96, warn=told.append)
    assert any(
        "left out: 3 images" in sentence and "variation learns from good parts only" in sentence for sentence in told
    )
