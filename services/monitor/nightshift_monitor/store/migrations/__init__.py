"""Alembic versions of the monitor's schema."""
