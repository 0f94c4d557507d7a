"""The one-class protocol: layouts are read as published, what is damaged is refused, nothing is lost or doubled."""

import gzip
import struct
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andon.data import dataset
from andon.errors import AndonError, DatasetError, RecipeError
from andon.lab.bench import cell, protocols, run, table
from andon.lab.bench import plan as plans
from andon.lab.bench.cell import Job
from andon.lab.bench.plan import Contender, Plan, Product
from andon.pictures import image
from conftest import part, save, scratched

CLASSES = 3


def idx(path: Path, values: np.ndarray, packed: bool = False, magic: bytes | None = None) -> None:
    """Write bytes (n, …) as the IDX files of MNIST are."""
    head = magic or bytes([0, 0, 8, values.ndim])
    data = head + struct.pack(f">{values.ndim}I", *values.shape) + values.astype(np.uint8).tobytes()
    path.with_name(path.name + ".gz" * packed).write_bytes(gzip.compress(data) if packed else data)


def mnist(root: Path, packed: bool = False, side: int = 16) -> Path:
    """An imitation: class k is a bright bar at its own place; (30, side, side) to learn, (12, side, side) to test."""
    root.mkdir(parents=True, exist_ok=True)
    for prefix, count, seed in (("train", 30, 0), ("t10k", 12, 1)):
        rng = np.random.default_rng(seed)
        labels = np.arange(count) % CLASSES
        pixels = rng.integers(0, 60, (count, side, side))
        for j, label in enumerate(labels):
            pixels[j, 4 * label + 1 : 4 * label + 4] += 190
        idx(root / f"{prefix}-images-idx3-ubyte", pixels, packed)
        idx(root / f"{prefix}-labels-idx1-ubyte", labels, packed)
    return root


def cifar(root: Path) -> Path:
    """An imitation with two records a class and file; the red channel of record j holds j."""
    root.mkdir(parents=True)
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        records = np.zeros((20, 3073), np.uint8)
        records[:, 0] = np.arange(20) % 10
        records[:, 1:1025] = np.arange(20)[:, None]
        records[:, 1025:2049] = 7
        (root / f"{name}.bin").write_bytes(records.tobytes())
    return root


def coil(root: Path, objects: int = 3, angles: int = 10) -> Path:
    for number in range(1, objects + 1):
        for angle in range(0, 5 * angles, 5):
            save(root / f"obj{number}__{angle}.png", part(100 * number + angle, 16))
    return root


def btad(root: Path) -> Path:
    """An imitation of BTAD's three products; the masks of the third are BMP files."""
    for product, suffix, mask_suffix in (("01", ".bmp", ".png"), ("02", ".png", ".png"), ("03", ".bmp", ".bmp")):
        for seed in range(3):
            save(root / product / "train/ok" / f"{seed:04}{suffix}", part(seed, 32))
            save(root / product / "test/ok" / f"{seed:04}{suffix}", part(10 + seed, 32))
            pixels, mask = scratched(20 + seed, 32)
            save(root / product / "test/ko" / f"{seed:04}{suffix}", pixels)
            save(root / product / "ground_truth/ko" / f"{seed:04}{mask_suffix}", mask[..., None])
    return root


def planned(folder: Path, name: str = "set") -> Plan:
    return Plan(detectors=[Contender(name="variation")], products=[Product(name=name, folder=str(folder))])


def counts(folder: Path) -> Counter[tuple[str, str]]:
    return Counter((sample.split, sample.defect) for sample in dataset.load(folder).samples)


@pytest.mark.parametrize("packed", [False, True])
def test_each_class_of_idx_files_is_normal_in_turn(tmp_path: Path, packed: bool) -> None:
    plan = protocols.one_class(planned(mnist(tmp_path / "m", packed), "mnist"), tmp_path / "out")
    assert [product.name for product in plan.products] == ["mnist-0", "mnist-1", "mnist-2"]
    assert plan.products[1].folder == str(tmp_path / "out/data/mnist/1")
    for number, product in enumerate(plan.products):
        others = [str(other) for other in range(CLASSES) if other != number]
        assert counts(Path(product.folder)) == {
            ("train", "good"): 10,
            ("test", "good"): 4,
            **{("test", other): 4 for other in others},
        }
    assert len(plans.cells(plan)) == 3


