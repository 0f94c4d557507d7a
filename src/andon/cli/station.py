"""Commands for the administrator of a station: backup, restore, and recalibration on its confirmed parts."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from andon.cli.audit import Database, PictureFolder, StationName, check_extra, moment
from andon.cli.options import AsJson, BundleFile, Quiet, printer, progress_bars
from andon.errors import AndonError, counted

if TYPE_CHECKING:
    from andon.station.backup import Copied

station = typer.Typer(no_args_is_help=True)
station.callback(help="Back up and restore a station; recalibrate on parts confirmed good.")(check_extra)


@station.command()
def backup(
    out: Annotated[Path, typer.Argument(help="The new folder to write.", show_default=False)],
    records: Database,
    pictures: PictureFolder = None,
    also: Annotated[
        list[Path] | None,
        typer.Option(help="Another file or folder to copy, such as the bundles. Repeat the option for several."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Copy the records of a station while it runs, with its pictures and further files, and verify the copy.

    Exit code 1: the copy is complete, but a chain of digests is broken or pictures are missing.
    """
    from andon.station import backup as copies

    _report(copies.backup(records, out, pictures, also or ()), f"backup: {out}", as_json)


@station.command()
def restore(
    folder: Annotated[Path, typer.Argument(help="The folder that `andon station backup` wrote.", show_default=False)],
    records: Database,
    pictures: PictureFolder = None,
    as_json: AsJson = False,
) -> None:
    """Copy a backup into a database (SQLite or PostgreSQL) that does not yet contain its stations.

    Files copied with --also remain in the folder also/ of the backup; copy them yourself. Exit code: as for backup.
    """
    from andon.station import backup as copies

    _report(copies.restore(folder, records, pictures), f"restored: {folder}", as_json)


def _report(copied: "Copied", done: str, as_json: bool) -> None:
    from andon import files

    if as_json:
        print(files.strict_json(copied._asdict(), indent=1))
    else:
        for name, count in copied.records.items():
            print(f"{name}: {counted(count, 'record')}, {'NOT WHOLE' if name in copied.breaks else 'whole'}")
            for each in copied.breaks.get(name, []):
                print(f"  {each}")
        print(f"{counted(copied.pictures, 'picture')}, {sum(map(len, copied.missing.values()))} missing or damaged")
        for name, digests in copied.missing.items():
            for digest in digests:
                print(f"  {name}: {digest}")
        if copied.missing and len(copied.records) > 1:
            print("Stations with archives of their own: make a backup for each, with its --pictures.")
        print(done)
    if copied.breaks or copied.missing:
        raise typer.Exit(1)


@station.command()
def recalibrate(
    product: Annotated[str, typer.Argument(help="Name of the product.", show_default=False)],
    bundle: BundleFile,
    out: Annotated[Path, typer.Option("--out", "-o", help="The new bundle to write.", show_default=False)],
    records: Database,
    pictures: Annotated[Path, typer.Option(help="The station's archive of pictures.", show_default=False)],
    name: StationName = None,
    since: Annotated[
        str | None, typer.Option(help="Only inspections since a date such as 2026-11-26, or a time: 2026-11-26T06:00.")
    ] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Discard the previous calibration, such as after a change of the light.")
    ] = False,
    quiet: Quiet = False,
) -> None:
    """Add pictures that a person confirmed good to the calibration of a bundle, and write a new bundle.

    The detector does not change. A calibration in folds is replaced, because its scores are those of other detectors.
    The station's data are only read. To use the new bundle, upload, release and activate it. Its history names the
    previous bundle and the digests of the pictures.
    """
    from andon import files
    from andon.bundle import Bundle, check_writable
    from andon.station import floor, reader
    from andon.station.archive import Archive
    from andon.station.catalogue import Catalogue
    from andon.training import calibrating

    before, tell, warn = Bundle.load(bundle), printer(quiet), printer(False)
    check_writable(out)
    if out.exists():
        raise AndonError(f"{out}: already exists; expected a new file. Name another, to keep the previous bundle.")
    if not files.is_folder(pictures):
        raise AndonError(f"{pictures}: no such folder; expected the station's archive of pictures. Check the path.")
    archive = Archive(pictures)
    with reader.opened(records, name) as chain:
        if before.digest() not in Catalogue(chain.walk(kind="change")).product(product).versions:
            raise AndonError(f"{bundle}: not a bundle of product '{product}' at this station. Name one of its bundles.")
        with progress_bars(quiet) as progress:
            _, after, _ = floor.recalibrate(
                before, chain, archive, product, moment(since), progress, tell, warn, replace=replace
            )
    for sentence in calibrating.before_and_after(before, after):
        tell(sentence)
    after.save(out)
    tell(f"wrote {out}: bundle {after.digest()[:12]}, from {before.digest()[:12]}")
