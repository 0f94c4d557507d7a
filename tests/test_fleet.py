"""A fleet: plans, products, archives, in this process and on a cluster of several nodes whose processes are killed."""

import csv
import io
import os
import shutil
import signal
import socket
import sys
import threading
import time
import urllib.request
import zipfile
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from andon import cli
from andon.bundle import Bundle
from andon.errors import AndonError, DatasetError, ImageError, RecipeError
from andon.fleet import archive, cluster, plan, plant, product, sources
from andon.fleet.table import Table
from andon.inspection import Pixels, Scorer, Scores
from andon.inspector import Inspector
from conftest import part, save, scratched

pytestmark = pytest.mark.filterwarnings("ignore:::ray")  # its own use of its old settings

PART = 3  # pictures
PLAN = """
[resources]
memory_mb = 100

[recipe]
geometry.size = 64
detector.settings = {bank = 50}
split = {method = "cross", folds = 2}

[[products]]
name = "bolt"
images = "bolt"

[[products]]
name = "nut"
images = "nut/train"
test = "nut/test"
recipe = {seed = 7}
resources = {retries = 5}
"""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plan, and the pictures of its two products."""
    root = tmp_path_factory.mktemp("plant")
    for start, name in enumerate(("bolt", "nut")):
        for seed in range(8):
            save(root / name / "train/good" / f"{seed}.png", part(seed + 50 * start, 64))
        save(root / name / "test/good/0.png", part(300, 64))
        save(root / name / "test/scratch/0.png", scratched(301, 64)[0])
    (root / "plant.toml").write_text(PLAN)
    return root


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of 30 pictures of parts; one of them is truncated."""
    root = tmp_path_factory.mktemp("archive") / "day"
    for seed in range(30):
        save(root / f"line{seed % 2}" / f"{seed:03}.png", part(seed, 96))
    broken = root / "line1/007.png"
    broken.write_bytes(broken.read_bytes()[:900])
    return root


@pytest.fixture(scope="module")
def nodes() -> Iterator[Any]:
    """A Ray cluster of one node with one CPU, to which tests add nodes."""
    os.environ.update(cluster.QUIET | cluster.LOOPBACK)
    from ray import cloudpickle
    from ray.cluster_utils import Cluster

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # the nodes do not have this file
    running = Cluster(initialize_head=True, head_node_args=node_settings())
    yield running
    running.shutdown()


def node_settings() -> dict[str, Any]:
    return {"num_cpus": 1, "memory": 2_000_000_000, "object_store_memory": 100_000_000, "include_dashboard": False}


def rows(out: Path) -> list[dict[str, Any]]:
    found = [row for path in sorted(out.glob("part-*.parquet")) for row in pq.ParquetFile(path).read().to_pylist()]
    return sorted(found, key=lambda row: str(row["source"]))


def run(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str, str]:
    sys.argv = ["andon", *map(str, arguments)]
    try:
        cli.main()
        code = 0
    except SystemExit as done:
        code = int(done.code or 0)
    return code, *capsys.readouterr()


# plans


def test_a_plan_gives_each_product_its_recipe_and_resources(data: Path, tmp_path: Path) -> None:
    loaded = plan.load(data / "plant.toml", tmp_path)
    (bolt, few), (nut, more) = loaded.jobs
    assert (loaded.name, loaded.products) == ("plant.toml", ["bolt", "nut"])
    assert bolt.recipe.data.images == str(data / "bolt") and bolt.recipe.geometry.size == 64
    assert (bolt.recipe.seed, nut.recipe.seed) == (0, 7)
    assert nut.recipe.detector.settings["bank"] == 50 and nut.test == str(data / "nut/test")
    assert (few.retries, more.retries, more.memory_mb) == (3, 5, 100)
    assert nut.folder == tmp_path / "nut"


