"""A random sample from the records of a line whose truth is unknown, for a person to judge.

The strata are the verdicts. Half of the sample is drawn from the pictures that passed, the rest in equal numbers from
the other verdicts; if a stratum has too few pictures, the others get more. Within a stratum, pictures are drawn with
equal probability, without replacement. Sheet and page do not contain the verdicts, so the person judges without them.
"""

import json
from collections import Counter
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NamedTuple

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

import andon
from andon import files, pages, render
from andon.errors import AndonError, DatasetError, ImageError
from andon.inspection import Verdict
from andon.pictures import image
from andon.progress import Progress
from andon.records import csv_line

COLUMNS = ("item", "picture", "truth", "by", "remark")
KEY, SHEET, PAGE = "sample.json", "sheet.csv", "sample.html"
MOST = 5000  # items; the page holds their pictures
SIDE = 420  # pixels, the longer side of a picture on the page


class Item(BaseModel):
    """One picture to judge."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    item: Annotated[int, Field(ge=1)]
    """Number on sheet and page."""
    source: str
    """Path of the picture, as in the record."""
    digest: str
    """SHA-256 of the picture."""
    verdict: Annotated[Verdict, Field(strict=False)]
    """Verdict of andon: the stratum."""
    score: float | None
    """Score of andon; None if the record has none."""


class Sample(BaseModel):
    """A sample and its source: everything that the estimate needs, except the truth."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, use_attribute_docstrings=True)

    andon: str
    """Version of andon."""
    made: str
    """Date and time, UTC."""
    records: str
    """Path of the records."""
    records_digest: str
    """SHA-256 of the records when the sample was drawn."""
    bundle: str
    """Digest of the bundle that gave the verdicts."""
    decision: str
    """Digest of the decision."""
    seed: int
    lots: dict[Annotated[Verdict, Field(strict=False)], Annotated[int, Field(ge=1)]]
    """Verdict → number of pictures in the records."""
    repeated: int
    """Number of records that repeat a picture; each picture counts once."""
    failed: int
    """Number of records of pictures that could not be inspected; they belong to no lot."""
    items: Annotated[tuple[Item, ...], Field(strict=False)]
    """In random order."""

    def drawn(self) -> dict[Verdict, int]:
        """Verdict → number of items."""
        counts = Counter(each.verdict for each in self.items)
        return {verdict: counts[verdict] for verdict in self.lots}


class Lots(NamedTuple):
    """The pictures of one decision in a file of records, by verdict."""

    digest: str  # of the file of records
    bundle: str
    decision: str
    members: dict[Verdict, list[Item]]  # not numbered: each item is 1
    repeated: int
    failed: int


def draw(path: str | Path, count: int, seed: int = 0, decided_by: str = "") -> Sample:
    """Draw `count` pictures from the records of one decision, or all if there are fewer.

    `decided_by` is the beginning of the digest of the bundle or decision whose records are used.

    Errors: DatasetError for records that cannot be read, or that have no verdict or verdicts of several decisions;
    AndonError for an impossible count.
    """
    if not 2 <= count <= MOST:
        raise AndonError(
            f"--count {count}: expected 2 to {MOST} pictures. `andon plan` computes how many a proof needs."
        )
    if not 0 <= seed < 2**32:
        raise AndonError(f"--seed {seed}: expected 0 to {2**32 - 1}. Choose another.")
    lots = read(path, decided_by)
    sizes = {verdict: len(members) for verdict, members in lots.members.items()}
    if count < 2 * len(sizes):
        raise AndonError(
            f"--count {count}: too few for the {len(sizes)} verdicts {', '.join(sizes)} in {path}; "
            f"expected {2 * len(sizes)} or more. Raise --count."
        )
    rng = np.random.default_rng(seed)
    chosen = [
        lots.members[verdict][j]
        for verdict, size in allocation(sizes, count).items()
        for j in rng.choice(sizes[verdict], size, replace=False)
    ]
    order = rng.permutation(len(chosen))
    return Sample(
        andon=andon.__version__,
        made=datetime.now(UTC).isoformat(timespec="seconds"),
        records=str(path),
        records_digest=lots.digest,
        bundle=lots.bundle,
        decision=lots.decision,
        seed=seed,
        lots=sizes,
        repeated=lots.repeated,
        failed=lots.failed,
        items=tuple(chosen[j].model_copy(update={"item": place}) for place, j in enumerate(order.tolist(), start=1)),
    )


