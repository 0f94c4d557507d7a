"""Heads beside the banks of `memory-bank`: what else could score the same whitened features.

    OMP_NUM_THREADS=1 python benchmarks/heads.py bottle screw screw-equalised magnetic_tile ball_screw --seed 0

Products as in `memory_bank_study.py`, with masks; `screw-equalised` has the light of its training pictures (medians).
Learns the banks from at most 150 good pictures, and every head from the whitened features of these pictures. Measures a
head alone, and added with a weight to the score of the banks, each in standard deviations of held-out good pictures.

Heads: distance of the position (diagonal Gaussian of each position); |q|² (one diagonal Gaussian of all patches, whose
covariance whitening has made the unit matrix); PCA residual (squared length outside the subspace that has 95 or 99 % of
the variance of good patches, before whitening as in SubspaceAD, and after it); discriminator (SimpleNet, arXiv
2303.15140: an MLP that tells good patches from the same with noise; here without the adaptor, which whitening
replaces; needs torch). "in the banks": the residual is added to each patch's distance, and calibrated with it.

Prints Markdown: image AUROC / pixel AUROC (every sixth row and column) / hit rate, in %, for both scales and for each.
"""

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from spox import build

import memory_bank_study as study
from andon.detectors.memory_bank import MemoryBank, Settings, alike
from andon.engines import runtime
from andon.evaluate import metrics
from andon.geometry import views
from andon.graphs.parts import input_tiles
from andon.inspection import Array, Pixels

FIT, HELD, TEST = 150, 40, 250  # pictures at most
EVERY = 6  # of the rows and columns of a picture: pixels for the pixel AUROC
COMMON, DEEP = 0.5, {1: 0.25, 2: 0.75}  # settings of the detector: common; deep, by the number of scales
STEPS, BATCH, HIDDEN, MARGIN = 400, 512, 128, 0.5  # of the discriminator
Maps = list[Array]  # for each map of the detector, (n, h, w) or (n, h, w, c)
Head = Callable[[int, Array], Array]  # number of a map, whitened features (n, h, w, c) → scores (n, h, w)


class Kept(MemoryBank):
    """Keeps what its calibration computes: whitened features of good tiles, their distances to others' memories."""

    def _without_own(self, *args: Any) -> tuple[Maps, Maps]:
        self.kept = super()._without_own(*args)
        return self.kept

    def outputs(self, tiles: Pixels) -> tuple[Maps, Maps, Maps]:
        """Whitened features, distances with credit, and distances without; none has anything of the position."""
        banks, usual, self._usual = self._banks, self._usual, [None] * len(self._maps)
        source = input_tiles(self._shape, self._channels, self._depth)
        maps = self._describe(source)
        found = [self._search(i, x) for i, x in enumerate(maps)]
        self._banks = [bank._replace(credit=0 * bank.credit) for bank in banks]
        plain = [self._search(i, x)[1] for i, x in enumerate(maps)]
        self._banks, self._usual = banks, usual
        names = {
            f"{kind}{i}": x for i, pair in enumerate(found) for kind, x in zip(("white", "near"), pair, strict=True)
        }
        session = runtime.session(build({"tiles": source}, names | {f"plain{i}": x for i, x in enumerate(plain)}))
        values: list[Maps] = [session.run(None, {"tiles": tile[None]}) for tile in tiles]
        columns = [np.concatenate(column) for column in zip(*values, strict=True)]
        white = [x[..., :-1].astype(np.float16) for x in columns[0 : 2 * len(maps) : 2]]
        return white, *([x[:, 0] for x in some] for some in (columns[1 : 2 * len(maps) : 2], columns[2 * len(maps) :]))


class Part(NamedTuple):
    """Some pictures, as the detector describes them."""

    white: Maps  # (n, h, w, c) float16
    near: Maps  # (n, h, w)
    plain: Maps  # (n, h, w)


class Product(NamedTuple):
    """What is measured on."""

    fit: Part  # distances to the memories of other pictures
    held: Part
    test: Part
    variances: list[Array]  # (c,) of the features, in the order of the whitened ones
    labels: list[int]
    masks: list[NDArray[np.bool_]]  # of the test pictures


def spread(count: int, most: int) -> NDArray[np.intp]:
    """At most so many of `count`, evenly spaced."""
    return np.linspace(0, count - 1, min(count, most)).round().astype(np.intp)


