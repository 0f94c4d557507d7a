"""Records, stations, outbox, pictures; records are append-only."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None

TEXT = sa.Text().with_variant(sa.Text(collation="C"), "postgresql")
PAST = "records are append-only: what is written stays"


def upgrade() -> None:
    op.create_table(
        "stations",
        sa.Column("name", TEXT, primary_key=True),
        sa.Column("holder", TEXT, nullable=False),
        sa.Column("sequence", sa.BigInteger, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
        sa.Column("time", TEXT, nullable=False),
        sa.Column("clock", TEXT, nullable=False),
        sa.Column("next_job", sa.BigInteger, nullable=False),
        sa.Column("state", TEXT, nullable=False),
    )
    op.create_table(
        "records",
        sa.Column("station", TEXT, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
        sa.Column("time", TEXT, nullable=False),
        sa.Column("clock", TEXT, nullable=False),
        sa.Column("kind", TEXT, nullable=False),
        sa.Column("job", sa.BigInteger),
        sa.Column("product", TEXT),
        sa.Column("part", TEXT),
        sa.Column("lot", TEXT),
        sa.Column("verdict", TEXT),
        sa.Column("score", sa.Double),
        sa.Column("p_value", sa.Double),
        sa.Column("body", TEXT, nullable=False),
        sa.Column("previous", TEXT, nullable=False),
        sa.Column("digest", TEXT, nullable=False),
    )
    op.create_table(
        "outbox",
        sa.Column("station", TEXT, primary_key=True),
        sa.Column("target", TEXT, primary_key=True),
        sa.Column("sequence", sa.BigInteger, primary_key=True),
    )
    op.create_table(
        "pictures",
        sa.Column("station", TEXT, primary_key=True),
        sa.Column("digest", TEXT, primary_key=True),
        sa.Column("worth", sa.Integer, nullable=False),
        sa.Column("time", TEXT, nullable=False),
        sa.Column("size", sa.BigInteger, nullable=False),
    )
    for columns in (
        ("lot", "sequence"),
        ("part", "sequence"),
        ("job", "sequence"),
        ("time", "sequence"),
        ("score", "sequence"),
        ("product", "sequence", "verdict", "score"),
        ("verdict", "sequence", "product", "score"),
    ):
        op.create_index(f"records_{columns[0]}", "records", ["station", *columns])
    others = sa.text("kind <> 'inspection'")
    op.create_index(
        "records_kind", "records", ["station", "kind", "sequence"], sqlite_where=others, postgresql_where=others
    )
    op.create_index("records_story", "records", ["part", "time"])
    op.create_index("pictures_worth", "pictures", ["station", "worth", "time", "size"])
    if op.get_bind().dialect.name == "sqlite":
        refuse = f"BEGIN SELECT RAISE(ABORT, '{PAST}'); END"
        op.execute(f"CREATE TRIGGER records_update BEFORE UPDATE ON records {refuse}")
        op.execute(f"CREATE TRIGGER records_delete BEFORE DELETE ON records {refuse}")
        # INSERT OR REPLACE would delete a row without the trigger above.
        same = "SELECT 1 FROM records WHERE station = NEW.station AND sequence = NEW.sequence"
        op.execute(f"CREATE TRIGGER records_replace BEFORE INSERT ON records WHEN EXISTS ({same}) {refuse}")
    else:
        op.execute(
            "CREATE FUNCTION records_refuse() RETURNS trigger LANGUAGE plpgsql AS "
            f"$$ BEGIN RAISE EXCEPTION '{PAST}'; END $$"
        )
        op.execute(
            "CREATE TRIGGER records_change BEFORE UPDATE OR DELETE ON records "
            "FOR EACH ROW EXECUTE FUNCTION records_refuse()"
        )
        op.execute(
            "CREATE TRIGGER records_truncate BEFORE TRUNCATE ON records "
            "FOR EACH STATEMENT EXECUTE FUNCTION records_refuse()"
        )
