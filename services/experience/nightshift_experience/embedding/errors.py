"""What can go wrong between a text and its vector.

NightshiftError
├── ModelRefused       FAILED_PRECONDITION MODEL_REFUSED      the folder holds no model that we would load
├── ModelUnavailable   UNAVAILABLE         MODEL_UNAVAILABLE  the process starts anew, or has died
└── EmbeddingStopped   FAILED_PRECONDITION PREEMPTED          background work was told to stop
"""

from __future__ import annotations

from nightshift_kit.errors import Code, NightshiftError


class ModelRefused(NightshiftError):
    """The model's files are missing, of an unsafe format, or not the ones that were promised."""

    code = Code.FAILED_PRECONDITION
    reason = "MODEL_REFUSED"


class ModelUnavailable(NightshiftError):
    """No vector now; the embedding process starts anew. Worth a retry."""

    code = Code.UNAVAILABLE
    reason = "MODEL_UNAVAILABLE"


class EmbeddingStopped(NightshiftError):
    """Background embedding ended because a user came back or the service stops."""

    code = Code.FAILED_PRECONDITION
    reason = "PREEMPTED"
