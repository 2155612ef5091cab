"""Migrations of the lab's database."""
