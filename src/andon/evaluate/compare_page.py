"""The page of a comparison of bundles: figures, ROC curves, and pictures with the result of each bundle."""

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

SIDE = 480  # pixels: longer side of a picture
DISAGREED, TYPICAL, GOOD = 6, 6, 3  # number of images in each section
VECTORS = {"latent": "latent vectors", "embedding": "embeddings"}  # outputs of a graph → text
PERPLEXITY = 30.0  # of t-SNE: the approximate number of neighbours
FEWEST = 10  # smallest number of images for t-SNE


class Result(NamedTuple):
    """The result of one bundle for one image."""

    overlay: str  # data URI
    reconstruction: str  # data URI; empty if the detector has no reconstruction
    verdict: Verdict
    score: float
    levels: dict[str, float]  # of the score, see `render.levels`
    above: float  # share of the good images with a lower score


class Panel(NamedTuple):
    """One image with the results of all bundles."""

    name: str
    defect: str
    photo: str
    results: list[Result]


class Section(NamedTuple):
    """Panels with a title and a sentence on their selection."""

    title: str
    words: str
    panels: list[Panel]


class Cloud(NamedTuple):
    """A t-SNE plot of one bundle's vectors of the images."""

    name: str  # of the bundle
    kind: str  # of the vectors
    plot: Markup


def write(compared: Comparison, folder: str | Path) -> Path:
    """Write `compare.html` into a folder, which is created if it does not exist; return the path of the page."""
    folder = Path(folder)
    files.make_folder(folder)
    files.write(folder / "compare.html", html(compared))
    return folder / "compare.html"


def html(compared: Comparison) -> bytes:
    """Render the page."""
    differences = compared.differences()
    plots_of_vectors, no_clouds = clouds(compared)
    evaluations = list(compared.evaluations.items())
    return pages.render(
        "compare.html",
        root=compared.dataset.root.resolve().name,
        images=len(compared.images),
        left_out=max(len(evaluation.rows) for _, evaluation in evaluations) - len(compared.images),
        evaluations=[(name, evaluation, evaluation.metrics) for name, evaluation in evaluations],
        best=best(compared),
        headline=headline(compared, differences),
        differences=differences,
        grouped=compared.dataset.grouped,
        resamples=RESAMPLES,
        roc=Markup(roc_plot(compared)),
        clouds=plots_of_vectors,
        no_clouds=no_clouds,
        sections=sections(compared),
        colours=COLOURS,
        mark=control.mark,
        near=control.NEAR,
        errors=compared.errors,
        warnings=compared.warnings,
    )


def headline(compared: Comparison, differences: Sequence[Difference]) -> str:
    """The headline: the bundle with the highest image AUROC on the common images, and whether it differs."""
    if not compared.ranked:
        return "The images are all good or all defective, so scores cannot be compared."
    areas = {
        name: metrics.auroc(compared.defective, scores)
        for name, scores in zip(compared.rows, compared.scores, strict=True)
    }
    first, *others = sorted(areas, key=lambda name: -areas[name])
    close = [name for d in differences if first in d[:2] and d.p_value > 0.05 for name in d[:2] if name != first]
    start = f"{first} has the highest image AUROC, {areas[first]:.4f}"
    if not close:
        return f"{start}; the difference to {_join(others)} is significant."
    worse = [name for name in others if name not in close]
    rest = f", but to {_join(worse)} it is" if worse else ""
    return f"{start}; on these images the difference to {_join(close)} is not significant{rest}."


def _join(names: Sequence[str]) -> str:
    return " and ".join([", ".join(names[:-1]), names[-1]] if len(names) > 1 else names)


def best(compared: Comparison) -> dict[str, float | None]:
    """The highest value of each figure, which is printed in bold."""
    figures = [evaluation.metrics for evaluation in compared.evaluations.values()]

    def highest(part: str, key: str) -> float | None:
        return max((m[part][key] for m in figures if m[part][key] is not None), default=None)

    keys = [("image", key) for key in ("auroc", "ap")]
    keys += [("pixel", key) for key in ("auroc", "aupro_30", "aupro_05", "aupimo", "seg_f1")]
    return {f"{part}_{key}": highest(part, key) for part, key in keys}


