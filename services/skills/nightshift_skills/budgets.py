"""Budgets: how many runs a day, what they may cost, how long they may keep the GPU.

Days are the platform's.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, time, timedelta
from typing import Any
from zoneinfo import ZoneInfo

import sqlalchemy as sa
import structlog
from pydantic import BaseModel, ConfigDict, Field

from nightshift_kit.errors import NightshiftError, SettingsInvalid
from nightshift_skills.books import Books
from nightshift_skills.errors import BudgetExceeded
from nightshift_skills.plans import Plan
from nightshift_skills.registry import Registry
from nightshift_skills.runs import Run
from nightshift_skills.store import scheduling
from nightshift_skills.store.scheduling import Usage

_log = structlog.get_logger("nightshift.skills.budgets")

# Sums of decimal fractions are not exact: a plan that costs just what is left fits.
_ROUNDING = 1e-9


class BudgetSettings(BaseModel):
    """What is left out of a skill's budget comes from the budget of any skill."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    runs_per_day: int | None = Field(default=None, ge=0)
    cost_usd_per_day: float | None = Field(default=None, ge=0, allow_inf_nan=False)
    gpu_hours_per_day: float | None = Field(default=None, ge=0, allow_inf_nan=False)


@dataclass(frozen=True, slots=True)
class Budget:
    """Limits of a day: runs that triggers start, US dollars, hours of the GPU."""

    runs: int
    cost_usd: float
    gpu_hours: float

    @classmethod
    def of(cls, told: BudgetSettings, default: BudgetSettings) -> Budget:
        """The limits told, the others from the default, which tells all of them."""
        merged = {**default.model_dump(), **told.model_dump(exclude_none=True)}
        if None in merged.values():
            raise SettingsInvalid("[skills]: budget and skill_budget need all three limits.")
        return cls(merged["runs_per_day"], merged["cost_usd_per_day"], merged["gpu_hours_per_day"])


@dataclass(frozen=True, slots=True)
class Left:
    """What is left of a budget; `renew_time` is when the day ends."""

    runs: int
    cost_usd: float
    gpu_hours: float
    renew_time: datetime

    def lacks(self, cost_usd: float, gpu_hours: float, *, person: bool) -> str:
        """What a plan would need more of, in words; "" where it fits. Persons are bound by cost alone."""
        if cost_usd > 0 and cost_usd > self.cost_usd + _ROUNDING:
            return f"the plan costs {cost_usd:.2f} $, and {self.cost_usd:.2f} $ are left today"
        if person:
            return ""
        if self.runs <= 0:
            return "its runs of today are used up"
        if gpu_hours > 0 and gpu_hours > self.gpu_hours + _ROUNDING:
            return f"the plan keeps the GPU for {gpu_hours:.2f} h, and {self.gpu_hours:.2f} h are left today"
        return ""


def gpu_hours_of(plan: Plan) -> float:
    """How long a plan expects to keep the GPU."""
    return plan.duration_s / 3600 if plan.vram_bytes else 0.0


