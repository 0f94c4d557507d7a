"""An index for statistics of production: yields and scores by time, without reading the records themselves."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    where = sa.text("kind = 'inspection'")
    columns = ["station", "product", "time", "verdict", "score", "sequence"]
    op.create_index("records_statistics", "records", columns, sqlite_where=where, postgresql_where=where)
