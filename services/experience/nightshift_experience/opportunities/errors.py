"""What can be wrong with an opportunity.

NightshiftError
└── OpportunityUnknown   NOT_FOUND OPPORTUNITY_UNKNOWN
"""

from __future__ import annotations

from nightshift_kit.errors import NotFound


class OpportunityUnknown(NotFound):
    """No such opportunity stands now; a later detection may have dropped it."""

    reason = "OPPORTUNITY_UNKNOWN"
