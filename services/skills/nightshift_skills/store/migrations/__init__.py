"""Migrations of the skills service's database."""
