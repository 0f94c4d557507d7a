"""Use people's decisions: recalibrate on parts confirmed good, and test a bundle on escapes."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import islice
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, NamedTuple

from andon.errors import AndonError, StorageError, counted
from andon.files import reason
from andon.progress import Progress, silent
from andon.station.archive import Archive
from andon.station.catalogue import Escape
from andon.station.entries import Row, stamp_of
from andon.station.events import Outcome, StationError
from andon.station.reader import Reader
from andon.station.workers import Workers

if TYPE_CHECKING:
    from andon.bundle import Bundle

MOST = 1000
"""Maximum number of pictures of one recalibration; the bundle's history contains the digests of all."""
DEADLINE_S = 30.0
GROUPS = r"^(\d+)_"
"""Groups the pictures of one part, by the number at the start of the name."""


class Confirmed(NamedTuple):
    """Pictures of parts that people confirmed good, and how many were left out."""

    pictures: dict[str, str]
    """Digest of the picture → part; the newest decision first."""
    absent: int
    """Parts whose picture was not kept, or aged out."""
    disputed: int
    """Parts whose picture was judged defective in another inspection."""


def confirmed(reader: Reader, archive: Archive, product: str, since: datetime | None = None) -> Confirmed:
    """Return the pictures of a product whose last decision is PASS. Inspections without a score are not used.

    `since`: earliest time of the inspection.
    """
    good: dict[str, str] = {}
    bad: set[str | None] = set()
    absent = 0
    first = stamp_of(since) if since else ""
    decisions = _last(reader.walk(product=product, kind="decision"))[::-1]
    for decision, row in zip(decisions, reader.inspections([each.job for each in decisions]), strict=True):
        if row is None or row.score is None or row.time < first:
            continue
        body = row.body
        if decision.verdict is None:  # disputed, so not decided
            continue
        if decision.verdict != Outcome.PASS:
            bad.add(body.get("digest"))
            continue
        try:
            archive.path(picture := body.get("kept", {}).get("picture", ""))
        except StationError:
            absent += 1
        else:
            good.setdefault(picture, str(row.part))
    agreed = {digest: part for digest, part in good.items() if digest not in bad}
    return Confirmed(agreed, absent, len(good) - len(agreed))


def _last(decisions: Iterable[Row]) -> list[Row]:
    """Return the last decision on each job, the oldest first."""
    found: dict[int, Row] = {}
    for row in decisions:
        if row.job is not None:
            found.pop(row.job, None)
            found[row.job] = row
    return list(found.values())


@contextmanager
def folder(pictures: dict[str, str], reader: Reader, archive: Archive) -> Iterator[tuple[Path, int]]:
    """Yield a temporary folder of verified copies, and how many pictures aged out meanwhile; `GROUPS` matches names.

    StationError for a damaged picture.
    """
    numbers, aged = {part: number for number, part in enumerate(dict.fromkeys(pictures.values()), 1)}, 0
    with TemporaryDirectory(prefix="andon-") as place:
        for digest, part in pictures.items():
            try:
                (Path(place) / f"{numbers[part]}_{digest}.png").write_bytes(archive.open(digest))
            except StationError:
                if reader.holds(digest):
                    raise
                aged += 1
            except OSError as error:
                raise StorageError(f"{place}: pictures cannot be copied: {reason(error)}. Free space.") from error
        yield Path(place), aged


class Recalibrated(NamedTuple):
    """A bundle before and after a recalibration on parts confirmed good."""

    before: "Bundle"
    after: "Bundle"
    parts: list[str]
    """(n,) part of each picture in the new calibration; empty: the picture is from the previous calibration."""


def recalibrate(
    before: "Bundle",
    reader: Reader,
    archive: Archive,
    product: str,
    since: datetime | None = None,
    progress: Progress = silent,
    tell: Callable[[str], None] = lambda sentence: None,
    warn: Callable[[str], None] = lambda sentence: None,
    *,
    replace: bool = False,
) -> Recalibrated:
    """Recalibrate a bundle on pictures that people confirmed good, and note this in its history.

    The pictures are added to those of the previous calibration. They replace them with `replace`, or if detectors of
    folds computed the previous scores. The station's data are only read. AndonError when there are no pictures.
    """
    from andon.training import calibrating

    found = confirmed(reader, archive, product, since)
    used = dict(islice(found.pictures.items(), MOST))
    tell(f"{counted(len(used), 'picture')} of parts confirmed good")
    with folder(used, reader, archive) as (place, aged):
        for count, why in (
            (found.absent + aged, "the picture was not kept, or aged out"),
            (found.disputed, "the same picture was also found defective"),
            (len(found.pictures) - len(used), f"only the last {MOST} are used"),
        ):
            if count:
                warn(f"left out: {counted(count, 'confirmed part')}: {why}")
        if aged == len(used):
            raise AndonError(
                f"product '{product}': no picture of a part confirmed good. Confirm the verdicts of good parts, and "
                "keep more pictures of passes (keep_one_in)."
            )
        after = calibrating.recalibrate(
            before, place, groups=GROUPS, good=(".",), add=not replace, progress=progress, tell=tell, warn=warn
        )
    digests = [digest for digest in after.calibration.digests if digest in used]
    history = f"{calibrating.now()} confirmed good at station {reader.station}, {counted(len(digests), 'picture')}: "
    parts = [used.get(digest, "") for digest in after.calibration.digests]
    return Recalibrated(before, after.revise(history + ", ".join(digests)), parts)


def missed(bundle: Path, escapes: Iterable[Escape], archive: Archive, max_bytes: int) -> list[str]:
    """Return the escapes that get neither REVIEW nor REJECT from a bundle, each with its verdict."""
    found = []
    with Workers(bundle, threads=1, max_bytes=max_bytes) as workers:
        for each in escapes:
            answer = workers.inspect(0, archive.open(each.picture), DEADLINE_S).result()
            if answer.verdict not in (Outcome.REVIEW, Outcome.REJECT):
                found.append(f"{each.part} (record {each.record}): {answer.verdict}")
    return found
