"""`andon export`: graph, specification and examples say what `Inspector` says, or the bundle is refused."""

import json
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import spox.opset.ai.onnx.v17 as op
from spox import build

from andon import files
from andon.bundle import Bundle
from andon.calibration import Calibration
from andon.engines import runtime
from andon.errors import AndonError, BundleError, ImageError
from andon.export.exporting import export
from andon.geometry import regions
from andon.geometry.registration import Register
from andon.geometry.views import Geometry, embedded
from andon.graphs.parts import input_tiles
from andon.inspection import Inspection, Pixels, Verdict
from andon.inspector import Inspector
from andon.pictures import image, light
from andon.pictures.image import Input
from andon.recipe import Decision, InputRule
from andon.training import train as training
from conftest import part, save, scratched

FILES = {"graph.onnx", "spec.json", "example.mjs", "example.cpp"}
PACKAGES = (
    "onnxruntime-node@1.30.0",
    "pngjs@7.0.0",
    "com.github.asus4.onnxruntime@0.4.9",  # of the whole registry this one has ONNX Runtime's headers for C++
)


class Exported:
    """An export, and the inspector of the same bundle."""

    def __init__(self, bundle: Bundle, folder: Path, size: tuple[int, int] | None = None) -> None:
        export(bundle, folder, size)
        self.folder, self.inspector = folder, Inspector(bundle)
        self.spec = json.loads((folder / "spec.json").read_text())
        self.session = runtime.session((folder / "graph.onnx").read_bytes())

    def run(self, pixels: Pixels) -> tuple[float, float, str, Any]:
        score, p_value, verdict, values = self.session.run(
            self.spec["graph"]["outputs"], {self.spec["input"]["name"]: pixels}
        )
        return float(score), float(p_value), self.spec["verdict"]["values"][int(verdict)], values

    def agree(self, pixels: Pixels) -> Inspection:
        """Inspect in both ways; all that they say is the same."""
        inspection = self.inspector.inspect(pixels)
        score, p_value, verdict, values = self.run(pixels)
        assert score == pytest.approx(inspection.score, rel=1e-6, nan_ok=True)
        assert p_value == pytest.approx(inspection.p_value, nan_ok=True)
        assert verdict == inspection.verdict
        np.testing.assert_allclose(values, inspection.map.values, rtol=1e-4, atol=1e-4)  # type: ignore[attr-defined]
        return inspection


def changed(file: Path, decision: Decision | None = None, rule: InputRule | None = None, **geometry: Any) -> Bundle:
    """Return the bundle with another geometry, decision or rule of the input, for images of any size."""
    bundle = Bundle.load(file)
    recipe = bundle.recipe.model_copy(
        update={
            "geometry": Geometry.model_validate({"size": 96, **geometry}),
            "decision": decision or bundle.recipe.decision,
            "input": rule or bundle.recipe.input,
        }
    )
    manifest = bundle.manifest.model_copy(update={"input": bundle.manifest.input.model_copy(update={"size": None})})
    return replace(bundle, recipe=recipe, manifest=manifest)


def of_graph(bundle_file: Path, taken: Input, score: Any, pixel: Any, side: int = 64) -> Bundle:
    """Return the bundle with a graph of a few operators on its tiles (1, side, side, c), as float32."""
    bundle = changed(bundle_file, size=side)
    tiles = input_tiles((side, side), taken.channels, taken.depth)
    values = op.cast(tiles, to=np.float32)
    model = build({"tiles": tiles}, {"score": score(values), "map": pixel(values)})
    manifest = bundle.manifest.model_copy(update={"input": taken})
    calibration = bundle.calibration.model_copy(update={"appearance": None})
    return replace(bundle, graph=model.SerializeToString(), manifest=manifest, calibration=calibration)


def brightness(values: Any) -> Any:
    return op.reduce_mean(values, axes=(1, 2, 3), keepdims=0)


def channel(values: Any) -> Any:
    return op.reduce_mean(values, axes=(3,), keepdims=0)


