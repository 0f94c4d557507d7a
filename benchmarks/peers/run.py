"""andon and its peers on the same pictures, side by side: accuracy, time of the fit, latency, memory, failures.

    python benchmarks/peers/run.py --data ../shared/data --products bottle,screw,screw-equalised --minutes 10

Builds an environment for each peer (--environments), runs every peer on every product, and writes the rows into
--results and the table into --page. Rows that exist are kept, so the same command continues after an interruption.
Every peer learns from the same pictures, and is scored by the metrics of andon. After the fit, peer and `andon-256`
inspect in turn, so that other load on the machine affects both. The test pictures of `NAME-equalised` are those of NAME
in the light of its training pictures. A peer that cannot be installed, crashes, or needs more time or memory than its
limits, gets a row that says so.
"""

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

import cv2
import environments
import numpy as np
import page
import weights
from process import Failure, Process
from results import OK, Row, Table, figures

from andon import files
from andon.data import dataset, masks
from andon.data.dataset import Sample
from andon.errors import AndonError
from andon.lab.bench import equalised
from andon.pictures import image

Item = TypeVar("Item")
ROOT = Path(__file__).parents[2]
ADAPTERS = Path(__file__).parent / "adapters"
REFERENCE = "andon-256"  # inspects in turn with every other peer
COUNT, TURNS = 20, 10  # arrays in a turn
TURN_SECONDS, LEAST = 1.5, 2  # fewer arrays where they would take longer, but not fewer than this


class Kind(NamedTuple):
    """How a peer is run."""

    adapter: str  # file in adapters/
    environment: str  # name of its requirements; empty: andon's own


PEERS = {
    REFERENCE: Kind("memory_bank.py", ""),
    "andon": Kind("memory_bank.py", ""),
    "padim": Kind("anomalib_models.py", "anomalib"),
    "patchcore": Kind("anomalib_models.py", "anomalib"),
    "mh-patchcore": Kind("anomalib_models.py", "anomalib"),
    "efficient-ad": Kind("anomalib_models.py", "anomalib"),
    "stfpm": Kind("anomalib_models.py", "anomalib"),
    "draem": Kind("anomalib_models.py", "anomalib"),
    "ganomaly": Kind("anomalib_models.py", "anomalib"),
    "reverse-distillation": Kind("anomalib_models.py", "anomalib"),
    "imgad": Kind("imgad_features.py", "imgad"),
    "vision-anomaly": Kind("vision_anomaly_detector.py", "vision-anomaly"),
}


class Product(NamedTuple):
    """The pictures of a product."""

    name: str
    train: Path  # folder with copies of the chosen good pictures, in train/good
    test: list[Sample]
    arrays: Path  # file of the first test pictures as arrays


class Peer:
    """A peer at work on a product, from its start until it is ready for turns."""

    def __init__(self, name: str, product: Product, python: Path, options: argparse.Namespace) -> None:
        """Start the process. Failure when it cannot be started."""
        self.name, self.product, self.options = name, product, options
        self.folder = options.work / product.name / name
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)
        job = {
            "peer": name,
            "train": str(product.train),
            "test": [str(sample.path) for sample in product.test],
            "arrays": str(product.arrays),
            "weights": str(options.work / "weights.npz"),
            "size": options.size,
            "bank": options.bank,
            "seed": options.seed,
            "seconds": 60 * options.minutes / 2,
            "fit_threads": options.fit_threads,
            "threads": options.threads,
            "folder": str(self.folder),
        }
        files.write(self.folder / "job.json", json.dumps(job).encode())
        self.deadline = time.monotonic() + 60 * options.minutes
        threads = str(options.fit_threads)
        variables = {"OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT / "src")}
        if PEERS[name].environment:
            variables["PYTHONPATH"] = ""
        command = [python, ADAPTERS / PEERS[name].adapter, self.folder / "job.json"]
        self.process = Process(command, self.folder / "log.txt", options.memory_mb, variables)

    def work(self) -> Row:
        """Wait for fit and scores; return a row without latency. Failure as `Process.expect`, before the scores."""
        started = self._next("started")
        row: Row = {"version": started["version"], "settings": started["settings"]}
        row["fit"] = _without_event(self._next("fitted"))
        scored = self._next("scored")
        try:
            row["figures"] = figures(self.product.test, scored["scores"], self.folder / "maps")._asdict()
        except AndonError as error:
            raise Failure("crash", str(error)) from None
        try:
            self.engines = self._next("ready")["engines"]
        except Failure as failure:
            self.engines = {"all": str(failure)}
        row["engine_failures"] = {name: reason for name, reason in self.engines.items() if reason}
        return row

    def _next(self, event: str) -> dict[str, Any]:
        return self.process.expect(event, max(0.0, self.deadline - time.monotonic()))

    def turn(self, engine: str, count: int) -> dict[str, Any]:
        """Let it inspect some arrays. Failure as `Process.expect`."""
        return self.process.ask(f"{engine} {count}", "turn", 60 * self.options.minutes)


def main() -> None:
    """Run the comparison and write the page."""
    options = _options()
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit("stopped; the same command continues"))  # ends peers
    plan = {key: getattr(options, key) for key in ("size", "bank", "pictures", "test_pictures", "seed", "fit_threads")}
    plan |= {key: getattr(options, key) for key in ("threads", "minutes", "memory_mb")}
    try:
        table = Table(options.results, plan)
        if not options.only_page:
            files.make_folder(options.work)
            weights.write(options.work / "weights.npz")
            for name in options.products:
                compare(choose(name, options), table, options)
        files.write(options.page, page.text(table.rows, list(PEERS)).encode())
    except AndonError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)


