"""The page that compares bundles: figures side by side, ROC curves, and the same pictures under each bundle."""

import importlib.util
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from markupsafe import Markup
from numpy.typing import NDArray

from andon import files, pages, render
from andon.engines import runtime
from andon.errors import ImageError
from andon.evaluate import control, metrics, plots
from andon.evaluate.compare import RESAMPLES, Comparison, Difference
from andon.evaluate.evaluating import Row
from andon.evaluate.plots import COLOURS, Line
from andon.geometry import tiling, views
from andon.inspection import Verdict
from andon.inspector import Inspector
from andon.pictures import image
from andon.pictures.image import Image
from andon.render import Picture

SIDE = 480  # pixels, the longer side of a picture
DISAGREED, TYPICAL, GOOD = 6, 6, 3  # images in each section of panels
VECTORS = {"latent": "latent vectors", "embedding": "embeddings"}  # outputs of a graph, in words
PERPLEXITY = 30.0  # of t-SNE: about how many neighbours count
FEWEST = 10  # images that t-SNE makes sense for


class Shown(NamedTuple):
    """One image under one bundle."""

    overlay: str  # data URI
    reconstruction: str  # data URI, or nothing where the detector has none
    verdict: Verdict
    score: float
    levels: dict[str, float]  # of the score, see `render.levels`
    above: float  # share of the good images that score lower


class Panel(NamedTuple):
    """One image under every bundle."""

    name: str
    defect: str
    photo: str
    shown: list[Shown]


class Section(NamedTuple):
    """Panels with a title and a sentence on how they were chosen."""

    title: str
    words: str
    panels: list[Panel]


class Cloud(NamedTuple):
    """The images as one bundle's vectors of them lie to each other."""

    name: str  # of the bundle
    kind: str  # which vectors, in words
    plot: Markup


def write(compared: Comparison, folder: str | Path) -> Path:
    """Write `compare.html` into a folder, which is made if need be; returns the page."""
    folder = Path(folder)
    files.make_folder(folder)
    files.write(folder / "compare.html", html(compared))
    return folder / "compare.html"


def html(compared: Comparison) -> bytes:
    """Make the page."""
    differences = compared.differences()
    laid_out, no_clouds = clouds(compared)
    evaluations = list(compared.evaluations.items())
    return pages.render(
        "compare.html",
        root=compared.dataset.root.resolve().name,
        images=len(compared.images),
        left_out=max(len(found.rows) for _, found in evaluations) - len(compared.images),
        evaluations=[(name, found, found.metrics) for name, found in evaluations],
        best=best(compared),
        headline=headline(compared, differences),
        differences=differences,
        grouped=compared.dataset.grouped,
        resamples=RESAMPLES,
        roc=Markup(roc_plot(compared)),
        clouds=laid_out,
        no_clouds=no_clouds,
        sections=sections(compared),
        colours=COLOURS,
        mark=control.mark,
        near=control.NEAR,
        errors=compared.errors,
    )


def headline(compared: Comparison, differences: Sequence[Difference]) -> str:
    """The answer in a sentence: which ranks best, and whether that is more than chance."""
    if not compared.ranked:
        return "The images are all good or all defective, so scores cannot be compared."
    areas = {name: found.metrics["image"]["auroc"] for name, found in compared.evaluations.items()}
    first, *others = sorted(areas, key=lambda name: -areas[name])
    close = [name for d in differences if first in d[:2] and d.p_value > 0.05 for name in d[:2] if name != first]
    start = f"{first} ranks best, image AUROC {areas[first]:.4f}"
    if not close:
        return f"{start}; the difference to {_listed(others)} is more than chance."
    beaten = [name for name in others if name not in close]
    rest = f", but is better than {_listed(beaten)}" if beaten else ""
    return f"{start}; on these images it cannot be told apart from {_listed(close)}{rest}."


