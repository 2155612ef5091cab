"""Carrying plans out: a grant for each call, the call, its answer kept; stopped, resumed and ended cleanly.

Exactly once over crashes: a single-use call is stored with its jti and arguments before it is made. Whatever
happens then (a lost reply, a kill of either side, a pre-emption), the same jti is tried again under a fresh
expiry
and the fence in force; the service either stored its answer in the effect's transaction and gives it back,
or had no effect yet and does it now.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import structlog
from google.protobuf.message import Message

from nightshift.trainer.v1 import trainer_service_pb2 as trainer_pb
from nightshift_kit.canonical import message_to_dict
from nightshift_kit.errors import NightshiftError
from nightshift_kit.grants import Tier
from nightshift_kit.otlp import SpanSink, working
from nightshift_skills.books import Books
from nightshift_skills.catalogue.train_adapter import RESUME
from nightshift_skills.errors import PlanChanged, Standby, Upstream
from nightshift_skills.gate import Gate, LiveRun
from nightshift_skills.granting import Granting
from nightshift_skills.jobs import JobPhase, look
from nightshift_skills.patience import patiently
from nightshift_skills.planner import Planner
from nightshift_skills.plans import NothingToDo, PlannedCall
from nightshift_skills.ports import ActingPort, TrainerPort
from nightshift_skills.progress import Progress
from nightshift_skills.registry import Registry
from nightshift_skills.runs import Failure, Run, RunState
from nightshift_skills.skill import Skill
from nightshift_skills.store.decisions import CallRecord

_log = structlog.get_logger("nightshift.skills.executor")

_JOB_POLL_S = 1.0
_FIRST_REST_S = 1.0
_LONGEST_REST_S = 30.0
# A call loop of an AUTO plan that does not come to an end in so many rounds makes no progress.
_MOST_ROUNDS = 100_000


@dataclass(frozen=True, slots=True)
class _Rest:
    """How long a run that could not go on is left alone."""

    span_s: float
    until_s: float


class _Over(Exception):  # noqa: N818 - no error: most runs end well
    """The run has come to an end, or has to wait, for the given reason."""

    def __init__(
        self, state: RunState, outcome: str, *, failure: Failure | None = None, held: bool = False
    ) -> None:
        super().__init__(outcome)
        self.state = state
        self.outcome = outcome
        self.failure = failure
        self.held = held


class Executor:
    """Runs at work in this process."""

    def __init__(
        self,
        *,
        registry: Registry,
        planner: Planner,
        progress: Progress,
        books: Books,
        gate: Gate,
        granting: Granting,
        acting: ActingPort,
        trainer: TrainerPort,
        call_retry_s: float,
        on_idle: Callable[[], None],
        on_worked: Callable[[Run, float], None] = lambda _run, _span_s: None,
        spans: SpanSink | None = None,
    ) -> None:
        """Args: `on_idle` hears that a run stopped working, `on_worked` for how long, in seconds, it did.

        `spans` gets one for each stretch of work of a run.
        """
        self._registry = registry
        self._planner = planner
        self._progress = progress
        self._books = books
        self._gate = gate
        self._granting = granting
        self._acting = acting
        self._trainer = trainer
        self._call_retry_s = call_retry_s
        self._on_idle = on_idle
        self._on_worked = on_worked
        self._spans = spans
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._rests: dict[str, _Rest] = {}

    def start(self, run: Run, *, fresh: bool = False) -> None:
        """Lets a run go to work; returns at once.

        Args:
            run: QUEUED, PREEMPTED, INTERRUPTED, or RUNNING and just made.
            fresh: Its plan was made this very moment, so that it need not be made again.

        Raises:
            GlobalLock, UserActive: nothing of its kind may start now.
            SkillModified: the skill's code is not what it was at the start.
        """
        if run.id in self._tasks:
            return
        skill = self._registry.get(run.skill)
        self._registry.check_unmodified(skill.id)
        loop = asyncio.get_running_loop()

        def cancel() -> None:
            # A pre-emption calls this from the control thread.
            loop.call_soon_threadsafe(self._cancel, run.id)

        live = LiveRun(id=run.id, background=skill.background, cancel=cancel)
        self._gate.enter(live)
        task = loop.create_task(self._traced(skill, run, live, fresh))
        self._tasks[run.id] = task
        task.add_done_callback(lambda _: self._tasks.pop(run.id, None))

    def working(self, run_id: str) -> bool:
        """Whether a run is at work here."""
        return run_id in self._tasks

    def resting(self, run_id: str) -> bool:
        """Whether a run that could not go on is not to be tried again yet."""
        rest = self._rests.get(run_id)
        return rest is not None and asyncio.get_running_loop().time() < rest.until_s

    async def wait(self, run_id: str, timeout_s: float) -> None:
        """Waits until a run stops working, at most so long."""
        task = self._tasks.get(run_id)
        if task is not None:
            await asyncio.wait([task], timeout=timeout_s)

    async def close(self, grace_s: float = 2.0) -> None:
        """Stops all runs because the plane goes down."""
        for live in self._gate.live():
            live.stop("shutdown")
        if self._tasks:
            await asyncio.wait(list(self._tasks.values()), timeout=grace_s)

    def _cancel(self, run_id: str) -> None:
        task = self._tasks.get(run_id)
        if task is not None:
            task.cancel()

    async def _traced(self, skill: Skill, run: Run, live: LiveRun, fresh: bool) -> None:
        named = (("nightshift.skill", skill.name), ("nightshift.skill_run", f"skillRuns/{run.id}"))
        with working(self._spans, "skill run", named):
            await self._work(skill, run, live, fresh)

    async def _work(self, skill: Skill, run: Run, live: LiveRun, fresh: bool) -> None:
        began_s = asyncio.get_running_loop().time()
        try:
            try:
                await self._carry_out(skill, run, live, fresh)
            except asyncio.CancelledError:
                if not live.cause:
                    raise
                await self._progress.stopped(run.id, live.cause)
            except _Over as over:
                await self._settle(skill, run, live, over)
            except Upstream as error:
                await self._settle(skill, run, live, self._over(run, live, error))
            except Standby as error:
                # Not for good where the store was away for a moment; else nothing is written here any more,
                # and the leader goes on with the run.
                await self._settle(skill, run, live, _Over(RunState.INTERRUPTED, error.message))
            except NightshiftError as error:
                await self._settle(skill, run, live, _failed(error))
        except NightshiftError as error:
            # The store refuses. The run stays RUNNING there; the scheduler takes it up again once it answers.
            _log.error("run not written down", run=run.id, reason=error.reason)
        except Exception:  # noqa: BLE001 - a bug in one run must not leave it at work for ever
            _log.exception("run broke", run=run.id)
            with suppress(NightshiftError):
                await self._progress.ended(
                    run.id,
                    RunState.FAILED,
                    "An error of ours; the log says more.",
                    failure=Failure("INTERNAL", "An error of ours; the log says more."),
                )
        finally:
            self._gate.leave(live)
            self._granting.forget(run)
            self._on_worked(run, asyncio.get_running_loop().time() - began_s)
            self._on_idle()

    async def _settle(self, skill: Skill, run: Run, live: LiveRun, over: _Over) -> None:
        if over.state in (RunState.PREEMPTED, RunState.INTERRUPTED):
            if not live.cause:
                # Nobody stopped it, so nothing tells when it can go on: try again at growing intervals.
                self._rest(run.id)
            await self._progress.waiting(run.id, over.state, over.outcome, held=over.held)
            return
        self._rests.pop(run.id, None)
        await self._progress.ended(
            run.id, over.state, over.outcome, failure=over.failure, rest_s=skill.cooldown_s
        )

    def _rest(self, run_id: str) -> None:
        known = self._rests.get(run_id)
        span_s = min(known.span_s * 2, _LONGEST_REST_S) if known else _FIRST_REST_S
        self._rests[run_id] = _Rest(span_s, asyncio.get_running_loop().time() + span_s)

    def _over(self, run: Run, live: LiveRun, error: Upstream) -> _Over:
        """What an error of another service means for a run."""
        if live.cause or error.reason == "PREEMPTED":
            return _Over(RunState.PREEMPTED, "Stopped for a user; goes on after quiet.")
        if error.outcome_unknown and run.approved:
            # An approved effect is never given up for a service that is away.
            return _Over(
                RunState.INTERRUPTED,
                f"{error.message} Tried again when the service answers ({error.reason}).",
            )
        return _failed(error)

    async def _carry_out(self, skill: Skill, run: Run, live: LiveRun, fresh: bool) -> None:
        if skill.tier is Tier.AUTO:
            await self._carry_out_unasked(skill, run, live, fresh)
            return
        calls = await self._progress.calls(run.id)
        if not calls and not fresh:
            plan = await self._planner.plan(skill, run.parameters, about=run.subject)
            if isinstance(plan, NothingToDo):
                raise _Over(RunState.NOTHING_TO_DO, plan.reason)
            if plan.digest != run.plan.digest:
                raise PlanChanged("The plan is not the approved one any more; it was made anew and not run.")
        run = await self._progress.begin(run.id)
        answers = []
        for position, call in enumerate(run.plan.calls):
            known = next((c for c in calls if c.position == position), None)
            if known is not None and known.answer is not None:
                answers.append(known.answer)
                continue
            record = known or CallRecord(
                run=run.id,
                position=position,
                jti=self._books.ids(),
                method=call.method,
                arguments=call.arguments,
                arguments_digest=call.arguments_digest,
            )
            job = skill.follows_job and position == 0
            answers.append(await self._call_once(skill, run, live, record, new=known is None, job=job))
        if skill.follows_job:
            await self._follow(skill, run, live, answers[0]["name"])
        raise _Over(RunState.SUCCEEDED, run.plan.summary)

    async def _carry_out_unasked(self, skill: Skill, run: Run, live: LiveRun, fresh: bool) -> None:
        if not fresh:
            plan = await self._planner.plan(skill, run.parameters, about=run.subject)
            if isinstance(plan, NothingToDo):
                raise _Over(RunState.SUCCEEDED if run.done_calls else RunState.NOTHING_TO_DO, plan.reason)
            run = await self._progress.begin(run.id, plan)
        for position, call in enumerate(run.plan.calls):
            field = run.plan.repeat_until_zero(position)
            for _ in range(_MOST_ROUNDS):
                answer = await self._call_again(skill, run, live, call)
                shown = skill.shown_answer(message_to_dict(answer))
                run = await self._progress.noted(run.id, shown)
                if not field or getattr(answer, field) == 0:
                    break
            else:
                raise _Over(
                    RunState.FAILED,
                    "The work does not come to an end.",
                    failure=Failure("NO_PROGRESS", f"{call.method} never reported {field} = 0."),
                )
        raise _Over(RunState.SUCCEEDED, run.plan.summary)

    async def _call_again(self, skill: Skill, run: Run, live: LiveRun, call: PlannedCall) -> Message:
        def grant() -> str:
            return self._granting.renewable(skill, run, live, call.method)

        return await self._persist(call.method, call.request(), grant, skill.call_timeout_s, live)

    async def _call_once(
        self, skill: Skill, run: Run, live: LiveRun, record: CallRecord, *, new: bool, job: bool
    ) -> dict[str, Any]:
        if new:
            await self._progress.begin_call(run, record, live.fence)
        request = PlannedCall(
            method=record.method,
            arguments=dict(record.arguments),
            arguments_digest=record.arguments_digest,
        ).request()

        def grant() -> str:
            return self._granting.single(skill, run, live, record)

        try:
            answer = await self._persist(record.method, request, grant, skill.call_timeout_s, live)
        except Upstream as error:
            if not error.outcome_unknown:
                await self._progress.refused(record, error.reason)
            raise
        shown = skill.shown_answer(message_to_dict(answer))
        await self._progress.answered(run.id, record, shown, job=shown.get("name", "") if job else "")
        return shown

    async def _persist(
        self, method: str, request: Message, grant: Callable[[], str], timeout_s: float, live: LiveRun
    ) -> Message:
        """Calls until an answer comes that counts, at most `call_retry_s` beyond the first try."""

        async def once() -> Message:
            return await self._acting.call(method, request, grant(), timeout_s=timeout_s)

        def stale(error: Upstream) -> bool:
            return error.reason == "PREEMPTED" and self._outdated(live)

        return await patiently(method, self._call_retry_s, unless=stale)(once)

    def _outdated(self, live: LiveRun) -> bool:
        """Whether a run that was refused for its fence has to begin anew, under the one in force."""
        if live.background:
            return not self._gate.is_open
        # A service that started anew lets in nothing that was granted below the fence told to it first.
        fence, _ = self._gate.leases()
        return live.fence < fence

    async def _follow(self, skill: Skill, run: Run, live: LiveRun, job_name: str) -> None:
        """Stays with a training job until it ends; resumes it once if it was paused while nobody followed."""
        resumed = False
        while True:
            job = await look(self._trainer, job_name, patience_s=self._call_retry_s)
            if job.skill_run:
                live.lease_names.add(job.skill_run)
            match job.phase:
                case JobPhase.SUCCEEDED:
                    raise _Over(RunState.SUCCEEDED, job.outcome)
                case JobPhase.FAILED:
                    raise _Over(RunState.FAILED, job.outcome, failure=job.failure)
                case JobPhase.CANCELLED:
                    raise _Over(RunState.CANCELLED, job.outcome)
                case JobPhase.HELD:
                    raise _Over(RunState.PREEMPTED, job.outcome, held=True)
                case JobPhase.PAUSED if resumed:
                    raise _Over(RunState.PREEMPTED, job.outcome)
                case JobPhase.PAUSED:
                    await self._resume(skill, run, live, job_name)
                    resumed = True
                case JobPhase.WORKING:
                    resumed = True
                    await asyncio.sleep(_JOB_POLL_S)

    async def _resume(self, skill: Skill, run: Run, live: LiveRun, job_name: str) -> None:
        calls = await self._progress.calls(run.id)
        open_call = next((c for c in calls if c.method == RESUME and not c.settled), None)
        planned = PlannedCall.of(RESUME, trainer_pb.ResumeTrainingJobRequest(name=job_name))
        record = open_call or CallRecord(
            run=run.id,
            position=max((c.position for c in calls), default=-1) + 1,
            jti=self._books.ids(),
            method=RESUME,
            arguments=planned.arguments,
            arguments_digest=planned.arguments_digest,
        )
        try:
            await self._call_once(skill, run, live, record, new=open_call is None, job=False)
        except Upstream as error:
            if error.reason == "GPU_BUSY":
                raise _Over(RunState.PREEMPTED, "Another training is at work; goes on after it.") from error
            # JOB_STATE: it went on or ended meanwhile; the next look tells.
            if error.reason != "JOB_STATE":
                raise


def _failed(error: NightshiftError) -> _Over:
    return _Over(
        RunState.FAILED,
        error.message,
        failure=Failure(error.reason, error.message, {k: str(v) for k, v in error.metadata.items()}),
    )
