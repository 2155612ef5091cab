"""Minting: one grant a call, bound to run, method, arguments and fence."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from nightshift_kit.grants import GrantMinter, Tier
from nightshift_skills.gate import LiveRun
from nightshift_skills.runs import Run
from nightshift_skills.skill import Skill
from nightshift_skills.store.decisions import CallRecord

# A renewable grant is renewed when it has less than this left of its 60 s.
_RENEW_BEFORE_S = 20.0


def audience_of(method: str) -> str:
    """Service that a full method belongs to ("/nightshift.lab.v1.LabService/X" → "lab")."""
    return method.split(".")[1]


@dataclass(slots=True)
class _Renewable:
    token: str
    until_s: float


class Granting:
    """Mints for one certificate."""

    def __init__(
        self,
        minter: GrantMinter,
        thumbprint: str,
        digest_of: Callable[[str], str],
        monotonic_s: Callable[[], float],
        check: Callable[[], None] = lambda: None,
    ) -> None:
        """Makes what mints.

        Args: the minter, the thumbprint of our certificate, digests of skills, a monotonic clock, and what is
        asked before each grant is given out: it raises where none may be.
        """
        self._check = check
        self._minter = minter
        self._thumbprint = thumbprint
        self._digest_of = digest_of
        self._monotonic_s = monotonic_s
        self._renewable: dict[str, _Renewable] = {}

    def single(self, skill: Skill, run: Run, live: LiveRun, call: CallRecord) -> str:
        """A grant for one call; given the same call again, one with the same jti and a fresh expiry.

        Raises:
            Standby: this replica does not lead.
        """
        self._check()
        return self._minter.mint(
            skill=skill.name,
            skill_digest=self._digest_of(skill.id),
            skill_run=f"skillRuns/{run.id}",
            tier=skill.tier,
            methods=[call.method.lstrip("/")],
            fence=live.fence,
            audience=audience_of(call.method),
            thumbprint=self._thumbprint,
            initiator=run.initiator,
            approval=f"standingApprovals/{run.standing}" if run.standing else f"approvals/{run.approval}",
            arguments_digest=call.arguments_digest,
            on_purpose=run.on_purpose,
            jti=call.jti,
        )

    def renewable(self, skill: Skill, run: Run, live: LiveRun, method: str) -> str:
        """A grant for as many calls of one method as fit its lifetime (AUTO). Raises Standby."""
        self._check()
        key = f"{run.id}:{live.fence}:{method}"
        known = self._renewable.get(key)
        if known is not None and self._monotonic_s() < known.until_s:
            return known.token
        token = self._minter.mint(
            skill=skill.name,
            skill_digest=self._digest_of(skill.id),
            skill_run=f"skillRuns/{run.id}",
            tier=Tier.AUTO,
            methods=[method.lstrip("/")],
            fence=live.fence,
            audience=audience_of(method),
            thumbprint=self._thumbprint,
            initiator=run.initiator,
        )
        until_s = self._monotonic_s() + Tier.AUTO.lifetime_s - _RENEW_BEFORE_S
        self._renewable[key] = _Renewable(token, until_s)
        return token

    def forget(self, run: Run) -> None:
        """Drops the renewable grants of a run that stopped working."""
        for key in [key for key in self._renewable if key.startswith(f"{run.id}:")]:
            del self._renewable[key]
