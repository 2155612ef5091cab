"""The store's room."""
