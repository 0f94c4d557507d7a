"""Migrations of the database, the oldest first. Alembic runs them when a station opens an older database."""
