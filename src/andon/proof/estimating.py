"""The rates of a line, estimated from a judged sample of its pictures, with exact intervals.

The lot of a verdict has N pictures; n of them were judged, k of these are defective. They are drawn without
replacement, so k is hypergeometric. Inverting its tails gives bounds of the number D of defective pictures in the lot.
The estimate of D is N k / n: Horvitz and Thompson's, "A generalization of sampling without replacement from a finite
universe", JASA 47, 1952, with the inclusion probabilities n / N.

Rates over several lots combine the bounds of the lots. Each end of an interval at confidence C uses one bound of each
lot. The lots are independent: bounds at ((1 + C) / 2)^(1 / m) each hold together at (1 + C) / 2, where m is the number
of lots that were not judged completely. The bounds are conservative: their confidence is C or higher.

An unclear picture counts as good in the lower bounds of D, and as defective in the upper bounds and in the estimate.
"""

import csv
import io
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from pydantic import ValidationError

import andon
from andon import files, pages
from andon.errors import DatasetError, unknown
from andon.inspection import Verdict
from andon.proof import bounds
from andon.proof.plans import check_confidence, share
from andon.proof.sampling import COLUMNS, KEY, Sample
from andon.records import csv_line

TRUTHS = ("good", "defective", "unclear")
LISTED = 5  # items listed in a message


class Judged(NamedTuple):
    """The judged pictures of one lot."""

    lot: int  # pictures
    drawn: int
    defective: int
    unclear: int


class Count(NamedTuple):
    """A number of pictures in a lot: estimate and bounds."""

    estimate: float
    low: int
    high: int


@dataclass(frozen=True)
class Rate:
    """One rate of the line."""

    name: str
    words: str  # its definition
    estimate: float | None  # None if the estimated denominator is 0
    interval: tuple[float, float]

    def text(self) -> str:
        """The rate in words."""
        low, high = map(share, self.interval)
        return f"{self.name}: {'–' if self.estimate is None else share(self.estimate)} ({low} to {high}), {self.words}"


@dataclass(frozen=True)
class Estimate:
    """A judged sample, and the rates estimated from it."""

    sample: Sample
    sheet: str  # path
    sheet_digest: str
    judges: tuple[str, ...]  # persons named in the sheet
    confidence: float  # of each single interval
    lots: dict[Verdict, Judged]
    rates: tuple[Rate, ...]

    def record(self) -> dict[str, Any]:
        """The estimate as plain data."""
        return {
            "andon": andon.__version__,
            "confidence": self.confidence,
            "rates": [asdict(rate) for rate in self.rates],
            "lots": {verdict.value: judged._asdict() for verdict, judged in self.lots.items()},
            "judges": list(self.judges),
            "sheet": self.sheet,
            "sheet_digest": self.sheet_digest,
            "sample": self.sample.model_dump(mode="json", exclude={"items"}),
        }

    def text(self) -> str:
        """The estimate in words, for a terminal."""
        lines = [
            f"{verdict}: {judged.drawn} of {judged.lot} judged, {judged.defective} defective"
            + (f", {judged.unclear} unclear" if judged.unclear else "")
            for verdict, judged in self.lots.items()
        ]
        return "\n".join([*lines, f"{share(self.confidence)} intervals:", *(rate.text() for rate in self.rates)])


def estimate(lots: dict[Verdict, Judged], confidence: float) -> tuple[Rate, ...]:
    """Estimate the rates of a line from the judged lots; the confidence is that of each single interval."""
    uncertain = sum(judged.drawn < judged.lot for judged in lots.values())
    passed = lots.get(Verdict.PASS, Judged(0, 0, 0, 0))
    stopped = [judged for verdict, judged in lots.items() if verdict is not Verdict.PASS]
    everything = sum(judged.lot for judged in lots.values())
    alone = _count(passed, (1 + confidence) / 2)
    each = ((1 + confidence) / 2) ** (1 / max(uncertain, 1))
    slipped, caught = _count(passed, each), _sum([_count(judged, each) for judged in stopped])
    good_passed = _rest(slipped, passed.lot)
    good_stopped = _rest(caught, everything - passed.lot)
    rates = [
        Rate("defective among passed", "share of the pictures that passed", *_of(alone, passed.lot)),
        Rate("passed and defective", "share of all pictures", *_of(alone, everything)),
        Rate("defective", "share of all pictures", *_of(_sum([slipped, caught]), everything)),
        Rate("slip", "share of the defective pictures that passed", *_ratio(slipped, caught)),
        Rate("false rejects", "share of the good pictures that were stopped", *_ratio(good_stopped, good_passed)),
    ]
    return tuple(rates)


def _count(judged: Judged, confidence: float) -> Count:
    """Number of defective pictures in a lot: estimate, and one-sided bounds, each at the confidence."""
    lot, n, k, unclear = judged
    return Count(
        lot * (k + unclear) / n if n else 0.0,
        bounds.lower_count(k, n, lot, confidence),
        bounds.upper_count(k + unclear, n, lot, confidence),
    )


def _sum(counts: list[Count]) -> Count:
    return Count(sum(c.estimate for c in counts), sum(c.low for c in counts), sum(c.high for c in counts))


def _rest(count: Count, lot: int) -> Count:
    return Count(lot - count.estimate, lot - count.high, lot - count.low)


def _of(count: Count, lot: int) -> tuple[float | None, tuple[float, float]]:
    """The share in a lot; from 0 to 1 for an empty lot."""
    return (count.estimate / lot, (count.low / lot, count.high / lot)) if lot else (None, (0.0, 1.0))