def test_a_product_may_be_a_recipe_file(data: Path, tmp_path: Path) -> None:
    (tmp_path / "bolt.toml").write_text(f"data.images = '{data / 'bolt'}'\ngeometry.size = 96\n")
    (tmp_path / "plan.toml").write_text("[[products]]\nname = 'b'\nfile = 'bolt.toml'\n")
    ((job, _),) = plan.load(tmp_path / "plan.toml", tmp_path / "out").jobs
    assert (job.recipe.product, job.recipe.geometry.size) == ("b", 96)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[products]]\nname = 'a'\nimages = 'bolt'\n" * 2, "product 'a' is listed twice"),
        ("[[products]]\nname = 'a'\nimages = 'bolt'\n[[products]]\nname = 'A'\nimages = 'nut'", "'A' is listed twice"),
        ("[[products]]\nname = 'a'\nimages = 'bold'", "there is no folder"),
        ("[[products]]\nname = 'a'\nimage = 'bolt'", "Did you mean 'images'?"),
        ("[[products]]\nname = 'a'", "set one of them"),
        ("[[products]]\nname = '../a'\nimages = 'bolt'", "string_pattern_mismatch|should match pattern"),
        ("[[products]]\nname = 'a'\nimages = 'bolt'\nrecipe = {detector = {name = 'memory-bang'}}", "memory-bank"),
        ("[[products]]\nname = 'a'\nimages = 'bolt'\nresources = {cpu = 2}", "Did you mean 'cpus'?"),
        ("products = []", "products"),
        ("[[products]", "not TOML"),
    ],
)
def test_an_impossible_plan_is_refused(data: Path, tmp_path: Path, text: str, message: str) -> None:
    path = data / "wrong.toml"
    path.write_text(text)
    with pytest.raises(RecipeError, match=message):
        plan.load(path, tmp_path)


def test_an_unknown_product_is_refused(data: Path, tmp_path: Path, capsys: Any) -> None:
    code, _, err = run(capsys, "fleet", "train", data / "plant.toml", "--out", tmp_path, "--local", "--only", "bolz")
    assert code == 2 and "unknown product 'bolz'. Did you mean 'bolt'?" in err


def test_results_among_the_images_are_refused(data: Path) -> None:
    with pytest.raises(RecipeError, match="Choose another --out"):
        plan.load(data / "plant.toml", data / "bolt/results")


# products


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> plan.Plant:
    """The plan, trained in this process."""
    loaded = plan.load(data / "plant.toml", tmp_path_factory.mktemp("trained"))
    assert plant.train(loaded, quiet=True)[:3] == (2, 0, 0)
    return loaded


def members(path: Path) -> dict[str, bytes]:
    """The members of a bundle that do not hold times."""
    with zipfile.ZipFile(path) as bundle:
        return {name: bundle.read(name) for name in bundle.namelist() if name != "manifest.json"}


def copied(trained: plan.Plant, data: Path, out: Path) -> plan.Plant:
    """The trained products in a folder of their own."""
    shutil.copytree(trained.out, out, dirs_exist_ok=True)
    return plan.load(data / "plant.toml", out)


def test_each_product_has_a_bundle_a_log_a_result_and_a_report(trained: plan.Plant) -> None:
    for name in trained.products:
        folder = trained.out / name
        assert Inspector.load(folder / f"{name}.andon").recipe.product == name
        assert "done after" in (folder / "log.txt").read_text()
        assert product.read(folder / "result.json")["test_defective"] == 1
        assert (folder / "report.html").is_file()
    table = (trained.out / "products.csv").read_text().splitlines()
    assert [line.split(",")[:2] for line in table[1:]] == [['"bolt"', '"done"'], ['"nut"', '"done"']]


def test_a_second_run_trains_only_what_is_missing(trained: plan.Plant, data: Path, tmp_path: Path, capsys: Any) -> None:
    mine = copied(trained, data, tmp_path)
    before = (tmp_path / "bolt/bolt.andon").read_bytes()
    (tmp_path / "nut/nut.andon").unlink()
    code, out, err = run(capsys, "fleet", "train", data / "plant.toml", "-o", tmp_path, "--local")
    assert code == 0 and "1 products done, 1 kept, 0 failed" in out
    assert "[2/2] nut" in err and "image AUROC" in err
    assert (tmp_path / "bolt/bolt.andon").read_bytes() == before
    assert members(tmp_path / "nut/nut.andon") == members(trained.out / "nut/nut.andon")
    assert len(mine.jobs) == 2


