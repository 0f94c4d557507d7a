"""A benchmark: what cannot be run is refused, what is finished stays finished, and the report says what was found."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pyarrow.parquet
import pytest
import typer.testing

from andon.bundle import Bundle
from andon.cli import measuring
from andon.errors import AndonError, DatasetError, RecipeError
from andon.evaluate import plots
from andon.lab.bench import equalised, plan, ranks, report, run, table
from andon.lab.bench.cell import Job
from andon.pictures import image
from andon.recipe import Augment
from andon.training import train as training
from conftest import part, save, scratched

PLAN = """
sizes = [64]
seeds = [0]
published = "published.toml"

[[detectors]]
name = "variation"

[[detectors]]
name = "nearest-image"
label = "nearest"
settings = { side = 32 }

[[products]]
name = "ring"
folder = "data/ring"
published = "mvtec_ad/bottle"

[[products]]
name = "torn"
folder = "data/torn"
"""
PUBLISHED = """
[[tables]]
source = "[9]"
where = "table 1"
dataset = "mvtec_ad"
figure = "image_auroc"
products = ["bottle", "mean"]
rows = [
  { method = "elsewhere", values = [77.5, 70.25] },
  { method = "the same", detector = "nearest-image", settings = { side = 32 }, values = [81.02, 68.12] },
  { method = "other setting", detector = "nearest-image", settings = { side = 16 }, values = [11, 12] },
]
"""


def product(root: Path, good: int = 10) -> None:
    for seed in range(good):
        save(root / "train/good" / f"{seed:03}.png", part(seed, 64))
    for seed in range(100, 103):
        save(root / "test/good" / f"{seed:03}.png", part(seed, 64))
        pixels, mask = scratched(seed + 100, 64)
        save(root / "test/scratch" / f"{seed:03}.png", pixels)
        save(root / "ground_truth/scratch" / f"{seed:03}_mask.png", mask[..., None])


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a plan of two products; the images of the second do not agree, so its cells fail."""
    folder = tmp_path_factory.mktemp("bench")
    product(folder / "data/ring")
    product(folder / "data/torn")
    save(folder / "data/torn/train/good/gray.png", part(50, 64, channels=1))
    (folder / "plan.toml").write_text(PLAN)
    (folder / "published.toml").write_text(PUBLISHED)
    return folder


@pytest.fixture(scope="module")
def finished(bench: Path) -> Path:
    run.run(bench / "plan.toml", bench / "out")
    return bench / "out"


