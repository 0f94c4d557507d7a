"""Changes of the database, oldest first, run by Alembic when a station opens an older one."""
