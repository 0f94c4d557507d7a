"""The page docs/peers.md, from the rows of the comparison and from nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import OK, Row

from andon.errors import AndonError, counted

HEAD = (
    "| | image AUROC | pixel AUROC | AUPRO 0.30 | AUPRO 0.05 | fit, s (CPU) | peak, MB | p50 / p95, ms | |",
    "|---|" + "--:|" * 7 + "---|",
)
ENGINES = (
    "| | engine | p50, ms | p95, ms | CPU, ms | ÷ andon-256 | ÷ andon-256, CPU | |",
    "|---|---|" + "--:|" * 5 + "---|",
)
METHOD = Path(__file__).with_name("method.md")
NEIGHBOURS = ("padim", "patchcore", "mh-patchcore")


def text(rows: Sequence[Row], peers: Sequence[str]) -> str:
    """Return the page, Markdown. `peers`: the order in tables. AndonError without rows."""
    if not rows:
        raise AndonError("there are no results yet; expected at least one row. Run the comparison without --only-page.")
    products = list(dict.fromkeys(row["product"] for row in rows))
    parts = [_method(rows, products) + "## Goals", "", *_goals(rows, products)]
    for product in products:
        own = sorted((row for row in rows if row["product"] == product), key=lambda row: peers.index(row["peer"]))
        parts += ["", f"## {product}", "", *HEAD, *map(_summary, own)]
        parts += ["", *ENGINES, *(line for row in own for line in _engines(row))]
    return "\n".join([*parts, ""])


def _method(rows: Sequence[Row], products: Sequence[str]) -> str:
    plan, dates = rows[0]["plan"], sorted({row["date"] for row in rows})
    return METHOD.read_text().format(
        **plan,
        products=",".join(products),
        dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
        machines="; ".join(sorted({row["machine"] for row in rows})),
        half=plan["minutes"] / 2,
        on_cores=counted(plan["fit_threads"], "core"),
        on_threads=counted(plan["threads"], "thread"),
    )


def _summary(row: Row) -> str:
    """Return the line of a peer, with its fastest engine."""
    if row["status"] != OK:
        return _line([row["peer"], *["–"] * 7, f"**{row['status']}**: {_plain(row['reason'])}"])
    figures, fit, engine = row["figures"], row["fit"], _fastest(row)
    ranked = _percent(figures["image_auroc"])
    if "image_auroc_interval" in figures:
        ranked += " ({:.0f}–{:.0f})".format(*(100 * limit for limit in figures["image_auroc_interval"]))
    names = ("pixel_auroc", "aupro_30", "aupro_05")
    cells = [f"{row['peer']} {row['version']}", ranked, *(_percent(figures[name]) for name in names)]
    cells += [f"{_number(fit['seconds'])} ({_number(fit['cpu_seconds'])})", f"{fit['peak_mb']:.0f}"]
    cells.append("{p50_ms:.1f} / {p95_ms:.1f}".format(**row["latency"][engine]) if engine else "–")
    details = fit["details"]
    stopped = details.get("planned_epochs", 0) > details.get("epochs", 0)
    remark = f"{details['epochs']} of {details['planned_epochs']} epochs, {details['steps']} steps" if stopped else ""
    return _line([*cells, "; ".join(filter(None, [engine, remark]))])


def _engines(row: Row) -> list[str]:
    """Return one line for each engine of a peer, also for those that fail."""
    if row["status"] != OK:
        return []
    lines = []
    for engine, times in row["latency"].items():
        if "failure" in times:
            lines.append([row["peer"], engine, *["–"] * 5, _plain(times["failure"])])
            continue
        ratios = ["1", "1"]
        if "ratio" in times:
            ratios = [f"{times['ratio']:.1f} ({times['ratio_low']:.1f}–{times['ratio_high']:.1f})"]
            ratios.append(f"{times['cpu_ratio']:.1f}")
        laps = [f"{times[key]:.1f}" for key in ("p50_ms", "p95_ms", "cpu_ms")]
        lines.append([row["peer"], engine, *laps, *ratios, ""])
    lines += [[row["peer"], name, *["–"] * 5, _plain(reason)] for name, reason in row["engine_failures"].items()]
    return [_line(line) for line in lines]


def _fastest(row: Row) -> str:
    """Return the engine that takes the least time of the processor; empty if all failed."""
    measured = {name: times["cpu_ms"] for name, times in row["latency"].items() if "cpu_ms" in times}
    return min(measured, key=lambda engine: measured[engine], default="")


EQUALISED = "-equalised"  # ends the name of a product whose test pictures have the light of its training pictures
GOALS = {  # column → least value
    "AUROC, andon": 0.0,
    "AUROC, andon-256": 0.0,
    "speed, padim": 5.0,
    "speed, patchcore": 10.0,
    "speed, mh-patchcore": 10.0,
    "fit, patchcore": 20.0,
    "fit, mh-patchcore": 5.0,
}


def _goals(rows: Sequence[Row], products: Sequence[str]) -> list[str]:
    table = [
        _values({row["peer"]: row for row in rows if (row["product"], row["status"]) == (p, OK)}) for p in products
    ]
    counted = [v for p, v in zip(products, table, strict=True) if f"{p}{EQUALISED}" not in products]
    columns = [[values[name] for values in counted if name in values] for name in GOALS]
    met = [f"{sum(v >= least for v in c)} of {len(c)}" for c, least in zip(columns, GOALS.values(), strict=True)]
    return [
        "*AUROC*: points of image AUROC above the best of PaDiM, PatchCore and MH-PatchCore; the goal of the mean is",
        "2. *Speed*: time of the processor for one array, of the peer's fastest engine divided by andon-256. *Fit*:",
        "time of the processor, of the peer's fit divided by that of andon-256 without calibration and the check of",
        "the graph. Mean and goals leave out a product whose equalised copy is there: its image AUROC measures light.",
        "",
        f"| product | {' | '.join(GOALS)} |",
        "|---|" + "--:|" * len(GOALS),
        *(
            _line([product, *(_value(name, values.get(name)) for name in GOALS)])
            for product, values in zip(products, table, strict=True)
        ),
        _line(["mean", *(_value(n, sum(c) / len(c) if c else None) for n, c in zip(GOALS, columns, strict=True))]),
        _line(["goal", *(f"≥ {least:g}" for least in GOALS.values())]),
        _line(["reached", *met]),
    ]


def _values(rows: dict[str, Row]) -> dict[str, float]:
    """Return the columns of GOALS that the rows of a product, by their peer, suffice for."""
    values = {}
    others = [rows[peer]["figures"]["image_auroc"] for peer in NEIGHBOURS if peer in rows]
    for name in ("andon", "andon-256"):
        if name in rows and others:
            values[f"AUROC, {name}"] = 100 * (rows[name]["figures"]["image_auroc"] - max(others))
    for peer in NEIGHBOURS:
        if peer in rows and (engine := _fastest(rows[peer])) and "cpu_ratio" in rows[peer]["latency"][engine]:
            values[f"speed, {peer}"] = rows[peer]["latency"][engine]["cpu_ratio"]
    for peer in ("patchcore", "mh-patchcore"):
        if peer in rows and "andon-256" in rows:
            own = rows["andon-256"]["fit"]
            timings = own["details"]["timings"]
            share = (timings["read"] + timings["fit"]) / sum(timings.values())
            values[f"fit, {peer}"] = rows[peer]["fit"]["cpu_seconds"] / (own["cpu_seconds"] * share)
    return values


def _value(name: str, value: float | None) -> str:
    if value is None:
        return "–"
    return f"{value:+.2f}" if name.startswith("AUROC") else f"{value:.1f}"


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _plain(reason: str) -> str:
    return reason.replace("|", "/").replace("<", "‹").replace(">", "›").replace("`", "'")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
