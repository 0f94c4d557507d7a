"""The requirements of the first release, measured: accuracy, time from a folder to a bundle, latency, start-up, sizes.

    make benchmark            # or: python benchmarks/foundation.py [bottle screw …] [--seed 1]

Needs ../shared/data beside the repository. Prints Markdown; takes about ten minutes on two cores. Run nothing else.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from andon import Inspector
from andon.detectors.memory_bank import Settings
from andon.engines import runtime
from andon.graphs import features
from andon.recipe import Recipe
from andon.training.train import compose, train

ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared" / "data"
PRODUCTS = ("bottle", "screw", "magnetic_tile", "hazelnut_toy", "ball_screw")


def run(*arguments: object) -> tuple[float, float]:
    """Run the command in a process of its own; return its seconds and its peak memory in MB."""
    began = time.perf_counter()
    process = subprocess.Popen([sys.executable, "-m", "andon", *(str(a) for a in arguments)])
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"andon {' '.join(map(str, arguments))} failed")
    return time.perf_counter() - began, usage.ru_maxrss / 1024


def accuracy(product: str, seed: int, folder: Path) -> list[str]:
    """Train and evaluate one product by its recipe; return a row of the table."""
    recipe, bundle, report = ROOT / "recipes" / f"{product}.toml", folder / f"{product}.andon", folder / product
    seconds, megabytes = run("train", recipe, "-o", bundle, "--seed", seed, "-q")
    run("evaluate", bundle, Recipe.load(recipe).data.images, "--out", report, "-q")
    figures: dict[str, Any] = json.loads((report / "metrics.json").read_text())
    image, pixel, reject = figures["image"], figures["pixel"], figures["decision"]["reject"]
    return [
        product,
        str(Recipe.load(recipe).geometry.size),
        *(_percent(value) for value in (image["auroc"], image["ap"])),
        *(_percent(pixel[key]) for key in ("auroc", "ap", "aupro_30", "aupro_05")),
        f"{reject['false_rejects']['count']}/{reject['false_rejects']['n']}",
        f"{reject['escapes']['count']}/{reject['escapes']['n']}",
        f"{seconds:.0f} s",
        f"{megabytes:.0f} MB",
        f"{bundle.stat().st_size / 1e6:.1f} MB",
    ]


def latency(folder: Path) -> tuple[float, float, float]:
    """Time one 256² picture, file to verdict, against the bare backbone in the same process, alternating.

    Returns the medians in milliseconds and the median of the ratios.
    """
    recipe = compose(ROOT / "recipes" / "bottle.toml")
    recipe = recipe.model_copy(update={"input": recipe.input.model_copy(update={"size": "any"})})
    train(recipe, folder / "any.andon")
    pixels = cv2.imread(str(SHARED / "mvtec_ad/bottle/test/good/000.jpg"))
    file = folder / "256.png"
    cv2.imwrite(str(file), cv2.resize(pixels, (256, 256), interpolation=cv2.INTER_AREA))
    inspector, settings = Inspector.load(folder / "any.andon"), Settings()
    backbone = runtime.session(features.load(settings.network, settings.stages))
    feed = {backbone.get_inputs()[0].name: np.random.default_rng(0).random((1, 3, 256, 256), dtype=np.float32)}
    whole, bare = [], []
    for _ in range(60):
        bare.append(statistics.median(_milliseconds(lambda: backbone.run(None, feed)) for _ in range(5)))
        whole.append(statistics.median(_milliseconds(lambda: inspector.inspect(file)) for _ in range(5)))
    ratios = [w / b for w, b in zip(whole, bare, strict=True)]
    return statistics.median(whole), statistics.median(bare), statistics.median(ratios)


def start_up(code: str) -> float:
    """Seconds a fresh interpreter takes for a piece of code, start included; median of nine."""
    return statistics.median(
        _milliseconds(lambda: subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)) / 1000
        for _ in range(9)
    )


def install_size() -> float:
    """MB that a fresh virtual environment holds after the base install, pip and setuptools left out."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run([sys.executable, "-m", "venv", folder], check=True)
        pip = [f"{folder}/bin/python", "-m", "pip", "install", "-q", "--disable-pip-version-check"]
        subprocess.run([*pip, "-r", ROOT / "locks/base.txt"], check=True, stderr=subprocess.DEVNULL)
        subprocess.run([*pip, "--no-deps", ROOT], check=True, stderr=subprocess.DEVNULL)
        packages = next(Path(folder).glob("lib/python*/site-packages"))
        mine = [
            p for p in packages.iterdir() if not p.name.startswith(("pip", "setuptools", "pkg_resources", "_distutils"))
        ]
        return sum(f.stat().st_size for p in mine for f in ([p] if p.is_file() else p.rglob("*")) if f.is_file()) / 1e6


def _milliseconds(act: Any) -> float:
    began = time.perf_counter()
    act()
    return 1000 * (time.perf_counter() - began)


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("products", nargs="*", default=PRODUCTS)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("accuracy", "speed"), help="one half of the tables")
    options = parser.parse_args()
    print(f"{os.cpu_count()} cores, {platform.machine()}, Python {platform.python_version()}, seed {options.seed}\n")
    with tempfile.TemporaryDirectory() as name:
        if options.only != "speed":
            print(
                "| product | side | image AUROC | image AP | pixel AUROC | pixel AP | AUPRO 0.30 | AUPRO 0.05 "
                "| false rejects | escapes | train | peak | bundle |"
            )
            print("|" + "---|" * 13, flush=True)
            for product in options.products:
                print(f"| {' | '.join(accuracy(product, options.seed, Path(name)))} |", flush=True)
        if options.only != "accuracy":
            whole, bare, ratio = latency(Path(name))
            print(f"\n| one 256² picture, file to verdict | {whole:.1f} ms |\n|---|---|")
            print(f"| bare backbone graph, same process | {bare:.1f} ms |\n| ratio, median of 60 pairs | {ratio:.2f} |")
            print(f"| `import andon` | {start_up('import andon'):.2f} s |")
            called = "import sys; from andon import cli; sys.argv = ['andon', 'inspect', '--help']; cli.main()"
            print(f"| `andon inspect --help` | {start_up(called):.2f} s |")
            print(f"| interpreter alone | {start_up('pass'):.2f} s |")
            print(f"| base install | {install_size():.0f} MB |")


if __name__ == "__main__":
    main()
