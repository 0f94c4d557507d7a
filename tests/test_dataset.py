"""Folders as people have them, groups, and the split of good images."""

import os
import unicodedata
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from andon.data import dataset
from andon.data import masks as masks_
from andon.data.dataset import Dataset, Sample
from andon.data.folders import Names
from andon.errors import DatasetError, ImageError


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
        (["0.png", "bad/0.png"], {"0.png": "", "bad/0.png": "bad"}),
        (["0.png", "good/0.png", "Riss/0.png"], {"good/0.png": "good", "Riss/0.png": "Riss"}),
        (["a.b.c/ä ö/Teil 1.final.JPEG"], {"a.b.c/ä ö/Teil 1.final.JPEG": ""}),
        (
            ["lot1/good/0.png", "lot1/dent/0.png", "lot2/ng/0.png"],
            {"lot1/good/0.png": "good", "lot1/dent/0.png": "dent", "lot2/ng/0.png": "ng"},
        ),
        (["good/mon/0.png", "good/ng/0.png"], {"good/mon/0.png": "good", "good/ng/0.png": "ng"}),
        (["Training/io/0.png", "Testing/niO/0.png"], {"Training/io/0.png": "good", "Testing/niO/0.png": "niO"}),
        (
            ["train/0.png", "test/lot1/OK/0.png", "test/lot1/Riss/0.png", "test/lot2/ng/a/0.png", "test/lot3/0.png"],
            {
                "train/0.png": "good",
                "test/lot1/OK/0.png": "good",
                "test/lot1/Riss/0.png": "Riss",
                "test/lot2/ng/a/0.png": "lot2",
                "test/lot3/0.png": "lot3",
            },
        ),
        (
            ["train/0.png", "test/good/a/0.png", "test/good/ng/0.png", "test/bad/good/0.png"],
            {
                "train/0.png": "good",
                "test/good/a/0.png": "good",
                "test/good/ng/0.png": "ng",
                "test/bad/good/0.png": "bad",
            },
        ),
        (["test/label/0.png", "train/0.png"], {"test/label/0.png": "label", "train/0.png": "good"}),
        (
            ["Images/Normal/0.png", "Images/Anomaly/0.png"],
            {"Images/Normal/0.png": "good", "Images/Anomaly/0.png": "Anomaly"},
        ),
    ],
)
def test_layouts(tmp_path: Path, names: list[str], expected: dict[str, str]) -> None:
    data = dataset.load(tree(tmp_path, *names))
    assert {data.relative(s): s.defect for s in data.samples} == expected


def test_files_that_are_not_images_are_counted(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "a/Thumbs.db", "a/notes.TXT", ".DS_Store", ".git/x.png", "b.zip", "a/._1.png", "a/x.gif")
    data = dataset.load(tmp_path)
    assert list(seen(data)) == ["a/1.png", "a/x.gif"]  # a GIF is meant as a picture: reading it says what to do
    assert data.ignored == {"system": 1, "text": 1, "hidden": 2, "other": 1, "system folder": 1}
    assert dataset.images(tmp_path) == [tmp_path / "a/1.png", tmp_path / "a/x.gif"]


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
    data = dataset.load(tmp_path / "in", good="*")
    assert list(seen(data)) == ["a/1.png", "far/2.png"]
    assert data.ignored == {"link to a parent folder": 1} and not data.unreadable


@pytest.mark.parametrize(
    ("names", "ask", "message"),
    [
        (["a.png"], "gone", "gone: no such file or folder; expected a folder of images. Check the path."),
        (["a.png"], "a.png", "a.png: a file; expected a folder of images. Check the path."),
        (["x/a.txt", "x/b.txt"], "x", "x: no images, but 2 text; expected PNG, JPEG, TIFF, BMP, WebP or PGM."),
        (["ground_truth/crack/1.png"], ".", ": no images, but 1 mask; expected PNG"),
        (["bolt/train/good/1.png"], ".", ": contains the data set bolt; expected the folder of one data set. Use"),
        (
            ["bolt/train/good/1.png", "bolt/ground_truth/crack/1.png", "nut/ground_truth/crack/1.png"],
            ".",
            ": contains the data sets bolt, nut; expected the folder of one data set. Use",
        ),
    ],
)
def test_folders_that_are_none(tmp_path: Path, names: list[str], ask: str, message: str) -> None:
    tree(tmp_path, *names)
    with pytest.raises(DatasetError) as error:
        dataset.load(tmp_path / ask)
    assert message in str(error.value)


