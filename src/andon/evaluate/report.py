"""The report of an evaluation: one self-contained HTML file without scripts."""

import math
from collections.abc import Sequence
from datetime import UTC, datetime
from itertools import zip_longest
from pathlib import Path
from typing import NamedTuple

from markupsafe import Markup

from andon import files, pages, render
from andon.bundle import versions
from andon.calibration import percent
from andon.errors import ImageError
from andon.evaluate import control, metrics, plots
from andon.evaluate.deciding import in_words, promised_unit
from andon.evaluate.evaluating import Evaluation, Row
from andon.evaluate.plots import Band, Cut, Line, Mark
from andon.inspection import Verdict
from andon.inspector import Inspector

MAX_CARDS = 12  # pictures in a gallery
SIDE = 640  # pixels: longer side of a picture; displayed smaller until it is clicked
BANDS = 9  # rows of histograms; rare types of defect share the last


class Card(NamedTuple):
    """One image in a gallery."""

    row: Row
    photo: str  # data URI
    overlay: str
    levels: dict[str, float]  # of the score, see `render.levels`


class Gallery(NamedTuple):
    """Pictures with a title and a sentence on their selection."""

    title: str
    words: str
    cards: list[Card]


def write(evaluation: Evaluation, folder: str | Path, bundle: str = "") -> None:
    """Write `metrics.json`, `scores.csv` and `report.html` into a folder, which is created if it does not exist.

    bundle: file name of the bundle. Errors: AndonError when the folder or a file cannot be written.
    """
    folder = Path(folder)
    files.make_folder(folder)
    page = html(evaluation, bundle)  # the longest step; an interruption leaves no files
    files.write(folder / "metrics.json", evaluation.json())
    files.write(folder / "scores.csv", evaluation.csv())
    files.write(folder / "report.html", page)


def html(evaluation: Evaluation, bundle: str = "") -> bytes:
    """Render the report; `bundle`: file name of the bundle."""
    inspector = evaluation.inspector
    return pages.render(
        "report.html",
        evaluation=evaluation,
        bundle=bundle,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        versions=versions(),
        metrics=evaluation.metrics,
        seen=[sentence for sentence in control.sentences(evaluation.metrics) if sentence != control.NEAR],
        near=control.NEAR,
        sign=control.MARK,
        mark=control.mark(evaluation.metrics),
        defects=sorted(evaluation.metrics["defects"].items(), key=lambda item: item[1]["auroc"] or 0),
        headline=headline(evaluation),
        broken_promises=broken_promises(evaluation),
        roc=Markup(roc_plot(evaluation)),
        histogram=Markup(histogram(evaluation)),
        galleries=galleries(evaluation),
        legend=pages.data(render.encode(render.colour_bar(inspector.scale, 180), "png"), "png"),
        promises=inspector.promises(),
        highest=inspector.calibration.highest(),
        sheet=pages.data(inspector.bundle.sheet, "jpeg") if inspector.bundle.sheet else "",
        manifest=inspector.manifest,
        inspector=inspector,
        recipe=inspector.recipe.summary(),
    )


def headline(evaluation: Evaluation) -> str:
    """The headline: detected defects and false rejects at the review threshold, image AUROC and thresholds."""
    unit, decision = promised_unit(evaluation.metrics)
    escapes, stopped = decision["review"]["escapes"], decision["review"]["false_rejects"]
    ranked = evaluation.metrics["image"]
    sentence = (
        f"At the review threshold {escapes['n'] - escapes['count']} of {escapes['n']} defective {unit} are caught, "
        f"and {stopped['count']} of {stopped['n']} good {unit} are stopped."
    )
    if ranked["auroc"] is not None:
        sentence += f" Image AUROC {ranked['auroc']:.4f}."
    review, reject = evaluation.inspector.thresholds[:2]
    limits = f"REVIEW above a score of {review:.4g}" + (f", REJECT above {reject:.4g}" if math.isfinite(reject) else "")
    return f"{sentence} Thresholds: {limits}."


def broken_promises(evaluation: Evaluation) -> list[str]:
    """Sentences on thresholds whose false-reject rate is significantly above the promised rate and its interval.

    The unit is that of the promised rate; images of one part count as one observation.
    """
    sentences = []
    unit, decision = promised_unit(evaluation.metrics)
    for name, figures in decision.items():
        promised, stopped = figures["promised_rate"], figures["false_rejects_per_part"]
        if promised is None or not stopped["n"]:
            continue
        limit = figures["long_run"][1] if figures["long_run"] else promised
        if stopped["interval"][0] > limit:
            sentences.append(
                f"The {name} threshold stops {in_words(figures['false_rejects'])} good {unit}; {percent(promised)} was "
                "promised. These images differ from those of the calibration: recalibrate on good images like these."
            )
    return sentences


