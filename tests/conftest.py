"""What several test files share: real data where it is at hand, synthetic parts, and one small trained bundle."""

import shutil
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from andon.detector import Defects, Labelled
from andon.inspection import Pixels
from andon.recipe import Decision
from andon.training import train as training
from disk import Disk
from postgres import Cluster

if TYPE_CHECKING:
    from playwright.sync_api import Browser

THOROUGH = frozenset(
    f"test_{name}"
    for name in (
        *("acceptance", "agreement", "bench", "compare", "compared_methods", "cost", "deploy", "export", "fleet"),
        *("light", "line_folder", "line_modbus", "line_opcua", "line_outbox", "loop", "packaging", "pages_operator"),
        *("pages_product", "pages_shift", "pages_teach", "peers", "regions_page", "registration", "sources"),
        *("station_away", "station_backup", "station_faults", "station_floor", "station_idle"),
        *("station_products", "station_serve", "station_statistics", "station_upkeep", "station_workers", "suspects"),
        *("teaching", "timm_graph", "tuning"),
        *("autoencoder", "capsule", "f_anogan", "filtering_autoencoder", "ganomaly", "labelled", "patch_autoencoder"),
        *("piade", "pyramid_autoencoder", "segmenter", "transform_classification", "vae", "vt_adl"),
    )
)
"""Files of tests with many processes, servers, browsers or trainings by gradient: `make thorough` runs them."""
QUICK = ("memory-bank", "variation", "nearest-image", "deep-knn", "autoencoder")
"""The detectors whose contract `make test` checks; `make thorough` checks the others, `make slow` the SLOW ones."""
SLOW = ("anogan", "cutpaste", "draem", "fcdd", "riad")
"""Detectors for comparison only; their equations are tested by `make thorough` (test_compared_methods)."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long."""
    for item in items:
        stem, parameters = item.path.stem, getattr(getattr(item, "callspec", None), "params", {})
        detector = parameters.get("name", QUICK[0]) if stem == "test_detectors_contract" else QUICK[0]
        if detector in SLOW:
            item.add_marker(pytest.mark.slow)
        elif stem in THOROUGH or detector not in QUICK:
            item.add_marker(pytest.mark.thorough)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    """Let torch, where a test file has loaded it, use one thread: the same results wherever the tests run."""
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The data sets of ../shared/data; tests that need them are skipped elsewhere."""
    folder = Path(__file__).parents[2] / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("the data sets of ../shared/data are not on this machine")
    return folder


CHROMIUM = Path("/usr/bin/chromium")
AXE = "axe-core@4.14.1"


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """A browser without a window."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    if not CHROMIUM.exists():
        pytest.skip("chromium is not installed: apt-get install chromium")
    with api.sync_playwright() as playwright:
        found = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield found
        found.close()


@pytest.fixture(scope="session")
def axe(request: pytest.FixtureRequest) -> str:
    """The script that finds what people with a handicap cannot use; kept between runs."""
    if not shutil.which("npm"):
        pytest.skip("npm is not installed")
    kept = Path(request.config.cache.mkdir("axe")) / f"{AXE}.js"  # type: ignore[union-attr]
    if not kept.exists():
        with TemporaryDirectory() as folder:
            packed = subprocess.run(["npm", "pack", AXE], cwd=folder, capture_output=True, text=True)
            if packed.returncode:
                pytest.skip(f"npm cannot fetch {AXE}: {packed.stderr.strip()[-200:]}")
            with tarfile.open(next(Path(folder).glob("*.tgz"))) as archive:
                script = archive.extractfile("package/axe.min.js")
                assert script
                kept.write_bytes(script.read())
    return kept.read_text()


class Stack:
    """Tiles in memory, as a detector is given them: each a part of its own, `batch` at a time or all at once."""

    def __init__(self, tiles: Pixels, batch: int | None = None) -> None:
        self.tiles, self._batch = tiles, batch or len(tiles)
        self.shape = (tiles.shape[1], tiles.shape[2])
        self.side, self.channels, self.depth = tiles.shape[1], tiles.shape[3], 8 * tiles.itemsize
        self.groups: Sequence[int] = range(len(tiles))
        self.defects: Defects | None = None

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        return self.tiles[list(rows)]

    def __iter__(self) -> Iterator[Pixels]:
        return (self.tiles[start : start + self._batch] for start in range(0, len(self.tiles), self._batch))