def test_a_product_is_trained_again_when_its_files_or_its_groups_have_changed(
    trained: plan.Plant, data: Path, tmp_path: Path
) -> None:
    shutil.copytree(data, tmp_path / "plant")
    (bolt, needs), nut = copied(trained, tmp_path / "plant", tmp_path / "out").jobs
    mine = plan.load(tmp_path / "plant/plant.toml", tmp_path / "out")
    os.utime(tmp_path / "plant/nut/train/good/0.png", ns=(1, 1))
    grouped = bolt.recipe.model_copy(update={"data": bolt.recipe.data.model_copy(update={"groups": "(.*)"})})
    done: list[str] = []

    def counted(work: plant.Work, jobs: Sequence[tuple[product.Job, plan.Needs]]) -> Iterable[product.Json]:
        for result in plant.local(work, jobs):
            if result["status"] == "done":
                done.append(result["product"])
            yield result

    plant.train(mine._replace(jobs=[(bolt, needs)]), counted, quiet=True)
    assert done == []
    plant.train(mine._replace(jobs=[(bolt._replace(recipe=grouped), needs), nut]), counted, quiet=True)
    assert done == ["bolt", "nut"]


def test_a_product_that_fails_leaves_the_others(trained: plan.Plant, data: Path, tmp_path: Path) -> None:
    mine = copied(trained, data, tmp_path)
    (bolt, needs), nut = mine.jobs
    gone = bolt._replace(recipe=bolt.recipe.located(data / "gone"), test=str(data / "gone"))
    summary = plant.train(mine._replace(jobs=[(gone, needs), nut]), quiet=True)
    assert summary[:3] == (0, 1, 1)
    assert "there is no" in product.read(tmp_path / "bolt/result.json")["error"]


def test_recalibration_on_new_good_images(trained: plan.Plant, data: Path, tmp_path: Path, capsys: Any) -> None:
    mine = copied(trained, data, tmp_path / "out")
    for seed in range(20):
        save(tmp_path / "new/bolt" / f"{seed}.png", part(seed + 400, 64))
    arguments = ("fleet", "recalibrate", data / "plant.toml", tmp_path / "new", "-o", mine.out, "--local")
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "product 'nut': there is no folder" in err
    before = Bundle.load(mine.out / "bolt/bolt.andon")
    code, out, _ = run(capsys, *arguments, "--only", "bolt")
    after = Bundle.load(mine.out / "bolt/bolt.andon")
    assert code == 0 and "1 products done" in out
    assert after.graph == before.graph and after.calibration.images == 20
    assert "threshold" in (mine.out / "bolt/log.txt").read_text()
    code, out, _ = run(capsys, *arguments, "--only", "bolt")
    assert code == 0 and "0 products done, 1 kept" in out
    assert Bundle.load(mine.out / "bolt/bolt.andon").digest() == after.digest()
    for _ in range(2):
        cells = {row["product"]: row for row in csv.DictReader(io.StringIO((mine.out / "products.csv").read_text()))}
        assert cells["bolt"]["bundle"] == after.digest() and cells["bolt"]["images"] == "8"
        assert (cells["bolt"]["image_auroc"], cells["bolt"]["review_escapes"]) == ("", ""), "measured before"
        assert cells["nut"]["image_auroc"] != ""
        shown = io.StringIO()
        assert plant.train(mine, stream=shown)[:3] == (0, 2, 0)  # a recalibrated product stays trained
        assert shown.getvalue().count("recalibrated, not evaluated since") == 1


