"""The results of a benchmark as a table: a row for each cell, in the order of the plan, read from its JSON file."""

import json
from pathlib import Path
from typing import Any

from andon import files
from andon.errors import AndonError

Json = dict[str, Any]

COLUMNS: dict[str, tuple[str, str]] = {  # column → type in Parquet, and path in a result
    "product": ("string", "product"),
    "detector": ("string", "detector"),
    "size": ("int64", "size"),
    "seed": ("int64", "seed"),
    "status": ("string", "status"),  # done, failed or missing
    "error": ("string", "error"),
    "image_auroc": ("double", "metrics.image.auroc"),
    "image_auroc_low": ("double", "metrics.image.auroc_interval.0"),
    "image_auroc_high": ("double", "metrics.image.auroc_interval.1"),
    "image_ap": ("double", "metrics.image.ap"),
    "fpr_at_95_tpr": ("double", "metrics.image.fpr_at_95_tpr"),
    "image_f1_max_oracle": ("double", "metrics.image.f1_max_oracle"),
    "test_good": ("int64", "metrics.image.n_good"),
    "test_defective": ("int64", "metrics.image.n_defective"),
    "pixel_auroc": ("double", "metrics.pixel.auroc"),
    "pixel_ap": ("double", "metrics.pixel.ap"),
    "pixel_f1_max_oracle": ("double", "metrics.pixel.f1_max_oracle"),
    "aupro_30": ("double", "metrics.pixel.aupro_30"),
    "aupro_05": ("double", "metrics.pixel.aupro_05"),
    "aupimo": ("double", "metrics.pixel.aupimo"),
    "spro_05": ("double", "metrics.pixel.spro_05"),
    "seg_f1": ("double", "metrics.pixel.seg_f1"),
    "hit_rate": ("double", "metrics.hits.rate"),
    "hit_rate_low": ("double", "metrics.hits.interval.0"),
    "hit_rate_high": ("double", "metrics.hits.interval.1"),
    "control_auroc": ("double", "metrics.control.auroc"),
    "control_near": ("bool", "metrics.control.near"),  # null in old results without a control
    "review_threshold": ("double", "metrics.decision.review.threshold"),
    "review_promised_rate": ("double", "metrics.decision.review.promised_rate"),
    "review_escapes": ("int64", "metrics.decision.review.escapes.count"),
    "review_escape_rate": ("double", "metrics.decision.review.escapes.rate"),
    "review_false_rejects": ("int64", "metrics.decision.review.false_rejects.count"),
    "review_false_reject_rate": ("double", "metrics.decision.review.false_rejects.rate"),
    "reject_threshold": ("double", "metrics.decision.reject.threshold"),
    "reject_promised_rate": ("double", "metrics.decision.reject.promised_rate"),
    "reject_escapes": ("int64", "metrics.decision.reject.escapes.count"),
    "reject_escape_rate": ("double", "metrics.decision.reject.escapes.rate"),
    "reject_false_rejects": ("int64", "metrics.decision.reject.false_rejects.count"),
    "reject_false_reject_rate": ("double", "metrics.decision.reject.false_rejects.rate"),
    "fit_seconds": ("double", "fit_seconds"),
    "total_seconds": ("double", "total_seconds"),
    "peak_mb": ("double", "peak_mb"),
    "bundle_bytes": ("int64", "bundle_bytes"),
    "latency_p50_ms": ("double", "latency_p50_ms"),
    "latency_p95_ms": ("double", "latency_p95_ms"),
    "made": ("string", "made"),
    "recipe": ("string", "recipe"),  # TOML
    "data_digest": ("string", "data_digest"),
    "training_digest": ("string", "training.digest"),
    "bundle_digest": ("string", "bundle_digest"),
    "machine": ("string", "machine"),
    "versions": ("json", "versions"),  # JSON text, as the following columns
    "training": ("json", "training"),
    "groups": ("json", "metrics.groups"),
    "defects": ("json", "metrics.defects"),
    "evaluation": ("json", "metrics"),
}
MEASURED = ("fit_seconds", "total_seconds", "peak_mb", "bundle_bytes", "latency_p50_ms", "latency_p95_ms", "made")
"""Columns that differ between two runs of a cell (a bundle contains timings, so its size varies by a few bytes); all
others follow from recipe, data and versions."""


def read(path: Path) -> Json | None:
    """Read the result of a cell; None if it is missing or unreadable, so that the cell is run."""
    try:
        result = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return result if isinstance(result, dict) and result.get("status") in ("done", "failed") else None


def planned(out: Path) -> list[Json]:
    """The cells of the plan of a folder of results. AndonError for any other folder."""
    try:
        cells: list[Json] = json.loads((out / "plan.json").read_text(encoding="utf-8"))["cells"]
    except (OSError, ValueError, KeyError, TypeError):
        raise AndonError(
            f"{out}: not the results of a benchmark. Expected the folder that `andon bench` wrote."
        ) from None
    return cells


def rows(out: Path) -> list[Json]:
    """The table: all columns of all cells of the plan; cells without a result have the status `missing`."""
    rows = []
    for cell in planned(out):
        result = read(out / "cells" / f"{cell['place']}.json") or {**cell, "status": "missing"}
        rows.append({column: _value(result, kind, path) for column, (kind, path) in COLUMNS.items()})
    return rows


def _value(result: Json, kind: str, path: str) -> Any:
    value: Any = result
    for step in path.split("."):
        known = isinstance(value, list | dict)
        value = (value[int(step)] if isinstance(value, list) else value.get(step)) if known else None
    return files.strict_json(value, ascii_only=False) if kind == "json" and value is not None else value


def parquet(out: Path) -> Path:
    """Write the table as `results.parquet`."""
    arrow, writer = _pyarrow()
    types = {column: "string" if kind == "json" else kind for column, (kind, _) in COLUMNS.items()}
    fields = [(column, arrow.type_for_alias(kind)) for column, kind in types.items()]
    table = arrow.Table.from_pylist(rows(out), schema=arrow.schema(fields))
    sink = arrow.BufferOutputStream()
    writer.write_table(table, sink)
    files.write(out / "results.parquet", sink.getvalue().to_pybytes())
    return out / "results.parquet"


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        raise AndonError("the table of results needs pyarrow. Install it: pip install 'andon[bench]'") from None
    return pyarrow, pyarrow.parquet


def check_parquet() -> None:
    """Raise AndonError, before long work, when the table cannot be written."""
    _pyarrow()
