"""Entry point of Alembic: runs the migrations on the connection from `schema.migrate`."""

from alembic import context

context.configure(connection=context.config.attributes["connection"])
context.run_migrations()
