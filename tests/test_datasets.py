"""Published data sets: miniature trees of every layout, with real files, and what a check says of damaged ones."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np
import pytest
import typer.testing

from andon.cli import app
from andon.data import dataset
from andon.errors import AndonError, DatasetError
from andon.lab.bench import plan as plans
from andon.lab.bench import protocols
from andon.lab.datasets import arranging, checking, layouts, lists, table
from andon.lab.datasets.table import DATASETS


def picture(path: Path, marked: bool = False) -> None:
    """Write a picture of 16 × 16 pixels of the format of its suffix; a mask marks a square."""
    pixels = np.zeros((16, 16), np.uint8)
    pixels[4:8, 4:8] = 255 if marked else 0
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix.lower(), pixels if marked else pixels + 90)[1].tobytes())


def empty(path: Path) -> None:
    """Write a mask that marks nothing."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, np.zeros((16, 16), np.uint8))[1].tobytes())


def mvtec(root: Path, suffix: str = ".png") -> None:
    for j in range(3):
        picture(root / f"train/good/{j:03}{suffix}")
    for j in range(2):
        picture(root / f"test/good/{j:03}{suffix}")
        picture(root / f"test/hole/{j:03}{suffix}")
        picture(root / f"ground_truth/hole/{j:03}_mask.png", marked=True)


def mvtec_ad(root: Path) -> None:
    mvtec(root / "bottle")
    mvtec(root / "screw")


def mpdd(root: Path) -> None:
    mvtec(root / "tubes")


def mvtec_ad_2(root: Path) -> None:
    place = root / "can"
    for j in range(3):
        picture(place / f"train/good/{j:03}_regular.png")
    picture(place / "validation/good/000_regular.png")
    for light in ("regular", "overexposed"):
        picture(place / f"test_public/good/000_{light}.png")
        picture(place / f"test_public/bad/000_{light}.png")
        picture(place / f"test_public/ground_truth/bad/000_{light}_mask.png", marked=True)
    picture(place / "test_private/000.png")
    picture(place / "test_private_mixed/000.png")


def mvtec_loco(root: Path) -> None:
    place = root / "pushpins"
    for j in range(3):
        picture(place / f"train/good/{j:03}.png")
    picture(place / "validation/good/000.png")
    picture(place / "test/good/000.png")
    for kind in ("logical_anomalies", "structural_anomalies"):
        picture(place / f"test/{kind}/000.png")
        for j in range(2):
            picture(place / f"ground_truth/{kind}/000/{j:03}.png", marked=True)


def btad(root: Path) -> None:
    for product, suffix, of_mask in (("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")):
        for j in range(3):
            picture(root / product / f"train/ok/{j:04}{suffix}")
        picture(root / product / f"test/ok/0000{suffix}")
        picture(root / product / f"test/ko/0000{suffix}")
        picture(root / product / f"ground_truth/ko/0000{of_mask}", marked=True)


def visa(root: Path) -> None:
    rows = ["object,split,label,image,mask"]
    for j in range(5):
        name = f"candle/Data/Images/Normal/{j:04}.JPG"
        picture(root / name)
        rows.append(f"candle,{'train' if j < 4 else 'test'},normal,{name},")
    picture(root / "candle/Data/Images/Anomaly/000.JPG")
    picture(root / "candle/Data/Masks/Anomaly/000.png", marked=True)
    rows.append("candle,test,anomaly,candle/Data/Images/Anomaly/000.JPG,candle/Data/Masks/Anomaly/000.png")
    rows.append("pcb1,train,normal,pcb1/Data/Images/Normal/0000.JPG,")
    (root / "split_csv").mkdir()
    (root / "split_csv/1cls.csv").write_text("\n".join(rows) + "\n")


def kolektor_sdd(root: Path) -> None:
    for item in range(1, 6):
        for j in range(2):
            picture(root / f"kos{item:02}/Part{j}.jpg")
            mask = root / f"kos{item:02}/Part{j}_label.bmp"
            picture(mask, marked=True) if j else empty(mask)