def roc_plot(evaluation: Evaluation) -> str:
    """The ROC curve of the images as SVG, with both thresholds; empty if it cannot be computed."""
    if evaluation.metrics["image"]["auroc"] is None:
        return ""
    labels = [not row.good for row in evaluation.rows]
    curve = metrics.roc(labels, [row.score for row in evaluation.rows])
    marks = [
        Mark(figures["false_rejects"]["rate"], 1 - figures["escapes"]["rate"], name)
        for name, figures in evaluation.metrics["decision"].items()
    ]
    line = Line(curve.fpr, curve.tpr, colour=plots.GOOD)
    return plots.line_plot([line], "good images stopped", "defective images caught", marks, diagonal=True)


def histogram(evaluation: Evaluation) -> str:
    """Histograms of the scores of good images and of each type of defect as SVG, with both thresholds."""
    scores: dict[str, list[float]] = {"good": []}
    counts = {kind: figures["n"] for kind, figures in evaluation.metrics["defects"].items()}
    common = sorted(counts, key=lambda kind: -counts[kind])
    common = common if len(common) < BANDS else common[: BANDS - 2]
    for row in evaluation.rows:
        scores.setdefault(row.defect if row.good or row.defect in common else "other defects", []).append(row.score)
    bands = [
        Band(name, values, plots.GOOD if name == "good" else plots.DEFECT)
        for name, values in sorted(scores.items(), key=lambda item: (item[0] != "good", item[0]))
        if values
    ]
    limits = evaluation.inspector.thresholds
    cuts = [Cut(limits.review, "review", True), Cut(limits.reject, "reject")]
    return plots.histograms(bands, [cut for cut in cuts if math.isfinite(cut.value)], "image score")


def galleries(evaluation: Evaluation) -> list[Gallery]:
    """The galleries of escapes, false rejects, scores close to the threshold, and typical detected defects."""
    rows = sorted(evaluation.rows, key=lambda row: row.score)
    escapes = [row for row in rows if not row.good and row.verdict is Verdict.PASS]
    caught = [row for row in rows if not row.good and row.verdict is not Verdict.PASS]
    stopped = [row for row in reversed(rows) if row.good and row.verdict is not Verdict.PASS]
    passed = [row for row in reversed(rows) if row.good and row.verdict is Verdict.PASS]
    errors = [
        ("Escapes", "Defective images that pass", escapes, "No defective image passes."),
        ("False rejects", "Good images that are stopped", stopped, "No good image is stopped."),
    ]
    result = []
    for title, what, worst, none in errors:
        order = "lowest" if title == "Escapes" else "highest"
        words = f"{what}: {_extent(worst)}, {order} score first." if worst else none
        result.append(_gallery(title, words, worst[:MAX_CARDS], evaluation.inspector))
    near = [*caught[:3], *passed[:3]]
    result.append(
        _gallery(
            "Close to the threshold",
            "The lowest scores of detected defects, and the highest scores of good images that pass.",
            near,
            evaluation.inspector,
        )
    )
    typical = _typical([row for row in caught if row not in near])
    words = "Defective images that are stopped, typical scores of each type: does the heat map show the defect?"
    result.append(_gallery("Detected defects", words, typical, evaluation.inspector))
    return [gallery for gallery in result if gallery.cards or gallery.title in ("Escapes", "False rejects")]


def _extent(rows: Sequence[Row]) -> str:
    return f"{MAX_CARDS} of {len(rows)}" if len(rows) > MAX_CARDS else f"all {len(rows)}"


def _typical(rows: Sequence[Row]) -> list[Row]:
    """Select images of all types of defect in turn, from the median score of each type outwards; rows ascend."""
    kinds: dict[str, list[Row]] = {}
    for row in rows:
        kinds.setdefault(row.defect, []).append(row)
    turns = zip_longest(*(_from_median(kinds[kind]) for kind in sorted(kinds)))
    return sorted([row for turn in turns for row in turn if row][:MAX_CARDS], key=lambda row: row.defect)


def _from_median(rows: list[Row]) -> list[Row]:
    middle = len(rows) // 2
    return [rows[j] for j in sorted(range(len(rows)), key=lambda j: abs(j - middle))]


def _gallery(title: str, words: str, rows: Sequence[Row], inspector: Inspector) -> Gallery:
    """Draw the rows. A file that is missing or has changed has no picture; its error is added to the text."""
    cards = []
    for row in rows:
        try:
            picture = row.read(inspector.manifest.input.reduced)
        except ImageError as error:
            words += f" Without a picture: {error}"
            continue
        inspection = inspector.inspect(picture)
        heat = render.overlay(
            picture.pixels,
            inspection.anomaly_map,
            inspector.scale,
            inspection.regions,
            row.truth(inspection.anomaly_map.shape),
            side=SIDE,
            bar=False,
        )
        photo = render.fit(render.display(picture.pixels), SIDE)
        left, right = (pages.data(render.encode(picture, "jpg"), "jpeg") for picture in (photo, heat))
        cards.append(
            Card(row, left, right, render.levels(row.score, inspector.calibration.scores, inspector.thresholds))
        )
    return Gallery(title, words, cards)