def compare(product: Product, table: Table, options: argparse.Namespace) -> None:
    """Run all peers on a product that have no row yet, or --again."""
    missing = [name for name in options.peers if options.again or not table.has(product.name, name)]
    if not missing:
        return
    with ExitStack() as stack:
        reference: Peer | None = None

        def own_row() -> Row:
            nonlocal reference
            peer = Peer(REFERENCE, product, Path(sys.executable), options)
            stack.enter_context(peer.process)
            row = peer.work()
            reference = peer
            return {**row, "latency": latencies(peer, None)}

        row = attempt(product, REFERENCE, own_row)
        if REFERENCE in missing or not table.has(product.name, REFERENCE):
            table.add(row)
        for name in missing:
            if name != REFERENCE:
                table.add(attempt(product, name, lambda name=name: one(name, product, reference, options)))
                files.write(options.page, page.text(table.rows, list(PEERS)).encode())


def one(name: str, product: Product, reference: Peer | None, options: argparse.Namespace) -> Row:
    """Run one peer; return its results. Failure when it fails before it is ready."""
    kind = PEERS[name]
    python = Path(sys.executable)
    if kind.environment:
        python = environments.python(options.environments, kind.environment, not options.no_build)
    peer = Peer(name, product, python, options)
    with peer.process:
        return {**peer.work(), "latency": latencies(peer, reference)}


def attempt(product: Product, name: str, act: Callable[[], Row]) -> Row:
    """Return the row of a peer, also of one that fails."""
    row: Row = {"product": product.name, "peer": name, "date": datetime.now(UTC).strftime("%Y-%m-%d")}
    row |= {"machine": machine(), "test_pictures": len(product.test)}
    began = time.monotonic()
    print(f"{product.name}: {name} … ", end="", flush=True)
    try:
        row |= {"status": OK, "reason": "", **act()}
    except Failure as failure:
        row |= {"status": failure.status, "reason": failure.reason}
    print(f"{row['status']} {row['reason']} ({time.monotonic() - began:.0f} s)", flush=True)
    return row


def latencies(peer: Peer, reference: Peer | None) -> dict[str, Any]:
    """Measure each engine in turn with the reference; an engine that fails gets its reason."""
    measured: dict[str, Any] = {}
    for engine in (name for name, reason in peer.engines.items() if not reason):
        try:
            measured[engine] = latency(peer, engine, reference)
        except Failure as failure:
            measured[engine] = {"failure": str(failure)}
            break
    return measured


def latency(peer: Peer, engine: str, reference: Peer | None) -> dict[str, Any]:
    """Return milliseconds a picture of a peer, and their ratio to those of the reference, turn by turn."""
    warm = statistics.median(peer.turn(engine, 3)["milliseconds"])
    count = max(LEAST, min(COUNT, int(1000 * TURN_SECONDS / warm)))
    own: list[dict[str, Any]] = []
    other: list[dict[str, Any]] = []
    for _ in range(TURNS):
        if reference:
            other.append(_reference_turn(reference))
        own.append(peer.turn(engine, count))
    result = {**_milliseconds(own), "peak_mb": own[-1]["peak_mb"], "turns": TURNS, "count": count}
    if reference:
        pairs = list(zip(own, other, strict=True))
        ratios = [statistics.median(a["milliseconds"]) / statistics.median(b["milliseconds"]) for a, b in pairs]
        result |= {"ratio": statistics.median(ratios), "ratio_low": min(ratios), "ratio_high": max(ratios)}
        result["cpu_ratio"] = statistics.median(a["cpu_ms"] / b["cpu_ms"] for a, b in pairs)
        result["reference"] = _milliseconds(other)
    return result


def _milliseconds(turns: Sequence[dict[str, Any]]) -> dict[str, float]:
    laps = [lap for turn in turns for lap in turn["milliseconds"]]
    quantiles = {f"p{q}_ms": float(np.percentile(laps, q)) for q in (50, 95)}
    return {**quantiles, "cpu_ms": statistics.median(turn["cpu_ms"] for turn in turns)}


def _reference_turn(reference: Peer) -> dict[str, Any]:
    try:
        return reference.turn("onnxruntime", COUNT)
    except Failure as failure:
        raise AndonError(
            f"{REFERENCE}, which inspects in turn with every peer, failed: {failure}. Run again."
        ) from None


