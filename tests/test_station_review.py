"""The queue of parts that wait for a person, against the same by brute force, on SQLite and on PostgreSQL."""

import random
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa

from andon.station import review
from andon.station.entries import Entry
from andon.station.ledger import Ledger

REVIEWS = 700
"""More than one page of records."""


@pytest.mark.parametrize("seed", range(3))
def test_all_that_waits_is_found_and_nothing_else(database: str, seed: int) -> None:
    rng = random.Random(seed)
    entries = [
        Entry("inspection", job, rng.choice("ab"), f"p{job}", None, rng.choice(("REVIEW", "REVIEW", "PASS", "REJECT")))
        for job in range(REVIEWS)
    ]
    for _ in range(REVIEWS):
        each = rng.choice(entries[: REVIEWS // 2])
        said = rng.choice(("PASS", "REJECT", None))  # None: disputed
        entries.append(Entry("decision", each.job, each.product, each.part, verdict=said))
    with Ledger(database, "s") as ledger, Ledger(database, "another") as other:
        ledger.append(entries)
        other.append([Entry("decision", job, "a", verdict="PASS") for job in range(REVIEWS)])
        rows = list(ledger.walk())
        last = {row.job: row.verdict for row in rows if row.kind == "decision"}
        for product in (None, "a", "b", "c"):
            waits = [
                row.sequence
                for row in rows
                if row.kind == "inspection"
                and product in (None, row.product)
                and (last[row.job] is None if row.job in last else row.verdict == "REVIEW")
            ][::-1]
            count, row = review.waiting(ledger, product)
            assert (count, row and row.sequence) == (len(waits), waits[0] if waits else None)
            for before, following in zip(waits, [*waits[1:], waits[0]] if waits else [], strict=True):
                if before % 50 == 0 or before == waits[-1]:
                    found = review.waiting(ledger, product, before).row
                    assert found and found.sequence == following


def test_sqlite_does_not_read_all_records_to_find_what_waits(tmp_path: Path) -> None:
    plans: list[str] = []
    with Ledger(str(tmp_path / "records.db"), "s") as ledger:

        def explain(connection: Any, cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
            plan = connection.connection.driver_connection.execute(f"EXPLAIN QUERY PLAN {statement}", parameters)
            plans.extend(row[3] for row in plan if row[3].startswith(("SEARCH records ", "SCAN records ")))

        sa.event.listen(ledger.engine, "before_cursor_execute", explain)
        review.waiting(ledger)
        review.waiting(ledger, "ring")
    by = ["records_verdict (station=? AND verdict=?)", "records_job (station=? AND job=?)"]
    decisions = "records_kind (station=? AND kind=?)"
    assert plans == 2 * [f"SEARCH records USING INDEX {index}" for each in by for index in (each, decisions)]