def kolektor_sdd2(root: Path) -> None:
    for split, first in (("train", 10000), ("test", 20000)):
        for j in range(4):
            picture(root / f"{split}/{first + j}.png")
            mask = root / f"{split}/{first + j}_GT.png"
            empty(mask) if j < 3 else picture(mask, marked=True)
    picture(root / "train/10301 (copy).png")
    empty(root / "train/10301_GT (copy).png")


def dagm(root: Path) -> None:
    for split in ("Train", "Test"):
        for j in range(4):
            picture(root / f"Class1/{split}/{j:04}.PNG")
        picture(root / f"Class1/{split}/Label/0003_label.PNG", marked=True)
        (root / f"Class1/{split}/Label/Labels.txt").write_text("1\n")


def real_iad(root: Path) -> None:
    splits: dict[str, list[dict[str, str | None]]] = {"train": [], "test": []}
    for j, (split, label) in enumerate([("train", "OK")] * 3 + [("test", "OK"), ("test", "AK")]):
        stem = f"audiojack_{j:04}_{'OK' if label == 'OK' else 'NG'}_C1_20231021"
        folder = f"{'OK' if label == 'OK' else 'NG/AK'}/S{j:04}"
        mask = None if label == "OK" else f"{folder}/{stem}_mask.png"
        for size in (256, 1024):
            picture(root / f"realiad_{size}/audiojack/{folder}/{stem}.jpg")
            if mask:
                picture(root / f"realiad_{size}/audiojack/{mask}", marked=True)
        splits[split].append({"anomaly_class": label, "image_path": f"{folder}/{stem}.jpg", "mask_path": mask})
    (root / "realiad_jsons/realiad_jsons").mkdir(parents=True)
    (root / "realiad_jsons/realiad_jsons/audiojack.json").write_text(json.dumps({"meta": {}, **splits}))


def elpv(root: Path) -> None:
    lines = []
    for j, (probability, kind) in enumerate([("0.0", "mono")] * 5 + [("1.0", "mono"), ("0.3333333333333333", "mono")]):
        picture(root / f"images/cell{j:04}.png")
        lines.append(f"images/cell{j:04}.png  {probability}   {kind}")
    picture(root / "images/cell0007.png")
    lines.append("images/cell0007.png  0.0   poly")
    (root / "labels.csv").write_text("\n".join(lines) + "\n")


def _counts(train: int, good: int, defective: int, **others: int) -> dict[str, int]:
    return {"train good": train, "test good": good, "test defective": defective, **others}


TREES = {
    mvtec_ad: {"bottle": _counts(3, 2, 2), "screw": _counts(3, 2, 2)},
    mvtec_ad_2: {"can": {**_counts(3, 2, 2), "validation good": 1, "private": 1, "private mixed": 1, "all": 10}},
    mvtec_loco: {"pushpins": {**_counts(3, 1, 2), "validation good": 1, "logical_anomalies": 1}},
    btad: {name: _counts(3, 1, 1) for name in ("01", "02", "03")},
    visa: {"candle": _counts(4, 1, 1)},
    mpdd: {"tubes": _counts(3, 2, 2)},
    kolektor_sdd: {"commutators": _counts(4, 1, 5)},
    kolektor_sdd2: {"surfaces": {**_counts(3, 3, 1), "train defective": 1, "all": 8}},
    dagm: {"class1": {**_counts(3, 3, 1), "train defective": 1, "all": 8}},
    real_iad: {"audiojack": _counts(3, 1, 1)},
    elpv: {"mono": {**_counts(4, 1, 1), "uncertain": 1, "all": 7}, "poly": {"all": 1}},
}
"""Builders, whose names are those of the data sets, and what each builds."""


@pytest.fixture
def published(monkeypatch: pytest.MonkeyPatch):
    """State other counts of a data set, for trees of a few pictures."""

    def state(name: str, products: Mapping[str, Mapping[str, int]]) -> None:
        few = DATASETS[name]._replace(products=products, total={})
        monkeypatch.setitem(DATASETS, name, few)

    return state


