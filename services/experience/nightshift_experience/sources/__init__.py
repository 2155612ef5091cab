"""Importers of what platforms already wrote."""
