"""Alembic migrations: one linear history over the tables of all packages."""
