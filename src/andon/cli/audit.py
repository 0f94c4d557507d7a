"""Commands that read the records of a station: verify them, show those of a part, export them as a table."""

from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from andon.cli.options import AsJson, Quiet
from andon.errors import AndonError, counted, unknown

if TYPE_CHECKING:
    from andon.station.entries import Row
    from andon.station.reader import Reader

audit = typer.Typer(no_args_is_help=True)

Database = Annotated[
    str,
    typer.Option(
        "--records",
        envvar="ANDON_RECORDS",
        help="The station's database: the path of an SQLite file, or postgresql://USER:PASSWORD@HOST/DATABASE.",
        show_default=False,
    ),
]
StationName = Annotated[
    str | None,
    typer.Option("--station", help="Name of the station; required if the database has several.", show_default=False),
]
PictureFolder = Annotated[
    Path | None, typer.Option("--pictures", help="The station's archive of pictures.", show_default=False)
]


@audit.callback()
def check_extra() -> None:
    """Verify, show and export the records of a station."""
    missing = [name for name in ("sqlalchemy", "alembic", "pg8000") if not find_spec(name)]
    if missing:
        raise AndonError(
            f"{', '.join(missing)} not installed; a station needs it. Install it: pip install 'andon[station]'."
        )


@audit.command()
def verify(
    records: Database,
    station: StationName = None,
    pictures: PictureFolder = None,
    noted: Annotated[
        str | None,
        typer.Option(
            help="NUMBER:DIGEST of a record, as this command printed it before; the record must be unchanged.",
            show_default=False,
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Recompute the chain of digests, to find records that were changed, removed or inserted.

    The printed digest covers all records up to it. A person who can write the database can also write a new chain, so
    note the digest in another place, and pass it with --noted next time. With --pictures, each stored picture must
    exist and match the digest in its record. Exit code 0: everything is whole; 1: there are findings.
    """
    from andon import files
    from andon.station import reader, upkeep
    from andon.station.archive import Archive

    if noted and not station:
        raise AndonError("--noted without --station; expected the station whose record was noted. Name it.")
    found = []
    names = [station] if station else reader.names(records)
    if not names:
        raise AndonError("the database holds no records of any station; expected some. Check --records.")
    for name in names:
        with reader.Reader(records, name) as chain:
            each = upkeep.verified(chain, Archive(pictures) if pictures else None)
            each["wrong"] += _noted(chain, noted) if noted else []
        found.append(each)
        if not as_json:
            sequence, wrong = each["records"], each["wrong"]
            print(f"{name}: {counted(sequence, 'record')}, {'NOT WHOLE' if wrong else 'whole'}")
            print("\n".join([f"  {one}" for one in wrong] or [f"  note: {sequence}:{each['digest']}"]))
    if as_json:
        print(files.strict_json(found, indent=1))
    if any(each["wrong"] for each in found):
        raise typer.Exit(1)


@audit.command()
def show(
    part: Annotated[str, typer.Argument(help="Id of the part.", show_default=False)],
    records: Database,
    as_json: AsJson = False,
) -> None:
    """Show all records of a part, of every station in the database, oldest first. Exit code 1: there is none."""
    from andon import files
    from andon.station import reader

    stations = reader.names(records)
    rows: list[Row] = []
    if stations:
        with reader.Reader(records, stations[0]) as chain:
            rows = chain.story(part)
    if as_json:
        print(files.strict_json([row.record() for row in rows], indent=1))
    else:
        print("\n".join(map(_line, rows)) or f"no record of part '{part}'")
    if not rows:
        raise typer.Exit(1)


@audit.command()
def export(
    out: Annotated[
        Path, typer.Argument(help="The table to write: a name that ends in .csv or .parquet.", show_default=False)
    ],
    records: Database,
    station: StationName = None,
    since: Annotated[
        str | None, typer.Option(help="Start: a date such as 2026-11-26, or with a time: 2026-11-26T06:00.")
    ] = None,
    until: Annotated[
        str | None, typer.Option(help="End, as --since. Local time, unless it contains a time zone.")
    ] = None,
    product: Annotated[str | None, typer.Option(help="Only records of this product.")] = None,
    lot: Annotated[str | None, typer.Option(help="Only records of this lot.")] = None,
    verdict: Annotated[str | None, typer.Option(help="Only records with this verdict.")] = None,
    kind: Annotated[
        str | None, typer.Option(help="Only records of this kind: inspection, decision, event, challenge or change.")
    ] = None,
    quiet: Quiet = False,
) -> None:
    """Write records as a table, oldest first: a row for each record, with its digests."""
    from andon.station import export as tables
    from andon.station import reader
    from andon.station.entries import KINDS

    if kind is not None and kind not in KINDS:
        raise AndonError(unknown("kind", kind, KINDS))
    filters = {"since": moment(since), "until": moment(until), "product": product, "lot": lot}
    with reader.opened(records, station) as chain:
        count = tables.write(chain.walk(**filters, verdict=verdict, kind=kind), out)
    if not quiet:
        print(f"{counted(count, 'record')}: {out}")


def moment(text: str | None) -> datetime | None:
    """An option that names a time, in local time unless it contains a zone."""
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text).astimezone()
    except (ValueError, OverflowError):
        raise AndonError(f"time '{text}': expected 2026-11-26 or 2026-11-26T06:00. Correct it.") from None


def _noted(chain: "Reader", noted: str) -> list[str]:
    number, _, digest = noted.partition(":")
    if not number.isdecimal() or not digest:
        raise AndonError(f"--noted {noted}: expected NUMBER:DIGEST as `andon audit verify` prints it. Correct it.")
    row = chain.record(int(number)) if len(number) < 19 else None
    return [] if row and row.digest == digest else [f"record {number}: is not the one that was noted"]


def _line(row: "Row") -> str:
    facts = [row.time[:23].replace("T", " "), row.station, f"#{row.sequence}", row.kind]
    facts += [str(each) for each in (row.product, row.verdict) if each]
    facts += [f"{name} {value:.4g}" for name, value in (("score", row.score), ("p", row.p_value)) if value is not None]
    facts += [f"lot {row.lot}"] if row.lot else []
    facts += [f"job {row.job}"] if row.job is not None else []
    for name in ("decision", "who", "reason", "event", "error", "digest", "bundle"):
        value = row.body.get(name)
        if value:
            facts.append(f"{name} {str(value)[:12] if name in ('digest', 'bundle') else value}")
    return "  ".join(facts)
