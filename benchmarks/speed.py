"""The table of docs/speed.md: an inspection beside the bare network, files, large pictures, threads, start-up.

    python benchmarks/speed.py ../shared/data/mvtec_ad/bottle

Trains what it needs (presets `fast` and `standard`, a bank of 20,000, tiles of a 20-megapixel picture) in a temporary
folder, some minutes, and measures on an idle machine. Both sides of a ratio take turns in one process.
"""

import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median, quantiles
from typing import Annotated

import cv2
import numpy as np
import onnx
import typer

from andon.bundle import Bundle
from andon.data import dataset
from andon.engines import clock, runtime
from andon.geometry import tiling, views
from andon.inspection import Pixels
from andon.inspector import Inspector
from andon.pictures import appearance, image
from large_pictures import picture

GOAL = "{:<58} {:>10} {:>8}"


def train(source: Path, out: Path, *options: str) -> Path:
    """Train a bundle by the command."""
    command = [sys.executable, "-m", "andon", "train", str(source), "-o", str(out), "--quiet", *options]
    subprocess.run(command, check=True)
    return out


def turns(sides: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each side; they run in turn."""
    laps: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 3):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            if number >= 3:
                laps[name].append(1000 * (time.perf_counter() - start))
    return {name: median(times) for name, times in laps.items()}


def bare(graph: bytes) -> bytes:
    """The part of a graph from the tiles to its last convolutions: the network alone."""
    model = onnx.load_from_string(graph)
    uses: dict[str, list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        for name in node.input:
            uses.setdefault(name, []).append(node)
    beyond: dict[str, bool] = {}

    def leads(name: str) -> bool:
        """Whether a convolution uses this value, or what is computed from it."""
        if name not in beyond:
            beyond[name] = any(n.op_type == "Conv" or any(map(leads, n.output)) for n in uses.get(name, ()))
        return beyond[name]

    sys.setrecursionlimit(10_000)
    last = [n.output[0] for n in model.graph.node if n.op_type == "Conv" and not leads(n.output[0])]
    typed = onnx.shape_inference.infer_shapes(model)
    part: bytes = onnx.utils.Extractor(typed).extract_model(["tiles"], last).SerializeToString()
    return part


def row(name: str, value: str, goal: str = "") -> None:
    """Print a row of the table."""
    print(GOAL.format(name, value, goal), flush=True)


def inspection(name: str, bundle: Path, pixels: Pixels) -> None:
    """Array to verdict, the graph and the network alone, in turn; p99 ÷ p50."""
    inspector = Inspector.load(bundle)
    network = runtime.session(bare(Bundle.load(bundle).graph))
    outputs = [output.name for output in network.get_outputs()]
    height, width = inspector.recipe.geometry.input
    tile = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)[None].astype(np.uint8)
    times = turns(
        {
            "network": lambda: network.run(outputs, {"tiles": tile}),
            "graph": lambda: inspector.scorer.score(tile),
            "inspection": lambda: inspector.inspect(pixels, "array"),
        },
        200,
    )
    for stage, milliseconds in times.items():
        row(f"{name}: {stage}, ms", f"{milliseconds:.1f}")
    row(f"{name}: whole inspection of an array ÷ network", f"{times['inspection'] / times['network']:.2f}", "1.3")
    row(f"{name}: what follows the network ÷ network", f"{times['graph'] / times['network'] - 1:.2f}", "0.3")
    laps = []
    for _ in range(2000):
        start = time.perf_counter()
        inspector.inspect(pixels, "array")
        laps.append(time.perf_counter() - start)
    cuts = quantiles(laps, n=100)
    row(f"{name}: p99 ÷ p50 of 2,000 inspections", f"{cuts[98] / cuts[49]:.2f}", "1.5")


def work_of(graph: bytes, kinds: tuple[str, ...], tile: Pixels) -> tuple[float, float]:
    """10⁹ operations of the nodes of these kinds for a tile (1, h, w, c), and 10⁹ bytes that they read and write."""
    model = onnx.load_from_string(graph)
    nodes = [node for node in model.graph.node if node.op_type in kinds]
    stored = {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}
    names = sorted({name for node in nodes for name in (*node.input, *node.output)} - stored.keys() - {""})
    del model.graph.output[:]
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in names)
    values = runtime.session(model.SerializeToString()).run(names, {"tiles": tile})
    shapes = stored | {name: list(value.shape) for name, value in zip(names, values, strict=True)}
    operations = touched = 0
    for node in nodes:
        inputs, output = [shapes[name] for name in node.input if name], math.prod(shapes[node.output[0]])
        operations += 2 * output * (math.prod(inputs[1][1:]) if node.op_type == "Conv" else inputs[0][-1])
        touched += 4 * (output + sum(map(math.prod, inputs)))
    return operations / 1e9, touched / 1e9


def roofline(bundle: Path, pixels: Pixels) -> None:
    """What each stage of an inspection does a second, beside what this machine can: its roofline."""
    inspector = Inspector.load(bundle)
    square, long = np.ones((1024, 1024), np.float32), np.ones(1 << 26, np.float32)
    copy, graph = np.empty_like(long), Bundle.load(bundle).graph
    network = runtime.session(bare(graph))
    outputs = [output.name for output in network.get_outputs()]
    read = inspector.read(pixels, "array")
    prepared = inspector.prepare(read)
    height, width = inspector.recipe.geometry.input
    tile = cv2.resize(pixels, (width, height), interpolation=cv2.INTER_AREA)[None].astype(np.uint8)
    scan = inspector.score(prepared)
    times = turns(
        {
            "product": lambda: square @ square,
            "copy": lambda: np.copyto(copy, long),
            "network": lambda: network.run(outputs, {"tiles": tile}),
            "graph": lambda: inspector.scorer.score(tile),
            "read": lambda: inspector.read(pixels, "array"),
            "prepare": lambda: inspector.prepare(read),
            "judge": lambda: inspector.judge(prepared, scan, 0.0),
        },
        100,
    )
    peak, rate = 2 * 1.024**3 / times["product"] * 1000, 2 * long.nbytes / 1e6 / times["copy"]
    row("machine: product of matrices 1024², 10⁹ operations/s", f"{peak:.0f}")
    row("machine: copy of 268 MB, GB/s", f"{rate:.1f}")
    after = times["graph"] - times["network"]
    for name, milliseconds, kinds in (
        ("network", times["network"], ("Conv",)),
        ("what follows it", after, ("MatMul", "Gemm")),
    ):
        operations, touched = work_of(graph, kinds, tile)
        row(f"{name}: ms; 10⁹ operations; MB", f"{milliseconds:.1f}; {operations:.2f}; {1000 * touched:.0f}")
        bound = max(1000 * operations / peak, 1000 * touched / rate)
        row(f"{name}: the machine's limit, ms; share of it that is reached", f"{bound:.1f}; {bound / milliseconds:.2f}")
    for name in ("read", "prepare", "judge"):
        bound = pixels.nbytes / 1e6 / rate
        row(f"{name}: ms; reading the pixels once, ms", f"{times[name]:.2f}; {bound:.2f}")


def stages(name: str, bundle: Path, data: bytes, rounds: int) -> None:
    """A JPEG from its bytes to its verdict, stage by stage, in turn."""
    inspector = Inspector.load(bundle)
    geometry, read = inspector.recipe.geometry, inspector.read(data)
    prepared = inspector.prepare(read)
    view, scan = prepared.view, inspector.score(prepared)
    assert view is not None
    cut = list(tiling.split(view, geometry))
    batches = [np.stack([tile for _, tile in batch]) for batch in tiling.batches(cut, geometry.input)]
    maps = [tile for batch in batches for tile in inspector.scorer.score(batch).pixel]
    placed = [(place, tile) for (place, _), tile in zip(cut, maps, strict=True)]
    times = turns(
        {
            "decode and digest": lambda: inspector.read(data),
            "appearance": lambda: appearance.measure(read.pixels),
            "view and tiles": lambda: list(
                tiling.split(views.align(read.pixels, geometry, "", inspector.reference, read.full), geometry)
            ),
            "graph": lambda: [inspector.scorer.score(batch) for batch in batches],
            "map": lambda: tiling.collect(view, placed).values,
            "verdict and regions": lambda: inspector.judge(prepared, scan, 0.0),
            "file to verdict": lambda: inspector.inspect(data),
        },
        rounds,
    )
    for stage, milliseconds in times.items():
        row(f"{name}, {len(cut)} tiles: {stage}, ms", f"{milliseconds:.2f}")


def jpeg(path: Path) -> bytes:
    """Encode a picture as a JPEG of 512²."""
    pixels = cv2.resize(image.read(path).pixels, (512, 512), interpolation=cv2.INTER_AREA)
    return cv2.imencode(".jpg", pixels)[1].tobytes()


def folder(bundle: Path, files: list[bytes]) -> None:
    """A stream of JPEGs on all cores beside one caller with one thread."""
    one, all_cores = Inspector.load(bundle, threads=1), Inspector.load(bundle)

    def alone() -> None:
        for data in files:
            one.inspect(data)

    times = turns({"one": alone, "stream": lambda: all_cores.stream(iter(files), lambda outcome: None)}, 5)
    rates = {name: 1000 * len(files) / milliseconds for name, milliseconds in times.items()}
    row(f"JPEGs of 512², images/s: one thread {rates['one']:.0f}, stream", f"{rates['stream']:.0f}")
    row("JPEGs of 512²: stream ÷ one thread", f"{rates['stream'] / rates['one']:.2f}", "1.8")


def large(bundle: Path, data: bytes) -> None:
    """A 12-megapixel JPEG beside OpenCV's full decode."""
    inspector, encoded = Inspector.load(bundle), np.frombuffer(data, np.uint8)
    times = turns(
        {"decode": lambda: cv2.imdecode(encoded, cv2.IMREAD_COLOR), "verdict": lambda: inspector.inspect(data)}, 15
    )
    row("12 megapixels: file to verdict ÷ OpenCV's decode", f"{times['verdict'] / times['decode']:.2f}", "0.6")


def tiled(bundle: Path, data: bytes) -> None:
    """Print seconds and the peak memory of this process: run in a process of its own."""
    inspector = Inspector.load(bundle)
    laps = []
    for _ in range(3):
        start = time.perf_counter()
        inspector.inspect(data)
        laps.append(time.perf_counter() - start)
    row("20 megapixels in tiles of 512²: seconds", f"{median(laps):.2f}", "4")
    row("… peak memory, GB", f"{(clock.peak_mb() or 0) / 1000:.2f}", "1")


def start_up(bundle: Path, file: Path) -> None:
    """Seconds from the start of a process to its first verdict, and its memory with 1 and with 20 bundles."""
    code = (
        "import sys; from andon import Inspector; from andon.engines import clock\n"
        "some = [Inspector.load(sys.argv[1]) for _ in range(int(sys.argv[3]))]\n"
        "some[0].inspect(sys.argv[2]); print(clock.peak_mb())"
    )
    laps, memory = [], {}
    for bundles in (1, 1, 1, 1, 1, 20):
        command = [sys.executable, "-c", code, str(bundle), str(file), str(bundles)]
        start = time.perf_counter()
        memory[bundles] = float(subprocess.run(command, check=True, capture_output=True).stdout)
        if bundles == 1:
            laps.append(time.perf_counter() - start)
    row("start of a process to its first verdict, seconds", f"{median(laps):.2f}", "1.0")
    row("memory with 1 bundle, MB", f"{memory[1]:.0f}")
    row("memory with 20 bundles, MB", f"{memory[20]:.0f}")


def banks(small: Path, great: Path, pixels: Pixels) -> None:
    """Banks of 2,000 and of 20,000 memories, in turn."""
    few, many = Inspector.load(small), Inspector.load(great)
    times = turns({"few": lambda: few.inspect(pixels, "array"), "many": lambda: many.inspect(pixels, "array")}, 40)
    row("bank of 20,000 ÷ bank of 2,000", f"{times['many'] / times['few']:.2f}", "1.3")


def main(
    source: Annotated[Path, typer.Argument(help="A folder or data set of 8-bit colour pictures.")],
    only: Annotated[str, typer.Option(help="Sections to run, with commas between; default: all.")] = "",
    work: Annotated[Path | None, typer.Option(help="Folder for the bundles, kept for the next run.")] = None,
) -> None:
    """Print the table: value, and the goal of the project where there is one."""
    sections = set((only or "inspection,roofline,stages,folder,start,banks,12,20").split(","))
    with tempfile.TemporaryDirectory() as temporary:
        place = work or Path(temporary)
        place.mkdir(exist_ok=True)

        def made(name: str, where: Path, *options: str) -> Path:
            path = place / f"{name}.andon"
            return path if path.exists() else train(where, path, *options)

        files = [sample.path for sample in dataset.load(source).good()]
        first = image.read(files[0]).pixels
        print(f"{os.cpu_count()} cores, ONNX Runtime; {source.name}")
        row("", "value", "goal")
        fast = made("fast", source, "--preset", "fast")
        if "inspection" in sections:
            inspection("fast, 256²", fast, first)
            inspection("standard, 480²", made("standard", source), first)
        if "roofline" in sections:
            roofline(fast, first)
        if "stages" in sections:
            stages("512² for 256²", fast, jpeg(files[0]), 100)
            stages("512² for 480²", made("standard", source), jpeg(files[0]), 50)
        if "folder" in sections:
            folder(fast, [jpeg(path) for path in files[:100]])
        if "start" in sections:
            start_up(fast, files[0])
        if "banks" in sections:
            recipe = place / "great.toml"
            recipe.write_text(
                f'product = "great"\n[data]\nimages = "{source.resolve()}"\n[geometry]\nsize = 256\n'
                '[detector]\npreset = "fast"\n[detector.settings]\nbank = 20000\n'
            )
            banks(fast, made("great", recipe), first)
        for name, size, extra in (
            ("12", (4000, 3000), "size = 256\n"),
            ("20", (5472, 3648), "size = 512\ntiles = true\n"),
        ):
            if name not in sections and "stages" not in sections:
                continue
            parts, data = place / name, picture(*size)
            parts.mkdir(exist_ok=True)
            for number in range(12):
                shown = image.read(data).pixels.copy()
                shown[number::97, ::89] += 1
                cv2.imwrite(str(parts / f"{number}.jpg"), shown)
            recipe = place / f"{name}.toml"
            recipe.write_text(
                f'product = "p{name}"\n[data]\nimages = "{parts.resolve()}"\n[geometry]\n'
                f'{extra}[detector]\npreset = "fast"\n'
            )
            bundle = made(f"p{name}", recipe)
            if "stages" in sections:
                stages(f"{name} megapixels", bundle, data, 9)
            if name not in sections:
                continue
            if name == "12":
                large(bundle, data)
            else:
                (place / "20.jpg").write_bytes(data)
                subprocess.run([sys.executable, __file__, "tiled", str(bundle), str(place / "20.jpg")], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["tiled"]:
        tiled(Path(sys.argv[2]), Path(sys.argv[3]).read_bytes())
    else:
        typer.run(main)