class Budgets:
    """What each skill, and all together, may use in a day. Usage is in the store."""

    def __init__(
        self, zone: ZoneInfo, overall: Budget, skills: Mapping[str, Budget], any_skill: Budget
    ) -> None:
        """Args: the time zone of days, the limits of all together, of named skills, of any other skill."""
        self._zone = zone
        self._overall = overall
        self._skills = dict(skills)
        self._any_skill = any_skill

    @classmethod
    def from_settings(
        cls,
        registry: Registry,
        zone: ZoneInfo,
        overall: BudgetSettings,
        any_skill: BudgetSettings,
        skills: Mapping[str, BudgetSettings],
    ) -> Budgets:
        """Takes the settings on. Raises SkillUnknown, SettingsInvalid."""
        named = {registry.get(name).id: Budget.of(told, any_skill) for name, told in skills.items()}
        return cls(zone, Budget.of(overall, overall), named, Budget.of(any_skill, any_skill))

    def described(self, skills: Iterable[str]) -> dict[str, Any]:
        """All limits as they are in force, for the policy's digest: of all together, and of each skill."""
        limits = {"": self._overall, **{skill: self._skills.get(skill, self._any_skill) for skill in skills}}
        return {
            "zone": self._zone.key,
            "limits": {
                skill: {
                    "runs": limit.runs,
                    "cost_usd": float(limit.cost_usd),
                    "gpu_hours": float(limit.gpu_hours),
                }
                for skill, limit in limits.items()
            },
        }

    def day(self, now: datetime) -> str:
        """The day that an instant belongs to ("2026-03-29")."""
        return now.astimezone(self._zone).date().isoformat()

    def renew_time(self, now: datetime) -> datetime:
        """When the day of an instant ends, in UTC; days with a change of the clocks are longer or shorter."""
        following = now.astimezone(self._zone).date() + timedelta(days=1)
        return datetime.combine(following, time(), self._zone).astimezone(UTC)

    def left(self, usage: Mapping[str, Usage], now: datetime, skill: str = "") -> Left:
        """What a skill, or all together (""), have left of the day whose usage is given."""
        budget = self._skills.get(skill, self._any_skill) if skill else self._overall
        used = usage.get(skill, Usage()) if skill else sum(usage.values(), Usage())
        return Left(
            max(0, budget.runs - used.runs),
            max(0.0, budget.cost_usd - used.cost_usd),
            max(0.0, budget.gpu_hours - used.gpu_s / 3600),
            self.renew_time(now),
        )

    def lacks(
        self,
        usage: Mapping[str, Usage],
        now: datetime,
        skill: str,
        *,
        cost_usd: float = 0.0,
        gpu_hours: float = 0.0,
        person: bool = False,
    ) -> str:
        """Why a plan is not started today, in words; "" where it fits both budgets."""
        for whose, name in (("Its own budget", skill), ("The budget of all skills", "")):
            left = self.left(usage, now, name)
            lack = left.lacks(cost_usd, gpu_hours, person=person)
            if lack:
                local = left.renew_time.astimezone(self._zone)
                return f"{whose}: {lack}; it begins anew at {local:%Y-%m-%d %H:%M} ({self._zone.key})."
        return ""

    def check(
        self, connection: sa.Connection, skill: str, plan: Plan, now: datetime, *, person: bool
    ) -> None:
        """Raises BudgetExceeded where a plan would exceed what is left."""
        usage = scheduling.get_usage(connection, self.day(now))
        lack = self.lacks(
            usage, now, skill, cost_usd=plan.cost_usd, gpu_hours=gpu_hours_of(plan), person=person
        )
        if not lack:
            return
        beyond = " Nobody may exceed a cost budget by command; the settings set it." if person else ""
        raise BudgetExceeded(
            f"{lack}{beyond}",
            metadata={"skill": f"skills/{skill}", "cost_usd": f"{plan.cost_usd:.4f}"},
            retry_after_s=max(1.0, (self.renew_time(now) - now).total_seconds()),
        )

    def charge(
        self, connection: sa.Connection, skill: str, plan: Plan, now: datetime, *, person: bool
    ) -> None:
        """Checks, and counts a run with its plan's cost, in the transaction that lets it start.

        Raises:
            BudgetExceeded: nothing is counted.
        """
        self.check(connection, skill, plan, now, person=person)
        scheduling.add_usage(connection, self.day(now), skill, Usage(1, plan.cost_usd, 0.0))

    def count_gpu(self, connection: sa.Connection, skill: str, now: datetime, span_s: float) -> None:
        """Counts time for which a run kept the GPU, up to now; what lies before midnight is yesterday's."""
        midnight = datetime.combine(now.astimezone(self._zone).date(), time(), self._zone).astimezone(UTC)
        today_s = min(span_s, max(0.0, (now - midnight).total_seconds()))
        scheduling.add_usage(connection, self.day(now), skill, Usage(gpu_s=today_s))
        if span_s > today_s:
            before = self.day(midnight - timedelta(seconds=1))
            scheduling.add_usage(connection, before, skill, Usage(gpu_s=span_s - today_s))


class GpuMeter:
    """Counts the time for which runs keep the GPU."""

    def __init__(self, books: Books, budgets: Budgets) -> None:
        self._books = books
        self._budgets = budgets
        self._writing: set[asyncio.Task[None]] = set()

    def worked(self, run: Run, span_s: float) -> None:
        """A run worked for so long, in seconds; on the main loop. Plans without GPU memory do not count."""
        if not run.plan.vram_bytes:
            return
        task = asyncio.ensure_future(self._count(run, span_s))
        self._writing.add(task)
        task.add_done_callback(self._writing.discard)

    async def settled(self) -> None:
        """Waits until everything is counted."""
        if self._writing:
            await asyncio.wait(set(self._writing))

    async def _count(self, run: Run, span_s: float) -> None:
        try:
            await self._books.change(self._budgets.count_gpu, run.skill, self._books.clock.now(), span_s)
        except NightshiftError as error:
            _log.error("GPU time not counted", run=run.id, span_s=round(span_s), reason=error.reason)
