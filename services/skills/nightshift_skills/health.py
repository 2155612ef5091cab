"""The look on each tick: what the monitor says, kept where it changed."""

from __future__ import annotations

import structlog

from nightshift_kit.canonical import message_to_dict
from nightshift_kit.errors import NightshiftError
from nightshift_kit.grants import Tier
from nightshift_skills.books import Books
from nightshift_skills.planner import Planner
from nightshift_skills.plans import NothingToDo
from nightshift_skills.ports import ActingPort
from nightshift_skills.progress import Progress
from nightshift_skills.registry import Registry
from nightshift_skills.runs import Run, RunState

_log = structlog.get_logger("nightshift.skills.health")


class HealthCheck:
    """Runs the skill `health_check` beside all other work: it reads, and needs no idleness."""

    def __init__(
        self, registry: Registry, planner: Planner, progress: Progress, books: Books, acting: ActingPort
    ) -> None:
        self._registry = registry
        self._planner = planner
        self._progress = progress
        self._books = books
        self._acting = acting

    async def check(self, *, locked: bool) -> None:
        """One look. A monitor that does not answer is news as well, in the log."""
        skill = self._registry.get("health_check")
        if locked or skill.tier is not Tier.AUTO:
            return
        try:
            plan = await self._planner.plan(skill, {})
            if isinstance(plan, NothingToDo):
                return
            call = plan.calls[0]
            answer = await self._acting.call(call.method, call.request(), "", timeout_s=skill.call_timeout_s)
            now = self._books.clock.now()
            run = Run(
                id=self._books.ids(),
                skill=skill.id,
                subject=plan.subject,
                state=RunState.SUCCEEDED,
                plan=plan,
                parameters={},
                initiator="trigger:tick",
                on_purpose=False,
                create_time=now,
                start_time=now,
                end_time=now,
                done_calls=1,
                outcome=plan.summary,
            )
            await self._progress.recorded_check(run, skill.shown_answer(message_to_dict(answer)))
        except NightshiftError as error:
            _log.warning("health not checked", reason=error.reason, error=error.message)
