"""Nightshift's skills service."""