def test_a_bundle_from_elsewhere_is_not_kept(trained: plan.Plant, data: Path, tmp_path: Path) -> None:
    mine = copied(trained, data, tmp_path)
    shutil.copy(tmp_path / "nut/nut.andon", tmp_path / "bolt/bolt.andon")
    assert plant.train(mine, quiet=True)[:3] == (1, 1, 0)
    assert members(tmp_path / "bolt/bolt.andon") == members(trained.out / "bolt/bolt.andon")
    assert product.read(tmp_path / "bolt/result.json")["bundle"] == Bundle.load(tmp_path / "bolt/bolt.andon").digest()


def test_the_table_fits_the_terminal(trained: plan.Plant, data: Path, tmp_path: Path) -> None:
    mine = copied(trained, data, tmp_path)
    table = Table([job for job, _ in mine.jobs], io.StringIO())
    assert table.lines(80, 10) == ["2 products: 2 waiting"]
    with mine.jobs[0][0].log.open("a") as log:
        log.write("2026-11-26T10:00:00 calibrating…\n")
    assert table.lines(80, 10)[1].split() == ["bolt", "running", "calibrating…"]
    table.add({"product": "bolt", "status": "failed", "error": "no images"})
    table.add({"product": "nut", "status": "kept"})
    shown = table.lines(30, 10)
    assert shown[0] == "2 products: 1 failed, 1 kept" and shown[1].split()[:2] == ["bolt", "failed"]
    assert len(table.lines(30, 2)) == 2 and max(map(len, shown)) <= 30


# archives


