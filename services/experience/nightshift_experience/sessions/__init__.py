"""Sessions: one browser's sitting, what it was after, and each day in words."""