# ------------------------------------------------------------------------------------------------ names of folders


@pytest.mark.parametrize(
    ("kind", "names"),
    [
        (
            "good",
            "good GOOD normal_dir good_parts OK-2024 ok1 NormalImages pass i.O. IO in_Ordnung Gutteile gut fehlerfrei",
        ),
        ("good", "良品 正常 合格 良品画像 ＯＫ OK品 合格品_2024 正常图片 不良なし no_defects defect-free"),
        ("bad", "bad NG nok n.i.O. niO nicht_in_Ordnung Ausschuß abnormal_dir fail defects not_good Not-OK anomaly"),
        ("bad", "NO-OK KO Nicht_ok"),
        ("bad", "不良 不良品 異常 异常 不合格 缺陷 NG品 不良画像 欠陥_1 schlecht Mängel"),
        (
            "mask",
            "mask masks mask_dir Masks ground_truth GroundTruth gt labels annotations crack_mask SegmentationClass",
        ),
        (
            "system",
            "@eaDir .thumbnails thumbs Thumbnails #recycle $RECYCLE.BIN .Trash-1000 __MACOSX lost+found .@__thumb .git",
        ),
        ("", "images Bilder lot1 2024-05-03 left masked goods_in crack #1 unlabelled part A line_3 写真 testgood"),
    ],
)
def test_what_the_name_of_a_folder_says(kind: str, names: str) -> None:
    assert {name: Names().kind(name) for name in names.split()} == dict.fromkeys(names.split(), kind)
    assert Names().kind(unicodedata.normalize("NFD", "Mängel")) == "bad"
    assert Names().kind("System Volume Information") == "system"


@pytest.mark.parametrize(
    "names",
    [
        ["left/0.png", "right/0.png"],
        ["0.png", "crack/0.png"],
        ["images/a/0.png", "images/b/0.png"],
        ["2024-05-03/0.png", "2024-05-04/0.png", "ng/0.png"],
        ["train/a/0.png", "train/b/0.png", "test/good/0.png"],
        ["lot1/good/0.png", "lot1/ng/0.png", "odd/0.png"],
    ],
)
def test_of_several_folders_one_must_be_known_as_good(tmp_path: Path, names: list[str]) -> None:
    with pytest.raises(
        DatasetError, match=r"places: .* \(1\).*; expected one place that is known as good. Give the good one: --good "
    ):
        dataset.load(tree(tmp_path, *names))
    labels = {s.defect for s in dataset.load(tmp_path, good=["*"]).samples}
    assert labels <= {"good", "ng"}


def test_the_name_that_is_proposed_for_good_is_that_of_most_images(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match=r"Give the good one: --good 'годные' or"):
        dataset.load(tree(tmp_path, "брак/0.png", "годные/0.png", "годные/1.png"))


def test_folders_may_be_named_as_good(tmp_path: Path) -> None:
    tree(tmp_path, "left/0.png", "right/0.png", "masks/0.png", "0.png")
    assert {n: d for n, (_, d, _) in seen(dataset.load(tmp_path, good=["LEFT"])).items()} == {
        "left/0.png": "good",
        "right/0.png": "right",
    }
    assert [s.defect for s in dataset.load(tmp_path, good=["masks"]).good()] == ["good"]
    assert dataset.load(tmp_path, good=["."]).training_folders() == {".": 1}
    with pytest.raises(
        DatasetError, match=r"no folder of images matches 'middle', given as good; expected one of: left, right"
    ):
        dataset.load(tmp_path, good=["left", "middle"])