def test_pixels_are_those_of_the_file(tmp_path: Path) -> None:
    mnist(tmp_path / "m")
    protocols.one_class(planned(tmp_path / "m"), tmp_path / "out")
    raw = np.frombuffer((tmp_path / "m/train-images-idx3-ubyte").read_bytes()[16:], np.uint8).reshape(30, 16, 16)
    read = image.read(tmp_path / "out/data/set/1/train/good/00004.png").pixels
    np.testing.assert_array_equal(read[..., 0], raw[4])
    protocols.one_class(planned(cifar(tmp_path / "c"), "cifar"), tmp_path / "out")
    read = image.read(tmp_path / "out/data/cifar/frog/train/good/00036.png").pixels  # the second batch's record 16
    assert (read == [16, 7, 0]).all() and read.shape == (32, 32, 3)


def test_cifar10_takes_its_class_names_from_the_download(tmp_path: Path) -> None:
    root = cifar(tmp_path / "c")
    assert protocols.one_class(planned(root), tmp_path / "a").products[0].name == "set-airplane"
    names = [f"kind{k}" for k in range(10)]
    (root / "batches.meta.txt").write_text("\n".join([*names, ""]))
    found = protocols.one_class(planned(root), tmp_path / "b").products
    assert [product.name for product in found] == [f"set-{name}" for name in names]
    assert counts(Path(found[0].folder))[("train", "good")] == 10
    (root / "batches.meta.txt").write_text("../../etc\n" * 10)
    with pytest.raises(DatasetError, match=r"batches.meta.txt.*ten different names"):
        protocols.one_class(planned(root), tmp_path / "b")


def test_coil100_is_split_by_angle_alike_for_every_object(tmp_path: Path) -> None:
    plan = protocols.one_class(planned(coil(tmp_path / "coil", objects=11)), tmp_path / "out")
    assert [product.name for product in plan.products][:2] == ["set-obj1", "set-obj2"]  # by number, not by letter
    tested = set()
    for product in plan.products:
        data = dataset.load(product.folder)
        learnt = {s.path.stem for s in data.samples if s.split == "train"}
        test = {
            label: {s.path.stem for s in data.samples if s.split == "test" and s.defect == label}
            for label in data.labels
        }
        assert len(learnt) == 8 and all(len(angles) == 2 for angles in test.values())
        tested |= {frozenset(angles) for angles in test.values()}
        assert not learnt & set.union(*test.values())
    assert len(tested) == 1


def test_btad_is_read_as_it_is_published(tmp_path: Path) -> None:
    root = btad(tmp_path / "btad")
    for product in ("01", "02", "03"):
        data = dataset.load(root / product)
        assert data.layout == "mvtec" and not data.stray_masks
        assert len(data.training_images()) == len(data.good("test")) == 3
        assert {sample.defect for sample in data.defective("test")} == {"ko"}
        for sample in data.defective("test"):
            assert sample.mask is not None and sample.mask.stem == sample.path.stem
            np.testing.assert_array_equal(dataset.mask(sample.mask), scratched(20 + int(sample.path.stem), 32)[1] > 0)
    with pytest.raises(DatasetError, match="contains the data sets 01, 02, 03; expected the folder of one data set"):
        dataset.load(root)


def test_folders_with_train_and_test_are_products_as_they_are(tmp_path: Path) -> None:
    root = btad(tmp_path / "btad")
    all_three = protocols.one_class(planned(root, "btad"), tmp_path / "out").products
    assert [(p.name, p.folder) for p in all_three] == [(f"btad-{n}", str(root / n)) for n in ("01", "02", "03")]
    one = planned(root / "01", "first")
    assert protocols.one_class(one, tmp_path / "out") == one
    assert not (tmp_path / "out").exists()


def test_written_pictures_are_kept_until_they_or_their_source_change(tmp_path: Path) -> None:
    root, out, said = mnist(tmp_path / "m"), tmp_path / "out", list[str]()

    def again() -> list[str]:
        said.clear()
        protocols.one_class(planned(root), out, tell=said.append)
        return said

    assert "writing 42 pictures" in again()[0]
    file = out / "data/set/1/test/0/00003.png"
    before = file.stat().st_mtime_ns
    assert again() == [] and file.stat().st_mtime_ns == before

    file.write_bytes(file.read_bytes()[:-1])
    assert "the written pictures have changed" in again()[0]
    image.read(file)
    (out / "data/set/2/train/good/00002.png").unlink()  # of a class only: laid out anew
    assert again() == [] and len(dataset.load(out / "data/set/2").training_images()) == 10
    (out / "data/set/.images/train/0/00000.png").unlink()
    assert "the written pictures have changed" in again()[0]
    mnist(root, side=20)
    assert "its source files have changed" in again()[0]
    assert image.read(file).pixels.shape == (20, 20, 1)
    assert not list(out.rglob("*.part"))