@pytest.mark.parametrize("build", TREES, ids=lambda build: build.__name__)
def test_every_layout_is_read_and_its_products_load_as_published(build, tmp_path: Path, published) -> None:
    name, products = build.__name__, TREES[build]
    build(tmp_path / "set")
    before = files_below(tmp_path / "set")
    published(name, products)
    report = checking.check(name, tmp_path / "set")
    assert report.complete, report.text()
    assert not any(checked.content.others for checked in report.products)
    for folder in arranging.arrange(name, tmp_path / "set", tmp_path / "out"):
        expected = products[folder.product]
        if "train good" not in expected:
            continue
        data = dataset.load(folder.path, groups=folder.groups or None)
        assert len(data.good("train")) == expected["train good"]
        assert len(data.good("test")) == expected["test good"]
        assert len(data.defective("test")) == expected["test defective"]
        assert len(data.defective("train")) == expected.get("train defective", 0)
        if name != "elpv":
            assert all(sample.mask for sample in data.defective())
        assert all(dataset.mask(sample.mask).sum() == 16 for sample in data.defective() if sample.mask)
        assert not data.stray_masks
    assert files_below(tmp_path / "set") == before


def files_below(root: Path) -> list[str]:
    return sorted(path.relative_to(root).as_posix() for path in root.rglob("*"))


def test_every_data_set_has_a_tree() -> None:
    assert {build.__name__ for build in TREES} == set(DATASETS)


@pytest.mark.parametrize("name", DATASETS)
def test_counts_of_products_add_up_to_the_published_totals(name: str) -> None:
    products, total = DATASETS[name].products, DATASETS[name].total
    summed = {key: sum(counts.get(key, 0) for counts in products.values()) for key in ("train good", "test good")}
    if "train" in total:
        assert summed["train good"] == total["train"]
    if "test" in total:
        assert summed["test good"] + sum(c["test defective"] for c in products.values()) == total["test"]
    if "good" in total:
        assert sum(c["good"] for c in products.values()) == total["good"]
    assert DATASETS[name].source


def test_upper_case_folders_and_other_suffixes_are_the_same(tmp_path: Path, published) -> None:
    mvtec(tmp_path / "Bottle", suffix=".PNG")
    (tmp_path / "Bottle/train").rename(tmp_path / "Bottle/TRAIN")
    (tmp_path / "Bottle/ground_truth/hole/000_mask.png").rename(tmp_path / "Bottle/ground_truth/hole/000_MASK.PNG")
    published("mvtec_ad", {"bottle": _counts(3, 2, 2)})
    assert checking.check("mvtec_ad", tmp_path).complete


def test_missing_and_additional_files_are_named(tmp_path: Path, published) -> None:
    mvtec_ad(tmp_path)
    (tmp_path / "bottle/ground_truth/hole/001_mask.png").unlink()
    (tmp_path / "bottle/train/good/002.png").unlink()
    picture(tmp_path / "bottle/train/bad/000.png")
    picture(tmp_path / "bottle/ground_truth/hole/009_mask.png", marked=True)
    picture(tmp_path / "bottle/train/good/000.bmp")  # twice, in two formats
    (tmp_path / "bottle/readme.txt").write_text("no picture")
    published("mvtec_ad", {"bottle": _counts(3, 2, 2), "screw": _counts(3, 2, 2), "zipper": _counts(3, 2, 2)})
    report = checking.check("mvtec_ad", tmp_path)
    bottle, screw, zipper = report.products
    assert (bottle.complete, screw.complete, zipper.complete, report.complete) == (False, True, False, False)
    assert bottle.wrong == {"train good": (2, 3)}
    assert bottle.content.missing == ["mask ground_truth/hole/001_mask of test/hole/001.png"]
    assert sorted(bottle.content.others) == [
        "ground_truth/hole/009_mask.png",
        "train/bad/000.png",
        "train/good/000.png",
    ]
    text = report.text()
    assert "1 of 3 products are complete" in text
    assert "train good: 2, published: 3" in text
    assert "zipper  not there" in text


