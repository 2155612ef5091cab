"""A service's store in small, to try the storage engine with."""
