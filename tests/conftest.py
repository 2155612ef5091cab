"""For all tests: none depends on how fast this machine is just now."""

from __future__ import annotations

from hypothesis import settings

# Hypothesis' own limit of 200 ms an example speaks of the machine, not of the code.
settings.register_profile(
    "any_machine", parent=settings.get_profile(settings.get_current_profile_name()), deadline=None
)
settings.load_profile("any_machine")
