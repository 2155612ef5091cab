"""The narrow storage interface, its SQL and its migrations."""