@pytest.mark.parametrize("size", [(96, 96), (70, 70), (192, 192), (288, 96), (333, 250), (60, 333), (240, 120)])
@pytest.mark.parametrize(
    "geometry",
    [
        {},
        {"aspect": "keep"},
        {"crop": [3, 5, 57, 41]},
        {"include": [[[5, 5], [64.5, 8], [40, 66]]], "ignore": [[[20, 20], [30, 20], [30, 34.5]]]},
    ],
    ids=["stretched", "keep", "cropped", "polygons"],
)
def test_the_graph_says_what_the_inspector_says(
    bundle_file: Path, tmp_path: Path, geometry: dict[str, Any], size: tuple[int, int]
) -> None:
    exported = Exported(changed(bundle_file, small_region=True, **geometry), tmp_path / "out", size)
    pixels = cv2.resize(part(500, 96), size, interpolation=cv2.INTER_CUBIC)
    assert exported.agree(pixels).score != exported.agree(pixels[::-1, ::-1].copy()).score


@pytest.mark.parametrize("depth, maximum", [(8, None), (16, None), (16, 4095)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (128, 128), (150, 110), (40, 50), (40, 150)])
def test_every_pixel_is_resized_as_by_andon(
    bundle_file: Path, tmp_path: Path, size: tuple[int, int], channels: Any, depth: Any, maximum: Any
) -> None:
    bundle = of_graph(bundle_file, Input(channels=channels, depth=depth, maximum=maximum), brightness, channel)
    exported = Exported(bundle, tmp_path / "out", size)
    top = maximum or 2**depth - 1
    shape = (size[1], size[0], channels)
    pixels = np.random.default_rng(1).integers(0, top + 1, shape).astype(np.uint8 if depth == 8 else np.uint16)
    _, _, _, values = exported.run(pixels)
    difference = np.abs(values - exported.inspector.inspect(pixels).map.values)  # type: ignore[attr-defined]
    if min(size) >= 64:
        assert not difference.any()
    assert difference.max() <= 1
    assert np.mean(difference > 1e-5 * 2**depth) < 0.001  # where a side grows, a few are rounded otherwise
    if maximum:
        with pytest.raises(Exception, match="out of data bounds"):
            exported.run(np.full_like(pixels, maximum + 1))


def test_it_reads_the_picture_of_a_region(bundle_file: Path, tmp_path: Path) -> None:
    area = save(tmp_path / "area.png", (part(1, channels=1) > 128) * np.uint8(255))
    exported = Exported(changed(bundle_file, region=embedded(area)), tmp_path / "out", (96, 96))
    exported.agree(part(500))
    assert np.isnan(exported.run(part(500))[3]).any()
    assert 0 < exported.spec["geometry"]["region"]["inspected"] < 1


