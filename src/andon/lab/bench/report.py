"""The report of a benchmark, `results.md` and `results.html`: our figures, and published figures beside them."""

import json
import tomllib
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, NamedTuple

from markupsafe import Markup

from andon import files, pages
from andon.errors import RecipeError
from andon.evaluate import plots
from andon.evaluate.control import MARK
from andon.evaluate.plots import COLOURS, Mark
from andon.lab.bench import ranks, table
from andon.lab.bench.ranks import Ranking
from andon.lab.bench.table import Json

FIGURES = {
    "image_auroc": "Image AUROC",
    "image_ap": "Image AP",
    "pixel_auroc": "Pixel AUROC",
    "aupro_30": "AUPRO to 30 % FPR",
    "aupro_05": "AUPRO to 5 % FPR",
    "aupimo": "AUPIMO",
    "spro_05": "sPRO to 5 % FPR",
    "hit_rate": "Hit rate: images whose heat map peaks inside the annotated defect",
    "control_auroc": "Control: image AUROC with the annotated defects painted over",
}
RATES = {
    "seg_f1": "Segmentation F1 at the pixel threshold",
    "review_escape_rate": "Defective images that escape at the review threshold",
    "review_false_reject_rate": "Good images stopped at the review threshold",
    "reject_escape_rate": "Defective images that escape at the reject threshold",
    "reject_false_reject_rate": "Good images stopped at the reject threshold",
}
ORACLE = {
    "image_f1_max_oracle": "Image F1 at the best threshold, oracle",
    "pixel_f1_max_oracle": "Pixel F1 at the best threshold, oracle",
}
COSTS = {  # column → heading, and divisor
    "fit_seconds": ("fit, s", 1.0),
    "total_seconds": ("train and evaluate, s", 1.0),
    "peak_mb": ("peak memory, MB", 1.0),
    "bundle_bytes": ("bundle, MB", 1e6),
    "latency_p50_ms": ("one image, ms (median)", 1.0),
    "latency_p95_ms": ("one image, ms (p95)", 1.0),
}
NONE = "–"


class Table(NamedTuple):
    """A table for people, in Markdown and in HTML."""

    title: str
    words: str
    head: list[str]
    rows: list[list[str]]
    labels: int = 1  # number of columns of text, from the left


class Results:
    """The rows of a benchmark, selected by product, size and detector."""

    def __init__(self, rows: Sequence[Json]) -> None:
        """Take the rows in the order of the plan."""
        self.rows = rows
        self.products, self.sizes, self.detectors = (
            list(dict.fromkeys(row[key] for row in rows)) for key in ("product", "size", "detector")
        )

    def done(self, **of: Any) -> list[Json]:
        """Finished cells of a product, size, detector or seed."""
        return [r for r in self.rows if r["status"] == "done" and all(r[key] == value for key, value in of.items())]

    def over_seeds(self, column: str, **of: Any) -> list[float]:
        """The values of a column for a product, size and detector, one for each seed."""
        return [row[column] for row in self.done(**of) if row[column] is not None]

    def measurable(self, column: str, size: int) -> list[str]:
        """Products for which any detector has this figure; pixel figures need masks."""
        return [p for p in self.products if self.over_seeds(column, product=p, size=size)]

    def mark(self, **of: Any) -> str:
        """The mark of a detector whose control is near its image AUROC in any of these cells."""
        return f" {MARK}" if any(row["control_near"] for row in self.done(**of)) else ""

    def over_products(self, column: str, size: int, detector: str, products: Sequence[str]) -> list[float]:
        """The mean over products for each seed that has a result for every product."""
        means = []
        for seed in dict.fromkeys(row["seed"] for row in self.rows):
            values = [self.over_seeds(column, product=p, size=size, detector=detector, seed=seed) for p in products]
            if values and all(values):
                means.append(fmean(each[0] for each in values))
        return means


