"""The published data sets: products, layouts, and counts with their source.

A count that is not stated is not checked, and the check says which. `train good` counts the good pictures of the
training split, `all` those of every split. Counts marked *archive* are by public reports of people who counted the
files of the published archive, which agree with each other and with published totals unless noted; the paper itself was
not at hand.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import NamedTuple

from andon.errors import DatasetError, unknown
from andon.lab.datasets.layouts import Layout, Parts, Rule, Tree
from andon.lab.datasets.lists import Probabilities, SplitCsv, SplitJson

Counts = Mapping[str, int]


class Published(NamedTuple):
    """One published data set."""

    title: str
    layout: Layout
    products: Mapping[str, Counts]  # name of a product, as its folder → counts
    source: str  # of layout and counts
    total: Counts = MappingProxyType({})  # over all products
    unchecked: str = ""  # what is not checked, and why
    in_place: bool = False  # whether andon reads a product without arranging it
    groups: str = ""  # expression for pictures of one part in the arranged folder, as in a recipe


def _counts(train: int, good: int, defective: int, validation: int | None = None) -> Counts:
    counts = {"train good": train, "test good": good, "test defective": defective}
    return counts if validation is None else {**counts, "validation good": validation}


# fmt: off
_REAL_IAD = (
    "audiojack", "bottle_cap", "button_battery", "end_cap", "eraser", "fire_hood", "mint", "mounts", "pcb",
    "phone_battery", "plastic_nut", "plastic_plug", "porcelain_doll", "regulator", "rolled_strip_base", "sim_card_set",
    "switch", "tape", "terminalblock", "toothbrush", "toy", "toy_brick", "transistor1", "u_block", "usb", "usb_adaptor",
    "vcpill", "wooden_beads", "woodstick", "zipper",
)
# fmt: on
_MVTEC = (
    Rule("train", "train/good/{stem}"),
    Rule("test", "test/{folder}/{stem}", mask="ground_truth/{folder}/{stem}_mask"),
)

DATASETS: Mapping[str, Published] = {
    "mvtec_ad": Published(
        "MVTec AD",
        Tree(_MVTEC),
        {
            "bottle": _counts(209, 20, 63),
            "cable": _counts(224, 58, 92),
            "capsule": _counts(219, 23, 109),
            "carpet": _counts(280, 28, 89),
            "grid": _counts(264, 21, 57),
            "hazelnut": _counts(391, 40, 70),
            "leather": _counts(245, 32, 92),
            "metal_nut": _counts(220, 22, 93),
            "pill": _counts(267, 26, 141),
            "screw": _counts(320, 41, 119),
            "tile": _counts(230, 33, 84),
            "toothbrush": _counts(60, 12, 30),
            "transistor": _counts(213, 60, 40),
            "wood": _counts(247, 19, 60),
            "zipper": _counts(240, 32, 119),
        },
        "Bergmann et al., The MVTec anomaly detection dataset, IJCV 129, 2021, table 1",
        total={"train": 3629, "test": 1725},
        in_place=True,
    ),
    "mvtec_ad_2": Published(
        "MVTec AD 2",
        Tree(
            (
                Rule("train", "train/good/{stem}"),
                Rule("validation", "validation/good/{stem}"),
                Rule("test", "test_public/{folder}/{stem}", mask="test_public/ground_truth/{folder}/{stem}_mask"),
                Rule("private", "test_private/{stem}", label=""),
                Rule("private mixed", "test_private_mixed/{stem}", label=""),
            )
        ),
        {
            "can": _counts(412, 72, 90, 46),
            "fabric": _counts(387, 66, 90, 43),
            "fruit_jelly": _counts(263, 20, 60, 37),
            "rice": _counts(313, 42, 90, 35),
            "sheet_metal": _counts(137, 24, 90, 19),
            "vial": _counts(291, 35, 105, 41),
            "wallplugs": _counts(293, 60, 90, 33),
            "walnuts": _counts(432, 60, 90, 48),
        },
        "Heckler-Kram et al., The MVTec AD 2 dataset, 2025; layout: anomalib's mvtecad2.py; counts: archive",
        unchecked="the number of pictures in test_private and test_private_mixed: no count was found",
        groups=r"^(.+/\d+)_",  # one scene under several lights
    ),
    "mvtec_loco": Published(
        "MVTec LOCO AD",
        Tree(
            (
                Rule("train", "train/good/{stem}"),
                Rule("validation", "validation/good/{stem}"),
                Rule("test", "test/{folder}/{stem}", mask="ground_truth/{folder}/{stem}"),
            )
        ),
        {
            "breakfast_box": {**_counts(351, 102, 173, 62), "logical_anomalies": 83, "structural_anomalies": 90},
            "juice_bottle": {**_counts(335, 94, 236, 54), "logical_anomalies": 142, "structural_anomalies": 94},
            "pushpins": {**_counts(372, 138, 172, 69), "logical_anomalies": 91, "structural_anomalies": 81},
            "screw_bag": {**_counts(360, 122, 219, 60), "logical_anomalies": 137, "structural_anomalies": 82},
            "splicing_connectors": {**_counts(360, 119, 193, 60), "logical_anomalies": 108, "structural_anomalies": 85},
        },
        "Bergmann et al., Beyond dents and scratches, IJCV 130, 2022; counts: archive, and dataset-ninja/mvtec-loco-ad "
        "(1778, 305 and 1568 pictures; the paper states 1772, 304 and 1568)",
        total={"train": 1778, "validation": 305, "test": 1568},
        in_place=True,
    ),
    "btad": Published(
        "BTAD",
        Tree(
            (
                Rule("train", "train/ok/{stem}"),
                Rule("test", "test/{folder}/{stem}", mask="ground_truth/{folder}/{stem}"),
            )
        ),
        {"01": _counts(400, 21, 49), "02": _counts(399, 30, 200), "03": _counts(1000, 400, 41)},
        "Mishra et al., VT-ADL, ISIE 2021; counts: archive, and dataset-ninja/btad (1799 and 741 pictures, 290 "
        "defective). The readme of the archive exchanges 02 and 03",
        total={"train": 1799, "test": 741, "defective": 290},
        in_place=True,
    ),
    "visa": Published(
        "VisA",
        SplitCsv(),
        {
            "candle": {"good": 1000, "defective": 100},
            "capsules": {"good": 602, "defective": 100},
            "cashew": {"good": 500, "defective": 100},
            "chewinggum": {"good": 503, "defective": 100},
            "fryum": {"good": 500, "defective": 100},
            "macaroni1": {"good": 1000, "defective": 100},
            "macaroni2": {"good": 1000, "defective": 100},
            "pcb1": {"good": 1004, "defective": 100},
            "pcb2": {"good": 1001, "defective": 100},
            "pcb3": {"good": 1006, "defective": 100},
            "pcb4": {"good": 1005, "defective": 100},
            "pipe_fryum": {"good": 500, "defective": 100},
        },
        "Zou et al., SPot-the-difference, ECCV 2022; README and split_csv of github.com/amazon-science/spot-diff",
        total={"good": 9621, "defective": 1200},
        unchecked="pictures in training and in test: split_csv/1cls.csv lists each; every listed file must be there",
    ),
    "mpdd": Published(
        "MPDD",
        Tree(_MVTEC),
        {
            "bracket_black": _counts(289, 32, 47),
            "bracket_brown": _counts(185, 26, 51),
            "bracket_white": _counts(110, 30, 30),
            "connector": _counts(128, 30, 14),
            "metal_plate": _counts(54, 26, 71),
            "tubes": _counts(122, 32, 69),
        },
        "Jezek et al., Deep learning-based defect detection of metal parts, ICUMT 2021; counts: archive (888 pictures "
        "in training; 176 good and 282 defective in test)",
        total={"train": 888, "test good": 176, "test defective": 282},
        in_place=True,
    ),
    "kolektor_sdd": Published(
        "KolektorSDD",
        Parts(Tree((Rule("", "{folder}/{stem}", mask="{folder}/{stem}_label", label="content"),), single=True)),
        {"commutators": {"all": 399, "good": 347, "defective": 52}},
        "Tabernik et al., Segmentation-based deep-learning approach, J. Intell. Manuf. 31, 2020; "
        "vicos.si/resources/kolektorsdd",
        unchecked="the split: there is none for one class. Ours: defects, and the good pictures of the last fifth of "
        "the items, are test",
        groups=r"(kos\d+)",
    ),
    "kolektor_sdd2": Published(
        "KolektorSDD2",
        Tree(
            (
                Rule("train", "train/{stem}", mask="train/{stem}_gt", label="content"),
                Rule("test", "test/{stem}", mask="test/{stem}_gt", label="content"),
            ),
            ignored=frozenset({"train/10301 (copy)", "train/10301_gt (copy)"}),  # copies in the archive
            single=True,
        ),
        {"surfaces": {"train good": 2085, "train defective": 246, "test good": 894, "test defective": 110}},
        "Božič et al., Mixed supervision for surface-defect detection, Comput. Ind. 129, 2021; "
        "github.com/vicoslab/mixed-segdec-net-comind2021",
    ),
    "dagm": Published(
        "DAGM 2007",
        Tree(
            (
                Rule("train", "train/{stem}", mask="train/label/{stem}_label", label="mask"),
                Rule("test", "test/{stem}", mask="test/label/{stem}_label", label="mask"),
            )
        ),
        {f"class{number}": {} for number in range(1, 11)},
        "Wieler and Hahn, hci.iwr.uni-heidelberg.de/content/weakly-supervised-learning-industrial-optical-inspection; "
        "layout with Train and Test: github.com/vicoslab/mixed-segdec-net-comind2021",
        total={"all": 16100},
        unchecked="pictures of a class: only their total over all classes was found",
    ),
    "real_iad": Published(
        "Real-IAD",
        SplitJson(),
        {category: {} for category in _REAL_IAD},
        "Wang et al., Real-IAD, CVPR 2024: 151,050 pictures, 51,329 defective; layout: anomalib's realiad.py",
        total={"all": 151_050, "defective": 51_329},
        unchecked="pictures of a category: no count was found. Its JSON lists each; every listed file must be there",
        groups=r"(.+)_C\d",  # five views of one part
    ),
    "elpv": Published(
        "elpv",
        Probabilities(),
        {"mono": {}, "poly": {}},
        "Deitsch et al., Automatic classification of defective photovoltaic module cells, Solar Energy 185, 2019; "
        "README of github.com/zae-bayern/elpv-dataset",
        total={"all": 2624},
        unchecked="cells of a type: no count was found. The split: there is none. Ours: cells of defect probability 1, "
        "and the last fifth of those of probability 0 by name, are test; those between are not used",
    ),
}


def named(name: str) -> Published:
    """Return a data set by its name. DatasetError for an unknown name."""
    if name not in DATASETS:
        raise DatasetError(f"{unknown('data set', name, DATASETS)} See `andon datasets`.")
    return DATASETS[name]