class Marked:
    """Defective tiles in memory with their masks, as a detector is given them: each a part of its own."""

    def __init__(self, tiles: Pixels, masks: NDArray[np.bool_]) -> None:
        self.tiles, self.masks = tiles, masks
        self.groups: Sequence[int] = range(len(tiles))

    def __len__(self) -> int:
        return len(self.tiles)

    def __getitem__(self, rows: Sequence[int]) -> Labelled:
        return Labelled(self.tiles[list(rows)], self.masks[list(rows)])

    def __iter__(self) -> Iterator[Labelled]:
        yield Labelled(self.tiles, self.masks)


def noise(count: int, side: int, channels: int = 3, seed: int = 0) -> Pixels:
    """Tiles (count, side, side, channels) of 8-bit noise."""
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, channels), dtype=np.uint8)


def flat(count: int, side: int, channels: int = 3) -> Pixels:
    """Tiles (count, side, side, channels) of one brightness each."""
    levels = np.linspace(50, 200, count).astype(np.uint8)
    return np.broadcast_to(levels[:, None, None, None], (count, side, side, channels)).copy()


def part(seed: int, side: int = 96, channels: int = 3, depth: int = 8) -> Pixels:
    """A good part: a bright ring with a stripe pattern, and some noise, (side, side, channels)."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:side, :side] / side - 0.5
    ring = 0.35 + 0.4 * ((np.hypot(x, y) > 0.2) & (np.hypot(x, y) < 0.4)) + 0.1 * np.sin(40 * x)
    value = ring[..., None] + 0.02 * rng.standard_normal((side, side, channels)) + 0.02 * rng.standard_normal()
    top, kind = (255, np.uint8) if depth == 8 else (65535, np.uint16)
    return (np.clip(value, 0, 1) * top).astype(kind)


def scratched(seed: int, side: int = 96, channels: int = 3, depth: int = 8) -> tuple[Pixels, Pixels]:
    """A part with a dark scratch, and its mask (side, side) of 0 and 255."""
    pixels = part(seed, side, channels, depth)
    mask = np.zeros((side, side), np.uint8)
    cv2.line(mask, (side // 4, side // 2), (side // 2, side // 4), 255, max(2, side // 24))
    pixels[mask > 0] = 0
    return pixels, mask


def save(path: Path, pixels: Pixels) -> Path:
    """Write pixels as a picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ordered = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., ::-1]
    path.write_bytes(cv2.imencode(path.suffix, ordered)[1].tobytes())
    return path


@pytest.fixture(scope="session")
def parts(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set in MVTec layout: 40 good parts to learn from, 6 good and 4 scratched ones to test, with masks."""
    root = tmp_path_factory.mktemp("data") / "ring"
    for seed in range(40):
        save(root / "train/good" / f"{seed:03}.png", part(seed))
    for seed in range(100, 106):
        save(root / "test/good" / f"{seed:03}.png", part(seed))
    for seed in range(200, 204):
        pixels, mask = scratched(seed)
        save(root / "test/scratch" / f"{seed:03}.png", pixels)
        save(root / "ground_truth/scratch" / f"{seed:03}_mask.png", mask[..., None])
    return root


@pytest.fixture(scope="session")
def bundle_file(parts: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle trained on those parts, with a reject rate that 40 of them support."""
    path = tmp_path_factory.mktemp("bundle") / "ring.andon"
    recipe = training.compose(parts, size=96, settings={"bank": 200})
    training.train(recipe.model_copy(update={"decision": Decision(reject_rate=0.03)}), path)
    return path


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A file system of 4 MB."""
    disk = Disk(tmp_path / "disk")
    yield disk
    disk.remove()


@pytest.fixture(scope="session")
def postgres() -> Iterator[Cluster]:
    """A running PostgreSQL."""
    cluster = Cluster()
    yield cluster
    cluster.remove()


@pytest.fixture(params=["sqlite", "postgresql"])
def database(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a new database for the records of a station: every test runs on both."""
    if request.param == "sqlite":
        return str(tmp_path / "records.db")
    cluster: Cluster = request.getfixturevalue("postgres")
    return cluster.database()