def write(out: str | Path) -> Path:
    """Write `results.md`, `results.html` and the plots into the folder of a benchmark; return the page."""
    out = Path(out)
    rows = table.rows(out)
    found = Results(rows)
    described = json.loads((out / "plan.json").read_text(encoding="utf-8"))
    tables = [
        *_figures(found, FIGURES, "Threshold-free."),
        *_published(found, described["published"], _read_published(out)),
        *_figures(found, RATES, "Thresholds come from held-out good images only."),
        _costs(found),
        *_figures(found, ORACLE, "Threshold tuned on the labels of the test data (oracle): not valid for new parts."),
    ]
    drawn: list[tuple[str, str, str]] = []  # file, caption, SVG
    refused = []
    for size in found.sizes:
        ranking = _rank(found, size)
        if isinstance(ranking, str):
            refused.append(f"{size}²: {ranking}")
        else:
            drawn.append((f"ranks-{size}.svg", _caption(ranking, size), _diagram(ranking)))
    if points := _points(found):
        caption = "Image AUROC, mean over products and seeds, against the time of one image from file to verdict."
        drawn.append(
            ("accuracy-latency.svg", caption, plots.scatter(points, "one image, ms (median)", "image AUROC, %", 100))
        )
    failures = [
        f"{r['product']} · {r['detector']} · {r['size']}² · seed {r['seed']}: {r['error'] or 'not run yet'}"
        for r in rows
        if r["status"] != "done"
    ]
    counts = f"{len(found.done())} of {len(rows)} cells finished: {len(found.detectors)} detectors on "
    counts += f"{len(found.products)} products at {', '.join(f'{size}²' for size in found.sizes)} pixels."
    provenance = _provenance(rows)
    for name, _, svg in drawn:
        files.write(out / name, svg.encode())
    page = pages.render(
        "bench.html",
        counts=counts,
        reading=READING.replace("*", ""),
        tables=tables,
        plots=[(caption, Markup(svg)) for _, caption, svg in drawn],
        refused=refused,
        failures=failures,
        provenance=provenance,
    )
    files.write(out / "results.html", page)
    images = [f"![{caption}]({name})\n\n{caption}" for name, caption, _ in drawn]
    lines = ["# Results", READING, counts, *map(_markdown, tables), "## Ranks and cost", *images, *refused]
    lines += ["## Cells without a result", *(f"- {_cell(failure)}" for failure in failures)] if failures else []
    lines += ["## Provenance", *(f"- {sentence}" for sentence in provenance)]
    files.write(out / "results.md", ("\n\n".join(lines).replace("\n\n- ", "\n- ") + "\n").encode())
    return out / "results.html"


READING = (
    "Figures in per cent: mean ± standard deviation over seeds, with the number of seeds in brackets. "
    "Detectors learn from good images only; settings, epochs and thresholds come from the plan and from good images. "
    "Figures tuned on test data are labelled *oracle*. "
    f"{MARK} marks a detector whose control is near its image AUROC in a cell: with the annotated defects painted "
    "over, at least half of the image AUROC above 50 % remains, so it may measure light, focus or background."
)


def text(values: Sequence[float], scale: float = 100.0, digits: int = 2) -> str:
    """Write mean ± sd (n)."""
    if not values:
        return NONE
    spread = f" ± {scale * stdev(values):.{digits}f}" if len(values) > 1 else ""
    return f"{scale * fmean(values):.{digits}f}{spread} ({len(values)})"


def _figures(found: Results, columns: dict[str, str], words: str) -> list[Table]:
    tables = []
    for column, title in columns.items():
        rows = []
        for size in found.sizes:
            products = found.measurable(column, size)
            suffix = f" at {size}²" if len(found.sizes) > 1 else ""
            rows += [
                [
                    p + suffix,
                    *(
                        text(found.over_seeds(column, product=p, size=size, detector=d))
                        + found.mark(product=p, size=size, detector=d)
                        for d in found.detectors
                    ),
                ]
                for p in products
            ]
            if len(products) > 1:
                means = (
                    text(found.over_products(column, size, d, products)) + found.mark(size=size, detector=d)
                    for d in found.detectors
                )
                rows.append(["mean" + suffix, *means])
        if rows:
            tables.append(Table(title, words, ["product", *found.detectors], rows))
    return tables


def _costs(found: Results) -> Table:
    rows = []
    for size in found.sizes:
        for detector in found.detectors:
            cells = found.done(size=size, detector=detector)
            values = [
                [row[column] / by for row in cells if row[column] is not None] for column, (_, by) in COSTS.items()
            ]
            rows.append(
                [
                    detector + found.mark(size=size, detector=detector),
                    f"{size}²",
                    *(f"{fmean(v):.1f}" if v else NONE for v in values),
                ]
            )
    words = (
        "Means over products and seeds. One image at a time, from the file to the verdict with map and regions. "
        "Memory: peak of the process in training and evaluation."
    )
    return Table("Cost", words, ["detector", "size", *(heading for heading, _ in COSTS.values())], rows, 2)


def _read_published(out: Path) -> list[Json]:
    path = out / "published.toml"
    if not files.is_file(path):
        return []
    try:
        tables: list[Json] = tomllib.loads(path.read_text(encoding="utf-8-sig"))["tables"]
        for each in tables:
            wrong = next((r for r in each["rows"] if len(r["values"]) != len(each["products"])), None)
            if wrong:
                raise RecipeError(
                    f"{path}: {each['source']} {each['where']}: '{wrong['method']}' has {len(wrong['values'])} figures "
                    f"for {len(each['products'])} products. Correct the file of published figures."
                )
    except (tomllib.TOMLDecodeError, KeyError, TypeError) as error:
        raise RecipeError(
            f"{path}: not a file of published figures ({error!r}). See benchmarks/published.toml."
        ) from None
    return tables