def _ratio(part: Count, rest: Count) -> tuple[float | None, tuple[float, float]]:
    """The share of `part` in the sum of both."""
    both = part.estimate + rest.estimate
    low = part.low / (part.low + rest.high) if part.low else 0.0
    high = part.high / (part.high + rest.low) if part.high + rest.low else 1.0
    return part.estimate / both if both else None, (low, high)


def load(path: str | Path, confidence: float = 0.95) -> Estimate:
    """Read a completed sheet and the key beside it, and estimate the rates.

    Errors: DatasetError when a file cannot be read, when items are missing or wrong, when the pictures are
    not those of the key, or a truth is missing or unknown.
    """
    check_confidence(confidence, "--confidence")
    path = Path(path)
    sample = _key(path.with_name(KEY))
    content = _content(path)
    truths, judges = _truths(path, content, sample)
    lots = {}
    for verdict, drawn in sample.drawn().items():
        judgements = [truths[item.item] for item in sample.items if item.verdict is verdict]
        lots[verdict] = Judged(sample.lots[verdict], drawn, judgements.count("defective"), judgements.count("unclear"))
    return Estimate(sample, str(path), files.digest(content), judges, confidence, lots, estimate(lots, confidence))


def _content(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        hint = "Name the sheet.csv that `andon sample` wrote, in the same folder as its sample.json."
        raise DatasetError(f"{path}: cannot be read: {files.reason(error)}. {hint}") from None


def _key(path: Path) -> Sample:
    """Read the key of a sample. DatasetError when it is not one, or inconsistent."""
    try:
        sample = Sample.model_validate_json(_content(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the file"
        raise DatasetError(
            f"{path}: {where}: {first['msg']}; expected the file that `andon sample` wrote. Draw a new sample."
        ) from None
    numbers = sorted(item.item for item in sample.items)
    unknown_lots = {item.verdict for item in sample.items} - set(sample.lots)
    if (
        numbers != list(range(1, len(numbers) + 1))
        or unknown_lots
        or any(not 0 < drawn <= sample.lots[verdict] for verdict, drawn in sample.drawn().items())
    ):
        raise DatasetError(
            f"{path}: its items contradict its lots; expected the file that `andon sample` wrote. Draw a new sample."
        )
    return sample


def _truths(path: Path, content: bytes, sample: Sample) -> tuple[dict[int, str], tuple[str, ...]]:
    """Item → truth, and the names of the judges."""
    count = len(sample.items)
    try:
        text = content.decode("utf-8-sig")
        separator = max(",;\t", key=text.partition("\n")[0].count)  # spreadsheets choose by language
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=separator, strict=True) if any(row)]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DatasetError(f"{path}: cannot be read as CSV: {error}. Save it as CSV in UTF-8.") from None
    header = [name.strip().lower() for name in rows[0]] if rows else []
    if missing := [name for name in ("item", "picture", "truth") if header.count(name) != 1]:
        raise DatasetError(
            f"{path}: columns {', '.join(header) or 'none'}; expected {', '.join(COLUMNS)}, with "
            f"{missing[0]} once. Restore the first line of the sheet."
        )
    pictures = {item.item: _written(item.source) for item in sample.items}
    truths: dict[int, str] = {}
    judges: dict[str, None] = {}
    empty, others = [], []
    for place, cells in enumerate(rows[1:], start=2):
        row = dict(zip(header, (cell.strip() for cell in cells), strict=False))
        number = row.get("item", "")
        if not number.isdecimal() or not 1 <= int(number) <= count or int(number) in truths:
            problem = "listed twice" if number.isdecimal() and int(number) in truths else "not in the sample"
            raise DatasetError(
                f"{path}: row {place}: item '{number}': {problem}; expected the items 1 to {count}, each once. Correct "
                "it."
            )
        truth = row.get("truth", "").lower()
        if truth and truth not in TRUTHS:
            raise DatasetError(f"{path}: row {place}: item {number}: {unknown('truth', truth, TRUTHS)}")
        truths[int(number)] = truth
        if (picture := row.get("picture", "").lstrip("'")) != pictures[int(number)]:
            others.append(f"item {number} has {picture or 'none'}, and the key has {pictures[int(number)]}")
        if not truth:
            empty.append(int(number))
        if row.get("by"):
            judges[row["by"]] = None
    if others:
        raise DatasetError(
            f"{path}: the pictures of {len(others)} of {count} items are not those of {KEY} beside it: {others[0]}; "
            "expected the sheet that was written with this key. Put sheet and key of one sample into one folder."
        )
    empty += [number for number in range(1, count + 1) if number not in truths]
    if empty:
        few = ", ".join(map(str, empty[:LISTED])) + (", …" if len(empty) > LISTED else "")
        raise DatasetError(
            f"{path}: {len(empty)} of {count} items have no truth: {few}; expected {', '.join(TRUTHS)} for each. "
            "Judge all of them. If difficult ones are left out, the estimate is wrong."
        )
    return truths, tuple(judges)


def _written(source: str) -> str:
    """A picture as the sheet has it; a spreadsheet may remove an apostrophe at the start."""
    ((cell,),) = csv.reader([csv_line([source]).decode()])
    return cell.strip().lstrip("'")


def write(estimate: Estimate, folder: str | Path) -> Path:
    """Write `estimate.json` and `estimate.html` into a folder, which is created if missing; return the page."""
    folder = Path(folder)
    files.make_folder(folder)
    page = pages.render(
        "proof_estimate.html", estimate=estimate, sample=estimate.sample, share=share, version=andon.__version__
    )
    files.write(folder / "estimate.json", files.strict_json(estimate.record(), indent=1).encode())
    files.write(folder / "estimate.html", page)
    return folder / "estimate.html"