def gather(name: str, seed: int, size: int) -> Product:
    """Fit the banks of the default detector, and describe all pictures."""
    fit, held, test, labels, masks = study.load(name.removesuffix("-equalised"), seed)
    fit, held = ([part[i] for i in spread(len(part), most)] for part, most in ((fit, FIT), (held, HELD)))
    kept = spread(len(test), TEST)
    test, labels = [test[i] for i in kept], [labels[i] for i in kept]
    shown = [masks[i] for i in kept]
    if name.endswith("-equalised"):
        light = np.median([np.median(picture) for picture in fit])
        test = [np.clip(p * (light / np.median(p)), 0, 255).round().astype(np.uint8) for p in test]
    geometry = views.Geometry(size=size).shaped([picture.shape[:2] for picture in fit])
    bank = Kept(Settings(), seed).fit(study.Images(fit, geometry))
    parts = [Part(*bank.outputs(study.Images(some, geometry).tiles)) for some in (held, test)]
    white, near = bank.kept
    return Product(
        Part([x.astype(np.float16) for x in white], near, near),
        *parts,
        [1 / np.square(bank.whiten).sum(axis=0) for bank in bank._banks],
        labels,
        [np.zeros(p.shape[:2], bool) if m is None else m > 0 for p, m in zip(test, shown, strict=True)],
    )


def residual(variances: Sequence[Array], share: float, whitened: bool) -> Head:
    """Squared length outside the directions that have `share` of the variance; variances ascend."""

    def head(i: int, white: Array) -> Array:
        rest = np.cumsum(variances[i]) <= (1 - share) * variances[i].sum()
        weights = np.ones(rest.sum(), np.float32) if whitened else variances[i][rest]
        found: Array = np.square(white[..., rest]) @ weights
        return found

    return head


def discriminator(good: Maps, noise: float, seed: int) -> Head:
    """Learn for each map to tell good patches from the same with noise; the score is low for good ones."""
    torch.manual_seed(seed)
    networks = []
    for x in good:
        rows, c = torch.from_numpy(x.reshape(-1, x.shape[-1])), x.shape[-1]
        network = torch.nn.Sequential(
            torch.nn.Linear(c, HIDDEN),
            torch.nn.BatchNorm1d(HIDDEN),
            torch.nn.LeakyReLU(0.2),
            torch.nn.Linear(HIDDEN, 1, bias=False),
        )
        optimiser = torch.optim.Adam(network.parameters(), lr=1e-3, weight_decay=1e-5)
        for _ in range(STEPS):
            real = rows[torch.randint(len(rows), (BATCH,))].float()
            found = network(torch.cat([real, real + noise * torch.randn_like(real)]))
            loss = (MARGIN + found[:BATCH]).clamp(min=0).mean() + (MARGIN - found[BATCH:]).clamp(min=0).mean()
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
        networks.append(network.eval())

    @torch.no_grad()
    def head(i: int, white: Array) -> Array:
        return np.stack(
            [networks[i](torch.from_numpy(x.reshape(-1, x.shape[-1]))).numpy().reshape(x.shape[:2]) for x in white]
        )

    return head


def scored(head: Head, part: Part) -> Maps:
    """The maps of a head."""
    return [head(i, x.astype(np.float32)) for i, x in enumerate(part.white)]


class Result(NamedTuple):
    """Held-out and test pictures by one head, in standard deviations of the held-out ones."""

    held: Array  # (n,)
    test: Array
    maps: Array  # (n, h, w) of the test pictures


def standard(held: Array, test: Array) -> tuple[Array, Array]:
    """Both in standard deviations of `held`."""
    mean, deviation = held.mean(dtype=np.float64), held.std(dtype=np.float64)
    return (held - mean) / deviation, (test - mean) / deviation


def joined(maps: Maps, scale: int) -> Array:
    """Sum the two maps of a scale on its finer grid."""
    fine, coarse = maps[2 * scale - 2 : 2 * scale]
    return fine + alike.enlarge(coarse, fine.shape[1:])


def scores(maps: Maps, scale: int, common: float) -> Array:
    """Scores (n,) of pictures at a scale."""
    return alike.image_scores(joined(maps, scale), common)


def result(
    held: Maps, test: Maps, widths: Sequence[int], scales: Sequence[int], images: Callable[[Maps, int], Array]
) -> Result:
    """Sum the scores by `images` of all scales, and the maps, divided by `widths` as the detector does."""
    of_images = (np.sum([images(maps, scale) for scale in scales], axis=0) for maps in (held, test))
    numbers = [i for scale in scales for i in (2 * scale - 2, 2 * scale - 1)]
    shares = [share / widths[i] for share, i in zip((1, DEEP[len(scales)]) * len(scales), numbers, strict=True)]
    grid = held[numbers[0]].shape[1:]
    shown = []
    for maps in (held, test):
        total = np.sum([share * alike.enlarge(maps[i], grid) for share, i in zip(shares, numbers, strict=True)], axis=0)
        shown.append(alike.average(total[:, None], 3)[:, 0])
    return Result(*standard(*of_images), standard(*shown)[1])