def roc_plot(compared: Comparison) -> str:
    """The ROC curves of all bundles as SVG; empty if they cannot be computed."""
    if not compared.ranked:
        return ""
    lines = []
    for j, (name, scores) in enumerate(zip(compared.rows, compared.scores, strict=True)):
        curve = metrics.roc(compared.defective, scores)
        lines.append(Line(curve.fpr, curve.tpr, name, COLOURS[j % len(COLOURS)]))
    return plots.line_plot(lines, "good images stopped", "defective images caught", diagonal=True, size=(520, 460))


def clouds(compared: Comparison) -> tuple[list[Cloud], str]:
    """t-SNE plots of each bundle's vectors of the images, or the reason why there is no plot.

    van der Maaten and Hinton, "Visualizing data using t-SNE", JMLR 9, 2008; scikit-learn, seeded.
    """
    kinds = {name: _outputs(inspector) & set(VECTORS) for name, inspector in compared.inspectors.items()}
    if not any(kinds.values()):
        return [], ""
    if importlib.util.find_spec("sklearn") is None:
        return [], "not available, because scikit-learn is not installed: pip install 'andon[train]'"
    if len(compared.images) < FEWEST:
        return [], f"not available for {len(compared.images)} images; it needs at least {FEWEST}"
    from sklearn.manifold import TSNE

    result = []
    for name, inspector in compared.inspectors.items():
        for kind, values in vectors(inspector, compared.images, sorted(kinds[name], reverse=True)).items():
            finite = np.isfinite(values).all(axis=1)
            if np.count_nonzero(finite) < FEWEST or not np.ptp(values[finite], axis=0).any():
                continue  # too few vectors, or all equal
            perplexity = min(PERPLEXITY, (np.count_nonzero(finite) - 1) / 3)
            start = "pca" if values.shape[1] > 1 else "random"
            points = TSNE(perplexity=perplexity, init=start, random_state=0).fit_transform(values[finite])
            result.append(Cloud(name, VECTORS[kind], Markup(plots.cloud(points, compared.defective[finite]))))
    return result, ""


def vectors(inspector: Inspector, images: Sequence[Row], kinds: Sequence[str]) -> dict[str, NDArray[np.float32]]:
    """Return the vectors (images, d) of each kind; NaN where the part was not found, or the file has changed.

    The vector of an image in several tiles is the mean over its tiles.
    """
    session = runtime.session(inspector.bundle.graph)
    rows: dict[str, list[NDArray[np.float32] | float]] = {kind: [] for kind in kinds}
    for row in images if kinds else ():
        try:
            pieces = tiling.split(_view(inspector, _read(inspector, row)), inspector.recipe.geometry)
            outputs = zip(*(session.run(kinds, {"tiles": tile[None]}) for _, tile in pieces), strict=True)
            means: list[Any] = [np.concatenate(output).mean(axis=0) for output in outputs]
        except ImageError:
            means = [np.nan] * len(kinds)
        for kind, mean in zip(kinds, means, strict=True):
            rows[kind].append(mean)
    return {kind: np.stack(np.broadcast_arrays(*values)) for kind, values in rows.items()}