def fixed(out: Path) -> list[table.Json]:
    """The table without what two runs cannot have in common."""
    return [{key: value for key, value in row.items() if key not in table.MEASURED} for row in table.rows(out)]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('name = "variation"', 'name = "variance"', "Did you mean 'variation'"),
        ('name = "variation"', 'name = "variation"\npreset = "cpi"', "Did you mean 'cpu'"),
        ("side = 32", "sides = 32", "Did you mean 'side'"),
        ("side = 32", "side = 0", "detector 'nearest'.*side"),
        ("seeds =", "seed =", "Did you mean 'seeds'"),
        ("label =", "labels =", "detectors 'nearest-image'.*Did you mean 'label'"),
        ('folder = "data/ring"', 'folders = "data/ring"', "products 'ring'.*Did you mean 'folder'"),
        ('label = "nearest"', 'label = "a/b"', "label"),
        ('folder = "data/ring"', 'folder = "data/wing"', "product 'ring'.*data/wing: no such file or folder"),
        ('folder = "data/ring"', r'folder = "data/\u0000ring"', "product 'ring'.*: no such file or folder"),
        ('folder = "data/ring"', f'folder = "data/ring"\ngroups = "({"x" * 300})"', "product 'ring'.*no match"),
        (
            'folder = "data/ring"',
            'folder = "data/ring"\ngeometry = { registration = { reference = "nix.png" } }',
            "product 'ring'.*no file .*bench.*/nix.png",
        ),
        (
            'name = "variation"',
            'name = "filtering-autoencoder"\nsettings = { occlusion_images = "nix" }',
            "detector 'filtering-autoencoder'.*no folder .*bench.*/nix",
        ),
        ('folder = "data/ring"', 'folder = "data/ring/train"', "no test|under test"),
        ('folder = "data/ring"', 'folder = "data/ring"\ngeometry = { crop = [0, 0] }', "crop"),
        ('folder = "data/ring"', 'folder = "data/ring"\ngeometry = { tiles = true }', "cannot work on tiles"),
        ('folder = "data/ring"', 'folder = "data/ring"\ngeometry = { size = 64 }', "sizes = "),
        ('label = "nearest"', 'label = "Variation"', "detector variation is listed twice"),
        ('name = "torn"', 'name = "Ring"', "product ring is listed twice"),
        ('folder = "data/torn"', 'folder = "data/ring"', "same cell twice"),
        ("seeds = [0]", "seeds = [0, 0]", "seed 0 is listed twice"),
        ("sizes = [64]", "sizes = [65]", "size.*multiple of 32"),
        ("sizes = [64]", "sizes = []", "sizes"),
        ("sizes = [64]", 'sizes = ["64"]', r"sizes\.0 = '64'.*integer"),
        ("seeds = [0]", "seeds = [true]", r"seeds\.0 = True.*integer"),
        ("seeds = [0]", "seeds = [1.0]", r"seeds\.0 = 1\.0.*integer"),
        ("sizes = [64]", "sizes = [64", "not TOML"),
        ('"published.toml"', '"publish.toml"', "no file .*publish.toml"),
    ],
)
def test_an_impossible_plan_is_refused_before_anything_runs(
    bench: Path, tmp_path: Path, old: str, new: str, message: str
) -> None:
    assert old in PLAN
    path = bench / "wrong.toml"
    path.write_text(PLAN.replace(old, new, 1))
    with pytest.raises(AndonError, match=message):
        run.run(path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("key", ["detectors", "products"])
def test_a_number_where_a_list_belongs_is_refused(tmp_path: Path, key: str) -> None:
    path = tmp_path / "plan.toml"
    path.write_text(f"{key} = 5")
    with pytest.raises(RecipeError, match=f"{key} = 5.*list"):
        plan.load(path)


def test_a_plan_saved_by_notepad_is_read(bench: Path) -> None:
    path = bench / "notepad.toml"
    path.write_text(PLAN, encoding="utf-8-sig")
    assert plan.load(path) == plan.load(bench / "plan.toml")


def test_cells_are_every_combination_with_every_setting_spelled_out(bench: Path) -> None:
    cells = plan.cells(plan.load(bench / "plan.toml"))
    assert [(c.product, c.detector, c.size, c.seed) for c in cells] == [
        (p, d, 64, 0) for p in ("ring", "torn") for d in ("variation", "nearest")
    ]
    assert cells[1].recipe.detector.settings == {"side": 32, "memory_mb": 256}
    assert cells[1].recipe.geometry.size == 64


def test_each_cell_is_a_row_and_a_failure_is_one_too(finished: Path) -> None:
    rows = table.rows(finished)
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed"]
    for row in rows:
        assert row["made"] and row["machine"] and json.loads(row["versions"])["andon"]
        assert tomllib.loads(row["recipe"])["seed"] == row["seed"]
        if row["product"] == "ring":
            assert row["image_auroc"] == 1.0
            assert row["test_good"] == row["test_defective"] == 3
            assert 0 < row["latency_p50_ms"] <= row["latency_p95_ms"]
            assert row["bundle_bytes"] > 1000
            assert row["peak_mb"] is None or 50 < row["peak_mb"] < 2000
            assert json.loads(row["defects"])["scratch"]["n"] == 3
        else:
            assert "gray.png" in row["error"]
            assert row["image_auroc"] is None
    read = pyarrow.parquet.read_table(finished / "results.parquet")
    assert read.to_pylist() == rows
    assert not (finished / ".work").exists()


def test_training_sees_nothing_of_the_test_side(finished: Path, bench: Path, tmp_path: Path) -> None:
    shutil.copytree(bench / "data/ring/train", tmp_path / "ring/train")
    bundle = training.train(tmp_path / "ring", tmp_path / "b.andon", detector="variation", size=64)
    row = table.rows(finished)[0]
    assert row["training_digest"] == bundle.manifest.data["digest"]
    assert json.loads(row["training"])["images"] == 10


def test_finished_cells_are_kept_and_failed_ones_are_run_again(finished: Path, bench: Path) -> None:
    said: list[str] = []
    before = table.rows(finished)
    found = run.run(bench / "plan.toml", finished, tell=said.append)
    assert (found.done, found.failed, found.kept) == (2, 2, 2)
    assert sum("it failed; it is run again" in sentence for sentence in said) == 2
    assert [row for row in table.rows(finished) if row["status"] == "done"] == [
        row for row in before if row["status"] == "done"
    ]


@pytest.fixture
def stand_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[Job]:
    """In place of trainings: cells are done at once, and listed."""
    ran = []

    def done(job: Job) -> table.Json:
        ran.append(job)
        result = {**job.head(), "status": "done", "total_seconds": 60.0, "peak_mb": 1.0}
        result["metrics"] = {"image": {"auroc": len(list((tmp_path / "ring/train/good").iterdir()))}}
        job.result.write_text(json.dumps(result))
        return result

    monkeypatch.setattr(run, "_run_cell", done)
    return ran


ONE = """
sizes = [64]
detectors = [{ name = "variation" }]
products = [{ name = "ring", folder = "ring" }]
"""


@pytest.fixture
def one(tmp_path: Path) -> Path:
    """A plan of one detector and one product, beside it."""
    product(tmp_path / "ring", good=2)
    (tmp_path / "plan.toml").write_text(ONE)
    return tmp_path / "plan.toml"


@pytest.mark.parametrize(
    ("out", "message"),
    [
        (".", "this folder contains other files.*--out"),
        ("mine", "this folder contains other files.*--out"),
        ("ring", "in the folder of product 'ring'.*--out"),
        ("ring/results", "in the folder of product 'ring'.*--out"),
        ("plan.toml", "a file of this name exists"),
    ],
)
def test_a_folder_with_other_files_is_refused_for_results(
    one: Path, stand_in: list[Job], out: str, message: str
) -> None:
    for name in ("work/notes.txt", "mine/plan.json", "products/.notes.part"):
        (one.parent / name).parent.mkdir(exist_ok=True)
        (one.parent / name).write_text("{}")
    before = sorted(one.parent.rglob("*"))
    with pytest.raises(AndonError, match=message):
        run.run(one, one.parent / out)
    assert sorted(one.parent.rglob("*")) == before and not stand_in


def test_results_of_an_earlier_bench_stay_where_they_are_and_so_does_what_lies_beside_them(
    one: Path, stand_in: list[Job]
) -> None:
    out = one.parent / "ring/out"
    run.run(one, one.parent / "out")
    (one.parent / "out").rename(out)
    for name in ("work/notes.txt", "products/.notes.part"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).touch()
    (out / "products/.ring.json.0123abcd.part").touch()
    assert run.run(one, out).kept == 1 and len(stand_in) == 1
    assert (out / "work/notes.txt").exists() and [path.name for path in out.rglob("*.part")] == [".notes.part"]


@pytest.mark.parametrize(
    ("place", "kind"),
    [
        ("results.parquet", "folder"),
        ("cells/ring/variation/64-0.json", "folder"),
        ("bundles/ring/variation/64-0.andon", "folder"),
        ("cells", "file"),
        ("cells/ring", "file"),
        (".work", "file"),
    ],
)
def test_a_place_that_is_taken_is_noticed_before_anything_runs(
    one: Path, stand_in: list[Job], place: str, kind: str
) -> None:
    one.write_text("keep_bundles = true\n" + ONE)
    taken = one.parent / "out" / place
    taken.parent.mkdir(parents=True)
    taken.mkdir() if kind == "folder" else taken.touch()
    (one.parent / "out/.lock").touch()
    with pytest.raises(AndonError, match=f"it is a {kind}|a {kind} of this name exists"):
        run.run(one, one.parent / "out")
    assert not stand_in


def test_a_changed_picture_outside_the_product_is_noticed_and_a_moved_one_is_the_same(
    one: Path, stand_in: list[Job], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    text = ONE.replace('"ring" }', '"ring", geometry = { registration = { reference = "near.png" } } }').replace(
        "]\nproducts", ', { name = "filtering-autoencoder", settings = { occlusion_images = "far" } }]\nproducts'
    )
    one.write_text(text)
    save(tmp_path / "near.png", part(1, 64))
    save(tmp_path / "far/a.png", part(2, 64))
    run.run(one, out)
    assert [job.detector for job in stand_in] == ["variation", "filtering-autoencoder"]
    save(tmp_path / "far/a.png", part(3, 64))
    run.run(one, out)
    assert [job.detector for job in stand_in[2:]] == ["filtering-autoencoder"]
    save(tmp_path / "near.png", part(4, 64))
    run.run(one, out)
    assert len(stand_in) == 5
    for name in ("near.png", "far"):
        (tmp_path / "elsewhere").mkdir(exist_ok=True)
        (tmp_path / name).rename(tmp_path / "elsewhere" / name)
    one.write_text(text.replace("near.png", "elsewhere/near.png").replace('"far"', '"elsewhere/far"'))
    assert run.run(one, out).kept == 2


def test_a_picture_that_cannot_be_read_counts_by_its_name(one: Path) -> None:
    ring, found = plan.load(one).products[0], set[str]()
    for make in (lambda path: None, os.mkfifo, lambda path: path.symlink_to("nowhere"), lambda path: path.touch()):
        path = one.parent / "ring/test/good/200.png"
        path.unlink(missing_ok=True)
        make(path)
        found.add(run.contents(ring, one.parent))
        assert run.contents(ring, one.parent) in found
    assert len(found) == 4


def test_names_that_are_not_utf8(one: Path) -> None:
    odd = one.parent / os.fsdecode(b"caf\xe9")
    save(one.parent / "gray.png", part(50, 64, channels=1)).rename(one.parent / "ring/train/good" / f"{odd.name}.png")
    assert run.run(one, odd).failed == 1
    assert "/caf?.png" in table.rows(odd)[0]["error"]
    report.write(odd)


def test_a_mask_that_changes_in_a_folder_of_masks_is_noticed(tmp_path: Path) -> None:
    """MVTec LOCO has a folder of masks for each image."""
    product(root := tmp_path / "ring")
    (root / "ground_truth/scratch/100_mask.png").unlink()
    mask = save(root / "ground_truth/scratch/100/000.png", np.full((64, 64, 1), 255, np.uint8))
    ring = plan.Product(name="ring", folder=str(root))
    before = run.contents(ring, tmp_path)
    save(mask, np.eye(64, dtype=np.uint8)[..., None] * 255)
    assert run.contents(ring, tmp_path) != before


def test_a_changed_product_or_recipe_is_run_again_with_a_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stand_in: list[Job]
) -> None:
    product(tmp_path / "ring")
    product(tmp_path / "hoop")
    path, out, said = tmp_path / "plan.toml", tmp_path / "out", list[str]()
    path.write_text(PLAN.replace("data/", "").replace("torn", "hoop").replace("published", "# "))
    assert run.run(path, out, tell=said.append).kept == 0
    assert "image AUROC 10.0000, 60 s, 1 MB; about 3 min left" in said[0]
    (tmp_path / "ring/train/good/003.png").unlink()
    said.clear()
    assert run.run(path, out, tell=said.append).kept == 2
    assert said[0].startswith("ring: since the last run 1 files were removed, 0 added and 0 changed")
    assert sum("its images have changed" in sentence for sentence in said) == 2
    assert [row["image_auroc"] for row in table.rows(out)] == [9, 9, 10, 10]

    said.clear()
    path.write_text(path.read_text().replace("side = 32", "side = 16"))
    assert run.run(path, out, tell=said.append).kept == 2
    assert sum("its recipe has changed" in sentence for sentence in said) == 2

    said.clear()
    file = tmp_path / "hoop/test/good/100.png"
    file.write_bytes(file.read_bytes() + b"x")
    os.utime(tmp_path / "hoop/test/good/101.png", (1, 1))  # touched, but the same
    assert run.run(path, out, tell=said.append).kept == 2
    assert said[0].startswith("hoop: since the last run 0 files were removed, 0 added and 1 changed")

    monkeypatch.undo()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "hoop").rename(tmp_path / "elsewhere/hoop")
    (tmp_path / "ring").rename(tmp_path / "elsewhere/ring")
    path.write_text(path.read_text().replace('folder = "', 'folder = "elsewhere/'))
    assert run.run(path, out).kept == 4  # moved, but the same


