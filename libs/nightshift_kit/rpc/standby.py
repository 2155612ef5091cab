"""What a replica serves while another one leads: an answer for everybody, that names where to go.

Health says NOT_SERVING for the server and each of its services, so that load balancers look elsewhere, and
SERVING for the name `standby`, so that whoever watches over the process sees that it is well. Callers are
identified as ever; then every method is refused with the same typed error.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any, Final

from nightshift_kit.errors import NightshiftError
from nightshift_kit.rpc.policies import rules_of

# Name under which health says that a process stands by and is well.
STANDBY: Final = "standby"


class Withdrawn(Exception):
    """The service is to stop while it still stands by."""


class Refusing:
    """Takes the place of a servicer.

    Args:
        full_name: Of the service ("nightshift.skills.v1.SkillsService").
        refusal: Makes the error that each call gets.
    """

    def __init__(self, full_name: str, refusal: Callable[[], NightshiftError]) -> None:
        self._rules = rules_of(full_name)
        self._refusal = refusal

    def __getattr__(self, method: str) -> Callable[..., Any]:
        rule = self._rules.get(method)
        if rule is None:
            raise AttributeError(method)
        return self._stream if rule.server_streaming else self._single

    async def _single(self, _request: Any, _context: Any) -> Any:
        raise self._refusal()

    async def _stream(self, _request: Any, _context: Any) -> AsyncIterator[Any]:
        for answer in [await self._single(_request, _context)]:
            yield answer
