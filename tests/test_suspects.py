"""Good pictures that look like defects: listed by the check and before a training, and never among clean ones."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from andon.cli import app
from andon.data import check, dataset
from andon.pictures import image
from andon.training import suspects
from andon.training import train as training
from conftest import part, save, scratched


def folder(root: Path, count: int = 40, bad: int = 0) -> Path:
    for seed in range(count):
        save(root / f"{seed:03}.png", part(seed))
    for seed in range(bad):
        save(root / f"bad{seed}.png", scratched(500 + seed)[0])
    return root


@pytest.fixture(scope="module")
def contaminated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return folder(tmp_path_factory.mktemp("mixed") / "parts", bad=3)


def test_defects_among_good_pictures_are_listed_first_and_good_ones_are_not(contaminated: Path) -> None:
    data = dataset.load(contaminated)
    judged = suspects.look(data)
    assert len(judged) == 43
    assert {one.sample.path.name for one in judged if one.suspect} == {"bad0.png", "bad1.png", "bad2.png"}
    (finding,) = suspects.findings(judged, data)
    assert finding.severity == "warning"
    assert "3 good images look like defects" in finding.message
    assert len(finding.files) == 3


def test_a_clean_folder_has_no_suspects(tmp_path: Path) -> None:
    data = dataset.load(folder(tmp_path / "parts"))
    judged = suspects.look(data)
    assert judged
    assert not suspects.findings(judged, data)
    assert not suspects.warning(judged, "parts")


def test_similar_defects_do_not_hide_each_other(tmp_path: Path) -> None:
    root = folder(tmp_path / "parts")
    pixels = scratched(500)[0]
    for frame in range(6):  # 13 % of the folder, all alike
        noise = np.random.default_rng(frame).integers(-2, 3, pixels.shape)
        save(root / f"bad{frame}.png", np.clip(pixels + noise, 0, 255).astype(np.uint8))
    rows = [f"{path.name},{'bad' if 'bad' in path.name else path.stem}" for path in sorted(root.iterdir())]
    (tmp_path / "groups.csv").write_text("\n".join(["path,group", *rows]))
    judged = suspects.look(dataset.load(root, groups=tmp_path / "groups.csv"))
    assert {one.sample.path.name for one in judged[:6]} == {f"bad{frame}.png" for frame in range(6)}


def test_too_few_pictures_or_mixed_kinds_are_not_judged(tmp_path: Path) -> None:
    few = folder(tmp_path / "few", count=suspects.LEAST - 1)
    assert suspects.look(dataset.load(few)) == []
    mixed = folder(tmp_path / "mixed", count=30)
    save(mixed / "gray.png", part(99, channels=1))
    assert suspects.look(dataset.load(mixed)) == []


def test_the_check_draws_a_contact_sheet(contaminated: Path, tmp_path: Path) -> None:
    done = CliRunner().invoke(app, ["check", str(contaminated), "--out", str(tmp_path / "out"), "--json"])
    found = [f for f in json.loads(done.stdout)["findings"] if f["code"] == "suspect"]
    assert [sorted(f["files"]) for f in found] == [[["bad0.png"], ["bad1.png"], ["bad2.png"]]]
    sheet = image.read(tmp_path / "out/suspects.jpg").pixels
    assert sheet.shape[2] == 3
    assert list((tmp_path / "out").iterdir()) == [tmp_path / "out/suspects.jpg"]


def test_training_warns_and_learns_all_the_same(contaminated: Path, tmp_path: Path) -> None:
    warnings: list[str] = []
    bundle = training.train(
        contaminated, tmp_path / "b.andon", size=96, settings={"bank": 50, "candidates": 2000}, warn=warnings.append
    )
    (told,) = [w for w in warnings if "look like a defect" in w]
    assert "3 of 43" in told
    assert all(name in told for name in ("bad0.png", "bad1.png", "bad2.png"))
    assert "andon check" in told
    assert bundle.manifest.data["images"] == 43


def test_further_findings_are_set_in_their_order(contaminated: Path) -> None:
    further = [check.Finding("note", "y", "y"), check.Finding("error", "x", "x")]
    report = check.check(dataset.load(contaminated), further=further)
    assert set(further) <= set(report.findings)
    severities = [finding.severity for finding in report.findings]
    assert severities == sorted(severities, key=("error", "warning", "note").index)


@pytest.mark.parametrize("share", [0.0, 0.05])
def test_broken_bottles_among_good_ones_are_listed(shared_data: Path, tmp_path: Path, share: float) -> None:
    bottle = dataset.load(shared_data / "mvtec_ad/bottle")
    good, bad = bottle.good("train")[:80], bottle.defective("test")[:: 63 // 4][:4] if share else []
    for i, sample in enumerate([*good, *bad]):
        (tmp_path / f"{i:03}{'bad' * (not sample.good)}.jpg").write_bytes(sample.path.read_bytes())
    judged = suspects.look(dataset.load(tmp_path))
    listed = [one.sample.path.stem for one in judged if one.suspect]
    assert sum("bad" not in name for name in listed) <= 4
    if bad:
        assert sum("bad" in name for name in listed) >= 2


def test_too_few_pictures_to_compare_are_told(tmp_path: Path) -> None:
    for seed in range(suspects.LEAST - 1):
        save(tmp_path / f"{seed:02}.png", part(seed, 64))
    data = dataset.load(tmp_path)
    (note,) = suspects.findings(suspects.look(data), data)
    assert note.severity == "note" and "19 good images, too few to compare" in note.message
    save(tmp_path / "more.png", part(99, 64))
    data = dataset.load(tmp_path)
    assert "too few" not in str(suspects.findings(suspects.look(data), data))
