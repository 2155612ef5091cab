"""Migrations of the experience store."""