@pytest.mark.parametrize(
    "decision",
    [
        Decision(),
        Decision(review_rate=0.2, reject_rate=0.1, pixel_rate=0.3),
        Decision(review_rate=0.2, reject_rate=0.1, per="part"),
        Decision(review_threshold=10, reject_threshold=20, min_area=7),
    ],
    ids=["no REJECT", "rates", "per part", "by hand"],
)
@pytest.mark.parametrize("frames", [1, 3])
def test_thresholds_and_p_values_are_in_the_graph(
    bundle_file: Path, tmp_path: Path, decision: Decision, frames: int
) -> None:
    bundle = changed(bundle_file, decision)
    parts = [number // frames for number in bundle.calibration.part]
    calibration = Calibration(**{**bundle.calibration.model_dump(), "part": parts})
    exported = Exported(replace(bundle, calibration=calibration), tmp_path / "out", (96, 96))
    spec, found = exported.spec, [exported.agree(part(seed)) for seed in range(500, 508)]
    found.append(exported.agree(scratched(501)[0]))
    assert len({inspection.p_value for inspection in found}) > 2
    assert spec["thresholds"] == files.finite(exported.inspector.thresholds._asdict())
    assert spec["regions"]["min_area"] == exported.inspector.min_area((96, 96))
    p = spec["p_value"]
    for inspection in found:
        above = sum(w for s, w in zip(p["scores"], p["weights"], strict=True) if s >= inspection.score)
        assert (1 + above) / (1 + p["parts"]) == pytest.approx(inspection.p_value)


def test_a_score_on_a_threshold_does_not_cross_it(bundle_file: Path, tmp_path: Path) -> None:
    decision = Decision(review_threshold=100, reject_threshold=200)
    bundle = of_graph(bundle_file, Input(channels=3, depth=8), brightness, channel)
    bundle = replace(bundle, recipe=bundle.recipe.model_copy(update={"decision": decision}))
    exported = Exported(bundle, tmp_path / "out", (64, 64))
    verdicts = [exported.agree(np.full((64, 64, 3), level, np.uint8)).verdict for level in (99, 100, 101, 200, 201)]
    assert verdicts == [Verdict.PASS, Verdict.PASS, Verdict.REVIEW, Verdict.REVIEW, Verdict.REJECT]


@pytest.mark.parametrize("strange", ["score", "map"])
def test_what_is_not_a_number_is_rejected(bundle_file: Path, tmp_path: Path, strange: str) -> None:
    def infinite(plain: Any) -> Any:  # for a black pixel
        return lambda values: plain(op.div(op.const(np.float32(1)), values))

    ways = {"score": brightness, "map": channel} | {strange: infinite({"score": brightness, "map": channel}[strange])}
    bundle = of_graph(bundle_file, Input(channels=1, depth=8), ways["score"], ways["map"])
    decision = Decision(review_threshold=1e6, reject_threshold=1e7)
    bundle = replace(bundle, recipe=bundle.recipe.model_copy(update={"decision": decision}))
    exported = Exported(bundle, tmp_path / "out", (64, 64))
    pixels = np.full((64, 64, 1), 100, np.uint8)
    assert exported.agree(pixels).verdict == "PASS"
    pixels[5, 5] = 0
    score, p_value, verdict, _ = exported.run(pixels)
    inspection = exported.inspector.inspect(pixels)
    assert verdict == inspection.verdict == "REJECT"
    assert np.isnan([score, inspection.score, p_value, inspection.p_value]).all()


def test_regions_follow_from_map_and_specification(bundle_file: Path, tmp_path: Path) -> None:
    ignore = [[[0, 0], [90, 0], [90, 30], [0, 30]]]
    exported = Exported(changed(bundle_file, crop=[8, 4, 160, 180], ignore=ignore), tmp_path / "out", (192, 192))
    pixels, spec = scratched(501, 192)[0], exported.spec
    rule, lies = spec["regions"], np.array(spec["geometry"]["map"]["to_picture"])
    *_, values = exported.run(pixels)
    assert list(values.shape) == spec["geometry"]["map"]["shape"]
    found, unlisted = regions.find(values, rule["threshold"], rule["min_area"], lies, (192, 192))
    inspection = exported.inspector.inspect(pixels)
    assert [each.box for each in found] == [each.box for each in inspection.regions] != []
    assert unlisted == inspection.removed_regions


def test_the_folder_is_whole_and_the_same_each_time(bundle_file: Path, tmp_path: Path) -> None:
    bundle = Bundle.load(bundle_file)
    export(bundle, tmp_path / "new" / "one")
    (tmp_path / "two").mkdir()
    export(bundle, tmp_path / "two")
    (tmp_path / "two" / "ours.txt").write_text("kept")
    export(bundle, tmp_path / "two")
    one, two = ({p.name: p.read_bytes() for p in (tmp_path / name).iterdir()} for name in ("new/one", "two"))
    assert two.pop("ours.txt") == b"kept"
    assert one == two and set(one) == FILES
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []
    spec = json.loads(one["spec.json"])
    assert (spec["kind"], spec["version"], spec["bundle"]) == ("andon export", 1, bundle.digest())
    assert spec["graph"]["sha256"] == files.digest(one["graph.onnx"])
    assert spec["input"]["shape"] == [96, 96, 3]
    usual = bundle.calibration.appearance
    assert usual and spec["unusual"]["ranges"]["mean"] == [usual.mean.least, usual.mean.most]


def test_a_write_that_fails_leaves_what_was_there(
    bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, write = Bundle.load(bundle_file), files.write
    export(bundle, tmp_path / "old")
    before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "old").iterdir()}

    def interrupted(path: Path, data: bytes) -> None:
        if path.name == "spec.json":
            raise KeyboardInterrupt
        write(path, data)

    monkeypatch.setattr(files, "write", interrupted)
    for name in ("old", "new"):
        with pytest.raises(KeyboardInterrupt):
            export(bundle, tmp_path / name)
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert {path.name: path.stat().st_mtime_ns for path in (tmp_path / "old").iterdir()} == before


