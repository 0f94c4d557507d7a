"""Learning from images of defects: which are taken, how their masks travel, and what is said when there are none."""

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from andon.data import dataset
from andon.data.store import Store
from andon.data.survey import DefectTiles
from andon.detector import Labelled
from andon.errors import DatasetError
from andon.geometry.views import Geometry, Polygon
from andon.pictures.image import Input
from andon.training import train as training
from conftest import Marked, Stack, part, save, scratched

torch = pytest.importorskip("torch")

from andon.detectors.capsule import Capsule, CapsuleNetwork, Settings  # noqa: E402
from andon.nn.labelled import LabelledTiles, split_labels  # noqa: E402

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
    return DefectTiles(dataset.load(root).defective("train"), settings, RULE, Store(), told.append)


def joined(defects: DefectTiles) -> Labelled:
    return Labelled(*(np.concatenate(part) for part in zip(*defects, strict=True)))


def test_masks_go_the_way_of_their_image(scratches: Path) -> None:
    found = joined(tiles_of(scratches, Geometry(size=96), []))
    _, mask = scratched(10)
    np.testing.assert_array_equal(found.masks[0], mask > 0)
    np.testing.assert_array_equal(found.pixels[0], scratched(10)[0])
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


@pytest.mark.parametrize("depth", [8, 16])
def test_a_thin_mask_outlives_shrinking(tmp_path: Path, depth: int) -> None:
    mask = np.zeros((960, 960, 1), np.uint8)
    mask[100:900, 333] = 255
    save(tmp_path / "train/good/0.png", part(0, 960, depth=depth))
    save(tmp_path / "train/scratch/1.png", part(1, 960, depth=depth))
    save(tmp_path / "ground_truth/scratch/1_mask.png", mask)
    rule = Input(channels=3, depth=8 if depth == 8 else 16, size=(960, 960))
    defects = DefectTiles(dataset.load(tmp_path).defective("train"), Geometry(size=96), rule, Store(), [].append)
    found = joined(defects).masks[0]
    assert np.flatnonzero(found.any(axis=0)).tolist() == [33]
    assert np.flatnonzero(found.any(axis=1)).tolist() == list(range(10, 90))


@pytest.mark.parametrize("include", [[], [[(8.0, 8.0), (60.0, 8.0), (60.0, 60.0), (8.0, 60.0)]]])
def test_what_is_painted_over_is_not_marked(scratches: Path, include: list[Polygon]) -> None:
    settings = Geometry(size=64, include=include, ignore=[[(20.0, 60.0), (95.0, 60.0), (95.0, 95.0), (20.0, 95.0)]])
    found = joined(tiles_of(scratches, settings, []))
    assert found.masks[0].any()
    assert not found.masks[:, 41:, 14:].any()  # a pixel of the edge lies on both sides


def test_an_image_whose_mask_is_cut_off_is_left_out(scratches: Path) -> None:
    for name in ("10", "11"):
        save(scratches / f"ground_truth/scratch/{name}_mask.png", np.eye(96, dtype=np.uint8)[..., None] * 255)
    far = np.zeros((96, 96, 1), np.uint8)
    far[90:, 90:] = 255
    save(scratches / "ground_truth/scratch/11_mask.png", far)
    told: list[str] = []
    defects = tiles_of(scratches, Geometry(size=64, crop=(0, 0, 64, 64)), told)
    assert len(defects) == len(defects.digests) == 2 and joined(defects).masks.all(axis=(1, 2)).tolist() == [
        False,
        True,
    ]
    assert len(told) == 1 and "scratch/11.png: its tiles contain no marked pixel of its mask" in told[0]


class Good(Stack):
    """Two good tiles, and what is given as defects."""

    def __init__(self, defects: DefectTiles | None) -> None:
        super().__init__(np.stack([part(0), part(1)]))
        self.defects = defects


def test_few_defects_are_repeated_by_row_and_not_by_copy() -> None:
    class Once(Marked):
        passes = 0

        def __iter__(self) -> Iterator[Labelled]:
            self.passes += 1
            return super().__iter__()

    good = Stack(np.zeros((400, 8, 8, 1), np.uint8))
    masks = np.zeros((2, 8, 8), np.bool_)
    masks[0, 0], masks[1, 1] = True, True
    good.defects = defects = Once(np.stack([np.full((8, 8, 1), value, np.uint8) for value in (1, 2)]), masks)
    tiles = LabelledTiles(good, share=0.5)
    assert len(tiles) == 800 and tiles.times == 200 and defects.passes == 1
    batch = tiles[[3, 400, 401, 402, 799]]
    assert batch[..., 0].max(axis=(1, 2)).tolist() == [0, 1, 2, 1, 2]
    np.testing.assert_array_equal(batch[1:, ..., 1] > 0, masks[[0, 1, 0, 1]])
    assert defects.passes == 1
    np.testing.assert_array_equal(np.concatenate(list(tiles)), tiles[range(800)])


def test_labelled_tiles_carry_the_mask_as_a_channel(scratches: Path) -> None:
    tiles = LabelledTiles(Good(tiles_of(scratches, Geometry(size=96), [])))
    stock = np.concatenate(list(tiles))
    assert stock.shape == (5, 96, 96, 4) and len(tiles) == 5 and tiles.count == 3
    assert not stock[:2, ..., 3].any()
    pixels, masks = split_labels(torch.tensor(stock).permute(0, 3, 1, 2) / 255)
    assert pixels.shape == (5, 3, 96, 96)
    np.testing.assert_array_equal(masks[2].numpy(), scratched(10)[1] > 0)
    assert tiles.groups == [0, 1, -1, -2, -3]