def _listed(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def best(compared: Comparison) -> dict[str, float | None]:
    """The highest value of each figure, to be set in bold."""
    found = [evaluation.metrics for evaluation in compared.evaluations.values()]

    def highest(part: str, key: str) -> float | None:
        return max((m[part][key] for m in found if m[part][key] is not None), default=None)

    keys = (("image", "auroc"), ("image", "ap"), ("pixel", "auroc"), ("pixel", "aupro_30"), ("pixel", "aupro_05"))
    return {f"{part}_{key}": highest(part, key) for part, key in keys}


def roc_plot(compared: Comparison) -> str:
    """The ROC curves of all bundles as SVG; empty where there are none."""
    if not compared.ranked:
        return ""
    lines = []
    for j, (name, scores) in enumerate(zip(compared.rows, compared.scores, strict=True)):
        curve = metrics.roc(compared.defective, scores)
        lines.append(Line(curve.fpr, curve.tpr, name, COLOURS[j % len(COLOURS)]))
    return plots.line_plot(lines, "good images stopped", "defective images caught", diagonal=True, size=(520, 460))


def clouds(compared: Comparison) -> tuple[list[Cloud], str]:
    """Lay the images out by t-SNE of each bundle's vectors of them; and say why there is no such figure.

    van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 9, 2008; by scikit-learn, seeded.
    """
    kinds = {name: _outputs(inspector) & set(VECTORS) for name, inspector in compared.inspectors.items()}
    if not any(kinds.values()):
        return [], ""
    if importlib.util.find_spec("sklearn") is None:
        return [], "left out, for scikit-learn is not installed: pip install 'andon[train]'"
    if len(compared.images) < FEWEST:
        return [], f"left out, for {len(compared.images)} images are too few; it needs {FEWEST}"
    from sklearn.manifold import TSNE

    made = []
    for name, inspector in compared.inspectors.items():
        for kind, values in vectors(inspector, compared.images, sorted(kinds[name], reverse=True)).items():
            known = np.isfinite(values).all(axis=1)
            if np.count_nonzero(known) < FEWEST or not np.ptp(values[known], axis=0).any():
                continue  # nothing to tell apart
            perplexity = min(PERPLEXITY, (np.count_nonzero(known) - 1) / 3)
            start = "pca" if values.shape[1] > 1 else "random"
            points = TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(values[known])
            made.append(Cloud(name, VECTORS[kind], Markup(plots.cloud(points, compared.defective[known]))))
    return made, ""


def vectors(inspector: Inspector, images: Sequence[Row], kinds: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Return each kind of vector (images, d) that a bundle makes; NaN where the part was not found or the file changed.

    Of an image in tiles it is the mean of theirs.
    """
    session = runtime.session(inspector.bundle.graph)
    found: dict[str, list[NDArray[np.float32] | float]] = {kind: [] for kind in kinds}
    for row in images if kinds else ():
        try:
            pieces = tiling.split(_view(inspector, _seen(inspector, row)), inspector.recipe.geometry)
            made = [
                np.concatenate(x)
                for x in zip(*(session.run(kinds, {"tiles": t[None]}) for _, t in pieces), strict=True)
            ]
            means: list[Any] = [x.mean(axis=0) for x in made]
        except ImageError:
            means = [np.nan] * len(kinds)
        for kind, mean in zip(kinds, means, strict=True):
            found[kind].append(mean)
    return {kind: np.stack(np.broadcast_arrays(*rows)) for kind, rows in found.items()}


def sections(compared: Comparison) -> list[Section]:
    """The images that tell most about the difference, each under every bundle."""
    above = compared.above()
    apart, middle = np.ptp(above, axis=0), above.mean(axis=0)
    bad, good = np.flatnonzero(compared.defective), np.flatnonzero(~compared.defective)
    disagreed = [j for j in bad[np.argsort(-apart[bad], kind="stable")] if apart[j] > 0][:DISAGREED]
    kinds: dict[str, list[int]] = {}
    for j in bad[np.argsort(middle[bad], kind="stable")]:
        kinds.setdefault(compared.images[j].defect, []).append(int(j))
    typical = [those[len(those) // 2] for those in kinds.values()][:TYPICAL]
    worst = good[np.argsort(-middle[good], kind="stable")][:GOOD]
    draw = _Draw(compared, above)
    chosen = [
        ("Where they disagree", "Defective images that stand out most differently among the good ones.", disagreed),
        ("Typical defects", "Of each type the image in the middle, by how far it stands out on average.", typical),
        ("Good images that look worst", "Those that stand out most on average.", worst.tolist()),
    ]
    return [draw.section(title, words, those) for title, words, those in chosen if len(those)]


class _Draw:
    """Makes panels; keeps an engine for each detector that reconstructs."""

    def __init__(self, compared: Comparison, above: NDArray[np.float64]) -> None:
        self._compared, self._above = compared, above
        self._sessions = {}
        for name, inspector in compared.inspectors.items():
            session = runtime.session(inspector.bundle.graph)
            if "reconstruction" in {output.name for output in session.get_outputs()}:
                self._sessions[name] = session

    def section(self, title: str, words: str, those: Sequence[int]) -> Section:
        """Draw panels; one whose file is not the one that was judged is left out, and the words say so."""
        panels = []
        for j in those:
            try:
                panels.append(self.panel(j))
            except ImageError as error:
                words += f" Without a picture: {error}"
        return Section(title, words, panels)

    def panel(self, j: int) -> Panel:
        """Draw an image under every bundle. ImageError when its file is no longer the one that was judged."""
        row = self._compared.images[j]
        picture = row.read()
        pixels = picture.pixels
        mask = row.truth(pixels.shape)
        photo = render.fit(render.display(pixels), SIDE)
        if mask is not None:
            render.outline(photo, mask, render.TRUTH)
        shown = []
        for i, (name, inspector) in enumerate(self._compared.inspectors.items()):
            seen = _seen(inspector, row)
            found = inspector.inspect(seen)
            overlay = render.overlay(
                pixels, found.anomaly_map, inspector.scale, found.regions, mask, side=SIDE, bar=False
            )
            again = self._reconstruction(name, inspector, seen)
            share = float(self._above[i, j])
            levels = render.levels(found.score, inspector.calibration.scores, found.thresholds)
            made = _jpeg(again) if again is not None else ""
            shown.append(Shown(_jpeg(overlay), made, found.verdict, found.score, levels, share))
        return Panel(row.name, row.defect, _jpeg(photo), shown)

    def _reconstruction(self, name: str, inspector: Inspector, picture: Image) -> Picture | None:
        """What the detector made of the image, in the frame of the image; None where it makes nothing."""
        if name not in self._sessions:
            return None
        view = _view(inspector, picture)
        places, tiles = zip(*tiling.split(view, inspector.recipe.geometry), strict=True)
        (made,) = self._sessions[name].run(["reconstruction"], {"tiles": np.stack(tiles)})  # (n, t, t, c) in [0, 1]
        planes = [tiling.join(view, zip(places, made[..., c], strict=True)) for c in range(made.shape[3])]
        values = np.nan_to_num(np.stack(planes, axis=2)) * 255
        return render.fit(render.display(np.round(values).astype(np.uint8)), SIDE)


def _seen(inspector: Inspector, row: Row) -> Image:
    """Read a picture as a bundle does. ImageError when its file is no longer the one that was judged."""
    return row.read(inspector.manifest.input.reduced)


def _view(inspector: Inspector, read: Image) -> views.View:
    taken = image.accept(read, inspector.manifest.input)
    return views.align(taken.pixels, inspector.recipe.geometry, read.name, inspector.reference, taken.full)


def _outputs(inspector: Inspector) -> set[str]:
    session = runtime.session(inspector.bundle.graph)
    return {output.name for output in session.get_outputs()}


def _jpeg(picture: Picture) -> str:
    return pages.data(render.encode(picture, "jpg"), "jpeg")
