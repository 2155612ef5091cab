"""Statistics: what one run adds to the counters, which runs are regenerations, and the recount."""
