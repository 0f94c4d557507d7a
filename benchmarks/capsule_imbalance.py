"""Capsules against a plain CNN with as many parameters, when defects are rare: AUROC and AP at 1:1, 1:10, 1:100, 1:500.

    python benchmarks/arrange_elpv.py
    python benchmarks/capsule_imbalance.py [--seeds 0 1 2 3 4] [--steps 1000]

The test defects of each product are divided in halves by the seed, with all photographs of a piece in the same half:
one half is for training, the other is tested at every imbalance, with the good test images. Training uses all good
training images and the number of defects for the ratio, at least one; at 1:1, there are fewer defects than good images,
so an equal number of good images is drawn. Both networks have the same two convolutions, the same batches and the same
steps. The plain CNN has a hidden layer, cross-entropy, and batch normalisation: without it, its output becomes constant
on magnetic tiles. One training of `capsule` gives both of its scores, and one map, measured at 256 pixels a side where
the product has masks. The test pictures of `screw-equalised` have the light of its training pictures. Each line of
--out is one figure; existing ones are not run again.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from andon.data import dataset
from andon.detector import Labelled, Run
from andon.detectors.capsule import Capsule, CapsuleNetwork, Settings
from andon.evaluate import metrics
from andon.inspection import Pixels, Scores
from andon.lab.bench import equalised
from andon.nn.labelled import split_labels
from andon.nn.learned import Network
from andon.pictures import image
from segmenter_masks import DATA, kept, pieces
from segmenter_masks import PRODUCTS as MASKED

HERE = Path(__file__).resolve().parent
PRODUCTS = {
    **MASKED,
    "screw-equalised": MASKED["screw"],
    "elpv": HERE / "elpv",
    "hazelnut_toy": DATA / "hazelnut_toy",
}
RATIOS = (1, 10, 100, 500)
MASK_SIDE = 256  # pixels a side at which maps are measured


class Stock:
    """Tiles in memory: some good, some defective."""

    def __init__(self, good: Pixels, defective: Pixels) -> None:
        """Take tiles (n, t, t, c) of either."""
        self.shape = (good.shape[1], good.shape[2])
        self.side, self.channels, self.depth = good.shape[1], good.shape[3], 8
        self.groups: Sequence[int] = range(len(good))
        self._good, self.defects = good, Faulty(defective)

    def __len__(self) -> int:
        return len(self._good)

    def __getitem__(self, rows: Sequence[int]) -> Pixels:
        return self._good[list(rows)]

    def __iter__(self) -> Iterator[Pixels]:
        yield self._good


class Faulty:
    """Defective tiles whose masks are not used."""

    def __init__(self, pixels: Pixels) -> None:
        """Take tiles (n, t, t, c)."""
        self._pixels = pixels
        self.groups: Sequence[int] = range(len(pixels))

    def __len__(self) -> int:
        return len(self._pixels)

    def __getitem__(self, rows: Sequence[int]) -> Labelled:
        pixels = self._pixels[list(rows)]
        return Labelled(pixels, np.ones(pixels.shape[:3], np.bool_))

    def __iter__(self) -> Iterator[Labelled]:
        yield self[range(len(self))]


class PlainNetwork(Network):
    """The convolutions of `capsule`, then a hidden layer that makes up for the parameters of capsules and decoder."""

    def __init__(self, side: int, channels: int, config: Settings) -> None:
        """Build it for tiles (n, channels, side, side)."""
        super().__init__()
        other = CapsuleNetwork(side, channels, config)
        self.shrink, encoder = other.shrink, other.encoder
        stem, primary = encoder.stem, encoder.primary
        self.features = nn.Sequential(
            *(encoder.widen, stem, nn.BatchNorm2d(stem.out_channels), nn.ReLU()),
            *(primary, nn.BatchNorm2d(primary.out_channels), nn.ReLU(), nn.Flatten()),
        )
        inputs = primary.out_channels * encoder.grid**2
        hidden = round((parameters(other) - parameters(self.features)) / (inputs + 2))
        self.head = nn.Sequential(nn.Linear(inputs, hidden), nn.ReLU(), nn.Linear(hidden, 1))

    def logit(self, tiles: Tensor) -> Tensor:
        """Tiles (n, c, t, t) → (n,), higher is more likely defective."""
        found: Tensor = self.head(self.features(self.shrink(tiles)))[:, 0]
        return found

    def loss(self, tiles: Tensor, generator: torch.Generator) -> Tensor:
        """Cross-entropy of labelled tiles (n, c + 1, t, t)."""
        pixels, masks = split_labels(tiles)
        return F.binary_cross_entropy_with_logits(self.logit(pixels), masks.flatten(1).any(dim=1).float())

    def forward(self, tiles: Tensor) -> tuple[Tensor, ...]:
        """Tiles (n, c, t, t) → score (n,); the map is empty."""
        return self.logit(tiles), torch.zeros_like(tiles[:, 0])


class Plain(Capsule):
    """The plain CNN, trained and scored like `capsule`."""

    def network(self, side: int, channels: int) -> Network:
        """Build the untrained network for tiles (n, channels, side, side)."""
        return PlainNetwork(side, channels, self.config)


def parameters(module: nn.Module) -> int:
    """Count what is learnt."""
    return sum(p.numel() for p in module.parameters())


def read(samples: Sequence[dataset.Sample], size: int) -> Pixels:
    """Read images as gray tiles (n, size, size, 1)."""
    tiles = []
    for sample in samples:
        pixels = image.read(sample.path).pixels
        gray = cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY) if pixels.shape[2] == 3 else pixels[..., 0]
        tiles.append(cv2.resize(gray, (size, size), interpolation=cv2.INTER_AREA)[..., None])
    return np.stack(tiles)


def located(samples: Sequence[dataset.Sample], found: Scores) -> dict[str, float]:
    """Pixel AUROC and AUPRO of the maps of images, or nothing where a defective one has no mask."""
    if any(not sample.good and sample.mask is None for sample in samples):
        return {}
    measured, size = metrics.PixelMetrics(), (MASK_SIDE, MASK_SIDE)
    for sample, anomaly_map in zip(samples, found.pixel, strict=True):
        shown = cv2.resize(anomaly_map, size, interpolation=cv2.INTER_LINEAR)
        mask = dataset.mask(sample.mask).astype(np.uint8) if sample.mask else None
        measured.add(shown, None if mask is None else cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST))
    of = measured.figures(limits=(0.3,))
    return {"pixel_auroc": of.auroc, "aupro_30": of.aupro[0]}


def figures(product: str, folder: Path, options: argparse.Namespace, done: set[tuple[Any, ...]]) -> Iterator[Any]:
    """Train and test what is not done yet; yield one figure after another."""
    data = dataset.load(folder)
    good, of = read(data.training_images(), options.size), pieces(product, data.defective("test"))
    defective = [read(piece, options.size) for piece in of]
    tested = read(data.good("test"), options.size)
    for seed in options.seeds:
        rng = np.random.default_rng(seed)
        order = rng.permutation(len(defective))
        known, unknown = (np.concatenate([defective[i] for i in half]) for half in np.array_split(order, 2))
        tiles = np.concatenate([tested, unknown])
        samples = [*data.good("test"), *(s for i in np.array_split(order, 2)[1] for s in of[i])]
        labels = np.arange(len(tiles)) >= len(tested)
        shuffled = good[rng.permutation(len(good))]
        for ratio in options.ratios:
            some = known[: max(1, round(len(good) / ratio))]
            stock = Stock(shuffled[: len(some)] if ratio == 1 else shuffled, some)
            for kind in (Capsule, Plain):
                name = "plain" if kind is Plain else "capsule"
                scores = ["logit"] if kind is Plain else ["lengths", "reconstruction"]
                if all((product, ratio, seed, name, score) in done for score in scores):
                    continue
                settings = {**Capsule.presets[options.preset], "side": options.size, "steps": options.steps}
                began = time.perf_counter()
                detector = kind(Settings(**settings), seed).fit(stock, Run(device=options.device))
                seconds = time.perf_counter() - began
                network = detector._fitted()
                for score in scores:
                    if isinstance(network, CapsuleNetwork):
                        network.config = Settings(**settings, score=score)
                    found = detector.score(tiles)
                    yield {
                        **{"product": product, "ratio": ratio, "seed": seed, "network": name, "score": score},
                        **{"good": len(stock), "defects": len(some)},
                        **{"preset": options.preset, "steps": options.steps, "size": options.size},
                        "auroc": metrics.auroc(labels, found.image),
                        "ap": metrics.average_precision(labels, found.image),
                        **(located(samples, found) if kind is Capsule else {}),
                        "parameters": parameters(network),
                        "seconds": round(seconds, 1),
                    }


def table(rows: Sequence[Any]) -> str:
    """Mean ± standard deviation over the seeds, in %, as Markdown."""
    cells: dict[tuple[Any, ...], list[Any]] = defaultdict(list)
    for row in rows:
        cells[row["product"], row["ratio"], row["network"], row["score"]].append(row)
    names = ("auroc", "ap", "pixel_auroc", "aupro_30")
    lines = [f"| product | defects : good | network | score | {' | '.join(names)} | seeds |", "|---" * 9 + "|"]
    for (product, _, network, score), of in sorted(cells.items()):
        counts = f"{of[0]['defects']} : {of[0]['good']}"
        shown = " | ".join(spread([row[name] for row in of if name in row]) for name in names)
        lines.append(f"| {product} | {counts} | {network} | {score} | {shown} | {len(of)} |")
    return "\n".join(lines)


def spread(values: Sequence[float]) -> str:
    """Mean ± standard deviation, in %, of none or more values."""
    deviation = f" ± {100 * stdev(values):.1f}" if len(values) > 1 else ""
    return f"{100 * mean(values):.1f}{deviation}" if values else "–"


def main() -> None:
    """Run what is missing, and print the table of everything."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--products", nargs="+", choices=PRODUCTS, default=["magnetic_tile", "elpv"])
    parser.add_argument("--ratios", nargs="+", type=int, choices=RATIOS, default=RATIOS, help="good images to a defect")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2, 3, 4])
    parser.add_argument("--preset", choices=Capsule.presets, default="cpu")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--size", type=int, default=64, help="pixels a side that the networks see")
    parser.add_argument("--device", default="")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "capsule_imbalance.jsonl")
    options = parser.parse_args()
    options.out.parent.mkdir(parents=True, exist_ok=True)
    rows = kept(options.out)
    same = (options.preset, options.steps, options.size)
    rows = [row for row in rows if (row["preset"], row["steps"], row["size"]) == same]
    done = {(row["product"], row["ratio"], row["seed"], row["network"], row["score"]) for row in rows}
    with options.out.open("a") as out, tempfile.TemporaryDirectory() as temporary:
        for product in options.products:
            folder = PRODUCTS[product]
            if product == "screw-equalised":
                folder = equalised.write(folder, Path(temporary) / product)
            for row in figures(product, folder, options, done):
                print(json.dumps(row), flush=True)
                print(json.dumps(row), file=out, flush=True)
                rows.append(row)
    print(table(rows))


if __name__ == "__main__":
    main()
