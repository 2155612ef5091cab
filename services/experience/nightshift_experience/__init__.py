"""Nightshift's experience service."""