def test_capsule_learns_an_image_of_a_defect_as_defective_whatever_its_mask_shows(scratches: Path) -> None:
    capsule = Capsule(Settings(side=28, width=4, types=2, capsule=4, decoder=(8, 8)), 0)
    stock = np.concatenate(list(capsule.stock(Good(tiles_of(scratches, Geometry(size=96), [])))))
    assert not stock[:2, ..., 3].any() and (stock[2:, ..., 3] == 255).all()
    net = capsule.network(96, 3)
    assert isinstance(net, CapsuleNetwork)
    tiles = torch.tensor(stock[2:]).permute(0, 3, 1, 2) / 255
    faint = torch.cat([tiles[:, :3], tiles[:, 3:] * 0.1], dim=1)  # made darker, as brightness varies
    with torch.no_grad():
        assert net.loss(faint, torch.Generator()) == net.loss(tiles, torch.Generator())


@pytest.mark.parametrize(
    ("defects", "message"),
    [(None, "expected some in train/DEFECT"), ((), "all were rejected.*masks of the same size")],
)
def test_no_defects_is_an_error(defects: Sequence[Labelled] | None, message: str) -> None:
    with pytest.raises(DatasetError, match=message):
        LabelledTiles(Good(defects))  # type: ignore[arg-type]


def test_masks_that_are_all_refused_are_not_called_missing(scratches: Path, tmp_path: Path) -> None:
    for name in ("10", "11", "12"):
        save(scratches / f"ground_truth/scratch/{name}_mask.png", np.full((50, 96, 1), 255, np.uint8))
    told: list[str] = []
    with pytest.raises(DatasetError, match="all were rejected"):
        training.train(scratches, tmp_path / "a.andon", detector="capsule", size=96, device="cpu", warn=told.append)
    assert sum("expected equal sizes" in sentence for sentence in told) == 3


def test_masks_that_match_no_image_are_reported(scratches: Path, tmp_path: Path) -> None:
    (scratches / "ground_truth/scratch/10_mask.png").rename(scratches / "ground_truth/scratch/10-drawn.png")
    for path in (scratches / "train/good").iterdir():
        path.write_bytes(b"no picture")  # so that nothing is trained
    told: list[str] = []
    with pytest.raises(DatasetError, match="0 of 4 images are usable"):
        training.train(scratches, tmp_path / "a.andon", detector="segmenter", size=96, warn=told.append)
    assert "left out: 1 mask that match no image of a defect, such as ground_truth/scratch/10-drawn.png" in told[1]
    assert "ground_truth/DEFECT/NAME_mask.png" in told[1]


@pytest.mark.parametrize(
    ("chosen", "used", "said"),
    [
        ("auto", 2, "left out: 1 of 3 images of defects, which have no mask, such as train/scratch/12.png"),
        ("labelled", 2, "left out: 1 of 3 images of defects, which have no mask, such as train/scratch/12.png"),
        ("synthetic", 0, "left out: 3 images of defects, by the names of their folders: scratch. segmenter "),
    ],
)
def test_a_bundle_has_learnt_from_what_was_used(
    scratches: Path, tmp_path: Path, chosen: str, used: int, said: str
) -> None:
    pytest.importorskip("onnxscript")
    told: list[str] = []
    asked = {"detector": "segmenter", "settings": {"defects": chosen, "width": 2, "steps": 1, "batch": 2}, "size": 64}
    bundle = training.train(scratches, tmp_path / "a.andon", device="cpu", warn=told.append, **asked)
    assert bundle.manifest.data["defects"] == used
    assert len(bundle.manifest.learnt) == bundle.manifest.data["fit"] + used
    assert told[0].startswith(said)


def test_masks_alone_are_refused_where_there_are_none(scratches: Path, tmp_path: Path) -> None:
    for path in (scratches / "ground_truth/scratch").iterdir():
        path.unlink()
    with pytest.raises(DatasetError, match="no images of defects with masks in ground_truth to learn from") as raised:
        training.train(
            scratches, tmp_path / "a.andon", detector="segmenter", settings={"defects": "labelled"}, size=64, warn=print
        )
    assert "segmenter needs some with these settings" in str(raised.value) and "capsule" not in str(raised.value)
    assert not list(tmp_path.glob("a.andon*"))


def test_tiles_of_one_image_of_a_defect_have_one_group(scratches: Path) -> None:
    defects = tiles_of(scratches, Geometry(size=64, tiles=True), [])
    assert list(defects.groups) == [0] * 4 + [1] * 4 + [2] * 4
    stock = LabelledTiles(Good(defects))
    shown = joined(defects).masks.any(axis=(1, 2))
    assert stock.groups == [0, 1, *(-1 - group for group, shows in zip(defects.groups, shown, strict=True) if shows)]


def test_a_detector_of_good_parts_says_that_it_leaves_defects_out(scratches: Path, tmp_path: Path) -> None:
    told: list[str] = []
    training.train(scratches, tmp_path / "a.andon", detector="variation", size=96, warn=told.append)
    assert any(
        "left out: 3 images" in sentence and "variation learns from good parts only" in sentence for sentence in told
    )
