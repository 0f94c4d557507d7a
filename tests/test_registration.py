"""Registration: a part is found wherever it lies and brought to one place; the map goes back to the picture."""

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner

from andon import Inspector, Verdict
from andon.bundle import Bundle
from andon.cli import app
from andon.data import dataset
from andon.data import reference as references
from andon.errors import BundleError, DatasetError, ImageError, RecipeError, TrainingError
from andon.evaluate import evaluating
from andon.geometry import tiling, views
from andon.geometry.registration import Matrix, NotFound, Reference, Register
from andon.geometry.views import Geometry
from andon.inspection import Pixels
from andon.pictures import image
from andon.pictures.image import Image
from andon.progress import silent
from andon.recipe import InputRule, Recipe, Split
from andon.training import calibrating
from andon.training import train as training
from conftest import save

SIDE = 192
FREE = Register(max_shift=0.4)


def posed(angle: float, shift: tuple[float, float], scale: float, shape: tuple[int, ...]) -> Matrix:
    """Turn clockwise by degrees about the middle, then shift: (2, 3), from the frame to where things go."""
    middle = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2])
    radians = np.radians(angle)
    turn = scale * np.array([[np.cos(radians), -np.sin(radians)], [np.sin(radians), np.cos(radians)]])
    return np.hstack([turn, (middle + shift - turn @ middle)[:, None]])


def moved(pixels: Pixels, matrix: Matrix) -> Any:
    size = (pixels.shape[1], pixels.shape[0])
    warped = cv2.warpAffine(pixels, matrix, size, flags=cv2.INTER_CUBIC, borderMode=cv2.BORDER_REPLICATE)
    return warped.reshape(pixels.shape)


def drawn(matrix: Matrix | None = None, seed: int = 0, channels: int = 1, depth: int = 8, contrast: float = 1.0) -> Any:
    """A plate with two holes and a notch on a shaded ground, in some pose, with fresh noise: (SIDE, SIDE, c)."""
    canvas = np.zeros((4 * SIDE, 4 * SIDE), np.float32)  # drawn large, so that edges fall between pixels
    cv2.rectangle(canvas, (200, 260), (560, 500), 150, -1)
    cv2.circle(canvas, (280, 380), 50, 40, -1)
    cv2.circle(canvas, (490, 330), 25, 220, -1)
    cv2.rectangle(canvas, (500, 460), (560, 500), 0, -1)
    pose = matrix if matrix is not None else posed(0, (0, 0), 1, (SIDE, SIDE))
    part = cv2.resize(canvas, (SIDE, SIDE), interpolation=cv2.INTER_AREA)
    part = cv2.warpAffine(part, pose, (SIDE, SIDE), flags=cv2.INTER_CUBIC)
    ground = np.linspace(50, 60, SIDE)[None, :]
    gray = 120 + contrast * (np.maximum(part, 0) + ground - 120)
    rng = np.random.default_rng(seed)
    tint = np.array([1.0, 0.9, 0.7])[:channels]
    value = gray[..., None] * tint + rng.normal(0, 1.0, (SIDE, SIDE, channels))
    top, kind = (1, np.uint8) if depth == 8 else (200, np.uint16)
    return (np.clip(value, 0, 255) * top).astype(kind)


def errors(found: Matrix, wanted: Matrix, shape: tuple[int, ...]) -> tuple[float, float]:
    """Degrees, and pixels at the middle of the reference."""
    turn = [np.degrees(np.arctan2(m[1, 0], m[0, 0])) for m in (found, wanted)]
    middle = np.array([(shape[1] - 1) / 2, (shape[0] - 1) / 2, 1])
    return abs((turn[0] - turn[1] + 180) % 360 - 180), float(np.hypot(*(found @ middle - wanted @ middle)))


def poses(seed: int, count: int, rotation: float, shift: float, shape: tuple[int, ...]) -> list[Matrix]:
    rng = np.random.default_rng(seed)
    return [
        posed(rng.uniform(-rotation, rotation), tuple(rng.uniform(-shift, shift, 2) * max(shape)), 1, shape)
        for _ in range(count)
    ]


def reference(pixels: Pixels, settings: Register = FREE) -> Reference:
    return Reference.of(Image(pixels, "reference.png"), settings)


