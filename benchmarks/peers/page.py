"""The page docs/peers.md, from the rows of the comparison and from nothing else."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from results import OK, Row

from andon.errors import AndonError, counted

HEAD = (
    "| | image AUROC | image AP | pixel AUROC | AUPRO 0.30 | AUPRO 0.05 | fit, s | fit, CPU s | peak, MB | p50, ms "
    "| p95, ms | |",
    "|---|" + "--:|" * 10 + "---|",
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
        **{key: value for key, value in plan.items() if key not in ("threads", "fit_threads")},
        products=",".join(products),
        dates=" to ".join(dict.fromkeys((dates[0], dates[-1]))),
        machines="; ".join(sorted({row["machine"] for row in rows})),
        half=plan["minutes"] / 2,
        fit_cores=counted(plan["fit_threads"], "core"),
        threads=counted(plan["threads"], "thread"),
    )


def _summary(row: Row) -> str:
    """Return the line of a peer, with its fastest engine."""
    if row["status"] != OK:
        return _line([row["peer"], *["–"] * 10, f"**{row['status']}**: {_plain(row['reason'])}"])
    figures, fit, engine = row["figures"], row["fit"], _fastest(row)
    names = ("image_auroc", "image_ap", "pixel_auroc", "aupro_30", "aupro_05")
    cells = [f"{row['peer']} {row['version']}", *(_percent(figures[name]) for name in names)]
    cells += [_number(fit["seconds"]), _number(fit["cpu_seconds"]), f"{fit['peak_mb']:.0f}"]
    cells += [f"{row['latency'][engine][key]:.1f}" if engine else "–" for key in ("p50_ms", "p95_ms")]
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


def _goals(rows: Sequence[Row], products: Sequence[str]) -> list[str]:
    table = {(row["product"], row["peer"]): row for row in rows if row["status"] == OK}
    lines = ["| product | " + " | ".join(NAMES) + " |", "|---|" + "--:|" * len(NAMES)]
    for product in products:
        own = table.get((product, "andon-256"))
        cells = [product, *(_margin(table, product, name) for name in ("andon", "andon-256"))]
        cells += [_best(table.get((product, peer))) for peer in NEIGHBOURS]
        cells += [_fit(table.get((product, peer)), own) for peer in ("patchcore", "mh-patchcore")]
        lines.append(_line(cells))
    targets = ["goal", "never < 0, mean + 2", "", "≥ 5", "≥ 10", "≥ 10", "≥ 20", "≥ 5"]
    return [
        "Image AUROC: points above the best of PaDiM, PatchCore and MH-PatchCore. Speed: times as fast as the peer's",
        "fastest engine, by the clock and by the time of the processor. Fit: CPU seconds of the peer divided by those",
        "of andon-256, calibration left out of andon's.",
        "",
        *lines,
        _line(targets),
    ]


NAMES = (
    "AUROC, andon",
    "AUROC, andon-256",
    "speed, padim",
    "speed, patchcore",
    "speed, mh-patchcore",
    "fit, patchcore",
    "fit, mh-patchcore",
)


def _margin(table: dict[tuple[str, str], Row], product: str, name: str) -> str:
    measured = [table[product, peer]["figures"]["image_auroc"] for peer in NEIGHBOURS if (product, peer) in table]
    if not measured or (product, name) not in table:
        return "–"
    return f"{100 * (table[product, name]['figures']['image_auroc'] - max(measured)):+.2f}"


def _best(row: Row | None) -> str:
    """Return both ratios of the fastest engine to andon-256."""
    engine = _fastest(row) if row else ""
    if not row or "ratio" not in row["latency"].get(engine, {}):
        return "–"
    times = row["latency"][engine]
    return f"{times['ratio']:.1f}, {times['cpu_ratio']:.1f} ({engine})"


def _fit(row: Row | None, own: Row | None) -> str:
    """Return the CPU seconds of a peer's fit, divided by those of andon up to the end of its fit."""
    if not row or not own:
        return "–"
    timings: dict[str, float] = own["fit"]["details"]["timings"]
    share = (timings["read"] + timings["fit"]) / sum(timings.values())
    return f"{row['fit']['cpu_seconds'] / (own['fit']['cpu_seconds'] * share):.1f}"


def _line(cells: Sequence[Any]) -> str:
    return f"| {' | '.join(str(cell) for cell in cells)} |"


def _plain(reason: str) -> str:
    return reason.replace("|", "/").replace("<", "‹").replace(">", "›").replace("`", "'")


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f}"


def _number(value: float) -> str:
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"
