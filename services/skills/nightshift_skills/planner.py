"""Making plans: parameters checked, the skill's own `plan` asked, what it says checked in turn."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from datetime import datetime
from typing import Any

from pydantic import ValidationError

from nightshift_kit.errors import FieldViolation
from nightshift_kit.grants import Tier
from nightshift_skills.books import Books
from nightshift_skills.errors import ParametersInvalid, PlanOutOfBounds
from nightshift_skills.plans import NothingToDo, Plan
from nightshift_skills.ports import ExperiencePort, LabPort, TrainerPort
from nightshift_skills.registry import Registry
from nightshift_skills.skill import Limits, Parameters, PlanContext, Skill
from nightshift_skills.store import decisions


class Planner:
    """Asks skills for plans. Read-only."""

    def __init__(
        self,
        *,
        registry: Registry,
        books: Books,
        experience: ExperiencePort,
        lab: LabPort,
        trainer: TrainerPort,
        limits: Limits,
        delegation: Callable[[str], Awaitable[str]] | None = None,
    ) -> None:
        """Args: `delegation` gives the policy's digest for a skill that may be delegated now."""
        self._delegation = delegation
        self._registry = registry
        self._books = books
        self._experience = experience
        self._lab = lab
        self._trainer = trainer
        self._limits = limits

    async def plan(
        self,
        skill: Skill,
        parameters: Mapping[str, Any],
        *,
        about: str = "",
        unwanted: Callable[[], bool] = lambda: False,
    ) -> Plan | NothingToDo:
        """What the skill would do now.

        Args:
            skill: Which.
            parameters: Of RunSkill.
            about: Subject of an approved plan that is made again, "" for a new one: what became better
                meanwhile, and rests that came since, concern new plans only.
            unwanted: Whether nobody needs the plan any more; from any thread.

        Raises:
            ParametersInvalid: they do not fit the schema.
            SkillModified: the code is not what it was at the start.
            PlanOutOfBounds: the plan names methods that its declaration does not, or keeps the GPU or costs
                money without asking a person.
            Upstream: a service that the plan has to ask refused or is away.
        """
        self._registry.check_unmodified(skill.id)
        checked = check_parameters(skill, parameters)

        async def resting(subject: str) -> datetime | None:
            if about:
                return None
            rest = await self.rest(skill, subject)
            return None if rest is None else rest.until

        context = PlanContext(
            experience=self._experience,
            lab=self._lab,
            trainer=self._trainer,
            limits=self._limits,
            now=self._books.clock.now(),
            resting=resting,
            about=about,
            unwanted=unwanted,
            delegation=self._delegation,
        )
        plan = await skill.plan(context, checked)
        if isinstance(plan, Plan):
            _check_bounds(skill, plan)
        return plan

    async def rest(self, skill: Skill, subject: str) -> decisions.Rest | None:
        """The rest in force of a skill on a subject."""
        return await self._books.read(decisions.get_rest, skill.id, subject, self._books.clock.now())


def _check_bounds(skill: Skill, plan: Plan) -> None:
    strangers = sorted({call.method for call in plan.calls} - set(skill.methods))
    if strangers or plan.skill != skill.name:
        raise PlanOutOfBounds(
            f"{skill.name} planned {', '.join(strangers) or plan.skill}: a bug in it, or worse."
        )
    # Whatever its tier says: what keeps the GPU or costs money asks a person.
    if skill.tier is Tier.AUTO and (plan.vram_bytes or plan.cost_usd):
        raise PlanOutOfBounds(f"{skill.name} is AUTO, and planned to keep the GPU or to spend money unasked.")


def check_parameters(skill: Skill, parameters: Mapping[str, Any]) -> Parameters:
    """The parameters, typed. Raises ParametersInvalid naming each field."""
    try:
        return skill.parameters.model_validate(dict(parameters))
    except ValidationError as error:
        violations = [
            FieldViolation(".".join(("parameters", *map(str, problem["loc"]))), problem["msg"])
            for problem in error.errors(include_url=False, include_input=False, include_context=False)
        ]
        words = "; ".join(f"{violation.field}: {violation.description}" for violation in violations)
        raise ParametersInvalid(
            f"The parameters do not fit {skill.name}: {words}.", violations=violations
        ) from error
