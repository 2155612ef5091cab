"""Statistics of proportions."""

from __future__ import annotations

import math


def wilson(count: int, total: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson score interval of a proportion.

    Unlike the normal approximation it stays within [0, 1] and keeps its coverage for few trials and for
    proportions near 0 or 1. Source: E. B. Wilson, "Probable inference, the law of succession, and statistical
    inference", JASA 22 (1927), 209-212.

    Args:
        count: Successes, 0 ≤ count ≤ total.
        total: Trials ≥ 0.
        z: Normal quantile of the confidence; the default is that of 95 %.

    Returns:
        (lower, upper), each within [0, 1]; (0.0, 1.0) without any trial.

    Raises:
        ValueError: The counts are not 0 ≤ count ≤ total.
    """
    if not 0 <= count <= total:
        raise ValueError(f"expected 0 <= count <= total, got {count} of {total}")
    if total == 0:
        return 0.0, 1.0
    share = count / total
    spread = z * z / total
    centre = share + spread / 2
    half = z * math.sqrt(share * (1 - share) / total + spread / (4 * total))
    # At 0 and at total the bounds are exactly 0 and 1; rounding must not say otherwise.
    lower = 0.0 if count == 0 else max(0.0, (centre - half) / (1 + spread))
    upper = 1.0 if count == total else min(1.0, (centre + half) / (1 + spread))
    return lower, upper
