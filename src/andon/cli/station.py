"""Commands for the administrator of a station: backup and restore."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from andon.cli.audit import Database, PictureFolder, check_extra
from andon.cli.options import AsJson
from andon.errors import counted

if TYPE_CHECKING:
    from andon.station.backup import Copied

station = typer.Typer(no_args_is_help=True)
station.callback(help="Back up and restore a station.")(check_extra)


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
        print(f"{counted(copied.pictures, 'picture')}, {len(copied.missing)} missing or damaged")
        for digest in copied.missing:
            print(f"  {digest}")
        print(done)
    if copied.breaks or copied.missing:
        raise typer.Exit(1)
