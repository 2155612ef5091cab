"""Standing approvals given, used, and taken back: one transaction each, the audit event inside."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta

import sqlalchemy as sa
import structlog

from nightshift_kit.errors import GlobalLock, NightshiftError
from nightshift_kit.grants import Effect, Tier
from nightshift_skills.approvals import is_admin
from nightshift_skills.books import Books
from nightshift_skills.errors import AdminRequired, NotDelegable, NotReady, PolicyChanged
from nightshift_skills.gate import Gate
from nightshift_skills.plans import Plan
from nightshift_skills.readiness import Fact, Readiness
from nightshift_skills.registry import Registry
from nightshift_skills.runs import Run
from nightshift_skills.skill import Skill
from nightshift_skills.standing import Scope, StandingApproval, StandingState
from nightshift_skills.store import decisions
from nightshift_skills.store import standing as store

_log = structlog.get_logger("nightshift.skills.autonomy")

OURS = "service/skills"
LONGEST = timedelta(days=30)


class Autonomy:
    """What persons let the plane do in advance.

    `cancel` ends a run for good, by whom; set it before the first revocation.
    """

    def __init__(
        self, *, books: Books, registry: Registry, gate: Gate, readiness: Readiness, policy_digest: str
    ) -> None:
        self._books = books
        self._registry = registry
        self._gate = gate
        self._readiness = readiness
        self.policy_digest = policy_digest
        self.cancel: Callable[[str, str], Awaitable[object]] | None = None

    async def require_ready(self, name: str) -> Skill:
        """A skill that may be delegated now.

        Raises:
            SkillUnknown; NotDelegable: it always asks; NotReady: facts are missing, metadata names each.
        """
        skill = self._registry.get(name)
        if not skill.delegable or skill.tier is not Tier.CONFIRM:
            raise NotDelegable(
                f"{skill.name} cannot be delegated: it always asks a person.", metadata={"skill": skill.name}
            )
        missing = [fact for fact in await self._readiness.facts(skill.id) if not fact.met]
        if missing:
            raise NotReady(
                "Not ready for autonomy: " + " ".join(fact.detail for fact in missing),
                metadata={fact.fact: fact.detail for fact in missing},
            )
        return skill

    async def facts(self, name: str) -> list[Fact]:
        """Readiness of one skill. Raises SkillUnknown."""
        return await self._readiness.facts(self._registry.get(name).id)

    async def give(
        self,
        effect: Effect,
        skill_name: str,
        scope: Scope,
        *,
        max_uses: int,
        ttl: timedelta,
        policy_digest: str,
        encode: Callable[[StandingApproval], bytes],
    ) -> bytes:
        """The effect of set_autonomy; the answer, encoded.

        Raises:
            AdminRequired, GlobalLock, PolicyChanged, NotDelegable, NotReady, GrantReplayed.
        """
        # A retry after a lost answer gets that answer, whatever has changed since: what it asked for is done.
        stored = await self._books.read(effect.begin)
        if stored is not None:
            return stored
        if not is_admin(effect.actor):
            raise AdminRequired("Only an admin may delegate.")
        if self._gate.locked:
            raise GlobalLock("The global lock is on; nothing is delegated.")
        if policy_digest != self.policy_digest:
            raise PolicyChanged("The policy is not the one that was shown; look at the plan again.")
        skill = await self.require_ready(skill_name)
        now = self._books.clock.now()
        standing = StandingApproval(
            id=self._books.ids(),
            skill=skill.id,
            scope=scope,
            policy_digest=policy_digest,
            approver=effect.actor,
            create_time=now,
            expire_time=now + ttl,
            max_uses=max_uses,
            run=effect.grant.skill_run.removeprefix("skillRuns/"),
        )

        def transaction(connection: sa.Connection) -> bytes:
            stored = effect.begin(connection)
            if stored is not None:
                return stored
            self._give(connection, standing)
            answer = encode(standing)
            effect.finish(connection, answer)
            return answer

        return await self._books.change(transaction)

    async def covering(self, plan: Plan) -> StandingApproval | None:
        """A standing approval in force that covers a plan; None where a person has to be asked."""
        now = self._books.clock.now()
        for standing in await self._books.read(store.active_standing, plan.skill.partition("/")[2], ""):
            if not standing.problem(self.policy_digest, now) and not standing.scope.problem(plan):
                return standing
        return None

    async def armed(self, promotion: str) -> StandingApproval | None:
        """The armed rollback of a promotion that is in force."""
        now = self._books.clock.now()
        found = await self._books.read(store.active_standing, "rollback", promotion)
        return next((one for one in found if not one.problem(self.policy_digest, now)), None)

    async def in_force(self) -> list[StandingApproval]:
        """All that are in force, armed rollbacks among them."""
        now = self._books.clock.now()
        found = await self._books.read(store.active_standing)
        return [one for one in found if not one.problem(self.policy_digest, now)]

    async def back_to_manual(self, by: str, why: str) -> None:
        """Ends all standing approvals but armed rollbacks, and cancels what runs under them."""
        await self._end(by, why, lambda standing: not standing.promotion)

    async def revoke(self, standing_id: str, by: str, why: str) -> StandingApproval:
        """Ends one, and cancels what runs under it. Raises StandingApprovalUnknown."""
        await self._books.read(store.get_standing, standing_id)
        await self._end(by, why, lambda standing: standing.id == standing_id)
        return await self._books.read(store.get_standing, standing_id)

    async def look(self) -> None:
        """Ends what has expired or rests on another policy."""
        now = self._books.clock.now()
        active = await self._books.read(store.active_standing)
        if any(one.problem(self.policy_digest, now) for one in active):
            await self._books.change(self._look)

    def arm(self, connection: sa.Connection, standing: StandingApproval) -> None:
        """Stores an armed rollback in the caller's transaction."""
        self._give(connection, replace(standing, policy_digest=self.policy_digest))

    def use(self, connection: sa.Connection, standing_id: str, plan: Plan) -> StandingApproval:
        """Counts one use in the caller's transaction.

        Raises:
            StandingApprovalEnded, StandingScopeExceeded.
        """
        standing = store.get_standing(connection, standing_id)
        return store.save_standing(
            connection, standing.used(plan, self.policy_digest, self._books.clock.now())
        )

    async def _end(self, by: str, why: str, wanted: Callable[[StandingApproval], bool]) -> None:
        ended = await self._books.change(self._revoke, by, why, wanted)
        for standing in ended:
            for run in await self._books.read(store.runs_under, standing.id):
                if self.cancel is not None:
                    try:
                        await self.cancel(run.id, by)
                    except NightshiftError as error:
                        _log.info(
                            "run under a revoked approval not cancelled", run=run.id, reason=error.reason
                        )

    def _revoke(
        self, connection: sa.Connection, by: str, why: str, wanted: Callable[[StandingApproval], bool]
    ) -> list[StandingApproval]:
        spent = store.list_standing(connection, StandingState.SPENT, "", 1_000)
        active = [standing for standing in store.active_standing(connection) if wanted(standing)]
        for standing in active:
            self._save_end(connection, standing, StandingState.REVOKED, by, why)
        # What the last use of one began is to end, too.
        running = {run.standing for run in _open_under_any(connection)}
        return active + [standing for standing in spent if standing.id in running and wanted(standing)]

    def _look(self, connection: sa.Connection) -> None:
        now = self._books.clock.now()
        for standing in store.active_standing(connection):
            if now >= standing.expire_time:
                self._save_end(connection, standing, StandingState.EXPIRED, OURS, "Its time is over.")
            elif standing.problem(self.policy_digest, now):
                why = "Tiers, limits, settings or code of skills have changed."
                self._save_end(connection, standing, StandingState.VOID, OURS, why)

    def _give(self, connection: sa.Connection, standing: StandingApproval) -> None:
        store.save_standing(connection, standing)
        self._books.event(
            connection,
            "autonomy.armed" if standing.promotion else "autonomy.given",
            standing.approver,
            standing.name,
            skill=f"skills/{standing.skill}",
            scope=standing.scope.model_dump(mode="json"),
            max_uses=standing.max_uses,
            expire_time=standing.expire_time.isoformat(),
            policy_digest=standing.policy_digest,
            promotion=standing.promotion,
            run=f"skillRuns/{standing.run}",
        )

    def _save_end(
        self, connection: sa.Connection, standing: StandingApproval, state: StandingState, by: str, why: str
    ) -> None:
        store.save_standing(connection, standing.ended(state, self._books.clock.now(), by, why))
        # The words of a person stay out of the audit.
        self._books.event(
            connection,
            "autonomy.ended",
            by,
            standing.name,
            state=state.value,
            skill=f"skills/{standing.skill}",
        )


def _open_under_any(connection: sa.Connection) -> list[Run]:
    return [run for run in decisions.open_runs(connection) if run.standing]