@pytest.fixture(scope="module")
def inspected(bundle_file: Path, pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The archive, inspected in this process."""
    out = tmp_path_factory.mktemp("results")
    summary = archive.inspect(bundle_file, str(pictures), out, archive.local(2), rows=PART)
    assert (summary.pictures, summary.kept, len(summary.errors)) == (30, 0, 1)
    return out


def test_each_picture_has_one_row_with_what_the_inspector_says(
    inspected: Path, bundle_file: Path, pictures: Path
) -> None:
    found = rows(inspected)
    assert [row["source"] for row in found] == sorted(path.as_posix() for path in pictures.rglob("*.png"))
    inspector = Inspector.load(bundle_file, threads=1)
    broken = pictures / "line1/007.png"
    for row in found:
        if row["source"] == broken.as_posix():
            assert row["verdict"] == "INVALID" and "damaged" in row["error"] and row["score"] is None
        else:
            record = inspector.inspect(row["source"]).record()
            assert row["error"] is None and row["bundle"] == inspector.digest
            assert all(row[key] == record[key] for key in ("verdict", "score", "p_value", "digest"))
            assert row["regions"] == len(record["regions"])


def test_a_second_run_inspects_only_what_has_no_row(
    inspected: Path, bundle_file: Path, pictures: Path, tmp_path: Path
) -> None:
    out, copy = tmp_path / "out", tmp_path / "day"
    shutil.copytree(pictures, copy)

    def interrupted(inspector: Inspector, parts: archive.Parts, root: str) -> Iterator[tuple[int, bytes]]:
        yield from archive.local(1)(inspector, dict(list(parts.items())[:4]), root)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        archive.inspect(bundle_file, str(copy), out, interrupted, rows=3)
    assert len(rows(out)) == 12
    (out / ".part-000004.parquet.0a0b.part").write_bytes(b"half")
    save(copy / "line0/new.png", part(70, 96))
    summary = archive.inspect(bundle_file, str(copy), out, archive.local(1), rows=3)
    assert (summary.pictures, summary.kept) == (31, 12)
    again = archive.inspect(bundle_file, str(copy), out, lambda *arguments: iter(()), rows=3)
    assert (again.kept, again.verdicts) == (31, {})
    found = rows(out)
    assert [row["source"] for row in found] == sorted(path.as_posix() for path in copy.rglob("*.png"))
    assert not list(out.glob(".part*"))
    scores = {Path(row["source"]).name: row["score"] for row in found}
    assert all(scores[Path(row["source"]).name] == row["score"] for row in rows(inspected))


def test_a_relative_archive_is_another_one_in_another_folder(
    bundle_file: Path, tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed, name in enumerate(("a", "b")):
        save(tmp_path / name / "day/0.png", part(seed, 96))
    arguments = ("fleet", "inspect", bundle_file, "day", "-o", tmp_path / "out", "--local")
    monkeypatch.chdir(tmp_path / "a")
    assert run(capsys, *arguments)[0] == 0
    assert [row["source"] for row in rows(tmp_path / "out")] == [(tmp_path / "a/day/0.png").as_posix()]
    code, out, _ = run(capsys, *arguments[:3], tmp_path / "a/day", *arguments[4:])
    assert code == 0 and "none to inspect; 1 had a row before" in out
    monkeypatch.chdir(tmp_path / "b")
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "results of another run: source" in err


def test_a_picture_that_changed_since_is_refused_until_its_file_is_deleted(
    bundle_file: Path, tmp_path: Path, capsys: Any
) -> None:
    for seed in range(4):
        save(tmp_path / f"day/{seed}.png", part(seed, 96))
    arguments = ("fleet", "inspect", bundle_file, tmp_path / "day", "-o", tmp_path / "out", "--local", "--rows", 2)
    assert run(capsys, *arguments)[0] == 0
    before = rows(tmp_path / "out")
    (tmp_path / "day/0.png").unlink()  # a picture that aged out keeps its row
    save(tmp_path / "day/3.png", part(80, 96))
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "1 image changed after the inspection: " in err and "Delete part-000001.parquet" in err
    assert rows(tmp_path / "out") == before
    (tmp_path / "out/part-000001.parquet").unlink()
    code, out, _ = run(capsys, *arguments)
    assert code == 0 and "2 had a row before" not in out and "1 had a row before" in out
    after = rows(tmp_path / "out")
    assert [new["digest"] == old["digest"] for new, old in zip(after, before, strict=True)] == [True, True, True, False]
    (tmp_path / "out/_part-000000.json").unlink()
    code, _, err = run(capsys, *arguments)
    assert code == 0 and "1 files of an earlier version" in err


def test_a_picture_that_failed_before_is_told_again(bundle_file: Path, tmp_path: Path, capsys: Any) -> None:
    save(tmp_path / "day/0.png", part(0, 96))
    (tmp_path / "day/1.png").write_bytes(b"torn")
    arguments = ("fleet", "inspect", bundle_file, tmp_path / "day", "-o", tmp_path / "out", "--local")
    first = run(capsys, *arguments)
    again = run(capsys, *arguments)
    assert first[0] == again[0] == 1
    assert first[2] == again[2] and "1 image could not be inspected: " in again[2]


def test_a_table_of_paths(bundle_file: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    import pyarrow as pa

    listed = [str(pictures / "line0/000.png"), "gone.png"]
    pq.write_table(pa.table({"file": listed}), tmp_path / "list.parquet")
    arguments = ("fleet", "inspect", bundle_file, tmp_path / "list.parquet", "-o", tmp_path / "out", "--local")
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "no column 'path'; it has file" in err
    code, _, err = run(capsys, *arguments, "--column", "file", "-q")
    assert code == 1 and "gone.png: no such file" in err
    assert [row["verdict"] for row in rows(tmp_path / "out")] == ["PASS", "INVALID"]
    pq.write_table(pa.table({"path": listed + listed[:1]}), tmp_path / "twice.parquet")
    with pytest.raises(DatasetError, match="listed twice"):
        sources.find(str(tmp_path / "twice.parquet"))
    pq.write_table(pa.table({"path": ["a.png", None]}), tmp_path / "null.parquet")
    with pytest.raises(DatasetError, match="row 1: None"):
        sources.find(str(tmp_path / "null.parquet"))


def test_the_folder_of_another_run_is_refused(
    inspected: Path, bundle_file: Path, pictures: Path, trained: plan.Plant, tmp_path: Path, capsys: Any
) -> None:
    before = rows(inspected)
    code, _, err = run(capsys, "fleet", "inspect", bundle_file, pictures / "line0", "-o", inspected, "--local")
    assert code == 2 and "results of another run: source" in err
    other = trained.jobs[0][0].bundle
    code, _, err = run(capsys, "fleet", "inspect", other, pictures, "-o", inspected, "--local")
    assert code == 2 and "results of another run: bundle" in err
    code, _, err = run(capsys, "fleet", "inspect", bundle_file, pictures, "-o", trained.out, "--local")
    assert code == 2 and "results of another run: kind training, not inspection" in err
    code, _, err = run(capsys, "fleet", "inspect", bundle_file, pictures, "-o", pictures / "out", "--local")
    assert code == 2 and "among the pictures" in err
    (tmp_path / "letter.txt").write_text("x")
    code, _, err = run(capsys, "fleet", "inspect", bundle_file, pictures, "-o", tmp_path, "--local")
    assert code == 2 and "contains other files (letter.txt)" in err
    assert rows(inspected) == before


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("nowhere", "no such folder"),
        ("nowhere.parquet", "no such file"),
        ("ftp://x/y", "unknown kind of archive"),
        ("s3://", "expected s3://bucket/prefix"),
        ("s3://key:secret@bucket/x", "without credentials"),
    ],
)
def test_an_archive_that_cannot_be_listed(source: str, message: str) -> None:
    with pytest.raises(AndonError, match=message):
        sources.find(source)


def test_a_damaged_part_is_named(inspected: Path, bundle_file: Path, pictures: Path, tmp_path: Path) -> None:
    shutil.copytree(inspected, tmp_path / "out")
    (tmp_path / "out/part-000002.parquet").write_bytes(b"PAR1")
    with pytest.raises(AndonError, match=r"part-000002\.parquet: damaged"):
        archive.inspect(bundle_file, str(pictures), tmp_path / "out", archive.local(1))


# object store


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch, pictures: Path) -> Iterator[str]:
    """An object store on this machine with three pictures and a text."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    environment(monkeypatch, f"http://{host}:{port}", "andon", "secret")
    client = fs.S3FileSystem(endpoint_override=f"{host}:{port}", scheme="http", allow_bucket_creation=True)
    client.create_dir("day")
    for name in STORED:
        with client.open_output_stream(f"day/{name}") as file:
            file.write((pictures / name).read_bytes())
    with client.open_output_stream("day/notes.txt") as file:
        file.write(b"x")
    yield "s3://day"
    for call, content in (("reset-auth", b"inf"), ("reset", b"")):
        ask(call, content)
    sources.store.cache_clear()
    server.stop()


STORED = ("line0/000.png", "line0/002.png", "line1/007.png")


def environment(monkeypatch: pytest.MonkeyPatch, endpoint: str, key: str, secret: str) -> None:
    values = {"AWS_ENDPOINT_URL": endpoint, "AWS_ACCESS_KEY_ID": key, "AWS_SECRET_ACCESS_KEY": secret}
    for name, value in {**values, "AWS_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true"}.items():
        if value:
            monkeypatch.setenv(name, value)
        else:
            monkeypatch.delenv(name, raising=False)
    sources.store.cache_clear()


def ask(call: str, content: bytes) -> None:
    """Set the object store up."""
    address = f"{os.environ['AWS_ENDPOINT_URL']}/moto-api/{call}"
    request = urllib.request.Request(address, content, {"Content-Type": "text/plain"}, method="POST")
    urllib.request.urlopen(request).close()


def test_an_archive_in_an_object_store(
    bucket: str, bundle_file: Path, inspected: Path, tmp_path: Path, capsys: Any
) -> None:
    code, _, err = run(capsys, "fleet", "inspect", bundle_file, bucket, "-o", tmp_path / "out", "--local", "-q")
    assert code == 1 and "s3://day/line1/007.png: truncated or damaged" in err
    found = rows(tmp_path / "out")
    assert [row["source"] for row in found] == [f"s3://day/{name}" for name in STORED]
    stored = {row["source"]: row for row in rows(inspected)}
    same = [next(row for source, row in stored.items() if source.endswith(name)) for name in STORED]
    assert [(row["digest"], row["score"]) for row in found] == [(row["digest"], row["score"]) for row in same]
    with pytest.raises(DatasetError, match="no such bucket"):
        sources.find("s3://night")
    with pytest.raises(DatasetError, match="no such prefix"):
        sources.find("s3://day/line7")
    assert "no such object" in str(sources.read("s3://day/line0/gone.png"))


def test_credentials_that_are_not_accepted(bucket: str, bundle_file: Path, tmp_path: Path, capsys: Any) -> None:
    ask("reset-auth", b"0")
    code, _, err = run(capsys, "fleet", "inspect", bundle_file, bucket, "-o", tmp_path / "out", "--local")
    assert code == 2 and "credentials are missing or not accepted" in err
    with pytest.raises(AndonError, match="credentials are missing or not accepted"):
        sources.read("s3://day/line0/000.png")


class Forbidding(BaseHTTPRequestHandler):
    """Answers a request without credentials as Amazon does."""

    def do_GET(self) -> None:
        known = "Authorization" in self.headers
        body = b"<Error><Code>AccessDenied</Code><Message>Access Denied</Message></Error>"
        self.send_response(500 if known else 403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None:
        pass


def test_credentials_that_are_missing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Forbidding) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        environment(monkeypatch, f"http://127.0.0.1:{server.server_port}", "", "")
        monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
        monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
        try:
            with pytest.raises(AndonError, match="credentials are missing or not accepted"):
                sources.find("s3://day")
        finally:
            sources.store.cache_clear()
            server.shutdown()


def test_a_store_that_does_not_answer_is_no_bad_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        environment(monkeypatch, f"http://127.0.0.1:{free.getsockname()[1]}", "a", "b")
        with pytest.raises(AndonError, match="the object store cannot be read") as error:
            sources.read("s3://day/line0/000.png")
    sources.store.cache_clear()
    assert not isinstance(error.value, ImageError)


# a cluster


def children(pid: int) -> list[tuple[int, str]]:
    """Process ids and command lines of the children of a process."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parent = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
                if parent == pid:
                    found.append((int(entry.name), (entry / "cmdline").read_bytes().decode(errors="replace")))
            except (OSError, ValueError):
                continue
    return found


def kill(node: Any, kind: str) -> int:
    """Kill the processes of a node whose command line contains `kind`; return how many these were."""
    raylet = node.all_processes["raylet"][0].process.pid
    victims = [pid for pid, command in children(raylet) if kind in command]
    for pid in victims:
        os.kill(pid, signal.SIGKILL)
    return len(victims)


class Gate:
    """A scorer that waits after its first pictures until a file exists, so that a run is still going on."""

    def __init__(self, scorer: Scorer, opened: Path) -> None:
        self._scorer, self._opened, self._count = scorer, opened, 0

    def score(self, tiles: Pixels) -> Scores:
        self._count += 1
        while self._count > PART and not self._opened.exists():
            time.sleep(0.01)
        return self._scorer.score(tiles)


def test_a_worker_and_a_node_die_and_every_picture_has_one_row(
    nodes: Any, bundle_file: Path, pictures: Path, inspected: Path, tmp_path: Path
) -> None:
    node, opened, killed = nodes.add_node(**node_settings()), tmp_path / "opened", list[int]()
    nodes.wait_for_nodes()

    def hurt(inspector: Inspector, parts: archive.Parts, root: str) -> Iterator[tuple[int, bytes]]:
        held = replace(inspector, scorer=Gate(inspector.scorer, opened))
        for number, done in enumerate(cluster.inspecting(nodes.address, 2)(held, parts, root)):
            if number == 0:
                killed.append(kill(nodes.head_node, "MapWorker") + kill(node, "MapWorker"))
            if number == 1:
                nodes.remove_node(node, allow_graceful=False)
                opened.touch()
            yield done

    summary = archive.inspect(bundle_file, str(pictures), tmp_path / "out", hurt, rows=PART)
    assert killed[0] >= 1
    assert (summary.pictures, sum(summary.verdicts.values()), len(summary.errors)) == (30, 30, 1)
    assert rows(tmp_path / "out") == rows(inspected)
    for path in inspected.glob("part-*"):
        assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes()


def dying(job: product.Job) -> product.Json:
    """Train; the process dies once, while it trains the second product."""

    def die() -> None:
        while not job.log.exists() or "reading" not in job.log.read_text():
            time.sleep(0.001)
        os.kill(os.getpid(), signal.SIGKILL)

    mark = job.folder / "died"
    if job.name == "nut" and not mark.exists():
        job.folder.mkdir()
        mark.touch()
        threading.Thread(target=die).start()
    return product.train(job)


def test_products_on_a_cluster_are_those_of_this_process(
    nodes: Any, trained: plan.Plant, data: Path, tmp_path: Path
) -> None:
    mine = plan.load(data / "plant.toml", tmp_path)

    def hurt(work: plant.Work, jobs: Sequence[tuple[product.Job, plan.Needs]]) -> Iterable[product.Json]:
        return cluster.products([str(tmp_path)], nodes.address)(dying, jobs)

    assert plant.train(mine, hurt, quiet=True)[:3] == (2, 0, 0)
    assert (tmp_path / "nut/log.txt").read_text().count("started on") == 2
    for name in mine.products:
        assert members(tmp_path / name / f"{name}.andon") == members(trained.out / name / f"{name}.andon")
        own, other = (product.read(out / name / "result.json") for out in (tmp_path, trained.out))
        assert own["image_auroc"] == other["image_auroc"]


def test_a_cluster_that_cannot_do_the_work(nodes: Any, data: Path, tmp_path: Path) -> None:
    mine = plan.load(data / "plant.toml", tmp_path)
    with pytest.raises(AndonError, match=r"node .*: there is no /nowhere; every node needs the data"):
        plant.train(mine, cluster.products(["/nowhere"], nodes.address), quiet=True)
    (bolt, needs), _ = mine.jobs
    large = mine._replace(jobs=[(bolt, needs.model_copy(update={"cpus": 64}))])
    with pytest.raises(AndonError, match="product 'bolt' needs 64 CPUs"):
        plant.train(large, cluster.products([str(tmp_path)], nodes.address), quiet=True)


def listening(pids: set[int]) -> set[str]:
    """The addresses that processes listen on, as in /proc/net/tcp."""
    sockets = {}
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        for line in Path(table).read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A":
                sockets[f"socket:[{fields[9]}]"] = fields[1].partition(":")[0]
    found = set()
    for pid in pids:
        for link in Path(f"/proc/{pid}/fd").glob("*"):
            with suppress(OSError):
                found.add(sockets.get(str(link.readlink()), ""))
    return found - {""}


def test_a_cluster_of_its_own_listens_on_this_machine_alone_and_reports_nothing(tmp_path: Path) -> None:
    before = {pid for pid, _ in children(os.getpid())}
    with cluster.connected("", 1) as ray:
        from ray._common.usage import usage_lib

        cluster.check_nodes(ray, [str(tmp_path)])
        mine = {pid for pid, _ in children(os.getpid())} - before
        every = mine | {pid for parent in mine for pid, _ in children(parent)}
        addresses = listening(every)
        assert not usage_lib.usage_stats_enabled()
    assert addresses and addresses <= {
        "0100007F",
        "0000000000000000FFFF00000100007F",
        "00000000000000000000000001000000",
    }


def test_an_address_without_a_cluster(bundle_file: Path, pictures: Path, tmp_path: Path, capsys: Any) -> None:
    arguments = ("fleet", "inspect", bundle_file, pictures, "-o", tmp_path / "out", "--address", "auto")
    code, _, err = run(capsys, *arguments, "--local")
    assert code == 2 and "expected one of them" in err
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
        code, _, err = run(capsys, *arguments[:-1], address)
    assert code == 2 and f"{address}: no cluster there" in err