def _published(found: Results, stands_for: dict[str, str], tables: Sequence[Json]) -> list[Table]:
    """One table for each figure: a row for each published method, columns for published and our figures."""
    made = []
    choices = {(row["detector"], row["size"]): tomllib.loads(row["recipe"])["detector"] for row in found.rows}
    for column, title in FIGURES.items():
        about = [each for each in tables if each["figure"] == column]
        products = {
            p: name for p, name in stands_for.items() if any(_value(each, each["rows"][0], name) for each in about)
        }
        rows: list[tuple[bool, float, list[str]]] = []
        for each in about:
            for row in each["rows"] if each["dataset"] in {name.split("/")[0] for name in products.values()} else []:
                mean = _value(each, row, f"{each['dataset']}/mean")
                where = f"{each['source']} {each['where']}" + (f" ({each['note']})" if "note" in each else "")
                for ours, size in _same(choices, row) or [("", 0)]:
                    name = (f"{ours} at {size}²" if len(found.sizes) > 1 else ours) if ours else NONE
                    cells = [row["method"], where, name]
                    for p, published in products.items():
                        value = _value(each, row, published)
                        figures = found.over_seeds(column, product=p, size=size, detector=ours)
                        marked = found.mark(product=p, size=size, detector=ours)
                        cells += [f"{value:.2f}" if value is not None else NONE, text(figures) + marked]
                    rows.append((not ours, -(mean or 0), [*cells, f"{mean:.2f}" if mean is not None else NONE]))
        if rows:
            head = ["method", "source", "our detector"]
            head += [f"{p}, {who}" for p in products for who in ("published", "ours")] + ["mean, published"]
            words = (
                "Figures as published by the authors, and ours for the same method. The published mean is over all "
                "products of the source. Our methods come first; rows are sorted by this mean."
            )
            rows.sort(key=lambda row: row[:2])
            made.append(Table(f"{title}: published | ours", words, head, [cells for *_, cells in rows], 3))
    return made


def _value(published: Json, row: Json, product: str) -> float | None:
    """The figure of "dataset/product" in a row of a published table."""
    dataset, _, name = product.partition("/")
    if published["dataset"] != dataset or name not in published["products"]:
        return None
    value: float = row["values"][published["products"].index(name)]
    return value


def _same(choices: dict[tuple[str, int], Json], row: Json) -> list[tuple[str, int]]:
    """Names and sizes of our detectors that are the method of a published row, with its settings."""
    wanted = row.get("settings", {}).items()
    return [
        ours
        for ours, choice in choices.items()
        if choice["name"] == row.get("detector") and wanted <= choice["settings"].items()
    ]


def _rank(found: Results, size: int) -> Ranking | str:
    figures = []
    for product in found.measurable("image_auroc", size):
        row = [found.over_seeds("image_auroc", product=product, size=size, detector=d) for d in found.detectors]
        if all(row):
            figures.append([fmean(values) for values in row])
    return ranks.rank(found.detectors, figures)


def _diagram(ranking: Ranking) -> str:
    return plots.critical_difference(ranking.names, ranking.mean_ranks, ranking.critical_difference, ranking.groups)


def _caption(ranking: Ranking, size: int) -> str:
    return (
        f"Mean ranks by image AUROC over {ranking.products} products at {size}², 1 is best. Friedman's test: "
        f"p = {ranking.p_value:.2g}. Detectors under one bar do not differ significantly (Nemenyi, 0.05)."
    )


def _points(found: Results) -> list[Mark]:
    points = []
    for j, detector in enumerate(found.detectors):
        for size in found.sizes:
            products = found.measurable("image_auroc", size)
            area = found.over_products("image_auroc", size, detector, products)
            time = found.over_products("latency_p50_ms", size, detector, products)
            if area and time:
                label = f"{detector} {size}²" if len(found.sizes) > 1 else detector
                points.append(Mark(fmean(time), 100 * fmean(area), label, COLOURS[j % len(COLOURS)]))
    return points


def _provenance(rows: Sequence[Json]) -> list[str]:
    """Versions and machines; with the numbers of cells if they differ."""

    def several(what: str, values: Iterable[str]) -> str:
        counts: dict[str, int] = {}
        for value in values:
            counts[value] = counts.get(value, 0) + 1
        if len(counts) == 1:
            return f"{what}: {next(iter(counts))}"
        return f"{what} differ: " + "; ".join(f"{value} ({count} cells)" for value, count in counts.items())

    ran = [row for row in rows if row["versions"]]
    versions = (", ".join(f"{name} {number}" for name, number in json.loads(r["versions"]).items()) for r in ran)
    return (
        [
            several("Versions", versions),
            several("Machine", (row["machine"] for row in ran)),
            "Recipe, seed, digests and every figure of each cell: results.parquet, and cells/.",
        ]
        if ran
        else []
    )


def _markdown(shown: Table) -> str:
    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(map(_cell, cells)) + " |"

    aligned = "|" + "---|" * shown.labels + "--:|" * (len(shown.head) - shown.labels)
    return "\n".join([f"## {shown.title}", "", shown.words, "", line(shown.head), aligned, *map(line, shown.rows)])


def _cell(words: str) -> str:
    return " ".join(words.replace("|", "\\|").split())
