"""An index for statistics of production: yields and scores by time, without reading the records themselves."""

from alembic import op

revision = "0002"
down_revision = "0001"


def upgrade() -> None:
    columns = ["station", "product", "time", "sequence", "kind", "verdict", "score"]
    op.create_index("records_statistics", "records", columns)
