"""Alembic versions of the trainer's schema."""