@pytest.mark.parametrize(
    "content, match",
    [
        ({"photo.png": b"x"}, "contains photo.png and is not an export"),
        ({"spec.json": b'{"kind": "other"}'}, "is not an export"),
        ({"spec.json": b"[1, 2"}, "spec.json is not JSON"),
        ({"spec.json": b"\xff\xfe"}, "spec.json is not JSON"),
        ({"spec.json": b"[]", "graph.onnx": b""}, "is not an export"),
    ],
)
def test_a_folder_of_something_else_is_refused(
    bundle_file: Path, tmp_path: Path, content: dict[str, bytes], match: str
) -> None:
    for name, data in content.items():
        (tmp_path / name).write_bytes(data)
    with pytest.raises(AndonError, match=match):
        export(Bundle.load(bundle_file), tmp_path)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == content


def test_a_path_that_is_not_a_folder_is_refused(bundle_file: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    places = {"file": "a file is in the place", "file/below": "a file of this name exists", "x" * 300: "name too long"}
    for place, match in places.items():
        with pytest.raises(AndonError, match=match):
            export(Bundle.load(bundle_file), tmp_path / place)
    export(Bundle.load(bundle_file), tmp_path / "out")
    (tmp_path / "out" / "example.cpp").unlink()
    (tmp_path / "out" / "example.cpp" / "deep").mkdir(parents=True)
    with pytest.raises(AndonError, match=r"out: the export cannot be written: is a directory"):
        export(Bundle.load(bundle_file), tmp_path / "out")


def test_what_the_graph_cannot_say_is_refused(bundle_file: Path, tmp_path: Path) -> None:
    plain = changed(bundle_file)
    lit = light.Light.learn("gain", [light.grid(part(1))])
    refused = {
        "geometry.tiles": changed(bundle_file, tiles=True),
        "geometry.registration": changed(bundle_file, registration=Register()),
        "input.light": replace(
            plain,
            manifest=plain.manifest.model_copy(
                update={"input": plain.manifest.input.model_copy(update={"light": lit})}
            ),
        ),
        "input.unusual": changed(bundle_file, rule=InputRule(unusual="invalid")),
    }
    for setting, bundle in refused.items():
        with pytest.raises(BundleError, match=f"cannot be exported: .*{setting}.* Inspect with andon"):
            export(bundle, tmp_path / "out", (96, 96))
    with pytest.raises(BundleError, match=r"any size.*--size WIDTHxHEIGHT"):
        export(plain, tmp_path / "out")
    with pytest.raises(BundleError, match=r"90 × 96 pixels were asked for.*takes 96 × 96 only"):
        export(Bundle.load(bundle_file), tmp_path / "out", (90, 96))
    with pytest.raises(ImageError, match=r"a picture of 40×40: .*crop \[0, 0, 60, 60\]"):
        export(changed(bundle_file, crop=[0, 0, 60, 60]), tmp_path / "out", (40, 40))
    assert not (tmp_path / "out").exists()


def test_a_graph_that_says_something_else_is_not_written(
    bundle_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    resize = cv2.resize
    monkeypatch.setattr(cv2, "resize", lambda *a, **k: resize(*a, **k | {"interpolation": cv2.INTER_NEAREST}))
    with pytest.raises(AndonError, match=r"the exported graph gives a trial picture .* Nothing was written"):
        export(changed(bundle_file), tmp_path / "out", (250, 200))
    assert not (tmp_path / "out").exists()


def test_the_command(bundle_file: Path, tmp_path: Path) -> None:
    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "andon", "export", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)

    done = call(bundle_file, "out", "--size", "96x96")
    assert (done.returncode, done.stderr) == (0, "wrote out\n")
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    bundle = Bundle.load(bundle_file)
    taken = bundle.manifest.input.model_copy(update={"reduced": 2, "size": (192, 192)})
    replace(bundle, manifest=bundle.manifest.model_copy(update={"input": taken})).save(tmp_path / "jpeg.andon")
    done = call("jpeg.andon", "out")
    assert done.returncode == 0 and "at 1/2 of their sides" in done.stderr
    assert json.loads((tmp_path / "out/spec.json").read_text())["input"]["jpeg_reduced"] == 2
    for size in ("96", "96x", "-1x5", "0x0", "axb"):
        done = call(bundle_file, "other", "--size", size)
        assert done.returncode == 2 and size in done.stderr.replace(" × ", "x")
    done = call(tmp_path / "none.andon", "other")
    assert done.returncode == 2 and "none.andon: cannot be read" in done.stderr
    assert not (tmp_path / "other").exists()


@pytest.fixture(scope="session")
def packages(request: pytest.FixtureRequest) -> Path:
    """The folder node_modules of the packages from npm, kept between runs."""
    if not (shutil.which("npm") and shutil.which("node")):
        pytest.skip("node and npm are not installed")
    folder = Path(request.config.cache.mkdir("export"))  # type: ignore[union-attr]
    modules, done = folder / "node_modules", folder / "installed.txt"
    if not done.exists() or done.read_text() != " ".join(PACKAGES):
        command = ["npm", "install", "--prefix", folder, "--ignore-scripts", "--no-audit", "--no-fund", *PACKAGES]
        installed = subprocess.run(command, capture_output=True, text=True)
        if installed.returncode:
            pytest.skip(f"npm cannot install {', '.join(PACKAGES)}: {installed.stderr.strip()[-200:]}")
        done.write_text(" ".join(PACKAGES))
    return modules


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A bundle of photographs of hazelnuts where these are at hand, else of generated parts; cropped and shrunk."""
    data = Path(__file__).parents[2] / "shared" / "data" / "hazelnut_toy"
    folder = tmp_path_factory.mktemp("real")
    if not data.is_dir():
        data = folder / "rings"
        for seed in range(30):
            save(data / "train/good" / f"{seed:03}.png", part(seed, 512))
        for seed in range(100, 104):
            save(data / "test/good" / f"{seed:03}.png", part(seed, 512))
            save(data / "test/scratch" / f"{seed:03}.png", scratched(seed, 512)[0])
    recipe = training.compose(data, size=128, settings={"bank": 1200})  # more than are searched whole
    geometry = recipe.geometry.model_copy(update={"crop": (20, 4, 471, 500)})
    bundle = training.train(recipe.model_copy(update={"geometry": geometry}), folder / "real.andon")
    for path in sorted((data / "test").glob("*/*"))[::2]:
        if image.shape(path) == (512, 512):
            save(folder / "pictures" / f"{path.parent.name}-{path.stem}.png", image.read(path).pixels)
    exported = Exported(bundle, folder / "out", (512, 512))
    exported.folder = folder
    return exported


def lines(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_the_example_in_javascript_gives_the_verdicts_of_andon(real: Exported, packages: Path) -> None:
    (real.folder / "out" / "node_modules").symlink_to(packages)
    pictures = sorted((real.folder / "pictures").iterdir())
    command = ["node", real.folder / "out" / "example.mjs", *pictures]
    found = [json.loads(line) for line in lines(subprocess.run(command, capture_output=True, text=True))]
    assert [each["source"] for each in found] == [str(path) for path in pictures]
    inspections = [real.inspector.inspect(path) for path in pictures]
    assert len({inspection.verdict for inspection in inspections}) > 1
    for each, inspection in zip(found, inspections, strict=True):
        assert each["verdict"] == inspection.verdict
        assert each["score"] == pytest.approx(inspection.score, abs=1e-3)
        assert each["p_value"] == pytest.approx(inspection.p_value)


def test_the_example_in_javascript_reads_16_bits_and_refuses_what_does_not_fit(
    bundle_file: Path, packages: Path, tmp_path: Path
) -> None:
    bundle = of_graph(bundle_file, Input(channels=1, depth=16, maximum=4095), brightness, channel)
    exported = Exported(bundle, tmp_path / "out", (100, 80))
    (exported.folder / "node_modules").symlink_to(packages)
    pixels = np.random.default_rng(1).integers(0, 4096, (80, 100, 1)).astype(np.uint16)
    wide, small = save(tmp_path / "wide.png", pixels), save(tmp_path / "small.png", pixels[:40])
    above = save(tmp_path / "above.png", pixels + np.uint16(1))
    colour, cut = save(tmp_path / "colour.png", part(1)), tmp_path / "cut.png"
    cut.write_bytes(wide.read_bytes()[:900])
    command = ["node", exported.folder / "example.mjs", wide, small, above, colour, cut, tmp_path / "none.png"]
    done = subprocess.run(command, capture_output=True, text=True)
    (line,) = done.stdout.splitlines()
    assert json.loads(line)["score"] == pytest.approx(exported.inspector.inspect(pixels).score)
    assert done.returncode == 1
    assert done.stderr.count("could not be inspected") == 5
    assert "small.png: 100 x 40, 1 channels, uint16; expected 100 x 80, 1 channels, uint16" in done.stderr
    (exported.folder / "graph.onnx").write_bytes(b"another")
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 1 and "not of one export" in done.stderr and not done.stdout


def test_the_example_in_cpp_gives_the_verdicts_of_andon(real: Exported, packages: Path, tmp_path: Path) -> None:
    headers = next(packages.glob("com.github.asus4.onnxruntime/**/onnxruntime_cxx_api.h"), None)
    libraries = list(packages.glob("onnxruntime-node/bin/napi-v6/linux/x64/libonnxruntime.so.1"))
    compiler = shutil.which("g++")
    if not (compiler and headers and libraries and sys.platform == "linux"):
        pytest.skip("needs g++ on Linux x64, and ONNX Runtime's headers and library from npm")
    source, program = real.folder / "out" / "example.cpp", tmp_path / "example"
    options = ["-std=c++17", "-Wall", "-Wextra", "-Werror", "-isystem", headers.parent]
    built = [compiler, *options, source, libraries[0], f"-Wl,-rpath,{libraries[0].parent}", "-o", program]
    lines(subprocess.run(built, capture_output=True, text=True))
    pictures = sorted((real.folder / "pictures").iterdir())
    for path in pictures:
        image.write(tmp_path / f"{path.stem}.ppm", image.read(path).pixels)
    raw = [tmp_path / f"{path.stem}.ppm" for path in pictures]
    done = subprocess.run([program, real.folder / "out" / "graph.onnx", *raw], capture_output=True, text=True)
    for line, path in zip(lines(done), pictures, strict=True):
        verdict, score, p_value, _ = line.split(maxsplit=3)
        inspection = real.inspector.inspect(path)
        assert verdict == inspection.verdict
        assert float(score) == pytest.approx(inspection.score, abs=1e-3)
        assert float(p_value) == pytest.approx(inspection.p_value)
    cut = tmp_path / "cut.ppm"
    cut.write_bytes(raw[0].read_bytes()[:-1])
    gray = tmp_path / "gray.pgm"
    image.write(gray, part(1, channels=1))
    done = subprocess.run(
        [program, real.folder / "out" / "graph.onnx", cut, gray, tmp_path / "none.ppm"], capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("could not be inspected") == 3
