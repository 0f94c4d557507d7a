"""The database of records: tables, connections, migration, and errors.

SQLite (WAL, synchronous FULL) or PostgreSQL. Times are text, always `2026-11-26T18:04:57.123456Z`, so that database,
export and digest contain the same characters, and their alphabetical order is the order of time.
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sqlalchemy as sa
from alembic import command
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import event, exc

from andon import files
from andon.errors import StorageError
from andon.station.events import StationError

MIGRATIONS = Path(__file__).parent / "migrations"
PATIENCE_S = 10
"""Maximum time in seconds that a call waits for the database."""

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")

OTHERS = sa.text("kind <> 'inspection'")
"""Condition for records other than inspections. They are few; only they have an index by kind."""

metadata = sa.MetaData()

stations = sa.Table(
    "stations",
    metadata,
    sa.Column("name", TEXT, primary_key=True),
    sa.Column("holder", TEXT, nullable=False),  # the writing process: host, pid, since, token as JSON
    sa.Column("sequence", sa.BigInteger, nullable=False),  # of the last record
    sa.Column("digest", TEXT, nullable=False),  # of the last record
    sa.Column("time", TEXT, nullable=False),  # of the last record
    sa.Column("clock", TEXT, nullable=False),  # of the last record
    sa.Column("next_job", sa.BigInteger, nullable=False),
    sa.Column("state", TEXT, nullable=False),  # memory of the state machine, as JSON
)
records = sa.Table(
    "records",
    metadata,
    sa.Column("station", TEXT, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
    sa.Column("time", TEXT, nullable=False),  # never earlier than that of the previous record
    sa.Column("clock", TEXT, nullable=False),  # reading of the clock
    sa.Column("kind", TEXT, nullable=False),
    sa.Column("job", sa.BigInteger),
    sa.Column("product", TEXT),
    sa.Column("part", TEXT),
    sa.Column("lot", TEXT),
    sa.Column("verdict", TEXT),
    sa.Column("score", sa.Double),
    sa.Column("p_value", sa.Double),
    sa.Column("body", TEXT, nullable=False),  # canonical JSON
    sa.Column("previous", TEXT, nullable=False),  # digest of the previous record; empty for the first
    sa.Column("digest", TEXT, nullable=False),
    *(sa.Index(f"records_{name}", "station", name, "sequence") for name in ("lot", "part", "job", "time", "score")),
    # Filters with many matches share one index, which finds the records that match several of them.
    sa.Index("records_product", "station", "product", "sequence", "verdict", "score"),
    sa.Index("records_verdict", "station", "verdict", "sequence", "product", "score"),
    sa.Index("records_kind", "station", "kind", "sequence", sqlite_where=OTHERS, postgresql_where=OTHERS),
    sa.Index("records_story", "part", "time"),
    # Statistics are computed from this index only.
    sa.Index("records_statistics", "station", "product", "time", "sequence", "kind", "verdict", "score"),
)
outbox = sa.Table(
    "outbox",
    metadata,
    sa.Column("station", TEXT, primary_key=True),
    sa.Column("target", TEXT, primary_key=True),
    sa.Column("sequence", sa.BigInteger, primary_key=True),
)
pictures = sa.Table(
    "pictures",
    metadata,
    sa.Column("station", TEXT, primary_key=True),
    sa.Column("digest", TEXT, primary_key=True),
    sa.Column("worth", sa.Integer, nullable=False),  # 0: PASS; 1: REVIEW; 2: all others
    sa.Column("time", TEXT, nullable=False),  # of the last record that names it
    sa.Column("size", sa.BigInteger, nullable=False),  # bytes
    sa.Index("pictures_worth", "station", "worth", "time", "size"),
)


def connect(url: str, writes: bool) -> sa.Engine:
    """Return an engine for a database: `postgresql://…`, `sqlite:///…`, or the path of an SQLite file."""
    try:
        parsed = sa.make_url(url) if "://" in url else sa.URL.create("sqlite", database=url)
    except (exc.ArgumentError, ValueError):
        raise StationError(_unusable(url.split("@")[-1])) from None
    family = parsed.get_backend_name()
    if family == "sqlite" and parsed.database and parsed.database != ":memory:" and not parsed.query:
        engine = sa.create_engine(
            parsed.set(drivername="sqlite+pysqlite", database=str(Path(parsed.database).absolute())),
            connect_args={"timeout": PATIENCE_S, "isolation_level": None},
            pool_timeout=PATIENCE_S,
        )
        event.listen(engine, "connect", _durable if writes else _read_only)
        event.listen(engine, "begin", _begin)
        return engine
    if family == "postgresql":
        engine = sa.create_engine(
            parsed.set(drivername="postgresql+pg8000"),
            connect_args={"timeout": PATIENCE_S, "tcp_keepalive": True},
            isolation_level="READ COMMITTED",  # a server may have another default
            pool_pre_ping=True,
            pool_timeout=PATIENCE_S,
        )
        engine.dialect.use_insertmanyvalues_wo_returning = True  # many rows in one round trip
        event.listen(engine, "connect", _session)
        return engine
    raise StationError(_unusable(place(parsed)))


def place(url: sa.URL) -> str:
    """Return the name of a database for messages: its file, or its address without the password."""
    return str(url.database) if url.get_backend_name() == "sqlite" else url.render_as_string(hide_password=True)


def file_of(engine: sa.Engine) -> Path | None:
    """Return the file of an SQLite database; None for PostgreSQL."""
    return Path(str(engine.url.database)) if engine.dialect.name == "sqlite" else None


def _unusable(found: str) -> str:
    return (
        f"database '{found}': expected the path of an SQLite file, sqlite:///PATH or "
        "postgresql://USER:PASSWORD@HOST/DATABASE. Correct it."
    )


def _durable(connection: sqlite3.Connection, _: object) -> None:
    patience = time.monotonic() + PATIENCE_S
    while True:
        try:
            connection.execute("PRAGMA journal_mode = WAL")
            break
        except sqlite3.OperationalError as error:
            # A new file changes its mode under a lock for which SQLite does not wait, whatever the timeout.
            if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > patience:
                raise
            time.sleep(0.01)
    connection.execute("PRAGMA synchronous = FULL")
    connection.execute("PRAGMA journal_size_limit = 67108864")


def _read_only(connection: sqlite3.Connection, _: object) -> None:
    connection.execute("PRAGMA query_only = ON")


def _begin(connection: sa.Connection) -> None:
    writes = connection.get_execution_options().get("writes")
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _session(connection: Any, _: object) -> None:
    """Set durable commits; the locks of a client whose host has failed are released after half a minute."""
    connection.autocommit = True
    cursor = connection.cursor()
    cursor.execute("SHOW fsync")
    if cursor.fetchone()[0] != "on":
        raise StationError(
            "PostgreSQL has fsync = off: a power cut would lose records. Set fsync = on in postgresql.conf."
        )
    for setting in (
        "synchronous_commit = on",
        "tcp_keepalives_idle = 15",
        "tcp_keepalives_interval = 5",
        "tcp_keepalives_count = 3",
    ):
        cursor.execute(f"SET {setting}")
    cursor.close()
    connection.autocommit = False


def migrate(engine: sa.Engine) -> None:
    """Create the tables, or migrate those of an older andon, all changes in one transaction."""
    file = file_of(engine)
    if file:
        files.make_folder(file.parent)
    with errors(engine), engine.connect().execution_options(writes=True) as connection, connection.begin():
        if engine.dialect.name == "postgresql":
            connection.execute(sa.select(sa.func.pg_advisory_xact_lock(lock_number("migration"))))
        if _version(engine, connection) != _expected():
            config = Config(attributes={"connection": connection})
            config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
            command.upgrade(config, "head")


def check(engine: sa.Engine) -> None:
    """Check that a database exists and has the tables of this andon. StationError otherwise."""
    file = file_of(engine)
    if file and not files.is_file(file):
        raise StationError(f"{file}: there is no such database. Name the database of a station.")
    with errors(engine), engine.connect() as connection, connection.begin():
        found = _version(engine, connection)
    if found != _expected():
        raise StationError(
            f"{place(engine.url)}: version {found or 'none'} of the records; expected {_expected()}. "
            "Start the station once: it migrates its database."
        )


def _script() -> ScriptDirectory:
    return ScriptDirectory(str(MIGRATIONS))


def _expected() -> str:
    return str(_script().get_current_head())


def _version(engine: sa.Engine, connection: sa.Connection) -> str | None:
    """Return the version of a database; None if it has none. StationError for a newer version."""
    found = MigrationContext.configure(connection).get_current_revision()
    known = {each.revision for each in _script().walk_revisions()}
    if found is not None and found not in known:
        raise StationError(
            f"{place(engine.url)}: version {found} of the records, newer than {_expected()}, the last version of this "
            "andon. Use the andon that wrote it, or a newer one."
        )
    return found


def lock_number(name: str) -> int:
    """Return the number of an advisory lock of PostgreSQL."""
    return int(files.digest(f"andon {name}".encode())[:15], 16)


OUTSIDE = ("08", "25006", "28", "3D", "40", "42501", "53", "55", "57", "58")
"""First characters of PostgreSQL's error codes for problems of the server, its disk, the network, permissions or other
clients' locks."""


@contextmanager
def errors(engine: sa.Engine) -> Iterator[None]:
    """Raise StorageError for errors of the database server, its disk, the network or permissions."""
    try:
        yield
    except exc.DBAPIError as error:
        detail = error.orig.args[0] if error.orig and error.orig.args else ""
        found = detail
        if isinstance(detail, dict):
            code, found = str(detail.get("C", "")), str(detail.get("M", ""))
            if not code.startswith(OUTSIDE):
                raise
        elif isinstance(error, exc.IntegrityError | exc.ProgrammingError):
            raise
        raise StorageError(_away(engine, str(found))) from error
    except (OSError, exc.TimeoutError) as error:
        raise StorageError(_away(engine, str(error))) from error


def _away(engine: sa.Engine, found: str) -> str:
    file = file_of(engine)
    todo = f"Free space or allow writing in {file.parent}" if file else "Start the database, or allow access"
    if "not a database" in found or "malformed" in found:
        todo = "Restore it from a backup"
    elif "locked" in found:
        todo = f"Another program has held it for {PATIENCE_S} s: end that program"
    return f"{place(engine.url)}: the records cannot be reached: {found.strip().rstrip('.')}. {todo}, then try again."