@pytest.mark.parametrize("name", ["ng", "masks", "#recycle"])
def test_a_folder_of_that_name_alone_is_not_learnt_from(tmp_path: Path, name: str) -> None:
    assert not dataset.load(tree(tmp_path / name, "lot/1.png")).training_images()
    assert dataset.load(tmp_path / name, good=[name]).training_folders() == {"lot": 1}


def test_masks_and_thumbnails_are_no_parts(tmp_path: Path) -> None:
    beside = ["good/1.png", "good/1_mask.png", "good/1.json", "good/2.png", "good/gt_2.png", "ng/3.png", "ng/3.seg.png"]
    tree(
        tmp_path, *beside, "@eaDir/1.png", "good/@eaDir/1.png", "labels/9.png", "good/Thumbs.db", "good/alone_mask.png"
    )
    data = dataset.load(tmp_path)
    assert [data.relative(s) for s in data.training_images()] == ["good/1.png", "good/2.png", "good/alone_mask.png"]
    assert data.sources() == [
        "training images in good (3)",
        "not used as pictures of parts: 4 mask, 2 system folder, 1 text, 1 system",
    ]
    assert seen(data)["ng/3.png"] == ("", "ng", "ng/3.seg.png")
    assert [p.name for p in data.stray_masks] == ["9.png"] and len(data.good_masks) == 2


def test_heat_maps_of_an_inspection_are_no_parts(tmp_path: Path) -> None:
    """`andon inspect good --out good/results` must not change what is learnt from `good` the next time."""
    tree(tmp_path, "good/1.png", "good/lot/overlays/2.png", "good/results/records.jsonl")
    tree(tmp_path, "good/results/overlays/1.png.png", "good/results/overlays/lot/2.png.png")
    data = dataset.load(tmp_path)
    assert [data.relative(s) for s in data.training_images()] == ["good/1.png", "good/lot/overlays/2.png"]
    assert data.ignored["heat map of an earlier run"] == 2
    with pytest.raises(DatasetError, match="no images, but 1 heat map of an earlier run"):
        dataset.load(tmp_path / "good/results/overlays/lot")


# ------------------------------------------------------------------------------------------- what cannot be followed


def test_odd_entries_are_one_bad_entry_each(tmp_path: Path) -> None:
    tree(tmp_path, "a/1.png", "a/2.png")
    try:
        for name, target in (
            ("self.png", "self.png"),
            ("self", "self"),
            ("gone.png", "no"),
            ("gone", "no"),
            ("n.txt", "no"),
        ):
            (tmp_path / "a" / name).symlink_to(target)
        (tmp_path / "a/x").symlink_to("y")
        (tmp_path / "a/y").symlink_to("x")
        (tmp_path / os.fsdecode(b"a/\xff\xfe.png")).write_bytes(b"")
        (tmp_path / "a" / ("l" * 250)).mkdir()
    except OSError:
        pytest.skip("this machine does not let us make links, or such names")
    data = dataset.load(tmp_path)
    assert [s.path.name for s in data.samples] == [
        "1.png",
        "2.png",
        "gone.png",
        "self.png",
        os.fsdecode(b"\xff\xfe.png"),
    ]
    assert [Path(sentence.split(": cannot be read: ")[0]).name for sentence in data.unreadable] == [
        "gone",
        "self",
        "x",
        "y",
    ]


