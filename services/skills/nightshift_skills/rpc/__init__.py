"""Thin servicers: validate, one core call, render."""