def by_banks(product: Product, scales: Sequence[int], extra: Head | None = None) -> Result:
    """As the detector scores. `extra` is added to the distance of each patch."""
    gate = alike.weight(product.fit.white[2].astype(np.float32))
    parts: list[Maps] = [[x.copy() for x in part.near] for part in (product.fit, product.held, product.test)]
    for i, white in enumerate(product.fit.white):
        good = white.astype(np.float32)
        if gate:
            usual = alike.usual(good)
            parts[0][i] += gate * alike.distances_without(good, np.arange(len(good)))
            for maps, part in zip(parts[1:], (product.held, product.test), strict=True):
                maps[i] += gate * usual.distance(part.white[i].astype(np.float32))
        if extra:
            for maps, part in zip(parts, product[:3], strict=True):
                maps[i] += extra(i, part.white[i].astype(np.float32))
    channels = [len(x) for x in product.variances]
    calibrated = {
        scale: alike.calibrate(joined(parts[0], scale), gate, sum(channels[2 * scale - 2 : 2 * scale]), COMMON)
        for scale in scales
    }

    def images(maps: Maps, scale: int) -> Array:
        good = calibrated[scale]
        found = alike.image_scores((joined(maps, scale) - good.offset) * good.factor, COMMON)
        return (found - good.mean) / good.deviation

    return result(*parts[1:], channels, scales, images)


def by_maps(held: Maps, test: Maps, widths: Sequence[int], scales: Sequence[int], common: float) -> Result:
    """By the maps alone; a scale counts in standard deviations of its held-out scores."""
    of = {scale: scores(held, scale, common) for scale in scales}
    return result(held, test, widths, scales, lambda maps, scale: standard(of[scale], scores(maps, scale, common))[1])


def by_head(held: Maps, test: Maps, scales: Sequence[int]) -> Result:
    """By the maps of a head, each in standard deviations of held-out good patches."""
    pairs = [standard(a, b) for a, b in zip(held, test, strict=True)]
    return by_maps([a for a, _ in pairs], [b for _, b in pairs], [1] * len(held), scales, COMMON)


def figures(product: Product, found: Result) -> tuple[float, float, float]:
    """Image AUROC, pixel AUROC, hit rate."""
    values, truth, hits = [], [], []
    for one, mask in zip(found.maps, product.masks, strict=True):
        whole = cv2.resize(one.astype(np.float32), mask.shape[::-1], interpolation=cv2.INTER_LINEAR)
        values.append(whole[::EVERY, ::EVERY].ravel())
        truth.append(mask[::EVERY, ::EVERY].ravel())
        if mask.any():
            hits.append(study.hits(whole, mask))
    pixels = metrics.auroc(np.concatenate(truth), np.concatenate(values))
    return 100 * metrics.auroc(product.labels, found.test), 100 * pixels, 100 * float(np.mean(hits))


def measure(product: Product, seed: int, weight: float = 1) -> dict[str, tuple[float, float, float]]:
    """Figures by scales and head."""
    good = [x.astype(np.float32) for x in product.fit.white]
    usual = [alike.usual(x) for x in good]
    of_pca = {
        f"PCA residual of {share:.0%}, {'whitened' if whitened else 'as in SubspaceAD'}": residual(
            product.variances, share, whitened
        )
        for share in (0.95, 0.99)
        for whitened in (False, True)
    }
    heads: dict[str, Head] = {
        "distance of the position": lambda i, x: usual[i].distance(x),
        "|q|²": lambda i, x: np.square(x).sum(axis=-1),
        **of_pca,
        **{f"discriminator, noise {noise}": discriminator(good, noise, seed) for noise in (0.25, 1.0)},
    }
    maps = {name: (scored(head, product.held), scored(head, product.test)) for name, head in heads.items()}
    channels = [len(x) for x in product.variances]
    table: dict[str, tuple[float, float, float]] = {}
    for scales, where in (((1, 2), "both"), ((1,), "full"), ((2,), "half")):
        banks = by_banks(product, scales)
        rows = {"plain distance": by_maps(product.held.plain, product.test.plain, channels, scales, 0), "banks": banks}
        for name, pair in maps.items():
            rows[name] = alone = by_head(*pair, scales)
            rows[f"banks + {name}"] = Result(*(np.asarray(a + weight * b) for a, b in zip(banks, alone, strict=True)))
        for name, head in of_pca.items():
            if "whitened" in name:
                rows[f"{name}, in the banks"] = by_banks(product, scales, head)
        table |= {f"{where} | {name}": figures(product, found) for name, found in rows.items()}
    return table


def main() -> None:
    """Print one table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("products", nargs="+", metavar="PRODUCT")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--weight", type=float, default=1, help="of a head that is added")
    parser.add_argument("--size", type=int, default=480, help="pixels a side of the full scale; the other has half")
    parser.add_argument("--data", type=Path, default=study.DATA)
    options = parser.parse_args()
    study.DATA = options.data
    torch.set_num_threads(1)
    tables = {
        name: measure(gather(name, options.seed, options.size), options.seed, options.weight)
        for name in options.products
    }
    print(f"| scales | head | {' | '.join(tables)} | mean |\n|{'---|' * (len(tables) + 3)}")
    for name in next(iter(tables.values())):
        cells = np.array([table[name] for table in tables.values()])
        shown = [" / ".join(f"{x:.2f}" for x in cell) for cell in (*cells, cells.mean(axis=0))]
        print(f"| {name} | {' | '.join(shown)} |")


if __name__ == "__main__":
    main()
