"""Missing languages of production's configs: found, drafted, checked, written."""
