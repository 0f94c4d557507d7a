"""From good images to a bundle: the same every time, and never a bad one."""

import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from andon import Inspector
from andon.bundle import Bundle
from andon.data import whole
from andon.detectors.memory_bank import MemoryBank
from andon.errors import AndonError, DatasetError, ImageError, RecipeError, TrainingError
from andon.geometry.registration import Register
from andon.inspection import Pixels, Scores
from andon.pictures import image
from andon.recipe import Data, Recipe, Split
from andon.training import calibrating, gate, workplace
from andon.training import train as training
from conftest import noise, part, save, scratched

FAST: dict[str, Any] = {"size": 64, "settings": {"bank": 100, "scales": 1}}


@pytest.fixture
def good(tmp_path: Path) -> Path:
    for seed in range(12):
        save(tmp_path / "good" / f"{seed:02}.png", part(seed, 64))
    return tmp_path / "good"


def test_one_seed_gives_one_bundle(good: Path, tmp_path: Path) -> None:
    first, second, third = (
        training.train(good, tmp_path / f"{name}.andon", seed=seed, **FAST)
        for name, seed in (("a", 1), ("b", 1), ("c", 2))
    )
    assert first.digest() == second.digest()
    assert first.graph != third.graph


def test_a_data_set_gives_its_training_images(parts: Path, bundle_file: Path) -> None:
    bundle = Bundle.load(bundle_file)
    assert bundle.manifest.data["images"] == 40
    assert bundle.recipe.product == "ring"


def test_a_recipe_and_the_same_decisions_give_the_same_bundle(good: Path, tmp_path: Path) -> None:
    file = tmp_path / "part.toml"
    file.write_text(
        'product = "good"\n[data]\nimages = "good"\n[geometry]\nsize = 64\n'
        "[detector]\nsettings = {bank = 100, scales = 1}\n"
    )
    by_recipe = training.train(file, tmp_path / "a.andon")
    by_hand = training.train(good, tmp_path / "b.andon", **FAST)
    assert by_recipe.graph == by_hand.graph
    assert by_recipe.calibration == by_hand.calibration


def test_frames_of_one_part_stay_together(tmp_path: Path) -> None:
    for lot in range(6):
        for frame in range(3):
            save(tmp_path / "good" / f"lot{lot}_{frame}.png", part(lot, 64))
    bundle = training.train(tmp_path / "good", tmp_path / "b.andon", groups=r"(lot\d+)", **FAST)
    assert bundle.calibration.images == 3 * bundle.calibration.parts


def test_bad_images_are_left_out_and_named(good: Path, tmp_path: Path) -> None:
    (good / "07.png").write_bytes((good / "07.png").read_bytes()[:400])
    (good / "notes.txt").write_text("lot 7")
    told: list[str] = []
    bundle = training.train(good, tmp_path / "b.andon", tell=told.append, **FAST)
    assert bundle.manifest.data["left_out"] == 1
    assert any(sentence.startswith("left out: ") and "07.png" in sentence for sentence in told)
    assert any("expected to take" in sentence for sentence in told)


