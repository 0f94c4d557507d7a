"""A file is read once: verdict, digest, heat map and report come from the same bytes, or the picture is left out."""

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andon import Inspector, cli
from andon.bundle import Bundle
from andon.data import dataset, survey
from andon.data.store import Store
from andon.errors import AndonError, ImageError
from andon.evaluate import compare, compare_page, evaluating, report
from andon.geometry import registration
from andon.pictures import image
from andon.recipe import Recipe
from andon.training import calibrating
from conftest import part, save, scratched
from fake_inspector import FakeInspector, paint, paint_set


@pytest.fixture(scope="module")
def inspector(bundle_file: Path) -> Inspector:
    return Inspector.load(bundle_file)


def test_the_digest_is_that_of_the_file(inspector: Inspector, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", part(1))
    expected = hashlib.sha256(path.read_bytes()).hexdigest()
    for source in (path, str(path), path.read_bytes(), image.read(path)):
        found = inspector.inspect(source)
        assert found.digest == found.record()["digest"] == expected


def test_the_digest_of_an_array_covers_shape_type_and_values() -> None:
    pixels = np.arange(8 * 32, dtype=np.uint8).reshape(8, 32)
    by_hand = hashlib.sha256(b"(8, 32) |u1\n" + pixels.tobytes()).hexdigest()
    assert image.read(pixels).digest == by_hand
    others = [pixels.reshape(16, 16), pixels.astype(np.uint16), pixels + 1, pixels.astype(">u2")]
    assert len({by_hand, *(image.read(other).digest for other in others)}) == 5
    turned = np.asfortranarray(pixels)
    assert image.read(turned).digest == by_hand  # however it lies in memory


def test_an_image_is_a_source(inspector: Inspector, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", part(1))
    read = inspector.read(path)
    path.unlink()
    found = inspector.inspect(read)
    assert (found.source, found.digest) == (path.as_posix(), read.digest)
    assert inspector.inspect(read, name="other").source == "other"
    by_hand = image.Image(part(1), "mine", ("a note",))
    assert inspector.inspect(by_hand).digest == image.read(part(1)).digest
    assert inspector.inspect(by_hand).notes == ("a note",)
    with pytest.raises(ImageError, match="mine: array of float64"):
        inspector.inspect(image.Image(part(1).astype(float), "mine"))  # type: ignore[arg-type]
    with pytest.raises(ImageError, match="16-bit"):
        inspector.read(part(1, depth=16))
    with pytest.raises(AndonError, match="the argument of inspect_many is a single Image"):
        inspector.inspect_many(read)  # type: ignore[arg-type]


def replaced_after_reading(monkeypatch: pytest.MonkeyPatch, pixels: np.ndarray[Any, Any]) -> None:
    """Let another picture take the place of every file as soon as its bytes were read."""
    original = image.contents

    def contents(source: Any, name: str | None = None) -> tuple[bytes, str]:
        found = original(source, name)
        if isinstance(source, str | Path):
            save(Path(source), pixels)
        return found

    monkeypatch.setattr(image, "contents", contents)


def test_the_heat_map_shows_the_picture_that_was_judged(
    bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scratch = scratched(1)[0]
    drawn = []
    for name, pixels in (("kept", None), ("changed", part(2))):
        path = save(tmp_path / name / "latest.png", scratch)
        (tmp_path / name / "other.png").write_bytes(path.read_bytes())
        digest = image.read(path).digest
        if pixels is not None:
            replaced_after_reading(monkeypatch, pixels)
        out = tmp_path / f"out {name}"
        monkeypatch.setattr("sys.argv", ["andon", "inspect", str(bundle_file), str(path.parent), "--out", str(out)])
        with pytest.raises(SystemExit, match="0"):
            cli.main()
        records = [json.loads(line) for line in (out / "records.jsonl").read_text().splitlines()]
        assert [record["digest"] for record in records] == [digest] * 2
        drawn.append((out / "overlays/latest.png.png").read_bytes())
    assert drawn[0] == drawn[1]


def test_an_evaluation_names_the_bytes_that_it_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = dataset.load(paint_set(tmp_path / "ring"))
    before = {sample.path: image.read(sample.path).digest for sample in data.samples}
    replaced_after_reading(monkeypatch, part(1))
    for row in evaluating.evaluate(FakeInspector(), data).rows:  # type: ignore[arg-type]
        assert row.digest == before[row.path]


def changed(path: Path) -> None:
    paint(path, 3)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


@pytest.mark.parametrize(
    ("spoil", "reason"), [(changed, "the file has changed"), (Path.unlink, "no such file"), (cut, "")]
)
def test_a_report_leaves_out_pictures_that_changed(tmp_path: Path, spoil: Callable[[Path], None], reason: str) -> None:
    root = paint_set(tmp_path / "ring")
    evaluation = evaluating.evaluate(FakeInspector(), dataset.load(root))  # type: ignore[arg-type]
    before = {gallery.title: gallery for gallery in report.galleries(evaluation)}
    spoil(root / "test/scratch/010.png")  # the one that escapes
    after = {gallery.title: gallery for gallery in report.galleries(evaluation)}
    assert len(before["Escapes"].cards) - len(after["Escapes"].cards) == 1
    assert "010.png" in after["Escapes"].words and reason in after["Escapes"].words
    assert before["Detected defects"] == after["Detected defects"]
    report.write(evaluation, tmp_path / "out")
    assert reason in (tmp_path / "out/report.html").read_text()


def test_a_comparison_leaves_out_what_changed_between_bundles(tmp_path: Path) -> None:
    root = paint_set(tmp_path / "ring")

    class Late(FakeInspector):
        def read(self, source: Any, name: str | None = None) -> Any:
            if isinstance(source, Path) and source.name == "010.png":
                changed(source)
            return super().read(source, name)

    compared = compare.Comparison({"a": FakeInspector(), "b": Late()}, dataset.load(root))  # type: ignore[dict-item]
    assert compared.changed == ["test/scratch/010.png"]
    assert "test/scratch/010.png" not in [row.name for row in compared.images]
    assert "test/scratch/010.png: the file changed" in compared.errors[-1]


def test_a_comparison_draws_no_picture_that_changed(parts: Path, bundle_file: Path, tmp_path: Path) -> None:
    for kind in ("good", "scratch"):
        for path in sorted((parts / "test" / kind).iterdir())[:2]:
            save(tmp_path / "ring/test" / kind / path.name, image.read(path).pixels)
    inspectors = {"a": Inspector.load(bundle_file), "b": Inspector.load(bundle_file)}
    compared = compare.Comparison(inspectors, dataset.load(tmp_path / "ring"))
    before = compare_page.sections(compared)
    for path in (tmp_path / "ring/test/scratch").iterdir():
        save(path, part(5))
    after = compare_page.sections(compared)
    assert sum(len(section.panels) for section in before) > sum(len(section.panels) for section in after)
    assert any("the file has changed" in section.words for section in after)
    found = compare_page.vectors(inspectors["a"], compared.images, [])
    assert found == {}


def test_a_training_learns_from_the_bytes_whose_digests_it_keeps(tmp_path: Path) -> None:
    """After the survey no file is read again: pictures that change later change nothing."""
    for seed in range(20):
        save(tmp_path / "good" / f"{seed:02}.png", part(seed, side=64))
    recipe = Recipe.model_validate({"data": {"images": str(tmp_path / "good")}, "geometry": {"size": 64}})
    good = dataset.load(tmp_path / "good").training_images()
    seen = survey.survey_images(good, recipe, Store(), lambda *_: None)
    tiles = survey.GoodTiles(good, seen, recipe.geometry)
    before = np.concatenate(list(tiles))
    assert len(before) == 20
    save(tmp_path / "good/07.png", scratched(1, side=64)[0])
    np.testing.assert_array_equal(np.concatenate(list(tiles)), before)


def test_a_calibration_leaves_out_what_changed(parts: Path, bundle_file: Path, tmp_path: Path) -> None:
    for seed in range(10):
        save(tmp_path / "new" / f"{seed}.png", part(900 + seed))
    bundle, told = Bundle.load(bundle_file), list[str]()

    def progress(stage: str, done: int, total: int) -> None:
        if done == 0:
            save(tmp_path / "new/3.png", part(1))

    found = calibrating.recalibrate(bundle, tmp_path / "new", progress=progress, warn=told.append)
    assert found.calibration.images == 9
    assert any("3.png: the file has changed" in sentence for sentence in told)


def test_a_reference_keeps_the_digest_of_its_file(parts: Path) -> None:
    path = parts / "train/good/000.png"
    made = registration.Reference.of(image.read(path), registration.Register())
    assert made.digest == hashlib.sha256(path.read_bytes()).hexdigest()


def test_reading_again_reports_a_changed_file_from_the_same(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", part(1))
    first = image.read(path)
    os.utime(path, (0, 0))
    assert image.read_again(path, first.digest).digest == first.digest
    save(path, part(2))
    with pytest.raises(ImageError, match=r"a\.png: the file has changed: SHA-256 .*; expected"):
        image.read_again(path, first.digest)