def test_an_unreadable_folder_is_one_bad_entry(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tree(tmp_path, "a/1.png", "b/2.png")
    real = os.scandir

    def scandir(path: Path) -> object:
        if Path(path).name == "b":
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    data = dataset.load(tmp_path)
    assert [s.path.name for s in data.samples] == ["1.png"]
    assert data.unreadable == (
        f"{(tmp_path / 'b').as_posix()}: cannot be read: permission denied. "
        "Allow reading, repair the link, or remove it.",
    )
    with pytest.raises(
        DatasetError, match=r"b: cannot be read: Permission denied\. Allow reading, or use another folder\."
    ):
        dataset.load(tmp_path / "b")


# ----------------------------------------------------------------------------------------------------------- masks


@pytest.mark.parametrize(
    ("masks", "matched"),
    [
        (["ground_truth/crack/0.png"], "ground_truth/crack/0.png"),
        (["ground_truth/crack/0_segmentation.png"], "ground_truth/crack/0_segmentation.png"),
        (["gt/crack/0_GT.png"], "gt/crack/0_GT.png"),
        (["masks/0.png"], "masks/0.png"),
        (["masks/mask_0.bmp"], "masks/mask_0.bmp"),
        (["masks/crack/0.png.png"], "masks/crack/0.png.png"),
        (["masks/test/crack/0.png"], "masks/test/crack/0.png"),
        (["test/crack/0-label.png"], "test/crack/0-label.png"),
        (["test/crack/masks/0.png"], "test/crack/masks/0.png"),
        (["ground_truth/crack/0/000.png", "ground_truth/crack/0/001.png"], "ground_truth/crack/0"),
        (["ground_truth/crack/0_mask/000.png"], "ground_truth/crack/0_mask"),
        (["ground_truth/crack/0.png", "ground_truth/crack/0_mask.png"], ""),  # which of the two?
        (["ground_truth/dent/0.png"], ""),
        (["ground_truth/crack/00.png"], ""),
    ],
)
def test_the_mask_of_an_image(tmp_path: Path, masks: list[str], matched: str) -> None:
    data = dataset.load(tree(tmp_path, "train/good/0.png", "test/good/0.png", "test/crack/0.png", *masks))
    assert seen(data)["test/crack/0.png"] == ("test", "crack", matched)
    assert len(data.stray_masks) == (0 if matched else len(masks)) and not data.good_masks


def test_a_mask_that_fits_two_images_is_used_for_neither(tmp_path: Path) -> None:
    data = dataset.load(
        tree(tmp_path, "good/0.png", "ng/0.png", "dent/0.png", "dent/1.png", "masks/0.png", "masks/1.png")
    )
    assert {n: m for n, (_, _, m) in seen(data).items() if m} == {"dent/1.png": "masks/1.png"}
    assert [p.name for p in data.stray_masks] == ["0.png"]


def test_names_are_equal_in_either_unicode_form(tmp_path: Path) -> None:
    nfc, nfd = (unicodedata.normalize(form, "Größe") for form in ("NFC", "NFD"))
    data = dataset.load(tree(tmp_path, "good/0.png", f"{nfd}/{nfd}.png", f"ground_truth/{nfc}/{nfc}_mask.png"))
    assert [s.mask is not None for s in data.defective()] == [True] and data.labels == (nfc, "good")


def disc(*discs: tuple[int, int, int], side: int = 60, smooth: bool = False) -> NDArray[np.uint8]:
    drawn = np.zeros((side, side), np.uint8)
    for x, y, value in discs:
        cv2.circle(drawn, (x, y), 8, value, -1, cv2.LINE_AA if smooth else cv2.LINE_8)
    return drawn


NUMBERED = disc(*((12 + 20 * (i % 5), 12 + 20 * (i // 5), 3 * i + 1) for i in range(20)), side=120)
"""Each of twenty defects has a number of its own."""


@pytest.mark.parametrize(
    ("drawn", "how"),
    [
        (disc((20, 20, 255), (40, 40, 255)), "binary"),
        (disc((20, 20, 1), (40, 40, 3)), "classes"),
        (disc((20, 20, 40), (40, 40, 80)), "classes"),
        (disc((20, 20, 127), (40, 40, 255)), "classes"),
        (disc((20, 20, 1), (40, 40, 255)), "classes"),
        (
            disc(*((12 + 20 * (i % 5), 12 + 20 * (i // 5), 3 * i + 1) for i in range(20)), side=120),
            "classes",
        ),  # numbers of twenty defects
        (disc((20, 20, 255), (40, 40, 255), smooth=True), "gray"),
        (cv2.GaussianBlur(disc((20, 20, 255), (40, 40, 255)), (0, 0), 2), "gray"),
        (cv2.imdecode(cv2.imencode(".jpg", disc((20, 20, 255), (40, 40, 255)))[1], 0), "gray"),
    ],
)
def test_what_a_mask_marks(tmp_path: Path, drawn: NDArray[np.uint8], how: str) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(cv2.imencode(".png", drawn)[1].tobytes())
    mask = masks_.read(path)
    assert mask.how == how
    np.testing.assert_array_equal(mask.area, drawn > (127 if how == "gray" else 0))


@pytest.mark.parametrize("values", [(128, 255), (200, 255), (1, 2), (0, 1), (0, 255), (100, 101)])
def test_of_two_values_the_larger_marks_the_defect(values: tuple[int, int]) -> None:
    drawn = np.where(disc((20, 20, 1)) > 0, values[1], values[0]).astype(np.uint8)[..., None]
    mask = masks_.from_pixels(drawn)
    assert mask.how == "binary"
    np.testing.assert_array_equal(mask.area, disc((20, 20, 1)) > 0)


@pytest.mark.parametrize("value", [0, 1, 128, 255])
def test_of_one_value_all_above_0_is_marked(value: int) -> None:
    assert masks_.from_pixels(np.full((9, 9, 1), value, np.uint8)).area.all() == (value > 0)


def test_masks_in_a_folder_are_united(tmp_path: Path) -> None:
    for i, drawn in enumerate((disc((20, 20, 255)), disc((40, 40, 7)))):
        (tmp_path / f"{i}.png").write_bytes(cv2.imencode(".png", drawn)[1].tobytes())
    np.testing.assert_array_equal(dataset.mask(tmp_path), disc((20, 20, 1), (40, 40, 1)) > 0)
    (tmp_path / "2.png").write_bytes(cv2.imencode(".png", disc((20, 20, 255), side=61))[1].tobytes())
    with pytest.raises(ImageError, match="masks of different sizes for one image; expected one size"):
        dataset.mask(tmp_path)


def test_inverted_masks_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "mask.png"
    path.write_bytes(cv2.imencode(".png", 255 - disc((20, 20, 255)))[1].tobytes())
    with pytest.raises(ImageError, match="of the image and almost all of its border: black and white seem to be exch"):
        dataset.mask(path)


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


def test_space_and_encoding_make_no_other_group(tmp_path: Path) -> None:
    """`"L0 "` and `"L0"` as two groups let one lot lie on both sides of a fold."""
    table = " path , part \n\u00e9.png ,L\u00e4\nb.png, La\u0308 \nc.png,L1\nd.png,L1 \n\n"
    (tmp_path / "g.csv").write_text(table, encoding="utf-8")
    data = dataset.load(tree(tmp_path, "e\u0301.png", "b.png", "c.png", "d.png"), tmp_path / "g.csv")
    assert [s.group for s in data.samples] == ["L\u00e4", "L1", "L1", "L\u00e4"]
    assert f"groups from column 'part' of {tmp_path / 'g.csv'}: 2 groups" in data.sources()
    assert not data.warnings


def test_a_row_for_the_path_of_another_picture_does_not_contradict(tmp_path: Path) -> None:
    (tmp_path / "g.csv").write_text("path,group\na.png,1\nb/a.png,2\n", encoding="utf-8")
    data = dataset.load(tree(tmp_path / "good", "a.png", "b/a.png"), tmp_path / "g.csv", ["*"])
    assert [s.group for s in data.samples] == ["1", "2"]


@pytest.mark.parametrize(("second", "warned"), [("L0", True), ("l1", True), ("1.0", True), ("L2", False)])
def test_two_spellings_of_one_group_are_told(tmp_path: Path, second: str, warned: bool) -> None:
    (tmp_path / "g.csv").write_text(f"file,lot\na.png,l0\nb.png,{second}\nc.png,1\nd.png,L1\n", encoding="utf-8")
    told = dataset.load(tree(tmp_path, "a.png", "b.png", "c.png", "d.png"), tmp_path / "g.csv").warnings
    assert bool(told) is warned and (not told or "expected one spelling of each" in told[0])


@pytest.mark.parametrize("pattern", [r"/(?P<x>\w+)_(?P<group>\d+)_", r"_(\d+)_"])
def test_groups_from_a_pattern(tmp_path: Path, pattern: str) -> None:
    data = dataset.load(tree(tmp_path, "s/p_7_1.png", "s/p_7_2.png", "s/p_8_1.png"), pattern)
    assert [s.group for s in data.samples] == ["7", "7", "8"]


def test_without_groups_each_image_is_its_own(tmp_path: Path) -> None:
    data = dataset.load(tree(tmp_path, "good/1.png", "ng/1.png"))
    assert [s.group for s in data.samples] == ["good/1.png", "ng/1.png"] and not data.grouped


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ("gone.csv", "gone.csv: no such file; expected a CSV with the group of each image."),
        ("part(", "group pattern 'part(': not a regular expression: "),
        ("part", "group pattern 'part': no capture group; expected one."),
        (
            r"(\d)\.png",
            r"group pattern '(\d)\.png': no match for 4 of 6 good images: a.png, b.png, c.png, …; "
            "expected a group for every good image. Add the missing groups, or remove the images.",
        ),
        ("x,y\na,b\n", "columns x, y; expected one of path, file, filename, image, stem and one of group,"),
        ("", "columns none; expected one of path"),
        ("stem,group\n", "no row for 6 of 6 good images"),
        ("stem,group\na,1,x\n", "1 rows have more cells than the 2 columns stem, group."),
        ("x" * 300, "no capture group"),
        ("stem,group\na,1\nb,1\nc,2\n1,1\n", "no row for 2 of 6 good images: 2.png, d.png; expected a group for"),
        ("stem,group\na,1\na,2\n", "a.png has 2 groups: 1 (row a), 2 (row a); expected one. Use relative paths of"),
        ("path,group\na.png,L0\na,ZZ\n", "a.png has 2 groups: L0 (row a.png), ZZ (row a); expected one."),
        (
            "path,group, Group\na.png,1,2\n",
            "columns path, group, Group: group occurs several times; expected different",
        ),
        ('stem,group\na," "\n', "no row for 6 of 6 good images"),
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


def test_groups_are_held_out_without_regard_to_their_size() -> None:
    """The large group is held out as often as each other: 1 in 5."""
    good = samples([0] * 30 + list(range(1, 10)))
    large = [dataset.split_good(good, 0.2, seed)[1] for seed in range(1_000)]
    count = sum(any(sample.group == good[0].group for sample in held) for held in large)
    assert abs(count / 1_000 - 0.2) < 4 * (0.2 * 0.8 / 1_000) ** 0.5
    assert {len({sample.group for sample in held}) for held in large} == {2}


@given(st.lists(st.integers(0, 8), min_size=2, max_size=40), st.integers(2, 7), st.integers(0, 2**32 - 1))
def test_folds_are_even_and_keep_groups_whole(groups: list[int], count: int, seed: int) -> None:
    if len(set(groups)) < 2:
        return
    good = samples(groups)
    found = dataset.folds(good, count, seed)
    assert len(found) == min(count, len(set(groups)))
    assert sorted([s for fold in found for s in fold], key=good.index) == good
    sizes = [len({s.group for s in fold}) for fold in found]
    assert sum(sizes) == len(set(groups)) and max(sizes) - min(sizes) <= 1


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
    found = [sample.group for sample in dataset.merge_groups(given, list(digests))]
    assert [[a == b for b in found] for a in found] == [[a == b for b in joined] for a in joined]


def test_the_split_needs_two_groups() -> None:
    with pytest.raises(DatasetError, match=r"3 good images in 1 group; .* better 8 images or more."):
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