def allocation(lots: Mapping[Verdict, int], count: int) -> dict[Verdict, int]:
    """Sizes of the samples of all lots, in total `count`: half from those that passed, the rest in equal numbers."""
    count = min(count, sum(lots.values()))
    passed = lots.get(Verdict.PASS, 0)
    sizes = {Verdict.PASS: min(passed, max(count - count // 2, count - (sum(lots.values()) - passed)))}
    others = sorted((verdict for verdict in lots if verdict is not Verdict.PASS), key=lambda verdict: lots[verdict])
    for j, verdict in enumerate(others):  # smallest first: the larger ones get what it lacks
        sizes[verdict] = min(lots[verdict], (count - sum(sizes.values())) // (len(others) - j))
    return {verdict: sizes[verdict] for verdict in lots}


def read(path: str | Path, decided_by: str = "") -> Lots:
    """Read the pictures of one decision from `records.jsonl`; if a picture is listed twice, its last record.

    An incomplete last line is left out, because the line may be running. Errors: as `draw`.
    """
    try:
        content = Path(path).read_bytes()
    except OSError as error:
        raise DatasetError(
            f"{path}: cannot be read: {files.reason(error)}. Name the records.jsonl of a line."
        ) from None
    lines = content.split(b"\n")
    pictures: dict[tuple[str, str], dict[str, Item]] = {}  # bundle, decision → digest → picture
    repeated: Counter[tuple[str, str]] = Counter()
    failed = 0
    for j, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except (ValueError, RecursionError):
            if j == len(lines):
                break
            record = None
        if isinstance(record, dict) and "error" in record and record.get("verdict", "INVALID") == "INVALID":
            failed += 1  # of `andon inspect`, which gives no verdict, or of `andon watch`
            continue
        item, made_by = _item(record, f"{path}: line {j}")
        known = pictures.setdefault(made_by, {})
        repeated[made_by] += item.digest in known
        known[item.digest] = item
    if not pictures:
        raise DatasetError(
            f"{path}: no record with a verdict. Name the records.jsonl that `andon inspect --out` wrote."
        )
    chosen = [made_by for made_by in pictures if any(digest.startswith(decided_by) for digest in made_by)]
    if len(chosen) != 1:
        which = "; ".join(f"bundle {b[:12]}, decision {d[:12]}: {len(pictures[b, d])} pictures" for b, d in pictures)
        problem = (
            f"no record of a bundle or decision {decided_by}" if not chosen else f"records of {len(chosen)} decisions"
        )
        raise DatasetError(
            f"{path}: {problem}; expected those of one: {which}. Choose one with --decided-by and the first digits of "
            "its digest."
        )
    members: dict[Verdict, list[Item]] = {}
    for item in pictures[chosen[0]].values():
        members.setdefault(item.verdict, []).append(item)
    ordered = {verdict: members[verdict] for verdict in Verdict if verdict in members}
    return Lots(files.digest(content), *chosen[0], ordered, repeated[chosen[0]], failed)


def _item(record: object, where: str) -> tuple[Item, tuple[str, str]]:
    """The picture of a record, with bundle and decision."""
    known = record if isinstance(record, dict) else {}
    texts = [known.get(name) for name in ("source", "digest", "bundle", "decision")]
    verdict, score = known.get("verdict"), known.get("score")
    if not all(isinstance(text, str) and text for text in texts) or verdict not in list(Verdict):
        raise DatasetError(
            f"{where}: not a record of an inspection; expected JSON with source, digest, verdict, bundle and decision, "
            "as `andon inspect --out` writes it. Remove the line, or inspect the pictures again."
        )
    source, digest, bundle, decision = (str(text).encode(errors="backslashreplace").decode() for text in texts)
    number = float(score) if isinstance(score, int | float) else None
    return Item(item=1, source=source, digest=digest, verdict=Verdict(verdict), score=number), (bundle, decision)


class Card(NamedTuple):
    """One item on the page."""

    item: int
    source: str
    picture: str  # data URI; empty if it is missing
    why: str  # reason why it is missing


def write(sample: Sample, folder: str | Path, progress: Progress) -> list[str]:
    """Write sheet, page of pictures and key into a folder; return the reasons for missing pictures.

    Errors: AndonError when the folder already contains a sheet, which may be filled in.
    """
    folder = Path(folder)
    for name in (KEY, SHEET):
        if (folder / name).exists():
            raise AndonError(
                f"{folder / name}: exists already; a sheet that is filled in is not overwritten. Choose another folder."
            )
    files.make_folder(folder)
    cards = []
    for done, item in enumerate(sample.items):
        progress("pictures", done, len(sample.items))
        cards.append(_card(item))
    progress("pictures", len(cards), len(cards))
    page = pages.render("proof_sample.html", sample=sample, cards=cards, sheet=SHEET)
    rows = [csv_line(COLUMNS), *(csv_line([card.item, card.source, "", "", ""]) for card in cards)]
    files.write(folder / KEY, sample.model_dump_json(indent=1).encode())
    files.write(folder / PAGE, page)
    files.write(folder / SHEET, b"\xef\xbb\xbf" + b"".join(rows))  # byte order mark: spreadsheets read UTF-8
    return [card.why for card in cards if card.why]


def _card(item: Item) -> Card:
    try:
        photo = render.fit(render.display(image.read_again(Path(item.source), item.digest).pixels), SIDE)
    except ImageError as error:
        return Card(item.item, item.source, "", str(error))
    return Card(item.item, item.source, pages.data(render.encode(photo, "jpg"), "jpeg"), "")