def test_totals_are_compared_when_all_products_are_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dagm(tmp_path)
    few = DATASETS["dagm"]._replace(products={"class1": {}}, total={"all": 9})
    monkeypatch.setitem(DATASETS, "dagm", few)
    report = checking.check("dagm", tmp_path)
    assert report.total_wrong == {"all": (8, 9)}
    assert not report.complete
    assert "all products: all: 8, published: 9" in report.text()


def test_a_mask_that_cannot_be_read_is_said(tmp_path: Path, published) -> None:
    kolektor_sdd(tmp_path)
    (tmp_path / "kos02/Part1_label.bmp").write_bytes(b"BM not really")
    (tmp_path / "kos03/Part0_label.bmp").unlink()
    published("kolektor_sdd", {"commutators": {"all": 10, "good": 5, "defective": 5}})
    (checked,) = checking.check("kolektor_sdd", tmp_path).products
    assert checked.wrong == {"good": (6, 5), "defective": (4, 5)}
    assert checked.content.missing == ["mask kos03/part0_label of kos03/Part0.jpg"]
    assert "kos02/Part1_label.bmp" in checked.content.problems[0]


CSV_HEAD = "object,split,label,image,mask\n"
CSV_ROW = "candle,train,normal,candle/Data/Images/Normal/0000.JPG,\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "no such file; expected the list of pictures"),
        ("", "begins with nothing; expected the columns object, split, label, image, mask"),
        ("image,label\n", "begins with image, label"),
        (CSV_HEAD + "candle,validation,normal,candle/a.JPG,\n", "line 2 has candle, validation"),
        (CSV_HEAD + CSV_ROW + "candle,train\n", "line 3 has candle, train, None"),
        (CSV_HEAD + CSV_ROW[:-1] + ",more\n", "line 2 has candle, train"),
        (CSV_HEAD + "candle,train,normal,candle/../../secret.png,\n", "leaves the folder of the data set"),
        (CSV_HEAD + "candle,train,normal,pcb1/Data/Images/Normal/0000.JPG,\n", "expected a path below its folder"),
        (b"\xff\xfe\x00", "not UTF-8 text"),
    ],
)
def test_a_split_that_is_not_visas_is_refused(tmp_path: Path, published, text, message: str) -> None:
    visa(tmp_path)
    path = tmp_path / "split_csv/1cls.csv"
    path.unlink() if text is None else path.write_bytes(text if isinstance(text, bytes) else text.encode())
    published("visa", {"candle": _counts(4, 1, 1)})
    (checked,) = checking.check("visa", tmp_path).products
    assert message in checked.error
    with pytest.raises(DatasetError, match="1 of 1 products of VisA are not as published"):
        arranging.arrange("visa", tmp_path, tmp_path / "out")


def test_a_folder_that_cannot_be_read_and_a_list_that_is_too_long_are_errors(
    tmp_path: Path, published, monkeypatch: pytest.MonkeyPatch
) -> None:
    visa(tmp_path)
    published("visa", {"candle": _counts(4, 1, 1)})
    with monkeypatch.context() as patch:
        patch.setattr(lists, "MOST_TEXT", 10)
        assert "expected a list of pictures of at most" in checking.check("visa", tmp_path).products[0].error

    def denied(folder: Path) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(layouts.folders, "scan", denied)
    error = checking.check("visa", tmp_path).products[0].error
    assert error == f"{tmp_path / 'candle'}: cannot be read: permission denied. Allow reading."


