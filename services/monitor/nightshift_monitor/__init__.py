"""Nightshift's monitor service."""
