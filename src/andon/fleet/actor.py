"""Inspection on a node. This module imports only what inspection needs, because every process of a node loads it."""

from collections.abc import Sequence
from typing import Any

from andon.errors import AndonError
from andon.fleet import place
from andon.fleet.archive import Scoring


class Actor:
    """Holds an inspector on a node and inspects parts; Ray Data starts it."""

    def __init__(self, held: list[Any], root: str) -> None:
        """held: reference to the inspector. root: a folder that this node must have."""
        import ray

        self._scoring = Scoring(ray.get(held[0]), workers=1)
        self._root = root

    def __call__(self, batch: Any) -> dict[str, list[Any]]:
        """Inspect parts, a table of numbers and pictures; return numbers, rows as Parquet files, and errors."""
        answers = [(part["number"], *self._answer(part["pictures"])) for part in batch.to_pylist()]
        numbers, rows, errors = zip(*answers, strict=True)
        return {"number": list(numbers), "rows": list(rows), "error": list(errors)}

    def _answer(self, pictures: Sequence[str]) -> tuple[bytes, str]:
        if self._root and (missing := place.lacking([self._root])):
            return b"", missing  # not a row of each picture that it is missing
        try:
            return self._scoring(pictures), ""
        except AndonError as error:
            return b"", str(error)
        except Exception as error:
            return b"", f"{type(error).__name__}: {error}"