def test_files_of_a_list_that_are_not_there_and_those_beside_it(tmp_path: Path, published) -> None:
    visa(tmp_path)
    (tmp_path / "candle/Data/Images/Normal/0001.JPG").unlink()
    (tmp_path / "candle/Data/Masks/Anomaly/000.png").unlink()
    picture(tmp_path / "candle/Data/Images/Normal/9999.JPG")
    published("visa", {"candle": _counts(4, 1, 1)})
    (checked,) = checking.check("visa", tmp_path).products
    assert checked.content.missing == ["Data/Images/Normal/0001.JPG", "Data/Masks/Anomaly/000.png"]
    assert checked.content.others == ["Data/Images/Normal/9999.JPG"]
    assert checked.wrong == {"train good": (3, 4)}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "Invalid JSON"),
        ('{"train": []}', "test: Field required"),
        ('{"train": [{"image_path": "a.jpg"}], "test": []}', "train.0.anomaly_class: Field required"),
        ('{"train": [{"anomaly_class": "OK", "image_path": "/etc/a.jpg"}], "test": []}', "leaves the folder"),
    ],
)
def test_a_split_that_is_not_real_iads_is_refused(tmp_path: Path, published, text: str, message: str) -> None:
    real_iad(tmp_path)
    (tmp_path / "realiad_jsons/realiad_jsons/audiojack.json").write_text(text)
    published("real_iad", {"audiojack": {}})
    assert message in checking.check("real_iad", tmp_path).products[0].error


def test_the_highest_resolution_of_real_iad_is_used(tmp_path: Path, published) -> None:
    real_iad(tmp_path)
    published("real_iad", {"audiojack": {}})
    assert checking.check("real_iad", tmp_path).products[0].place == tmp_path / "realiad_1024/audiojack"


@pytest.mark.parametrize("line", ["images/cell0000.png 0.0", "images/cell0000.png 2.0 mono", "images/a.png 0.0 other"])
def test_labels_that_are_not_elpvs_are_refused(tmp_path: Path, published, line: str) -> None:
    elpv(tmp_path)
    (tmp_path / "labels.csv").write_text(f"\n{line}\n")
    published("elpv", {"mono": {}})
    assert f"line 2 has '{line}'" in checking.check("elpv", tmp_path).products[0].error


def test_other_folders_are_refused_with_the_right_one_named(tmp_path: Path) -> None:
    mvtec_ad(tmp_path / "mvtec")
    with pytest.raises(DatasetError, match=f"no product of MVTec AD; expected .* Use {tmp_path / 'mvtec'}"):
        checking.check("mvtec_ad", tmp_path)
    with pytest.raises(DatasetError, match="no such folder"):
        checking.check("mvtec_ad", tmp_path / "nowhere")
    with pytest.raises(DatasetError, match="unknown data set 'mvtec-ad'"):
        checking.check("mvtec-ad", tmp_path)
    (tmp_path / "file").write_text("")
    with pytest.raises(DatasetError, match="file: a file; expected the folder of KolektorSDD"):
        checking.check("kolektor_sdd", tmp_path / "file")


def test_arranged_files_are_links_that_a_second_run_replaces(tmp_path: Path, published) -> None:
    kolektor_sdd(tmp_path / "set")
    published("kolektor_sdd", TREES[kolektor_sdd])
    for _ in range(2):
        (folder,) = arranging.arrange("kolektor_sdd", tmp_path / "set", tmp_path / "out")
    assert (folder.path / "train/good/kos01_Part0.jpg").samefile(tmp_path / "set/kos01/Part0.jpg")
    assert {path.name for path in (folder.path / "test/good").iterdir()} == {"kos05_Part0.jpg"}
    assert [entry.name for entry in (tmp_path / "out").iterdir()] == ["commutators"]
    shutil.rmtree(folder.path / "train")
    with pytest.raises(AndonError, match="andon did not make this folder"):
        arranging.arrange("kolektor_sdd", tmp_path / "set", tmp_path / "out")
    assert (folder.path / "test").is_dir()


def test_a_place_that_cannot_be_written_is_an_error(tmp_path: Path, published) -> None:
    dagm(tmp_path / "set")
    published("dagm", TREES[dagm])
    (tmp_path / "out").write_text("a file")
    with pytest.raises(AndonError, match="cannot be"):
        arranging.arrange("dagm", tmp_path / "set", tmp_path / "out")