def test_a_matrix_and_a_record_say_the_same() -> None:
    pose = posed(30, (12, -7), 1, (SIDE, SIDE))
    matrix, found = reference(drawn()).find(drawn(pose, seed=1), "part.png")
    degrees, pixels = errors(matrix, pose, (SIDE, SIDE))
    assert (degrees < 0.1, pixels < 0.1) == (True, True)
    assert found.angle == pytest.approx(30, abs=0.1)
    assert found.shift == pytest.approx((12, -7), abs=0.1)
    assert found.scale == pytest.approx(1, abs=1e-6)
    assert 0.6 < found.seen < 0.9
    assert found.quality > 0.8


@pytest.mark.parametrize(("channels", "depth"), [(1, 8), (1, 16), (3, 8), (3, 16)])
def test_any_pose_is_found_at_every_kind_of_picture(channels: int, depth: int) -> None:
    known = reference(drawn(channels=channels, depth=depth))
    wanted = poses(3, 7, 180, 0.1, (SIDE, SIDE))
    found = [known.find(drawn(m, 10 + i, channels, depth), "")[0] for i, m in enumerate(wanted)]
    off = np.array([errors(*pair, (SIDE, SIDE)) for pair in zip(found, wanted, strict=True)])
    assert np.median(off[:, 0]) < 0.2
    assert np.median(off[:, 1]) < 0.5
    assert (off < (1, 2)).all()


@pytest.mark.parametrize("hidden", [0.0, 0.2])
def test_low_texture_and_hidden_parts(hidden: float) -> None:
    """A twentieth of the contrast, so that noise is a fifth of the part's edge; or a fifth of the part painted over."""
    contrast = 0.05 if not hidden else 1.0
    known = reference(drawn(contrast=contrast))
    rng = np.random.default_rng(5)
    off = []
    for i, pose in enumerate(poses(4, 9, 180, 0.1, (SIDE, SIDE))):
        pixels = drawn(pose, 20 + i, contrast=contrast)
        side = round((90 * 60 * hidden) ** 0.5)  # the plate has 90 × 60 pixels
        x, y = np.round(pose @ (rng.uniform(60, 130), rng.uniform(70, 120), 1)).astype(int) - side // 2
        pixels[y : y + side, x : x + side] = rng.integers(0, 255)
        off.append(errors(known.find(pixels, "")[0], pose, (SIDE, SIDE)))
    assert np.median(off, axis=0)[0] < 0.2
    assert np.median(off, axis=0)[1] < 0.5


