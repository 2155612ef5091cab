"""Trying again what may be: reads, and calls that a jti or a watermark keeps from acting twice."""

from __future__ import annotations

from collections.abc import Callable

import structlog
import tenacity

from nightshift_skills.errors import Upstream

_log = structlog.get_logger("nightshift.skills.patience")


def patiently(
    what: str,
    patience_s: float,
    *,
    first_s: float = 0.1,
    longest_s: float = 2.0,
    unless: Callable[[Upstream], bool] = lambda _error: False,
) -> tenacity.AsyncRetrying:
    """Repeats a call until an answer comes that counts; the last error is raised as it came.

    Args:
        what: Is called, for the log.
        patience_s: No try begins later than so long after the first.
        first_s: Pause before the second try; each further one is twice as long.
        longest_s: Longest pause.
        unless: Errors that end the patience at once, although another try might succeed.
    """

    def again(error: BaseException) -> bool:
        return isinstance(error, Upstream) and error.outcome_unknown and not unless(error)

    def tell(state: tenacity.RetryCallState) -> None:
        error = None if state.outcome is None else state.outcome.exception()
        reason = error.reason if isinstance(error, Upstream) else ""
        _log.info("tried again", what=what, reason=reason, attempt=state.attempt_number)

    return tenacity.AsyncRetrying(
        retry=tenacity.retry_if_exception(again),
        wait=tenacity.wait_exponential(multiplier=first_s, max=longest_s),
        stop=tenacity.stop_before_delay(patience_s),
        before_sleep=tell,
        reraise=True,
    )