def sections(compared: Comparison) -> list[Section]:
    """Selected images, each with the results of all bundles."""
    above = compared.above()
    spread, mean = np.ptp(above, axis=0), above.mean(axis=0)
    bad, good = np.flatnonzero(compared.defective), np.flatnonzero(~compared.defective)
    disagreed = [j for j in bad[np.argsort(-spread[bad], kind="stable")] if spread[j] > 0][:DISAGREED]
    kinds: dict[str, list[int]] = {}
    for j in bad[np.argsort(mean[bad], kind="stable")]:
        kinds.setdefault(compared.images[j].defect, []).append(int(j))
    typical = [rows[len(rows) // 2] for rows in kinds.values()][:TYPICAL]
    worst = good[np.argsort(-mean[good], kind="stable")][:GOOD]
    draw = _Draw(compared, above)
    selection = [
        ("Largest differences", "Defective images whose ranks among the good images differ most.", disagreed),
        ("Typical defects", "For each type, the image with the median of the mean rank.", typical),
        ("Most anomalous good images", "Good images with the highest mean rank.", worst.tolist()),
    ]
    return [draw.section(title, words, rows) for title, words, rows in selection if len(rows)]


class _Draw:
    """Draws panels, with one engine session for each bundle that has a reconstruction."""

    def __init__(self, compared: Comparison, above: NDArray[np.float64]) -> None:
        self._compared, self._above = compared, above
        self._sessions = {}
        for name, inspector in compared.inspectors.items():
            session = runtime.session(inspector.bundle.graph)
            if "reconstruction" in {output.name for output in session.get_outputs()}:
                self._sessions[name] = session

    def section(self, title: str, words: str, rows: Sequence[int]) -> Section:
        """Draw panels. A file that is missing or has changed has no panel; its error is added to the text."""
        panels = []
        for j in rows:
            try:
                panels.append(self.panel(j))
            except ImageError as error:
                words += f" Without a picture: {error}"
        return Section(title, words, panels)

    def panel(self, j: int) -> Panel:
        """Draw an image with the results of all bundles. ImageError when its file is missing or has changed."""
        row = self._compared.images[j]
        picture = row.read()
        pixels = picture.pixels
        mask = row.truth(pixels.shape)
        photo = render.fit(render.display(pixels), SIDE)
        if mask is not None:
            render.outline(photo, mask, render.TRUTH)
        results = []
        for i, (name, inspector) in enumerate(self._compared.inspectors.items()):
            source = _read(inspector, row)
            inspection = inspector.inspect(source)
            overlay = render.overlay(
                pixels, inspection.anomaly_map, inspector.scale, inspection.regions, mask, side=SIDE, bar=False
            )
            picture_again = self._reconstruction(name, inspector, source)
            reconstruction = _jpeg(picture_again) if picture_again is not None else ""
            levels = render.levels(inspection.score, inspector.calibration.scores, inspection.thresholds)
            share = float(self._above[i, j])
            verdict, score = inspection.verdict, inspection.score
            results.append(Result(_jpeg(overlay), reconstruction, verdict, score, levels, share))
        return Panel(row.name, row.defect, _jpeg(photo), results)

    def _reconstruction(self, name: str, inspector: Inspector, picture: Image) -> Picture | None:
        """The reconstruction of the image, in the frame of the image; None if the detector has none."""
        if name not in self._sessions:
            return None
        view = _view(inspector, picture)
        places, tiles = zip(*tiling.split(view, inspector.recipe.geometry), strict=True)
        (output,) = self._sessions[name].run(["reconstruction"], {"tiles": np.stack(tiles)})  # (n, t, t, c) in [0, 1]
        planes = [tiling.join(view, zip(places, output[..., c], strict=True)) for c in range(output.shape[3])]
        values = np.nan_to_num(np.stack(planes, axis=2)) * 255
        return render.fit(render.display(np.round(values).astype(np.uint8)), SIDE)


def _read(inspector: Inspector, row: Row) -> Image:
    """Read a picture at the scale of the bundle. ImageError when its file is missing or has changed."""
    return row.read(inspector.manifest.input.reduced)


def _view(inspector: Inspector, picture: Image) -> views.View:
    accepted = image.accept(picture, inspector.manifest.input)
    return views.align(accepted.pixels, inspector.recipe.geometry, picture.name, inspector.reference, accepted.full)


def _outputs(inspector: Inspector) -> set[str]:
    session = runtime.session(inspector.bundle.graph)
    return {output.name for output in session.get_outputs()}


def _jpeg(picture: Picture) -> str:
    return pages.data(render.encode(picture, "jpg"), "jpeg")
