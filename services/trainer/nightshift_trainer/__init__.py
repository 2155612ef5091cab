"""Nightshift's trainer service."""