PLAN = """
sizes = [64]

[[detectors]]
name = "variation"

[[products]]
name = "placeholder"
folder = "nowhere"
"""


def test_products_of_data_sets_take_the_place_of_those_of_a_plan(tmp_path: Path, published) -> None:
    mvtec_ad(tmp_path / "mvtec")
    dagm(tmp_path / "dagm")
    published("mvtec_ad", {**TREES[mvtec_ad], "zipper": {}})
    published("dagm", TREES[dagm])
    (tmp_path / "plan.toml").write_text(PLAN)
    sets = [("mvtec_ad", str(tmp_path / "mvtec")), ("dagm", str(tmp_path / "dagm"))]
    told: list[str] = []
    plan = protocols.published(plans.load(tmp_path / "plan.toml", sets), tmp_path / "out", tell=told.append)
    assert [product.name for product in plan.products] == ["mvtec_ad-bottle", "mvtec_ad-screw", "dagm-class1"]
    assert [product.published for product in plan.products] == ["mvtec_ad/bottle", "mvtec_ad/screw", "dagm/class1"]
    assert told == [f"MVTec AD: 1 of 3 products are not in {tmp_path / 'mvtec'}: zipper"]
    assert [cell.product for cell in plans.cells(plan)] == [product.name for product in plan.products]
    with pytest.raises(DatasetError, match="unknown data set 'viza'"):
        plans.load(tmp_path / "plan.toml", [("viza", str(tmp_path))])
    (tmp_path / "mvtec/screw/train/good/000.png").unlink()
    with pytest.raises(DatasetError, match=r"1 of 2 products of MVTec AD are not as published\. screw: train good: 2"):
        protocols.published(plans.load(tmp_path / "plan.toml", sets), tmp_path / "out")


def test_commands(tmp_path: Path, published) -> None:
    run = typer.testing.CliRunner().invoke
    listed = run(app, ["datasets"])
    assert listed.exit_code == 0
    assert all(name in listed.output for name in DATASETS)
    assert set(json.loads(run(app, ["datasets", "list", "--json"]).output)) == set(DATASETS)
    mvtec_ad(tmp_path / "set")
    published("mvtec_ad", TREES[mvtec_ad])
    done = run(app, ["datasets", "check", "mvtec_ad", str(tmp_path / "set"), "--quiet"])
    assert (done.exit_code, "2 of 2 products are complete" in done.output) == (0, True)
    (tmp_path / "set/screw/test/good/000.png").unlink()
    again = run(app, ["datasets", "check", "mvtec_ad", str(tmp_path / "set"), "--json"])
    record = json.loads(again.stdout)
    assert (again.exit_code, record["complete"]) == (1, False)
    assert record["products"]["screw"]["counts"]["test good"] == 1
    kolektor_sdd2(tmp_path / "ksdd2")
    published("kolektor_sdd2", TREES[kolektor_sdd2])
    out = tmp_path / "out"
    made = run(app, ["datasets", "arrange", "kolektor_sdd2", str(tmp_path / "ksdd2"), "--out", str(out), "--quiet"])
    assert made.output.splitlines() == [str(out / "surfaces")]
    wrong = run(app, ["bench", str(tmp_path / "plan.toml"), "--dataset", "visa"])
    assert isinstance(wrong.exception, AndonError)
    assert "expected a name and a folder" in str(wrong.exception)


def test_real_products_are_complete(shared_data: Path) -> None:
    report = checking.check("mvtec_ad", shared_data / "mvtec_ad")
    assert {checked.product for checked in report.products if checked.complete} == {"bottle", "screw"}
    assert not any(checked.content.others for checked in report.products)


def test_names_of_data_sets_are_in_the_documentation() -> None:
    page = (Path(__file__).parents[1] / "docs/datasets.md").read_text()
    assert [name for name in table.DATASETS if f"`{name}`" not in page] == []
