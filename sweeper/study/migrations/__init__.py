"""Migrations of our tables (alembic)."""