def test_killed_and_resumed_the_table_is_the_same(finished: Path, bench: Path) -> None:
    out, path = bench / "killed", bench / "keep.toml"
    path.write_text("keep_bundles = true\n" + PLAN)
    code = f"from andon.lab.bench import run; run.run({str(path)!r}, {str(out)!r})"
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        until = time.monotonic() + 60
        while not (out / "cells/ring/nearest/64-0.json").exists() and time.monotonic() < until:
            time.sleep(0.02)
        time.sleep(0.3)
        process.send_signal(signal.SIGKILL)
    assert [row["status"] for row in table.rows(out)].count("missing") >= 2
    run.run(path, out)
    assert fixed(out) == fixed(finished)
    kept = Bundle.load(out / "bundles/ring/variation/64-0.andon")
    assert kept.digest() == table.rows(out)[0]["bundle_digest"]


def test_a_second_run_in_the_same_folder_is_refused(bench: Path, tmp_path: Path) -> None:
    with run._alone(tmp_path), pytest.raises(AndonError, match="another andon bench"):
        run.run(bench / "plan.toml", tmp_path)
    assert not (tmp_path / "plan.json").exists()


def test_a_process_that_dies_is_a_failure(bench: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    found = run.run(bench / "plan.toml", tmp_path / "out")
    assert (found.done, found.failed) == (0, 4)
    assert "ended with status 1" in table.rows(tmp_path / "out")[0]["error"]


def test_report_shows_spread_published_figures_and_failures(finished: Path) -> None:
    report.write(finished)
    lines = (finished / "results.md").read_text().splitlines()
    assert "| ring | 100.00 (1) | 100.00 (1) |" in lines
    assert "| the same | [9] table 1 | nearest | 81.02 | 100.00 (1) | 68.12 |" in lines
    assert "| elsewhere | [9] table 1 | – | 77.50 | – | 70.25 |" in lines
    assert "| other setting | [9] table 1 | – | 11.00 | – | 12.00 |" in lines
    assert "2 of 4 cells finished: 2 detectors on 2 products at 64² pixels." in lines
    assert any(line.startswith("64²: No critical-difference diagram: 2 detectors on 1 products") for line in lines)
    assert sum("torn · " in line and "gray.png" in line for line in lines) == 2
    at_threshold = "## Segmentation F1 at the pixel threshold"  # which is from good images; the others are tuned
    assert at_threshold in lines
    assert all("oracle" in line for line in lines if "F1" in line and line != at_threshold)
    ElementTree.parse(finished / "accuracy-latency.svg")
    page = (finished / "results.html").read_text()
    assert "the same" in page and "<svg" in page and "gray.png" in page
    assert "<script" not in page


def test_a_control_near_its_figure_is_marked_and_older_results_load(finished: Path) -> None:
    control = {"auroc": 0.95, "auroc_interval": [0.9, 0.99], "plain": 1.0, "near": True}
    hits = {"count": 3, "n": 10, "rate": 0.3, "interval": [0.07, 0.65]}
    marked, older = sorted((finished / "cells/ring").rglob("*.json"))
    for path, keys in ((marked, {"control": control, "hits": hits}), (older, {})):
        found = json.loads(path.read_text())
        kept = {key: value for key, value in found["metrics"].items() if key not in ("control", "hits")}
        path.write_text(json.dumps({**found, "metrics": {**kept, **keys}}))
    by_near = {row["control_near"]: row for row in table.rows(finished) if row["product"] == "ring"}
    assert by_near.keys() == {True, None}
    assert [by_near[True][key] for key in ("hit_rate", "hit_rate_high", "control_auroc")] == [0.3, 0.65, 0.95]
    assert by_near[None]["hit_rate"] is None
    table.parquet(finished)
    report.write(finished)
    lines = (finished / "results.md").read_text().splitlines()
    rows = [line for line in lines if line.startswith("| ring |")]
    assert rows[0].count("†") == 1 and "100.00 (1) †" in rows[0]
    assert all(row.count("†") == 1 for row in rows)
    assert any("95.00 (1) †" in row for row in rows) and any("30.00 (1) †" in row for row in rows)
    assert sum(line.startswith(f"| {by_near[True]['detector']} † |") for line in lines) == 1
    assert "†" in (finished / "results.html").read_text()


def test_commands(finished: Path, bench: Path) -> None:
    command = typer.testing.CliRunner()
    done = command.invoke(measuring.bench, [str(bench / "plan.toml"), "--out", str(finished), "--quiet"])
    assert done.exit_code == 1  # two cells fail
    shown = command.invoke(measuring.bench, ["report", str(finished)])
    assert shown.exit_code == 0 and "results.html" in shown.stdout
    assert "report" in command.invoke(measuring.bench, ["--help"]).stdout
    missing = command.invoke(measuring.bench, ["--quiet", str(bench / "nix.toml")])
    assert isinstance(missing.exception, RecipeError)


def test_report_before_anything_ran_and_of_a_foreign_folder(bench: Path, tmp_path: Path) -> None:
    plans = plan.load(bench / "plan.toml")
    run._describe(plans, plan.cells(plans), tmp_path)
    report.write(tmp_path)
    assert "0 of 4 cells finished" in (tmp_path / "results.md").read_text()
    with pytest.raises(AndonError, match="not the results of a benchmark"):
        report.write(bench)
    (tmp_path / "published.toml").write_text(PUBLISHED.replace("77.5, ", ""))
    with pytest.raises(RecipeError, match="'elsewhere' has 1 figures for 2 products"):
        report.write(tmp_path)


def test_published_figures_are_whole() -> None:
    tables = tomllib.loads((Path(__file__).parents[1] / "benchmarks/published.toml").read_text())["tables"]
    assert {t["source"] for t in tables} >= {"[0]", "[2]", "[3]"}
    for each in tables:
        for row in each["rows"]:
            assert len(row["values"]) == len(each["products"])
            assert all(10 < value <= 100 for value in row["values"])


def test_mean_and_spread_over_seeds() -> None:
    assert report.text([0.5, 0.7]) == "60.00 ± 14.14 (2)"
    assert report.text([0.5]) == "50.00 (1)"
    assert report.text([]) == "–"


def test_a_mean_over_products_takes_only_seeds_that_every_product_has() -> None:
    rows = [
        {"product": p, "detector": d, "size": 64, "seed": s, "status": "done", "auroc": value}
        for p, d, s, value in [
            *[("a", "x", 0, 0.4), ("b", "x", 0, 0.8), ("a", "x", 1, 1.0), ("b", "x", 1, None)],
            *[("a", "y", 0, 0.5), ("c", "x", 0, None), ("c", "y", 0, None)],
        ]
    ]
    found = report.Results(rows)
    assert found.measurable("auroc", 64) == ["a", "b"]
    assert found.over_products("auroc", 64, "x", ["a", "b"]) == [pytest.approx(0.6)]
    assert found.over_products("auroc", 64, "y", ["a", "b"]) == []


def test_ranks_agree_with_scipy() -> None:
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    figures = np.round(rng.random((14, 4)) + np.array([0.0, 0.5, 0.2, 0.3]), 1)  # with ties
    found = ranks.rank(["a", "b", "c", "d"], figures)
    assert not isinstance(found, str)
    expected = stats.rankdata(-figures, axis=1).mean(axis=0)
    assert dict(zip(found.names, found.mean_ranks, strict=True)) == pytest.approx(
        dict(zip("abcd", expected, strict=True))
    )
    q = stats.studentized_range.ppf(0.95, 4, np.inf) / np.sqrt(2)
    assert found.critical_difference == pytest.approx(q * np.sqrt(4 * 5 / (6 * 14)), rel=1e-3)
    ElementTree.fromstring(
        plots.critical_difference(found.names, found.mean_ranks, found.critical_difference, found.groups)
    )
    assert found.p_value == pytest.approx(stats.friedmanchisquare(*figures.T).pvalue, rel=0.5)


def test_groups_are_the_longest_runs_that_do_not_differ() -> None:
    assert ranks._groups(np.array([1.0, 2.0, 2.5, 4.0, 4.2]), 1.5) == ((0, 2), (2, 3), (3, 4))
    assert ranks._groups(np.array([1.0, 3.0, 5.0]), 1.5) == ()


def test_ranks_of_too_few_are_refused() -> None:
    assert "2 detectors" in str(ranks.rank(["a", "b"], np.ones((9, 2))))
    assert "4 products" in str(ranks.rank(["a", "b", "c"], np.ones((4, 3))))
    assert "0 products" in str(ranks.rank(["a", "b", "c"], []))


def dark(pixels: np.ndarray, gain: float) -> np.ndarray:
    return np.clip(np.rint(pixels * gain), 0, 255).astype(np.uint8)


def test_equalise_gives_test_pictures_the_median_of_training_and_keeps_the_rest(tmp_path: Path) -> None:
    folder = tmp_path / "ring"
    product(folder, good=3)
    for path in sorted((folder / "test/good").iterdir()):
        save(path, dark(image.read(path).pixels, 0.5))
    other = {"name": "plain", "folder": str(folder)}
    plans = plan.Plan.model_validate(
        {
            "detectors": [{"name": "variation"}],
            "products": [other, {"name": "equal", "folder": str(folder), "equalise": True}],
            "sizes": [64],
        }
    )
    assert len(plan.cells(plans)) == 2  # not the same cell twice
    first = equalised.equalise(plans, tmp_path / "out")
    assert first.products[0].folder == str(folder)
    copy = Path(first.products[1].folder)
    digest = run.contents(first.products[1], tmp_path)
    target = np.median([equalised.median(image.read(path).pixels, "") for path in (folder / "train/good").iterdir()])
    for path in (copy / "test").rglob("*.png"):
        assert equalised.median(image.read(path).pixels, "") == pytest.approx(target, abs=1)
    for part_of in ("train", "ground_truth"):
        for path in (folder / part_of).rglob("*.png"):
            assert (copy / path.relative_to(folder)).read_bytes() == path.read_bytes()
    plan.cells(first)
    equalised.equalise(plans, tmp_path / "out")
    assert run.contents(first.products[1], tmp_path) == digest  # finished cells stay finished


def test_equalise_refuses_a_black_picture_and_a_table_of_groups(tmp_path: Path) -> None:
    product(tmp_path / "ring", good=2)
    save(tmp_path / "ring/test/good/100.png", np.zeros((64, 64, 3), np.uint8))
    values = {"name": "ring", "folder": str(tmp_path / "ring"), "equalise": True}
    plans = plan.Plan.model_validate({"detectors": [{"name": "variation"}], "products": [values]})
    with pytest.raises(DatasetError, match=r"100\.png: the median gray is 0"):
        equalised.equalise(plans, tmp_path / "out")
    assert not list((tmp_path / "out").rglob("*.png"))
    table_of = plan.Product.model_validate({**values, "groups": "groups.csv"})
    with pytest.raises(RecipeError, match=r"equalise renames test pictures.*groups\.csv"):
        plan.cells(plans.model_copy(update={"products": [table_of]}))


def test_a_product_says_how_its_tiles_are_augmented(tmp_path: Path) -> None:
    product(tmp_path / "ring", good=2)
    values = {"name": "ring", "folder": str(tmp_path / "ring"), "augment": {"quarter_turns": True, "brightness": 0.2}}
    plans = plan.Plan.model_validate({"detectors": [{"name": "vae"}], "products": [values]})
    (cell,) = plan.cells(plans)
    assert cell.recipe.augment == Augment(quarter_turns=True, brightness=0.2)
    wrong = plan.Product.model_validate({**values, "augment": {"flips": True}})
    with pytest.raises(RecipeError, match="Did you mean 'flip'"):
        plan.cells(plans.model_copy(update={"products": [wrong]}))
