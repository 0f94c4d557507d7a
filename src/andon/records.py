"""Records of inspections as JSON lines: one line an image, kept when the run is interrupted or killed."""

import json
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from andon.errors import AndonError


class Records:
    """Appends to a JSON Lines file. While a run lasts its lines are in `NAME.part`, which replaces NAME at the end.

    A run that was killed leaves its `.part`; the next run takes its whole lines over, so no record is lost.
    """

    def __init__(self, path: Path) -> None:
        """Open; earlier records in `path` stay. AndonError when the folder cannot be written to."""
        self.path = path
        self._part = path.with_name(path.name + ".part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            left = self._part if self._part.exists() else path
            earlier = left.read_bytes() if left.exists() else b""
            with self._part.open("wb") as file:
                file.write(earlier[: earlier.rfind(b"\n") + 1])
            self._file = self._part.open("a", encoding="utf-8", newline="\n")
        except OSError as error:
            raise AndonError(f"{path}: cannot be written ({error.strerror}). Choose another output folder.") from None

    def add(self, record: dict[str, Any]) -> None:
        """Write one record, stamped with the time, and push it to the operating system."""
        stamped = {"time": datetime.now(UTC).isoformat(timespec="milliseconds"), **record}
        try:
            self._file.write(json.dumps(stamped, ensure_ascii=False) + "\n")
            self._file.flush()
        except OSError as error:
            raise AndonError(f"{self.path}: cannot be written ({error.strerror}). Free some space.") from None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()
        self._part.replace(self.path)
