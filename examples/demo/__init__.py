"""The demo: one whole improvement on a generated workshop, with real processes. Run by `make demo`."""
