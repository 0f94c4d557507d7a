"""Folders as people have them, groups, and the split of good images."""

from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from andon import dataset
from andon.dataset import Dataset, Sample
from andon.errors import DatasetError


def tree(root: Path, *names: str) -> Path:
    """Make files; finding them needs no pixels in them."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"")
    return root


def seen(data: Dataset) -> dict[str, tuple[str, str, str]]:
    """Path → split, defect, mask."""
    mask = {s: s.mask.relative_to(data.root).as_posix() if s.mask else "" for s in data.samples}
    return {data.relative(s): (s.split, s.defect, mask[s]) for s in data.samples}


MVTEC = ["train/good/0.png", "train/good/1.PNG", "test/good/0.png", "test/crack/0.png", "test/crack/1.png"]


def test_mvtec_layout_with_both_names_of_masks(tmp_path: Path) -> None:
    masks = ["ground_truth/crack/0_mask.png", "ground_truth/crack/1.png", "ground_truth/crack/9_mask.png"]
    data = dataset.load(tree(tmp_path, *MVTEC, *masks, "readme.txt"))
    assert seen(data) == {
        "test/crack/0.png": ("test", "crack", masks[0]),
        "test/crack/1.png": ("test", "crack", masks[1]),
        "test/good/0.png": ("test", "good", ""),
        "train/good/0.png": ("train", "good", ""),
        "train/good/1.PNG": ("train", "good", ""),
    }
    assert data.layout == "mvtec" and data.labels == ("crack", "good")
    assert data.stray_masks == (tmp_path / masks[2],)
    assert data.ignored == {"text": 1}
    assert len(data.good()) == 3 and len(data.good("train")) == 2 and len(data.defective()) == 2


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["train/0.png", "test/good/0.png"], {"train/0.png": "good", "test/good/0.png": "good"}),
        (["train/shift 1/0.png", "test/good/0.png"], {"train/shift 1/0.png": "good", "test/good/0.png": "good"}),
        (["train/good/0.png", "train/dent/0.png"], {"train/good/0.png": "good", "train/dent/0.png": "dent"}),
        (["test/dent/a/0.png", "test/1.png"], {"test/dent/a/0.png": "dent", "test/1.png": ""}),
        (["Train/Good/0.png", "Test/OK/0.png"], {"Train/Good/0.png": "good", "Test/OK/0.png": "good"}),
        (["ok/0.png", "Riss/0.png"], {"ok/0.png": "good", "Riss/0.png": "Riss"}),
        (["0.png", "bad/0.png", "mon/0.png"], {"0.png": "", "bad/0.png": "bad", "mon/0.png": ""}),
        (["a.b.c/Teil 1.final.JPEG", "ä ö/ü.Tiff"], {"a.b.c/Teil 1.final.JPEG": "", "ä ö/ü.Tiff": ""}),
    ],
)
def test_layouts(tmp_path: Path, names: list[str], expected: dict[str, str]) -> None:
    data = dataset.load(tree(tmp_path, *names))
    assert {data.relative(s): s.defect for s in data.samples} == expected


def test_what_is_no_image_is_counted(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "a/Thumbs.db", "a/notes.TXT", ".DS_Store", ".git/x.png", "b.zip", "a/._1.png", "x.gif")
    data = dataset.load(tmp_path)
    assert list(seen(data)) == ["a/1.png", "x.gif"]  # a GIF is meant as a picture: reading it says what to do
    assert data.ignored == {"system": 1, "text": 1, "hidden": 2, "other": 1}
    assert dataset.images(tmp_path) == [tmp_path / "a/1.png", tmp_path / "x.gif"]


def test_images_beside_train_and_test_are_counted(tmp_path: Path) -> None:
    data = dataset.load(tree(tmp_path, *MVTEC, "validation/good/0.png", "overview.png"))
    assert len(data.samples) == 5 and data.ignored == {"image outside train and test": 2}


def test_links_are_followed_but_not_in_circles(tmp_path: Path) -> None:
    tree(tmp_path, "in/a/1.png", "far/2.png")
    try:
        (tmp_path / "in/a/loop").symlink_to(tmp_path / "in", target_is_directory=True)
        (tmp_path / "in/far").symlink_to(tmp_path / "far", target_is_directory=True)
    except OSError:
        pytest.skip("this machine does not let us make links")
    assert list(seen(dataset.load(tmp_path / "in"))) == ["a/1.png", "far/2.png"]


@pytest.mark.parametrize(
    ("names", "ask", "message"),
    [
        (["a.png"], "gone", "gone: there is nothing here; expected a folder of images. Check the path."),
        (["a.png"], "a.png", "a.png: there is a file here; expected a folder of images. Check the path."),
        (["x/a.txt", "x/b.txt"], "x", "x: no images among 2 other files; expected PNG, JPEG, TIFF, BMP, WebP or PGM."),
        (["ground_truth/crack/1.png"], ".", ": no images; expected PNG"),
        (
            ["bolt/train/good/1.png", "bolt/ground_truth/crack/1.png", "nut/ground_truth/crack/1.png"],
            ".",
            ": several data sets, bolt, nut; expected one. Name one of them.",
        ),
    ],
)
def test_folders_that_are_none(tmp_path: Path, names: list[str], ask: str, message: str) -> None:
    tree(tmp_path, *names)
    with pytest.raises(DatasetError) as error:
        dataset.load(tmp_path / ask)
    assert message in str(error.value)


# ---------------------------------------------------------------------------------------------------------- groups


@pytest.mark.parametrize(
    "table",
    [
        "stem,tile_group,split\n0,a,train\n1,a,train\n0,b,test\n",
        "stem;tile_group;split\n0;a;train\n1;a;train\n0;b;test\n",
        "PATH,Lot,operator\ntrain/good/0.png,a,x\ntrain\\good\\1.PNG,a,y\n./test/good/0.png,b,z\n",
        "\ufefffile,part\ntrain/good/0.png,a\n1.PNG,a\ntest/good/0.png,b\nnot here.png,c\n",
    ],
)
def test_groups_from_a_table(tmp_path: Path, table: str) -> None:
    (tmp_path / "groups.csv").write_text(table, encoding="utf-8")
    data = dataset.load(tree(tmp_path, *MVTEC), tmp_path / "groups.csv")
    groups = {data.relative(s): s.group for s in data.good()}
    assert groups == {"test/good/0.png": "b", "train/good/0.png": "a", "train/good/1.PNG": "a"}
    assert data.grouped


@pytest.mark.parametrize("pattern", [r"/(?P<x>\w+)_(?P<group>\d+)_", r"_(\d+)_"])
def test_groups_from_a_pattern(tmp_path: Path, pattern: str) -> None:
    data = dataset.load(tree(tmp_path, "s/p_7_1.png", "s/p_7_2.png", "s/p_8_1.png"), pattern)
    assert [s.group for s in data.samples] == ["7", "7", "8"]


def test_without_groups_each_image_is_its_own(tmp_path: Path) -> None:
    data = dataset.load(tree(tmp_path, "a/1.png", "b/1.png"))
    assert [s.group for s in data.samples] == ["a/1.png", "b/1.png"] and not data.grouped


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("gone.csv", "gone.csv: no such file; expected a CSV with the group of each image."),
        ("part(", "group pattern 'part(': not a regular expression: "),
        ("part", "group pattern 'part': nothing in it is in brackets; expected one capture group."),
        (
            r"(\d)\.png",
            r"group pattern '(\d)\.png': no match for 4 of 6 good images: a.png, b.png, c.png, …; "
            "expected a group for every good image. Add them, or move the images away.",
        ),
        ("x,y\na,b\n", "columns x, y; expected one of path, file, filename, image, stem and one of group,"),
        ("", "columns none; expected one of path"),
        ("stem,group\n", "no row for 6 of 6 good images"),
        ("stem,group\na,1,x\n", "1 rows have more cells than the 2 columns stem, group."),
        ("x" * 300, "nothing in it is in brackets"),
        ("stem,group\na,1\nb,1\nc,2\n1,1\n", "no row for 2 of 6 good images: 2.png, d.png; expected a group for"),
        ("stem,group\na,1\na,2\n", "a.png has 2 groups: 1, 2; expected one. Name images by their relative path"),
    ],
)
def test_groups_that_are_none(tmp_path: Path, groups: str, message: str) -> None:
    tree(tmp_path, "a.png", "b.png", "c.png", "d.png", "1.png", "2.png")
    if "\n" in groups or not groups:
        (tmp_path / "g.csv").write_text(groups, encoding="utf-8")
        groups = str(tmp_path / "g.csv")
    with pytest.raises(DatasetError) as error:
        dataset.load(tmp_path, groups)
    assert message in str(error.value)


# ------------------------------------------------------------------------------------------------------- the split


def samples(groups: list[int]) -> list[Sample]:
    return [Sample(Path(f"{i}.png"), "", "", None, str(group)) for i, group in enumerate(groups)]


@given(
    st.lists(st.integers(0, 9), min_size=2, max_size=60).filter(lambda groups: len(set(groups)) > 1),
    st.floats(0.01, 0.9),
    st.integers(0, 2**32 - 1),
)
def test_the_split_keeps_groups_whole(groups: list[int], share: float, seed: int) -> None:
    good = samples(groups)
    fit, held = dataset.split_good(good, share, seed)
    assert sorted([*fit, *held], key=good.index) == good
    assert fit and held and not {s.group for s in fit} & {s.group for s in held}
    assert dataset.split_good(good, share, seed) == (fit, held)


def test_the_split_meets_its_share_and_follows_the_seed() -> None:
    good = samples(list(range(100)))
    fit, held = dataset.split_good(good, 0.2, seed=0)
    assert (len(fit), len(held)) == (80, 20)
    assert dataset.split_good(good, 0.2, seed=1) != (fit, held)


@pytest.mark.parametrize(
    ("groups", "digests", "joined"),
    [
        ("abc", "123", "abc"),
        ("abc", "121", "aba"),
        ("aabbc", "12345", "aabbc"),
        ("aabbc", "12245", "aaaac"),  # two groups that share a file are one
        ("abcd", "1121", "aaca"),
    ],
)
def test_copies_are_in_one_group(groups: str, digests: str, joined: str) -> None:
    given = [Sample(Path(f"{i}.png"), "", "", None, group) for i, group in enumerate(groups)]
    found = [sample.group for sample in dataset.united(given, list(digests))]
    assert [[a == b for b in found] for a in found] == [[a == b for b in joined] for a in joined]


def test_the_split_needs_two_groups() -> None:
    with pytest.raises(DatasetError, match=r"3 good images in 1 groups; .* and 8 images or more are advised."):
        dataset.split_good(samples([1, 1, 1]), 0.2, seed=0)


@pytest.mark.parametrize("largest", [1, 255, 65535])
def test_masks_are_cut_at_half_of_their_largest(tmp_path: Path, largest: int) -> None:
    drawn = np.zeros((9, 9), np.uint16 if largest > 255 else np.uint8)
    drawn[2:4, 3:8] = largest
    path = tmp_path / "mask.png"
    path.write_bytes(cv2.imencode(".png", drawn)[1].tobytes())
    np.testing.assert_array_equal(dataset.mask(path), drawn > 0)


def test_the_sets_at_hand(shared_data: Path) -> None:
    for name, train, good, bad in (("mvtec_ad/bottle", 209, 20, 63), ("ball_screw", 450, 238, 167)):
        data = dataset.load(shared_data / name)
        assert (len(data.good("train")), len(data.good("test")), len(data.defective())) == (train, good, bad)
        assert all(s.mask for s in data.defective()) and not data.stray_masks
    tiles = shared_data / "magnetic_tile"
    data = dataset.load(tiles, tiles / "good_groups.csv")
    fit, held = dataset.split_good(data.good("train"), 0.2, seed=0)
    assert not {s.group for s in fit} & {s.group for s in held} and abs(len(held) - 125) < 6