def test_killed_while_writing_it_goes_on_as_if_nothing_had_been(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, out = mnist(tmp_path / "m"), tmp_path / "out"

    def killed(stage: str, done: int, total: int) -> None:
        if stage.startswith("laying"):
            raise KeyboardInterrupt

    monkeypatch.setattr(protocols, "_digest", lambda pool: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        protocols.one_class(planned(root), out)
    assert not list((out / "data").iterdir())
    monkeypatch.undo()
    with pytest.raises(KeyboardInterrupt):
        protocols.one_class(planned(root), out, killed)
    monkeypatch.setattr(protocols.os, "link", lambda source, link: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        protocols.one_class(planned(root), out)
    assert not list(out.rglob("*.part"))
    monkeypatch.undo()
    plan = protocols.one_class(planned(root), out)
    assert all(counts(Path(product.folder)).total() == 22 for product in plan.products)
    assert not list(out.rglob("*.part"))


def test_a_folder_whose_name_is_no_product_name_is_refused(tmp_path: Path) -> None:
    for seed, place in enumerate(("train/good", "test/good", "test/bad")):
        save(tmp_path / "btad/02 neu" / place / "0.png", part(seed, 16))
    with pytest.raises(RecipeError, match=r"02 neu: as a separate product: name = 'set-02 neu'"):
        protocols.one_class(planned(tmp_path / "btad"), tmp_path / "out")


def test_killed_while_the_old_pictures_are_removed_it_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = mnist(tmp_path / "mnist")
    protocols.one_class(planned(root), tmp_path / "out")
    mnist(root, side=20)

    def killed(path: Path, **options: object) -> None:
        if (path / protocols.MARK).exists():
            (path / protocols.MARK).unlink()
            raise KeyboardInterrupt
        rmtree(path, **options)

    rmtree: Any = protocols.shutil.rmtree
    monkeypatch.setattr(protocols.shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        protocols.one_class(planned(root), tmp_path / "out")
    monkeypatch.setattr(protocols.shutil, "rmtree", rmtree)
    made = protocols.one_class(planned(root), tmp_path / "out")
    assert len(made.products) == CLASSES
    assert sorted(path.name for path in (tmp_path / "out/data").iterdir()) == ["set"]


def test_a_disk_without_hard_links_gets_copies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, link: Path) -> None:
        raise PermissionError

    monkeypatch.setattr(protocols.os, "link", refuse)
    plan = protocols.one_class(planned(mnist(tmp_path / "m")), tmp_path / "out")
    assert counts(Path(plan.products[0].folder)).total() == 22


def test_nothing_that_is_not_ours_is_removed(tmp_path: Path) -> None:
    mnist(tmp_path / "out/data/set")  # the download itself lies where the pictures would go
    with pytest.raises(AndonError, match=r"did not write.*another output folder"):
        protocols.one_class(planned(tmp_path / "out/data/set"), tmp_path / "out")
    assert len(list((tmp_path / "out/data/set").iterdir())) == 4


def damage(path: Path, change: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    return lambda root: (root / path).write_bytes(change((root / path).read_bytes())) and None


IMAGES, LABELS = Path("train-images-idx3-ubyte"), Path("t10k-labels-idx1-ubyte")


@pytest.mark.parametrize(
    ("break_it", "message"),
    [
        (damage(IMAGES, lambda d: d[:-5]), r"header states 30 × 16 × 16 bytes, but the file has 7691; expected 7696"),
        (damage(IMAGES, lambda d: d + b"x"), "expected 7696.*Download"),
        (damage(IMAGES, lambda d: d[:10]), "header states"),
        (damage(IMAGES, lambda d: b""), "begins with nothing"),
        (damage(IMAGES, lambda d: b"\0\0\x0d\3" + d[4:]), "begins with 00000d03; expected 00000803"),
        (damage(IMAGES, lambda d: d[:4] + b"\xff" * 12 + d[16:]), "4294967295 × 4294967295"),
        (damage(IMAGES, lambda d: d[:8] + bytes(8) + d[16:]), "30 × 0 × 0.*8 to 1024 pixels"),
        (damage(LABELS, lambda d: d[:4] + (11).to_bytes(4, "big") + d[8:-1]), "11 labels for 12 images"),
        (lambda root: (root / LABELS).unlink(), "no t10k-labels-idx1-ubyte, plain or .gz"),
        (damage(LABELS, lambda d: d[:8] + bytes(12)), "class 1 is only in the training or only in the test images"),
    ],
)
def test_damaged_idx_files_are_refused(tmp_path: Path, break_it: Callable[[Path], None], message: str) -> None:
    root = mnist(tmp_path / "m")
    break_it(root)
    with pytest.raises(DatasetError, match=message):
        protocols.one_class(planned(root), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_compressed_files_unpack_at_most_to_the_size_in_their_header(tmp_path: Path) -> None:
    root = mnist(tmp_path / "m", packed=True)
    path = root / "train-images-idx3-ubyte.gz"
    head, whole = bytes([0, 0, 8, 3]), gzip.decompress(path.read_bytes())
    for data, message in (
        (gzip.compress(whole + bytes(20_000_000)), "but the file contains more"),  # a bomb behind the pictures
        (gzip.compress(head + struct.pack(">3I", 60000, 28, 28) + bytes(100)), "compressed bytes cannot contain"),
        (gzip.compress(head + struct.pack(">3I", 31, 16, 16) + whole[16:]), "contains 7680; expected 7936"),
        (path.read_bytes()[:-40], "cannot be read"),
        (whole, "cannot be read: Not a gzipped file"),
    ):
        path.write_bytes(data)
        with pytest.raises(DatasetError, match=message):
            protocols.one_class(planned(root), tmp_path / "out")


def test_the_pickled_cifar10_is_refused_with_the_name_of_the_binary_one(tmp_path: Path) -> None:
    root = tmp_path / "c"
    root.mkdir()
    for name in [*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]:
        (root / name).write_bytes(b"cos\nsystem\n(S'false'\ntR.")
    with pytest.raises(DatasetError, match=r"a pickle, which andon never loads.*cifar-10-binary.tar.gz"):
        protocols.one_class(planned(root), tmp_path / "out")


def test_damaged_cifar10_is_refused(tmp_path: Path) -> None:
    root = cifar(tmp_path / "c")
    file = root / "data_batch_3.bin"
    whole = file.read_bytes()
    for data, message in (
        (whole[:-1], "61459 bytes; expected records of 3073"),
        (b"", "0 bytes"),
        (b"\x0a" + whole[1:], "class 10"),
    ):
        file.write_bytes(data)
        with pytest.raises(DatasetError, match=message):
            protocols.one_class(planned(root), tmp_path / "out")
    file.unlink()
    with pytest.raises(DatasetError, match=r"data_batch_3.bin: no such file"):
        protocols.one_class(planned(root), tmp_path / "out")


def test_a_broken_or_missing_view_is_refused(tmp_path: Path) -> None:
    root = coil(tmp_path / "coil")
    file = root / "obj2__15.png"
    file.write_bytes(file.read_bytes()[:-30])
    with pytest.raises(AndonError, match=r"obj2__15\.png"):
        protocols.one_class(planned(root), tmp_path / "out")
    file.unlink()
    with pytest.raises(DatasetError, match="obj2 has no picture at angle 15"):
        protocols.one_class(planned(root), tmp_path / "out")


def test_a_folder_of_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "nowhere", tmp_path / "a\0b"):
        with pytest.raises(DatasetError, match=r"data_batch_1.bin"):
            protocols.one_class(planned(folder), tmp_path / "out")


PLAN = """
sizes = [64]

[[detectors]]
name = "variation"

[[products]]
name = "mnist"
folder = "m"
"""


def in_this_process(job: Job) -> table.Json:
    result = cell.run(job)
    cell.save(job, result)
    return result


def test_a_plan_runs_by_the_protocol_and_is_refused_without_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run, "_run_cell", in_this_process)
    mnist(tmp_path / "m")
    path = tmp_path / "plan.toml"
    path.write_text(PLAN.replace("variation", "variance"))
    with pytest.raises(RecipeError, match="Did you mean 'variation'"):
        run.run(path, tmp_path / "out", protocol="one-class")
    path.write_text(PLAN)
    with pytest.raises(RecipeError, match=r"IDX files.*--protocol one-class"):
        run.run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with monkeypatch.context() as killed, pytest.raises(KeyboardInterrupt):
        killed.setattr(protocols, "_digest", lambda pool: (_ for _ in ()).throw(KeyboardInterrupt))
        run.run(path, tmp_path / "out", protocol="one-class")
    found = run.run(path, tmp_path / "out", protocol="one-class")
    assert (found.done, found.failed) == (3, 0)
    rows = table.rows(tmp_path / "out")
    assert [row["product"] for row in rows] == ["mnist-0", "mnist-1", "mnist-2"]
    assert all(row["image_auroc"] > 0.9 and row["pixel_auroc"] is None for row in rows)
    assert [(row["test_good"], row["test_defective"]) for row in rows] == [(4, 8)] * 3
    said: list[str] = []
    assert run.run(path, tmp_path / "out", tell=said.append, protocol="one-class").kept == 3
    assert said == ["3 of 3 cells are already finished"]