@pytest.mark.parametrize(
    ("name", "rotation", "hidden"),
    [
        ("mvtec_ad/bottle", 10, False),
        ("mvtec_ad/screw", 180, False),
        ("hazelnut_toy", 180, False),
        ("ball_screw", 10, False),
        ("mvtec_ad/screw", 180, True),
    ],
)
def test_known_poses_of_real_parts(shared_data: Path, name: str, rotation: float, hidden: bool) -> None:
    files = sorted((shared_data / name / "train/good").iterdir())
    rng = np.random.default_rng(1)
    off = []
    for i, path in enumerate(files[:: max(1, len(files) // 5)][:5]):
        pixels = image.read(path).pixels
        (pose,) = poses(i, 1, rotation, 0.06, pixels.shape)
        picture = moved(pixels, pose)
        if hidden:
            h, w = (round(length * 0.2**0.5) for length in pixels.shape[:2])
            y, x = rng.integers(0, pixels.shape[0] - h), rng.integers(0, pixels.shape[1] - w)
            picture[y : y + h, x : x + w] = rng.integers(0, 255)
        off.append(errors(reference(pixels).find(picture, "")[0], pose, pixels.shape))
    assert np.median(off, axis=0)[0] < 0.2
    assert np.median(off, axis=0)[1] < 0.5


def test_scale_is_found_where_it_is_asked_for() -> None:
    pose = posed(-50, (8, 5), 1.12, (SIDE, SIDE))
    matrix, found = reference(drawn(), Register(scale=True)).find(drawn(pose, seed=2), "")
    assert found.scale == pytest.approx(1.12, abs=0.01)
    assert errors(matrix, pose, (SIDE, SIDE)) < (0.3, 0.5)


def test_translation_alone() -> None:
    pose = posed(0, (9.5, -4.25), 1, (SIDE, SIDE))
    _, found = reference(drawn(), Register(max_rotation=0)).find(drawn(pose, seed=2), "")
    assert found.angle == 0
    assert found.shift == pytest.approx((9.5, -4.25), abs=0.1)


def test_threads_change_nothing() -> None:
    known, pixels, before = reference(drawn()), drawn(posed(77, (3, 4), 1, (SIDE, SIDE)), seed=3), cv2.getNumThreads()
    try:
        matrices = []
        for threads in (1, 2, 1, 4):
            cv2.setNumThreads(threads)
            matrices.append(known.find(pixels, "")[0])
    finally:
        cv2.setNumThreads(before)
    assert all(np.array_equal(matrix, matrices[0]) for matrix in matrices)


def ground(seed: int) -> Pixels:
    """The ground without a part."""
    rng = np.random.default_rng(seed)
    return np.clip(np.linspace(50, 60, SIDE)[None, :, None] + rng.normal(0, 1, (SIDE, SIDE, 1)), 0, 255).astype(
        np.uint8
    )


@pytest.mark.parametrize(
    ("pixels", "settings"),
    [
        (ground(1), Register()),
        (np.full((SIDE, SIDE, 1), 90, np.uint8), Register()),
        (np.random.default_rng(0).integers(0, 255, (SIDE, SIDE, 1), dtype=np.uint8), Register()),
        (drawn(posed(0, (0.8 * SIDE, 0), 1, (SIDE, SIDE))), Register()),  # nearly outside
        (drawn(posed(0, (0.35 * SIDE, 0), 1, (SIDE, SIDE))), Register(max_shift=0.1, least_quality=0.6)),
        (drawn(posed(90, (0, 0), 1, (SIDE, SIDE))), Register(max_rotation=20, least_quality=0.6)),
    ],
    ids=["no part", "flat", "noise", "outside", "too far", "too much turned"],
)
def test_a_part_that_is_not_found(pixels: Pixels, settings: Register) -> None:
    with pytest.raises(NotFound, match=r"odd.png: the part was not found: the best match .* quality") as caught:
        reference(drawn(), settings).find(pixels, "odd.png")
    assert isinstance(caught.value, ImageError)
    assert caught.value.registration.quality < 0.9


def test_a_flat_reference_is_refused() -> None:
    with pytest.raises(ImageError, match="reference is uniform"):
        reference(np.full((SIDE, SIDE, 3), 90, np.uint8))


@pytest.mark.parametrize("shape", [(SIDE, 6 * SIDE), (SIDE, 8), (5 * SIDE, 5 * SIDE)])
def test_pictures_of_impossible_sizes_are_refused(shape: tuple[int, int]) -> None:
    with pytest.raises(ImageError, match="cannot be registered"):
        reference(drawn()).find(np.zeros((*shape, 1), np.uint8), "odd.png")


def test_a_picture_of_another_size_and_a_long_one() -> None:
    canvas = np.full((250, 400, 1), 55, np.uint8)
    canvas[30 : 30 + SIDE, 120 : 120 + SIDE] = drawn(seed=1)
    matrix, _ = reference(drawn()).find(canvas, "")
    assert matrix[:, 2] == pytest.approx((120, 30), abs=0.3)


def registered(settings: dict[str, Any], pixels: Pixels, known: Reference) -> tuple[views.View, NDArray[Any]]:
    """The view, and the picture's own first channel as the map that comes back."""
    chosen = Geometry.model_validate({"size": 192, "registration": FREE, **settings})
    view = views.align(pixels, chosen, "test", known)
    maps = ((place, tile[..., 0].astype(np.float32)) for place, tile in tiling.split(view, chosen))
    return view, tiling.join(view, maps)


@pytest.mark.parametrize("tiles", [{}, {"size": 96, "tiles": True, "overlap": 16}])
def test_the_view_shows_the_part_in_its_place_and_the_map_comes_back(tiles: dict[str, Any]) -> None:
    pose = posed(-35, (10, 6), 1, (SIDE, SIDE))
    pixels = drawn(pose, seed=4)
    view, joined = registered(tiles, pixels, reference(drawn()))
    inner = np.s_[70:120, 60:130]  # the part, which is seen whole
    assert np.abs(view.pixels[inner].astype(float) - drawn(seed=9)[inner]).mean() < 3
    assert joined.shape == (SIDE, SIDE)
    known = np.isfinite(joined)
    assert 0.6 < known.mean() < 0.99
    assert np.abs(joined - pixels[..., 0])[known].mean() < 2
    corners = cv2.transform(np.array([[[0, 0], [SIDE - 1, 0], [SIDE - 1, SIDE - 1], [0, SIDE - 1]]], float), pose)
    frame = np.zeros((SIDE, SIDE), np.uint8)
    cv2.fillConvexPoly(frame, np.round(corners).astype(np.int32), 1)
    assert (known != frame.astype(bool)).mean() < 0.02  # only what lies in the reference's frame was inspected


def test_beyond_the_picture_the_view_shows_the_reference() -> None:
    known = reference(drawn())
    pixels = drawn(posed(0, (40, 0), 1, (SIDE, SIDE)), seed=4)
    both = np.concatenate([pixels, np.full_like(pixels, 255)], axis=2)  # as masks of defects travel
    chosen = Geometry(registration=FREE)
    view = views.align(both, chosen, "test", known)
    right = np.s_[:, SIDE - 38 :]  # shifted to the right by 40 pixels, the picture ends there
    assert np.array_equal(view.pixels[right][..., 0], drawn()[right][..., 0])
    assert not view.pixels[right][..., 1].any()
    assert view.pixels[:, : SIDE - 42, 1].all()


def test_parts_that_lie_farther_out_raise_no_false_alarm(tmp_path: Path) -> None:
    training.train(recipe(folder_of(tmp_path / "good", 40)), tmp_path / "part.andon")
    inspector = Inspector.load(tmp_path / "part.andon")
    found = [inspector.inspect(drawn(m, 900 + i)) for i, m in enumerate(poses(9, 20, 180, 0.2, (SIDE, SIDE)))]
    assert min(f.registration.seen for f in found if f.registration) < 0.75
    assert sum(f.verdict is Verdict.PASS for f in found) >= 17


def test_crop_and_polygons_move_with_the_part() -> None:
    pose = posed(90, (20, 0), 1, (SIDE, SIDE))
    hole = [[55, 80], [85, 80], [85, 110], [55, 110]]  # around the larger hole, in the reference
    view, joined = registered({"crop": (40, 50, 120, 90), "ignore": [hole]}, drawn(pose, seed=4), reference(drawn()))
    assert view.pixels.shape[:2] == (90, 120)
    x, y = (round(value) for value in pose @ (70, 95, 1))
    assert np.isnan(joined[y, x])
    x, y = (round(value) for value in pose @ (110, 95, 1))
    assert np.isfinite(joined[y, x])
    assert np.isfinite(joined).sum() == pytest.approx(120 * 90 - 31 * 31, rel=0.03)
    with pytest.raises(ImageError, match="needs 220×220"):
        registered({"crop": (100, 100, 120, 120)}, drawn(seed=1), reference(drawn()))


def test_nothing_of_the_inspected_area_in_the_picture() -> None:
    pixels = drawn(posed(0, (45, 0), 1, (SIDE, SIDE)), seed=4)
    with pytest.raises(NotFound, match="the inspected area of the part is outside the picture"):
        registered({"crop": (170, 0, 20, 192)}, pixels, reference(drawn()))


def test_geometry_and_reference_belong_together() -> None:
    with pytest.raises(ValueError, match="a reference is needed"):
        views.align(drawn(), Geometry(registration=FREE), "test")
    with pytest.raises(ValueError, match="a reference is needed"):
        views.align(drawn(), Geometry(), "test", reference(drawn()))


def folder_of(root: Path, count: int, seed: int = 0) -> Path:
    for i, pose in enumerate(poses(seed, count, 180, 0.06, (SIDE, SIDE))):
        save(root / f"{i:02}.png", drawn(pose, 100 * seed + i))
    return root


def recipe(images: Path, **registration: Any) -> Recipe:
    return Recipe.model_validate(
        {
            "data": {"images": str(images)},
            "geometry": {"size": 96, "registration": registration},
            "detector": {"name": "variation"},
            "decision": {"review_rate": 0.06, "reject_rate": 0.06},
            "split": {"method": "split"},
        }
    )


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    root = tmp_path_factory.mktemp("registered")
    told: list[str] = []
    crossed = recipe(folder_of(root / "good", 20)).model_copy(update={"split": Split()})
    training.train(crossed, root / "part.andon", tell=told.append)
    return root / "part.andon", told


def test_a_bundle_carries_its_reference(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    path, told = trained
    bundle = Bundle.load(path)
    name = bundle.manifest.data["reference"]
    assert image.read(bundle.reference).pixels.shape == (SIDE, SIDE, 1)
    assert any(s.startswith(f"registered to {name}: 20 good images, quality 0.") and "ms each" in s for s in told)
    assert "reference.png" in bundle.manifest.digests
    settings = bundle.recipe.geometry.registration
    assert settings is not None
    assert settings.least_quality is not None
    assert 0.5 < settings.least_quality < 0.8  # spelled out: below what the good images reach
    assert bundle.digest() == Bundle.load(path).digest() != Bundle(**{**vars(bundle), "reference": b"other"}).digest()
    shown = CliRunner().invoke(app, ["show", str(path)]).output
    assert f"reference: {name}" in shown
    Bundle(**{**vars(bundle), "reference": b""}).save(tmp_path / "without.andon")
    with pytest.raises(BundleError, match=r"lacks its reference\.png, although its recipe uses registration"):
        Bundle.load(tmp_path / "without.andon")
    Bundle(**{**vars(bundle), "reference": bundle.reference[:99]}).save(tmp_path / "cut.andon")
    with pytest.raises(BundleError, match="reference is not usable"):
        Inspector.load(tmp_path / "cut.andon")


def test_a_defect_is_shown_where_it_is_in_the_picture(trained: tuple[Path, list[str]]) -> None:
    inspector = Inspector.load(trained[0])
    pose = posed(140, (-9, 8), 1, (SIDE, SIDE))
    pixels = drawn(pose, seed=70)
    assert inspector.inspect(pixels).verdict is not Verdict.INVALID
    x, y = (round(value) for value in pose @ (100, 100, 1))
    cv2.circle(pixels, (x, y), 6, 255, -1)
    found = inspector.inspect(pixels)
    assert found.verdict is Verdict.REJECT
    assert np.hypot(found.regions[0].peak_at[0] - x, found.regions[0].peak_at[1] - y) < 9
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert set(record["registration"]) == {"quality", "angle", "shift", "scale", "seen", "milliseconds"}


def test_no_part_no_verdict(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    inspector = Inspector.load(trained[0])
    found = inspector.inspect(ground(3), name="empty.png")
    assert found.verdict is Verdict.INVALID
    assert np.isnan(found.anomaly_map).all()
    assert "empty.png: the part was not found" in found.notes[0]
    record = json.loads(json.dumps(found.record(), allow_nan=False))
    assert (record["verdict"], record["score"], record["p_value"], record["regions"]) == ("INVALID", None, None, [])
    folder_of(tmp_path / "set/test/good", 3, seed=5)
    save(tmp_path / "set/test/good/empty.png", ground(4))
    spoilt = drawn(seed=6)
    spoilt[80:110, 90:120] = 0
    save(tmp_path / "set/test/hole/00.png", spoilt)
    figures = evaluating.evaluate(inspector, dataset.load(tmp_path / "set")).metrics
    assert figures["data"]["not_found"] == {"good": 1, "defective": 0}
    assert figures["image"]["n_good"] == 3
    arguments = ["inspect", str(trained[0]), str(tmp_path / "set/test/good"), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0
    assert "INVALID" in done.output
    assert "1 INVALID" in done.output.splitlines()[-1]
    assert len(list((tmp_path / "out/overlays").rglob("*.png"))) == 4


def test_recalibrating_registers_too(trained: tuple[Path, list[str]], tmp_path: Path) -> None:
    bundle = Bundle.load(trained[0])
    save(tmp_path / "new/empty.png", ground(5))
    warned: list[str] = []
    after = calibrating.recalibrate(bundle, folder_of(tmp_path / "new", 6, seed=6), warn=warned.append)
    assert after.calibration.images == 6
    assert after.reference == bundle.reference
    assert any("empty.png: the part was not found" in sentence for sentence in warned)


def test_a_reference_is_learnt_from_and_not_calibrated_on(tmp_path: Path) -> None:
    good = folder_of(tmp_path / "good", 8)
    learnt, held_out = dataset.split_good(dataset.load(good).training_images(), 0.2, 0)
    assert len(held_out) == 2
    for sample, left in ((learnt[0], 2), (held_out[0], 1)):
        bundle = training.train(recipe(good, reference=str(sample.path)), tmp_path / "part.andon")
        assert bundle.manifest.data["reference"] == sample.path.name
        assert bundle.calibration.images == left
        assert sample.path.name not in bundle.calibration.names
    crossed = recipe(good, reference=str(sample.path)).model_copy(update={"split": Split()})
    bundle = training.train(crossed, tmp_path / "part.andon")
    assert set(bundle.calibration.names) == {path.name for path in good.iterdir()} - {sample.path.name}


def test_a_reference_has_the_light_and_the_range_of_the_training_images(tmp_path: Path) -> None:
    """12-bit pictures, some twice as bright: the reference fills what lies beyond a picture, so it looks the same."""
    for i, pose in enumerate(poses(3, 12, 0, 0.06, (SIDE, SIDE))):
        dim = drawn(pose, i).astype(np.uint16) * (8 if i % 2 else 4)
        save(tmp_path / "good" / f"{i:02}.tif", dim)
    light = recipe(tmp_path / "good").model_copy(update={"input": InputRule(light="gain", maximum=4095)})
    inspector = Inspector(training.train(light, tmp_path / "part.andon"))
    assert inspector.reference is not None
    seen = [inspector.read(path).pixels.mean() for path in sorted((tmp_path / "good").iterdir())]
    assert inspector.reference._pixels.mean() == pytest.approx(np.median(seen), rel=0.1)
    assert inspector.manifest.data["reference"] not in inspector.calibration.names


def test_the_smallest_region_is_measured_in_the_frame_of_the_reference(trained: tuple[Path, list[str]]) -> None:
    inspector = Inspector.load(trained[0])
    assert inspector.min_area((SIDE, SIDE)) == inspector.min_area((2 * SIDE, 2 * SIDE)) > 1


def test_a_recipe_names_a_reference_beside_it(tmp_path: Path) -> None:
    folder_of(tmp_path / "good", 6)
    save(tmp_path / "golden.png", drawn())
    text = '[data]\nimages = "good"\n[geometry]\nsize = 96\n[geometry.registration]\nreference = "golden.png"\n'
    (tmp_path / "part.toml").write_text(text + '[detector]\nname = "variation"\n')
    bundle = training.train(tmp_path / "part.toml", tmp_path / "part.andon")
    assert np.array_equal(image.read(bundle.reference).pixels, drawn())
    assert bundle.recipe.geometry.registration is not None
    assert "registration" in Recipe.parse(bundle.recipe.dump(), "again").dump()
    elsewhere = bundle.recipe.without_paths()
    assert elsewhere.geometry.registration is not None
    assert elsewhere.geometry.registration.reference == ""


@pytest.mark.parametrize("what", ["missing", "cut", "flat", "colour"])
def test_a_reference_that_cannot_be_used(tmp_path: Path, what: str) -> None:
    good, path = folder_of(tmp_path / "good", 6), tmp_path / "golden.png"
    if what == "cut":
        path.write_bytes(image.png(drawn())[:500])
    elif what != "missing":
        save(path, drawn(channels=3) if what == "colour" else np.full((SIDE, SIDE, 1), 9, np.uint8))
    reasons = {"missing": "no such file", "cut": "", "flat": "reference is uniform", "colour": "8-bit colour images"}
    with pytest.raises(RecipeError, match=rf"geometry.registration.reference: .*golden.png.*{reasons[what]}"):
        training.train(recipe(good, reference=str(path)), tmp_path / "part.andon")
    assert not (tmp_path / "part.andon").exists()


def test_a_reference_that_resembles_nothing(tmp_path: Path) -> None:
    good = folder_of(tmp_path / "good", 8)
    other = np.full((SIDE, SIDE, 1), 40, np.uint8)
    for x in range(10, SIDE, 24):
        cv2.circle(other, (x, (x * 7) % SIDE), 9, 200, -1)
    save(tmp_path / "other.png", other)
    with pytest.raises(
        TrainingError, match=r"only 0 of 8 good images could be registered to the reference .*other.png"
    ):
        training.train(recipe(good, reference=str(tmp_path / "other.png")), tmp_path / "part.andon")


@pytest.mark.parametrize(
    ("spoilt", "least"), [("for the fit", None), ("for the fit", 0.4), ("for calibration", None), ("reference", None)]
)
def test_a_side_without_registered_parts_is_an_error_before_the_fit(
    tmp_path: Path, spoilt: str, least: float | None
) -> None:
    good = folder_of(tmp_path / "good", 4)
    sides = dataset.split_good(dataset.load(good).training_images(), 0.5 if spoilt != "reference" else 0.2, 0)
    side = sides[0] if spoilt == "for the fit" else sides[1]
    golden = save(tmp_path / "golden.png", drawn())
    if spoilt == "reference":
        golden, spoilt = side[0].path, "for calibration, not counting the reference"
    else:
        for i, sample in enumerate(side):
            save(sample.path, ground(20 + i))
    asked = recipe(good, reference=str(golden), least_quality=least)
    asked = asked.model_copy(update={"split": asked.split.model_copy(update={"calibrate": len(sides[1]) / 4})})
    told: list[str] = []
    with pytest.raises(DatasetError) as caught:
        training.train(asked, tmp_path / "part.andon", tell=told.append)
    fit = 4 if "reference" in spoilt else 2
    assert f"{fit} of 4 good images could be registered to the reference {golden.as_posix()}" in str(caught.value)
    assert f"none of the {len(side)} {spoilt}" in str(caught.value) and side[0].path.as_posix() in str(caught.value)
    assert not any("expected to take" in sentence for sentence in told)


def test_good_images_that_show_nothing_give_no_reference(tmp_path: Path) -> None:
    paths = [save(tmp_path / f"{i}.png", np.full((SIDE, SIDE, 1), 90 + i, np.uint8)) for i in range(3)]
    with pytest.raises(DatasetError, match="the good images are not usable for registration") as caught:
        references.choose({path: image.read(path).digest for path in paths}, Register(), image.read_again, silent)
    assert "Use another picture" not in str(caught.value) and "remove geometry.registration" in str(caught.value)


def test_good_images_without_a_part_are_left_out(tmp_path: Path) -> None:
    good = folder_of(tmp_path / "good", 8)
    save(good / "empty.png", ground(7))
    warned: list[str] = []
    bundle = training.train(recipe(good), tmp_path / "part.andon", warn=warned.append)
    assert bundle.manifest.data["left_out"] == 1
    assert any("empty.png: the part was not found" in sentence for sentence in warned)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("max_rotations", 10, "unknown key 'max_rotations'. Did you mean 'max_rotation'"),
        ("max_rotation", 181, "geometry.registration.max_rotation = 181"),
        ("max_shift", 0.6, "geometry.registration.max_shift = 0.6"),
        ("least_quality", -1, "geometry.registration.least_quality = -1"),
        ("scale", 2, "geometry.registration.scale = 2"),
    ],
)
def test_impossible_settings_are_refused(key: str, value: Any, message: str) -> None:
    with pytest.raises(RecipeError) as caught:
        Recipe.parse(f"[geometry.registration]\n{key} = {value}\n", "part.toml")
    assert message in str(caught.value)


def test_without_the_section_nothing_is_registered(bundle_file: Path) -> None:
    bundle = Bundle.load(bundle_file)
    assert bundle.load_reference() is None
    assert "registration" not in bundle.recipe.dump()
    assert Inspector.load(bundle_file).inspect(np.zeros((96, 96, 3), np.uint8)).record()["registration"] is None