@pytest.fixture
def decoded(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of all pictures that are decoded, each as often as it is."""
    decoded: list[str] = []
    original = image.decode

    def decode(data: bytes, header: Any, name: str, reduced: int) -> Any:
        decoded.append(name)
        return original(data, header, name, reduced)

    monkeypatch.setattr(image, "decode", decode)
    return decoded


def test_a_training_decodes_each_picture_once(good: Path, tmp_path: Path, decoded: list[str]) -> None:
    training.train(good, tmp_path / "a.andon", **FAST)
    assert len(decoded) == len(set(decoded)) == len(list(good.iterdir()))


@pytest.mark.parametrize("kind", ["registered", "16 bits", "light"])
@pytest.mark.parametrize("room", [True, False])
def test_pictures_surveyed_twice_are_decoded_once_within_the_budget(
    kind: str, room: bool, tmp_path: Path, decoded: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for seed in range(20):
        save(tmp_path / "good" / f"{seed}.png", part(seed) if kind != "16 bits" else part(seed, depth=16) // 16)
    recipe = training.compose(tmp_path / "good", **FAST)
    if kind == "registered":
        recipe = recipe.with_registration(Register(max_rotation=5))
    if kind == "light":
        recipe = recipe.model_copy(update={"input": recipe.input.model_copy(update={"light": "gain"})})
    if not room:
        monkeypatch.setattr(whole.Pictures, "keep", lambda *_: None)
    training.train(recipe, tmp_path / "a.andon")
    times = Counter(name for name in decoded if "good" in name)
    again = [name for name, count in times.items() if count > 1]
    assert len(times) == 20 and len(again) == (20 if not room else 1 if kind == "registered" else 0)  # the reference


def test_tiles_beyond_the_budget_are_an_error(good: Path, tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"need about \d+ MB of temporary storage; this training may use 1 MB\. Increase storage_mb"
    ):
        training.train(good, tmp_path / "a.andon", storage_mb=1, **{**FAST, "size": 256})
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


def test_a_graph_that_differs_from_the_detector_is_refused(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def other(self: MemoryBank, tiles: Pixels) -> Scores:
        return Scores(np.zeros(len(tiles), np.float32), np.zeros(tiles.shape[:3], np.float32))

    monkeypatch.setattr(MemoryBank, "score", other)
    with pytest.raises(
        TrainingError, match=r"differs from the fitted memory-bank.*No bundle was written.*run the same"
    ):
        training.train(good, tmp_path / "b.andon", **FAST)
    assert [path.name for path in tmp_path.iterdir()] == ["good"]


LEARNED: dict[str, Any] = {
    "detector": "autoencoder",
    "size": 64,
    "settings": {"width": 4, "widest": 8, "latent": 2, "steps": 3, "batch": 2},
}


def test_a_failed_gate_keeps_what_was_learnt(good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("torch")
    out, told = tmp_path / "b.andon", list[str]()

    def closed(*_: Any) -> dict[str, float]:
        raise TrainingError("the graph differs.")

    with monkeypatch.context() as patch:
        patch.setattr(gate, "check", closed)
        for _ in range(2):
            with pytest.raises(TrainingError) as caught:
                training.train(good, out, **LEARNED)
            assert f"kept in {out}.training: " in str(caught.value) and f"`-o {out}` again" in str(caught.value)
            assert not out.exists() and (tmp_path / "b.andon.training/checkpoint.npz").is_file()
    whole = training.train(good, tmp_path / "whole.andon", **LEARNED)
    again = training.train(good, out, tell=told.append, **LEARNED)
    assert any("continuing from step 3" in sentence for sentence in told)
    assert not any(sentence.startswith("step ") for sentence in told)  # none was taken anew
    assert again.digest() == whole.digest()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.andon", "good", "whole.andon"]


def test_a_training_deletes_only_what_it_wrote(good: Path, tmp_path: Path) -> None:
    pytest.importorskip("torch")
    folder = tmp_path / "b.andon.training"
    for name in ("notes.txt", "restore/checkpoint.npz"):  # a person's; of a training with another detector
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"kept")
    for options in (LEARNED, FAST):
        training.train(good, tmp_path / "b.andon", **options)
        left = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
        assert left == ["notes.txt", "restore/checkpoint.npz"]


def test_one_training_at_a_time_writes_a_bundle(good: Path, tmp_path: Path) -> None:
    out, link = tmp_path / "v3.andon", tmp_path / "current.andon"
    link.symlink_to("v3.andon")
    with workplace.opened(out) as folder:
        for place in (out, link):
            with pytest.raises(AndonError, match=r"v3\.andon\.training: another training is writing .*Wait until"):
                training.train(good, place, **FAST)
        training.train(good, tmp_path / "other.andon", **FAST)
        assert folder.is_dir() and not out.exists()
    training.train(good, link, **FAST)
    assert link.is_symlink() and Inspector.load(out)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["current.andon", "good", "other.andon", "v3.andon"]


HOLD = "import sys, time; from pathlib import Path; from andon.training import workplace\n"
HOLD += "with workplace.opened(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"


def test_the_lock_of_a_killed_training_is_released(good: Path, tmp_path: Path) -> None:
    out = tmp_path / "b.andon"
    with subprocess.Popen([sys.executable, "-c", HOLD, str(out)], stdout=subprocess.PIPE) as holder:
        try:
            assert holder.stdout and holder.stdout.readline() == b"held\n"
            with pytest.raises(AndonError, match="another training"):
                training.train(good, out, **FAST)
        finally:
            holder.kill()
    assert (tmp_path / "b.andon.training").is_dir()
    training.train(good, out, **FAST)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.andon", "good"]


def test_a_working_folder_that_cannot_be_made_is_an_error(good: Path, tmp_path: Path) -> None:
    (tmp_path / "b.andon.training").write_text("a file")
    with pytest.raises(AndonError, match=r"training: the folder cannot be created: a file of this name exists"):
        training.train(good, tmp_path / "b.andon", **FAST)


def test_an_interrupted_training_leaves_what_was_there(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "b.andon"
    training.train(good, out, **FAST)
    before = out.read_bytes()

    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "calibrate", interrupt)
    with pytest.raises(KeyboardInterrupt):
        training.train(good, out, seed=7, **FAST)
    assert out.read_bytes() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.andon", "good"]


def test_recalibrating_on_other_good_images(bundle_file: Path, tmp_path: Path) -> None:
    for seed in range(700, 720):
        save(tmp_path / "new" / f"{seed}.png", part(seed))
    before = Bundle.load(bundle_file)
    after = calibrating.recalibrate(before, tmp_path / "new")
    assert after.graph == before.graph
    assert after.calibration.images == 20
    assert after.manifest.history[-1].endswith("calibrated on 20 good images")


@pytest.mark.parametrize(("first", "of"), [(700, part), (700, lambda seed: scratched(seed)[0]), (0, None)])
def test_recalibration_warns_when_good_images_differ_from_the_earlier_ones(
    bundle_file: Path, tmp_path: Path, first: int, of: Callable[[int], Pixels] | None
) -> None:
    for seed in range(first, first + 20):
        pixels = of(seed) if of else noise(1, 96, seed=seed)[0]  # another product
        save(tmp_path / f"{seed}.png", pixels)
    told: list[str] = []
    calibrating.recalibrate(Bundle.load(bundle_file), tmp_path, warn=told.append)
    if of is part:
        assert not told
    else:
        assert any(line.startswith("20 of 20 images differ from the previous good images (") for line in told)
        assert any(line.startswith("20 of 20 good images are above the previous review threshold") for line in told)


def test_calibration_leaves_out_what_was_learnt_and_what_is_to_test(parts: Path, tmp_path: Path) -> None:
    recipe = training.compose(parts, **FAST)
    split = recipe.model_copy(update={"split": Split(method="split")})
    bundle, told = training.train(split, tmp_path / "b.andon"), list[str]()
    assert len(bundle.manifest.learnt) == 32 and {len(name) for name in bundle.manifest.learnt} == {16}
    assert calibrating.recalibrate(bundle, parts, tell=told.append).calibration.images == 8
    assert told[0] == "calibration images in train/good (40)"
    assert told[-1] == "left out: 32 of 40 good images: the bundle was trained on them"


def test_calibration_goes_by_the_groups_of_the_recipe(tmp_path: Path) -> None:
    rows = ["path,lot"]
    for lot in range(6):
        for frame in range(2):
            save(tmp_path / "good" / f"lot{lot}_{frame}.png", part(10 * lot + frame, 64))
            save(tmp_path / "new" / f"lot{lot}_{frame}.png", part(10 * lot + frame + 100, 64))
            rows.append(f"lot{lot}_{frame}.png,{lot}")
    bundle = training.train(tmp_path / "good", tmp_path / "b.andon", groups=r"(lot\d+)", **FAST)
    found = calibrating.recalibrate(bundle, tmp_path / "new").calibration
    assert (found.images, found.parts) == (12, 6)
    (tmp_path / "lots.csv").write_text("\n".join(rows))
    bundle = training.train(tmp_path / "good", tmp_path / "b.andon", groups=tmp_path / "lots.csv", **FAST)
    with pytest.raises(DatasetError, match=r"calibrated with the groups in .*lots\.csv.*Give groups"):
        calibrating.recalibrate(bundle, tmp_path / "new")
    assert calibrating.recalibrate(bundle, tmp_path / "new", groups=tmp_path / "lots.csv").calibration.parts == 6


def test_copies_of_a_file_count_as_one_part(good: Path, tmp_path: Path) -> None:
    for i in range(9):
        (good / f"copy{i}.png").write_bytes((good / "03.png").read_bytes())
    told: list[str] = []
    bundle = training.train(good, tmp_path / "b.andon", tell=told.append, **FAST)
    assert "9 of 21 good images are copies of another file; copies count as one part" in told
    assert bundle.calibration.parts == len(bundle.manifest.learnt) == 12
    for path in good.iterdir():
        path.write_bytes((good / "03.png").read_bytes())
    with pytest.raises(DatasetError, match=r"21 good images in 1 group;.*Copies of one file"):
        training.train(good, tmp_path / "b.andon", **FAST)


def test_folders_taken_as_defects_are_reported(good: Path, tmp_path: Path) -> None:
    save(tmp_path / "lot2/a.png", part(70, 64))
    save(tmp_path / "bad/b.png", part(71, 64))
    told: list[str] = []
    training.train(tmp_path, tmp_path / "b.andon", tell=told.append, **FAST)
    assert any("left out: 2 images of defects, by the names of their folders: bad" in sentence for sentence in told)


def test_where_the_images_lie_does_not_change_the_digest(good: Path, tmp_path: Path) -> None:
    first = training.train(good, tmp_path / "a.andon", **FAST)
    good.rename(tmp_path / "else")
    data = Data(images=str(tmp_path / "else"))
    recipe = first.recipe.model_copy(update={"data": data})
    assert training.train(recipe, tmp_path / "b.andon").digest() == first.digest()


@pytest.mark.parametrize("source", [None, 5, {}, ""])
def test_a_source_that_is_none(source: Any, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="expected a folder of good images, a recipe file or a Recipe"):
        training.train(source, tmp_path / "b.andon")


def test_a_new_rate_takes_the_place_of_a_threshold(bundle_file: Path) -> None:
    bundle = calibrating.redecide(Bundle.load(bundle_file), {"reject_threshold": 3.0})
    assert bundle.recipe.decision.reject_threshold == 3.0
    bundle = calibrating.redecide(bundle, {"reject_rate": 0.02})
    assert bundle.recipe.decision.reject_threshold is None
    with pytest.raises(RecipeError, match="both review_rate and review_threshold are given"):
        calibrating.redecide(bundle, {"review_rate": 0.1, "review_threshold": 3.0})
    with pytest.raises(RecipeError, match=r"reject_rate = 0\.9 must not exceed review_rate"):
        calibrating.redecide(bundle, {"reject_rate": 0.9})


def one_image(folder: Path) -> None:
    for path in sorted(folder.iterdir())[1:]:
        path.unlink()


def no_image(folder: Path) -> None:
    for path in folder.iterdir():
        path.write_text("no picture")


def one_gray(folder: Path) -> None:
    save(folder / "gray.png", part(1, 64, channels=1))


@pytest.mark.parametrize(
    ("spoil", "options", "kind", "message"),
    [
        (one_image, {}, DatasetError, "1 "),
        (no_image, {}, DatasetError, "0 of 12 images are usable"),
        (one_gray, {}, ImageError, "all training images must have the same channels and depth"),
        (None, {"detector": "memory-banc"}, RecipeError, "Did you mean 'memory-bank'?"),
        (None, {"preset": "standart"}, RecipeError, "unknown preset 'standart'. Did you mean 'standard'?"),
        (None, {"settings": {"banks": 3}}, RecipeError, "unknown key 'banks'. Did you mean 'bank'?"),
        (None, {"size": 100}, RecipeError, "geometry.size = 100: expected a multiple of 32"),
        (None, {"seed": -1}, RecipeError, "seed = -1"),
        (None, {"groups": "("}, DatasetError, ""),
    ],
)
def test_what_cannot_be_trained_is_reported_before_anything_is_written(
    good: Path, tmp_path: Path, spoil: Any, options: dict[str, Any], kind: type[AndonError], message: str
) -> None:
    if spoil:
        spoil(good)
    with pytest.raises(kind) as caught:
        training.train(good, tmp_path / "b.andon", **{**FAST, **options})
    assert message in str(caught.value)
    assert not (tmp_path / "b.andon").exists()


@pytest.mark.parametrize(
    ("source", "message"), [("nowhere", "no such file or folder"), ("nowhere.toml", "cannot be read")]
)
def test_a_source_that_is_not_there(tmp_path: Path, source: str, message: str) -> None:
    with pytest.raises(AndonError, match=message):
        training.train(tmp_path / source, tmp_path / "b.andon")


def test_a_recipe_without_images(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="names no images"):
        training.train(Recipe(), tmp_path / "b.andon")


def test_an_output_that_cannot_be_written_is_reported_before_the_fit(good: Path, tmp_path: Path) -> None:
    with pytest.raises(AndonError, match="there is no folder"):
        training.train(good, tmp_path / "no" / "b.andon", **FAST)


def test_sizes_that_differ_and_polygons_outside_are_told(good: Path, tmp_path: Path) -> None:
    """One picture of another size turned the check of sizes off, and nothing said so."""
    save(good / "odd.png", part(1, 96))
    values: dict[str, Any] = {"data": {"images": str(good)}, "detector": {"settings": FAST["settings"]}}
    values["geometry"] = {"size": 64, "ignore": [[(500, 9), (520, 9), (520, 30)], [(0, 0), (9, 0), (9, 9)]]}
    told: list[str] = []
    bundle = training.train(Recipe.model_validate(values), tmp_path / "b.andon", warn=told.append)
    assert bundle.manifest.input.size is None
    sizes, outside = [line for line in told if "expected" in line]
    assert "12 of 64 × 64, 1 of 96 × 96 pixels; expected one size." in sizes and "odd.png)" in sizes
    assert (
        "geometry.ignore: polygon [[500.0, 9.0], [520.0, 9.0], [520.0, 30.0]] is outside the picture of 96" in outside
    )
    told.clear()
    declared = Recipe.model_validate({**values, "input": {"size": "any"}, "geometry": {"size": 64}})
    training.train(declared, tmp_path / "c.andon", warn=told.append)
    assert not [line for line in told if "expected" in line]


@pytest.mark.parametrize("seconds", [-1, 0, float("nan"), float("inf"), "9"])
def test_a_time_limit_that_is_none_is_refused(good: Path, tmp_path: Path, seconds: Any) -> None:
    with pytest.raises(AndonError, match=r"seconds = .*; expected a number of seconds above 0"):
        training.train(good, tmp_path / "b.andon", seconds=seconds, **FAST)


def test_whole_numbers_of_numpy_are_taken(good: Path) -> None:
    recipe = training.compose(good, size=np.int64(128), seed=np.uint8(3))
    assert (recipe.geometry.size, recipe.seed) == (128, 3) and type(recipe.geometry.size) is int


def test_the_input_may_be_declared(good: Path, tmp_path: Path) -> None:
    values = {"data": {"images": str(good)}, "input": {"size": "any"}, "geometry": {"size": 64}}
    recipe = Recipe.model_validate({**values, "detector": {"settings": {"bank": 100}}})
    training.train(recipe, tmp_path / "b.andon")
    assert Inspector.load(tmp_path / "b.andon").inspect(scratched(1, 128)[0]).anomaly_map.shape == (128, 128)
    gray = Recipe.model_validate({**values, "input": {"channels": 1}})
    with pytest.raises(RecipeError, match=r"input.channels = 1, but the training images have channels 3"):
        training.train(gray, tmp_path / "c.andon")
