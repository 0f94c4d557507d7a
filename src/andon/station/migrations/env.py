"""What Alembic runs: the changes, on the connection that `schema.migrate` passes."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
