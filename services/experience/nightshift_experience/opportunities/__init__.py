"""What experience suggests to improve: themes that no config fits, configs that nobody keeps.

Wiring (in the service's ``__main__``)::

    opportunities = OpportunityService(db, clock, search, embedder, platform_root=plane.platform_root)
    …
    await opportunities.close()          # at shutdown, before search.close()

A detection runs in a child process that is killed when its call is cancelled (by a Stop, or a caller who
leaves). ``SearchHandlers`` of ``rpc.search_handlers`` uses it. It writes detected_seq and detect_us of
``projects`` in the transaction that stores what it found.
"""

from .service import OpportunityService

__all__ = ["OpportunityService"]
