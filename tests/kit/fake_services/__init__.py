"""Tiny services for tests of the process table."""