def choose(name: str, options: argparse.Namespace) -> Product:
    """Copy the training pictures and prepare the arrays of a product.

    Errors: AndonError when its pictures are not there; when a test picture or its mask is damaged or has another size.
    """
    plain = name.removesuffix(page.EQUALISED)
    places = [path for path in (options.data / plain, *options.data.glob(f"*/{plain}")) if path.is_dir()]
    if not places:
        raise AndonError(f"{options.data}: no product {plain}; expected a folder of this name. Correct --products.")
    source = places[0] if name == plain else equalised.write(places[0], options.work / name / "equalised")
    data = dataset.load(source)
    train = spread(data.good("train"), options.pictures)
    good = spread(data.good("test"), options.test_pictures // 2)
    defective = spread(data.defective("test"), options.test_pictures - options.test_pictures // 2)
    if min(map(len, (train, good, defective))) < 2:
        raise AndonError(
            f"{places[0]}: {len(train)} good pictures to learn from, {len(good)} good and {len(defective)} defective "
            "ones to test; expected some of each, in the layout train/good, test/good, test/DEFECT, ground_truth."
        )
    folder = options.work / name / "pictures"
    shutil.rmtree(folder, ignore_errors=True)
    (folder / "train/good").mkdir(parents=True)
    for number, sample in enumerate(train):
        shutil.copyfile(sample.path, folder / "train/good" / f"{number:04}_{sample.path.name}")
    test = [*good, *defective]
    for sample in test:
        pixels = read(sample.path)
        if sample.mask:
            masks.read_sized(sample.mask, pixels.shape)
    arrays = [cv2.resize(read(s.path), (options.size,) * 2, interpolation=cv2.INTER_AREA) for s in spread(test, COUNT)]
    np.save(folder / "arrays.npy", np.stack(arrays))
    return Product(name, folder, test, folder / "arrays.npy")


def spread(items: Sequence[Item], count: int) -> list[Item]:
    """Return at most `count` items, at equal distances."""
    return [items[i] for i in np.unique(np.linspace(0, len(items) - 1, min(count, len(items))).round().astype(int))]


def machine() -> str:
    """Describe this machine: processor, cores, memory, system."""
    names = [line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name")]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9
    name = names[0].partition(":")[2].strip() if names else platform.machine()
    return f"{name}, {os.cpu_count()} cores, {memory:.0f} GB, {platform.system()}, Python {platform.python_version()}"


def read(path: Path) -> np.ndarray:
    """Read a picture as (h, w, 3), RGB; gray is repeated. AndonError when it is damaged, or has more than 8 bits."""
    pixels = image.read(path).pixels
    if pixels.dtype != np.uint8:
        raise AndonError(f"{path}: a picture of 16 bits; expected 8 bits, which every peer reads. Leave it out.")
    return np.ascontiguousarray(np.broadcast_to(pixels, (*pixels.shape[:2], 3)))


def _without_event(contents: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in contents.items() if key != "event"}


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def names(text: str) -> list[str]:
        return [name for name in text.split(",") if name]

    parser.add_argument("--data", type=Path, default=ROOT.parent / "shared" / "data", help="folder of products")
    parser.add_argument("--products", type=names, default=["bottle", "magnetic_tile", "screw", "hazelnut_toy"])
    parser.add_argument("--peers", type=names, default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument(
        "--minutes", type=float, default=30, help="a peer's time for a product; half of it for gradients"
    )
    parser.add_argument("--again", action="store_true", help="run peers that have a row, too, and replace it")
    parser.add_argument("--memory-mb", type=int, default=8000, help="a peer's memory")
    parser.add_argument("--size", type=int, default=256, help="pixels of a side")
    parser.add_argument("--bank", type=int, default=2000, help="memories of the methods that keep patches")
    parser.add_argument("--pictures", type=int, default=150, help="good pictures to learn from, at most")
    parser.add_argument("--test-pictures", type=int, default=120, help="half of them good, at most")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--fit-threads", type=int, default=1)
    parser.add_argument("--threads", type=int, default=2, help="of the turns")
    parser.add_argument("--environments", type=Path, default=Path.home() / ".cache" / "andon-peers")
    parser.add_argument("--no-build", action="store_true", help="do not build environments")
    parser.add_argument("--results", type=Path, default=Path(__file__).parent / "results.jsonl")
    parser.add_argument("--work", type=Path, default=ROOT / "benchmarks/results/peers", help="logs and maps")
    parser.add_argument("--page", type=Path, default=ROOT / "docs/peers.md")
    parser.add_argument("--only-page", action="store_true", help="write the page from the results that exist")
    options = parser.parse_args()
    if unknown := set(options.peers) - set(PEERS):
        parser.error(f"--peers: no peer {', '.join(sorted(unknown))}; there are {', '.join(PEERS)}")
    for name in ("size", "bank", "pictures", "test_pictures", "fit_threads", "threads", "minutes", "memory_mb"):
        if getattr(options, name) <= 0:
            parser.error(f"--{name.replace('_', '-')}: {getattr(options, name)}; expected more than 0")
    options.data, options.work = options.data.absolute(), options.work.absolute()
    options.environments = options.environments.expanduser().absolute()
    return options


if __name__ == "__main__":
    main()
