"""What `check` must find, and what it must not."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
from typer.testing import CliRunner

import conftest
from andon import cli
from andon.data import check, dataset
from andon.data.check import Report
from andon.errors import AndonError

SIDE = 96


def part(seed: int) -> np.ndarray:
    """An aligned part (SIDE, SIDE): one strong shape that all share, and a surface of its own."""
    y, x = np.mgrid[:SIDE, :SIDE]
    shape = 80.0 + 90 * (np.hypot(x - 48, y - 48) < 36) + 30 * (np.abs(x - 48) < 6)
    surface = cv2.GaussianBlur(np.random.default_rng(seed).normal(0, 1, (SIDE, SIDE)), (0, 0), 1.5)
    return np.clip(shape + 8 * surface / surface.std(), 0, 255).astype(np.uint8)


def put(path: Path, pixels: np.ndarray, *options: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(cv2.imencode(path.suffix, pixels, options)[1].tobytes())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty good parts to learn from, four good and four scratched ones to test, with masks."""
    for i in range(20):
        put(tmp_path / f"train/good/{i:02}.png", part(i))
    for i in range(4):
        mask = np.zeros((SIDE, SIDE), np.uint8)
        mask[20 + 15 * i : 24 + 15 * i, 30:60] = 255
        put(tmp_path / f"test/good/{i}.png", part(50 + i))
        put(tmp_path / f"test/scratch/{i}.png", np.where(mask, 0, part(60 + i)).astype(np.uint8))
        put(tmp_path / f"ground_truth/scratch/{i}_mask.png", mask)
    return tmp_path


def checked(folder: Path, groups: str | None = None) -> Report:
    return check.check(dataset.load(folder, groups))


def found(report: Report) -> dict[str, tuple[str, tuple[tuple[str, ...], ...]]]:
    return {f.code: (f.severity, f.files) for f in report.findings if f.code != "few"}


def test_a_sound_folder(folder: Path) -> None:
    report = checked(folder)
    assert found(report) == {} and not report.failed
    assert report.counts == {"train": {"good": 20}, "test": {"good": 4, "scratch": 4}}
    assert (report.sizes, report.kinds, report.formats) == ({"96 × 96": 28}, {"8-bit gray": 28}, {"PNG": 28})
    assert not report.findings
    assert report.text().splitlines()[1:] == [
        "  train    good 20",
        "  test     good 4, scratch 4",
        "  pixels   96 × 96",
        "  kind     8-bit gray; PNG",
        "  training train/good 20",
        "0 errors, 0 warnings, 0 notes",
    ]
    assert json.loads(json.dumps(report.record()))["failed"] is False


COPIES = {
    "recompressed": lambda p: cv2.imdecode(cv2.imencode(".jpg", p, [cv2.IMWRITE_JPEG_QUALITY, 70])[1], 0),
    "brightened": lambda p: cv2.convertScaleAbs(p, alpha=0.85, beta=20),
    "resized": lambda p: cv2.resize(p, None, fx=0.75, fy=0.75, interpolation=cv2.INTER_AREA),
    "in another curve": lambda p: (255 * (p / 255) ** 0.8).astype(np.uint8),
}


@pytest.mark.parametrize("how", COPIES)
def test_near_copies_across_train_and_test(folder: Path, how: str) -> None:
    put(folder / "test/good/3.png", COPIES[how](part(7)))
    report = checked(folder)
    assert found(report)["near-copies-across"] == ("error", (("test/good/3.png", "train/good/07.png"),))
    assert report.failed and "= train/good/07.png" in report.text()


def test_near_copies_within_a_split_warn_unless_a_group_says_so(folder: Path) -> None:
    put(folder / "train/good/19.png", COPIES["brightened"](part(18)))
    assert found(checked(folder)) == {"near-copies-within": ("warning", (("train/good/18.png", "train/good/19.png"),))}
    assert found(checked(folder, r"(train/good/1|[^.]+)")) == {}


def test_a_file_that_vanished_is_one_finding(folder: Path) -> None:
    (folder / "train/good/gone.png").symlink_to(folder / "nowhere.png")
    report = checked(folder)
    assert found(report)["unreadable"] == ("error", (("train/good/gone.png",),))
    assert sum(report.counts["train"].values()) == 21


def test_what_cannot_be_followed_is_one_finding(folder: Path) -> None:
    (folder / "train/good/loop").symlink_to("loop")
    (folder / "train/good/itself.png").symlink_to("itself.png")
    messages = [f.message for f in checked(folder).findings if f.code == "unreadable"]
    assert len(messages) == 2 and all("cannot be read: too many levels of symbolic links" in m for m in messages)


