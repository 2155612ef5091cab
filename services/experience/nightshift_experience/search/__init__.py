"""Finding runs again: by meaning, by words, by both.

Wiring (in the service's ``__main__``)::

    search = SearchService(db, embedder, folder=home / "experience" / "lance")
    await search.start()                  # before serving: notices an index that is gone
    …
    await search.stop_background()        # on Stop, after embedder.stop_background()
    await search.close()                  # at shutdown, before embedder.close() and db.close()

``SearchHandlers`` of ``rpc.search_handlers`` uses it; ``GetExperienceState`` takes embedded_count and
pending_embedding_count from ``await search.counts(project)``.
"""

from .service import SearchMode, SearchResult, SearchService

__all__ = ["SearchMode", "SearchResult", "SearchService"]
