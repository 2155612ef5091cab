"""Validation of proposals: one module a concern, all levels reported."""