def test_masks_of_good_images_may_be_empty(folder: Path) -> None:
    put(folder / "ground_truth/good/0_mask.png", np.zeros((SIDE, SIDE), np.uint8))
    assert not any(code.startswith("mask") for code in found(checked(folder)))


def test_exact_copies(folder: Path) -> None:
    put(folder / "train/good/extra.png", part(3))
    put(folder / "test/good/1.png", part(5))
    put(folder / "test/good/2.png", np.asarray(cv2.imread(str(folder / "test/scratch/0.png"), 0)))
    report = found(checked(folder))
    assert report["exact-copies-within"] == ("warning", (("train/good/03.png", "train/good/extra.png"),))
    assert report["exact-copies-across"] == ("error", (("test/good/1.png", "train/good/05.png"),))
    assert report["exact-copies-labels"] == ("error", (("test/good/2.png", "test/scratch/0.png"),))


def spoil(folder: Path, how: str) -> None:
    mask = np.asarray(cv2.imread(str(folder / "ground_truth/scratch/0_mask.png"), 0))
    match how:
        case "unreadable":
            (folder / "train/good/00.png").write_bytes((folder / "train/good/00.png").read_bytes()[:-30])
        case "mixed-kinds":
            put(folder / "train/good/00.png", np.dstack([part(0)] * 3))
        case "mixed-sizes":
            put(folder / "train/good/00.png", part(0)[:90])
        case "formats-differ":
            for i in range(4):
                (folder / f"test/scratch/{i}.png").rename(folder / f"test/scratch/{i}.bin")
                put(folder / f"test/scratch/{i}.jpg", part(60 + i), cv2.IMWRITE_JPEG_QUALITY, 95)
                (folder / f"test/scratch/{i}.bin").unlink()
        case "defect-in-train":
            put(folder / "train/dent/0.png", part(90))
        case "unlabelled":
            put(folder / "test/0.png", part(90))
        case "mask-missing":
            (folder / "ground_truth/scratch/0_mask.png").unlink()
        case "mask-without-image":
            put(folder / "ground_truth/scratch/77_mask.png", mask)
        case "mask-size":
            put(folder / "ground_truth/scratch/0_mask.png", mask[:50])
        case "mask-empty":
            put(folder / "ground_truth/scratch/0_mask.png", mask * 0)
        case "mask-full":
            put(folder / "ground_truth/scratch/0_mask.png", mask | 255)
        case "mask-inverted":
            put(folder / "ground_truth/scratch/0_mask.png", 255 - mask)
        case "mask-classes":
            put(folder / "ground_truth/scratch/0_mask.png", mask // 255 * 3 + (np.roll(mask, 40, 1) > 0))
        case "mask-of-good":
            put(folder / "ground_truth/good/0_mask.png", mask)
        case "mask-not-binary":
            put(folder / "ground_truth/scratch/0_mask.png", cv2.GaussianBlur(mask, (0, 0), 2))
        case "mask-unreadable":
            (folder / "ground_truth/scratch/0_mask.png").write_bytes(b"GIF89a")
        case "exposure":
            put(folder / "train/good/00.png", part(0) // 3)
        case "sharpness":
            put(folder / "train/good/00.png", cv2.GaussianBlur(part(0), (0, 0), 3))


@pytest.mark.parametrize(
    ("code", "severity", "file", "message"),
    [
        ("unreadable", "error", "train/good/00.png", "train/good/00.png: truncated or damaged: the file ends before"),
        ("mixed-kinds", "error", "train/good/00.png", "8-bit gray (27), 8-bit colour (1); expected one kind. Convert"),
        ("mixed-sizes", "note", "", "images of 2 sizes; the recipe's geometry resizes them."),
        ("formats-differ", "warning", "", "good images are PNG, the others JPEG: a detector may respond"),
        (
            "defect-in-train",
            "warning",
            "train/dent/0.png",
            "1 image of a defect in train; only supervised detectors use them.",
        ),
        ("unlabelled", "warning", "test/0.png", "1 image in test without label, which evaluation cannot use."),
        ("mask-missing", "warning", "test/scratch/0.png", "1 of 4 images of defects have no mask; pixel figures"),
        (
            "mask-without-image",
            "warning",
            "ground_truth/scratch/77_mask.png",
            "1 mask without an image of a defect, or with several matching images; not used.",
        ),
        ("mask-size", "error", "ground_truth/scratch/0_mask.png", "1 mask of another size than the image."),
        ("mask-empty", "error", "ground_truth/scratch/0_mask.png", "1 mask without a marked pixel. Draw the defect"),
        ("mask-full", "warning", "ground_truth/scratch/0_mask.png", "1 mask with every pixel marked."),
        (
            "mask-inverted",
            "error",
            "ground_truth/scratch/0_mask.png",
            "1 mask with almost all of the image and its border",
        ),
        (
            "mask-classes",
            "note",
            "ground_truth/scratch/0_mask.png",
            "1 mask with class numbers; every value above",
        ),
        ("mask-of-good", "warning", "ground_truth/good/0_mask.png", "1 mask with a marked defect for a good"),
        ("mask-not-binary", "warning", "ground_truth/scratch/0_mask.png", "1 mask with gray values; values above half"),
        ("mask-unreadable", "error", "ground_truth/scratch/0_mask.png", "0_mask.png: GIF file; andon reads"),
        ("exposure", "warning", "train/good/00.png", "1 image much darker than the other images of train."),
        ("sharpness", "warning", "train/good/00.png", "1 image much less sharp than the other images of train."),
    ],
)
def test_findings(folder: Path, code: str, severity: str, file: str, message: str) -> None:
    spoil(folder, code)
    report = checked(folder)
    finding = next(f for f in report.findings if f.code == code)
    assert finding.severity == severity
    assert finding.files == (((file,),) if file else ())
    assert message in finding.message and finding.message in report.text()
    assert report.failed == (severity == "error")


def test_a_group_on_both_sides(folder: Path) -> None:
    put(folder / "test/good/07.png", part(99))
    report = found(checked(folder, r"(\d+)\.png"))
    assert report["group-across"] == ("error", (("test/good/07.png", "train/good/07.png"),))


def test_no_masks_at_all_is_only_noted(folder: Path) -> None:
    for path in (folder / "ground_truth/scratch").iterdir():
        path.unlink()
    assert found(checked(folder)) == {"no-masks": ("note", ())}


def test_too_few_to_split(tmp_path: Path) -> None:
    put(tmp_path / "a.png", part(0))
    assert found(checked(tmp_path))["too-few"][0] == "error"


def test_flat_images_are_not_taken_for_copies(tmp_path: Path) -> None:
    for i in range(12):
        put(tmp_path / f"{i}.png", np.full((20, 20), 100 + i, np.uint8))
    assert not any("copies" in code for code in found(checked(tmp_path)))


def test_progress_is_reported(folder: Path) -> None:
    told: list[tuple[str, int, int]] = []
    check.check(dataset.load(folder), lambda *step: told.append(step))
    assert told[0] == ("checking images", 0, 28) and told[-1] == ("checking images", 28, 28)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("mvtec_ad/bottle", {"near-copies-within": {("train/good/069.jpg", "train/good/070.jpg")}}),
        ("mvtec_ad/screw", {"near-copies-within": {("train/good/053.jpg", "train/good/173.jpg")}}),
        ("hazelnut_toy", {}),
        ("ball_screw", {}),
    ],
)
def test_the_sets_at_hand(shared_data: Path, name: str, expected: dict[str, set[tuple[str, ...]]]) -> None:
    report = checked(shared_data / name)
    assert not report.failed
    assert {f.code: set(f.files) for f in report.findings if "copies" in f.code} == expected


@pytest.mark.parametrize(("spread", "kind"), [(0.0, ""), (0.35, "gain")])
def test_light_that_varies_among_good_images_is_reported(tmp_path: Path, spread: float, kind: str) -> None:
    rng = np.random.default_rng(0)
    for seed in range(12):
        bright = conftest.part(seed, 96) * (0.6 * (1 + rng.uniform(-spread, spread)))
        conftest.save(tmp_path / "good" / f"{seed}.png", bright.astype(np.uint8))
    found = [f.message for f in check.check(dataset.load(tmp_path / "good")).findings if f.code == "light"]
    assert len(found) == bool(kind) and (not kind or f'[input] light = "{kind}"' in found[0])


def test_pictures_of_suspects_are_not_written_among_the_good_ones(tmp_path: Path) -> None:
    for number in range(3):
        put(tmp_path / f"good/{number}.png", part(number))
    (tmp_path / "link").symlink_to("good")
    for out in ("good", "good/new/check", "link/check"):
        done = CliRunner().invoke(cli.app, ["check", str(tmp_path / "good"), "--out", str(tmp_path / out)])
        assert isinstance(done.exception, AndonError) and "among the pictures of" in str(done.exception)
    assert len(list((tmp_path / "good").iterdir())) == 3
