"""Nightshift's lab service."""
