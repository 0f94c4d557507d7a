"""The command that runs a station."""

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import typer

from andon.errors import AndonError


def serve(
    place: Annotated[
        Path, typer.Argument(help="A station's settings as TOML, or a folder of bundles.", show_default=False)
    ],
    host: Annotated[
        str | None, typer.Option(help="Address to listen on; replaces that of the settings.", show_default=False)
    ] = None,
    port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Port; 0: any free port.", show_default=False)
    ] = None,
    new_key: Annotated[
        bool, typer.Option("--new-key", help="Create and print a new key of an engineer, if all keys are lost.")
    ] = False,
) -> None:
    """Run a station: inspect pictures that are sent over HTTP, and record every verdict.

    \b
    andon serve bundles/          each NAME.andon is a product; NAME.golden.png beside it shows a good part
    andon serve station.toml      with settings

    The first start prints a key, which is shown only once. By default, only programs on this computer can connect.
    Ctrl-C or SIGTERM lets open requests finish, then ends the station.
    """
    needed = ("alembic", "fastapi", "multipart", "pg8000", "prometheus_client", "sqlalchemy", "uvicorn")
    missing = [name for name in needed if not find_spec(name)]
    if missing:
        raise AndonError(f"{', '.join(missing)} not installed; a station needs it. Run: pip install 'andon[station]'.")
    from andon.station.config import Config
    from andon.station.keys import Role
    from andon.station.line.lines import Lines
    from andon.station.station import Station

    config = Config.load(place)
    address = {"host": host or config.http.host, "port": config.http.port if port is None else port}
    config = config.model_copy(update={"http": config.http.model_copy(update=address)})
    station = Station(config, _tell)
    try:
        if new_key or not len(station.keys):
            _, text = station.keys.make("first" if not len(station.keys) else "recovered", Role.ENGINEER)
            _tell(f"key of an engineer, shown once: {text}")
        station.start()
        if not station.products.catalogue.products and not any(config.bundles.glob("*.andon")):
            _tell(
                f"{config.bundles}: no bundles. Put NAME.andon there and start again, or teach a product in the pages."
            )
        from andon.station.http.app import Server  # after the start: the processes that inspect load meanwhile

        lines = Lines(station)
        try:
            lines.start()
            server = Server(station, _tell, lines)
            server.run()
        finally:
            lines.close()
    except SystemExit:
        raise AndonError(
            f"{address['host']}:{address['port']}: cannot listen there. Expected a free port. Choose another: --port."
        ) from None
    finally:
        station.close()


def _tell(sentence: str) -> None:
    print(f"andon: {sentence}", file=sys.stderr, flush=True)
