"""Plug-ins as skills: enabled by name, pinned by digest, planned in their sandbox, audited, stopped."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, Final

import structlog

from nightshift_kit.errors import GlobalLock, NightshiftError
from nightshift_kit.grants import Tier
from nightshift_kit.settings import PlaneSettings
from nightshift_skills.books import Books
from nightshift_skills.config import PluginSettings, SkillsSettings
from nightshift_skills.errors import (
    PluginKilled,
    PluginRefused,
    PluginStopped,
    PluginViolation,
    SkillModified,
)
from nightshift_skills.gate import Gate
from nightshift_skills.plans import NothingToDo, Plan, Reversibility, versions
from nightshift_skills.plugins.broker import Broker, Errand, Permits, calls_of
from nightshift_skills.plugins.discovery import Found, Signature, discover
from nightshift_skills.plugins.frames import NothingFrame
from nightshift_skills.plugins.interpreter import interpreter
from nightshift_skills.plugins.layers import Cgroups, Layers, judged, own_cgroup
from nightshift_skills.plugins.manifest import Manifest
from nightshift_skills.plugins.sandbox import Bounds, Cell, Sandbox, child_files
from nightshift_skills.plugins.syscalls import system_calls
from nightshift_skills.ports import ActingPort
from nightshift_skills.skill import Condition, Facts, Parameters, PlanContext, Skill

_log = structlog.get_logger("nightshift.skills.plugins")

_MOST_AT_ONCE: Final = 2


@dataclass(frozen=True, slots=True)
class Listed:
    """What is known of one plug-in; `state` is ENABLED, DISABLED, MODIFIED, REFUSED or NOT_INSTALLED."""

    name: str
    skill: str
    state: str
    detail: str
    distribution: str = ""
    version: str = ""
    digest: str = ""
    pinned: str = ""
    manifest: Manifest | None = None


class _Code:
    """What the registry asks of a plug-in's code."""

    def __init__(self, plugins: Plugins, found: Found, digest: str, problem: NightshiftError | None) -> None:
        self.digest = digest
        self._plugins = plugins
        self._found = found
        self._problem = problem
        # What the files looked like when their digest was last found right.
        self._seen: Signature | None = None

    def check(self) -> None:
        """Raises SkillModified or PluginRefused where it must not run now.

        Asked on each look of the scheduler: files that did not change in any way that a file system tells are
        not read again. What runs is read and compared anew each time (`_plan`).
        """
        if self._problem is not None:
            raise self._problem
        try:
            signature = self._found.signature()
            if signature != self._seen:
                self._found.pinned(self.digest)
                self._seen = signature
        except PluginRefused as error:
            raise SkillModified(
                f"The distribution of {self._found.name} is not any more what was pinned: {error.message}",
                metadata={"skill": f"skills/{self._found.id}"},
            ) from error
        self._plugins.layers().check()


class Plugins:
    """All plug-ins of this plane."""

    def __init__(
        self,
        enabled: Mapping[str, PluginSettings],
        *,
        waived: tuple[str, ...],
        bounds: Bounds,
        base: Path,
        cgroups: Cgroups,
        guarded: tuple[str, ...] = (),
    ) -> None:
        """Looks at what is installed; tries the layers where the settings enable anything.

        Args:
            enabled: By name of the entry point.
            waived: Layers that the operator goes without.
            bounds: Of one planning.
            base: A folder of ours for mounting their root on.
            cgroups: Where each gets a group of its own.
            guarded: Folders of ours and of the platform that none has to name.
        """
        self._enabled = enabled
        self._waived = waived
        self._bounds = bounds
        self._sandbox = Sandbox(
            base=base,
            interpreter=interpreter(),
            layers=lambda: self.layers().in_force,
            cgroups=cgroups,
            calls=system_calls(),
            guarded=guarded,
        )
        self._found = {found.name: found for found in discover()}
        self._layers: Layers | None = None
        self._layers_lock = threading.Lock()
        self._cells: set[Cell] = set()
        self._cells_lock = threading.Lock()
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)
        self._planned: dict[str, datetime] = {}
        self._caught: dict[str, str] = {}
        self._books: Books | None = None
        self._broker: Broker | None = None
        self._gate: Gate | None = None
        self._ended = False
        self._skills = [self._skill(found) for name, found in self._found.items() if name in enabled]

    @property
    def skills(self) -> list[Skill]:
        """A skill for each plug-in that is installed and enabled; one that must not run says why."""
        return self._skills

    def attach(self, books: Books, acting: ActingPort, gate: Gate) -> None:
        """Gives the store, the way to the other services, and what keeps plug-ins from running at all."""
        self._books = books
        self._broker = Broker(self._sandbox, acting)
        self._gate = gate

    def layers(self) -> Layers:
        """The layers as tried once. Blocks for about 0.1 s the first time."""
        with self._layers_lock:
            if self._layers is None:
                self._layers = judged(self._sandbox.probe(), self._waived)
            return self._layers

    def stop_all(self) -> None:
        """Kills every child at once, whoever asked for its plan. From any thread, without I/O but signals."""
        with self._cells_lock:
            cells = list(self._cells)
        for cell in cells:
            cell.kill("stop")

    def end(self) -> None:
        """As `stop_all`, and none is started any more."""
        self._ended = True
        self.stop_all()

    async def announce(self) -> None:
        """Writes down which plug-ins this start enables, and which it refuses."""
        for skill in self._skills:
            try:
                self._check(skill)
            except NightshiftError as error:
                _log.warning("plug-in refused", skill=skill.name, reason=error.reason, error=error.message)
                await self._audit("plugin.refused", skill.name, reason=error.reason, **error.metadata)
            else:
                digest = skill.code.digest if skill.code else ""
                await self._audit("plugin.enabled", skill.name, digest=digest, methods=list(skill.methods))

    def listed(self) -> list[Listed]:
        """Every plug-in that is installed or named in the settings. Reads files."""
        listed = [self._look(found) for found in discover()]
        names = {entry.name for entry in listed}
        listed += [
            Listed(
                name,
                f"skills/plugin_{name}",
                "NOT_INSTALLED",
                "The settings enable it, but no distribution brings it.",
                pinned=settings.digest,
            )
            for name, settings in self._enabled.items()
            if name not in names
        ]
        return sorted(listed, key=lambda entry: entry.name)

    # One plug-in.

    def _look(self, found: Found) -> Listed:
        settings = self._enabled.get(found.name)
        pinned = settings.digest if settings else ""
        digest = ""
        manifest = None
        try:
            package = found.package()
            digest = package.digest
            manifest = found.manifest(package)
            if settings is None:
                state = "DISABLED"
                detail = (
                    f'To enable it: [skills.plugins.{found.name}] digest = "{digest}", then restart skills.'
                )
            elif digest != pinned:
                state, detail = "MODIFIED", "Its digest is not the pinned one."
            elif found.name not in self._found:
                state, detail = "DISABLED", "Installed since the start; restart skills."
            else:
                _permits(manifest, settings)
                self.layers().check()
                state, detail = "ENABLED", self._caught.get(found.name, "")
        except PluginRefused as error:
            state, detail = "REFUSED", error.message
        return Listed(
            found.name,
            f"skills/{found.id}",
            state,
            detail,
            found.distribution,
            found.version,
            digest,
            pinned,
            manifest,
        )

    def _skill(self, found: Found) -> Skill:
        settings = self._enabled[found.name]
        try:
            manifest = found.manifest(found.pinned(settings.digest))
            permits = _permits(manifest, settings)
        except NightshiftError as error:
            return self._refused(found, settings, error)

        async def plan(context: PlanContext, parameters: Parameters) -> Plan | NothingToDo:
            return await self._plan(found, settings, permits, context, parameters)

        def due(facts: Facts) -> list[Condition]:
            return self._due(found, manifest, facts)

        return Skill(
            id=found.id,
            tier=Tier[manifest.tier],
            description=f"Plug-in of {found.distribution} {found.version}: {manifest.description}",
            triggers=manifest.triggers,
            cooldown_s=manifest.cooldown_s,
            methods=tuple(method for method in manifest.methods if method in permits.methods),
            plan=plan,
            parameters=manifest.parameters_class(),
            due=due,
            code=_Code(self, found, settings.digest, None),
        )

    def _refused(self, found: Found, settings: PluginSettings, problem: NightshiftError) -> Skill:
        """A place holder: nothing of what such a distribution declares is taken over."""

        async def plan(context: PlanContext, parameters: Parameters) -> Plan | NothingToDo:
            raise problem

        return Skill(
            id=found.id,
            tier=Tier.CONFIRM,
            description=f"Plug-in {found.name}, which is not run: {problem.message}",
            triggers=("command",),
            cooldown_s=0,
            methods=(),
            plan=plan,
            code=_Code(self, found, settings.digest, problem),
        )

    def _due(self, found: Found, manifest: Manifest, facts: Facts) -> list[Condition]:
        caught = self._caught.get(found.name)
        last = self._planned.get(found.name)
        again = last is None or facts.now - last >= timedelta(seconds=manifest.plan_interval_s)
        return [
            Condition(caught is None, caught or "It has done nothing that it must not."),
            Condition(again, f"Asked at most each {manifest.plan_interval_s:g} s."),
        ]

    async def _plan(
        self,
        found: Found,
        settings: PluginSettings,
        permits: Permits,
        context: PlanContext,
        parameters: Parameters,
    ) -> Plan | NothingToDo:
        assert self._gate is not None, "attach() comes before the first plan"
        if self._gate.locked:
            raise GlobalLock("No plug-in runs while the global lock is on, not even to plan.")
        self._planned[found.name] = context.now
        skill = f"skills/{found.id}"
        # Read once more: these very bytes are compared with the pin and then run.
        package = await asyncio.to_thread(found.pinned, settings.digest)
        errand = Errand(
            module=found.module,
            attribute=found.attribute,
            files={**child_files(), **{f"/plugin/{path}": data for path, data in package.files.items()}},
            context={
                "parameters": parameters.model_dump(mode="json"),
                "now": context.now.isoformat(),
                "project": context.limits.project,
                "about": context.about,
            },
            permits=permits,
            bounds=self._bounds,
        )
        try:
            async with self._room:
                answer = await self._ask(errand, context.unwanted)
            if isinstance(answer, NothingFrame):
                return NothingToDo(reason=f"The plug-in says: {answer.reason}")
            calls = calls_of(answer, permits)
        except NightshiftError as error:
            await self._wrong(found, skill, error)
            raise
        methods = ", ".join(dict.fromkeys(call.method.rpartition("/")[2] for call in calls))
        return Plan(
            skill=skill,
            subject=answer.subject,
            # Facts first, in our words: whoever wrote the plug-in must not choose what is read first.
            summary=f"Make {len(calls)} calls ({methods}) planned by the plug-in {found.name} "
            f"{found.version}, which says: {answer.summary}",
            calls=calls,
            base_versions=versions({**answer.base_versions, f"plugin {found.name}": package.digest}),
            cost_usd=answer.cost_usd,
            vram_bytes=answer.vram_bytes,
            duration_s=answer.duration_s,
            # What a plug-in would say of that counts for nothing.
            reversibility=Reversibility.IRREVERSIBLE,
            evidence=tuple(answer.evidence),
            reasoning=answer.reasoning,
        )

    async def _ask(self, errand: Errand, unwanted: Callable[[], bool]) -> Any:
        broker, gate = self._broker, self._gate
        assert broker is not None
        assert gate is not None
        cells: list[Cell] = []

        def started(cell: Cell) -> None:
            cells.append(cell)
            with self._cells_lock:
                self._cells.add(cell)
            # A stop shuts the gate first and then kills what is listed: whichever of the two came in
            # between, this child is either listed or sees the gate.
            if self._ended or gate.locked or unwanted():
                cell.kill("stop")

        try:
            return await broker.plan(errand, started)
        finally:
            with self._cells_lock:
                self._cells.difference_update(cells)

    async def _wrong(self, found: Found, skill: str, error: NightshiftError) -> None:
        kind = "plugin.failed"
        if isinstance(error, PluginViolation):
            kind = "plugin.violation"
            self._caught[found.name] = f"Not asked unasked any more until skills restarts: {error.message}"
        elif isinstance(error, PluginKilled | PluginStopped):
            kind = "plugin.killed"
        elif isinstance(error, PluginRefused):
            kind = "plugin.refused"
        _log.warning("plug-in ended", skill=skill, reason=error.reason, error=error.message)
        await self._audit(kind, skill, reason=error.reason, **error.metadata)

    async def _audit(self, kind: str, skill: str, **payload: Any) -> None:
        books = self._books
        assert books is not None, "attach() comes first"
        await books.change(lambda connection: books.event(connection, kind, skill, skill, **payload))

    @staticmethod
    def _check(skill: Skill) -> None:
        if skill.code is not None:
            skill.code.check()


def _permits(manifest: Manifest, settings: PluginSettings) -> Permits:
    """The manifest's wishes, tightened by the settings; raises PluginRefused where those widen them."""
    reads, methods = frozenset(manifest.reads), frozenset(manifest.methods)
    for what, wanted, told in (("reads", reads, settings.reads), ("methods", methods, settings.methods)):
        wider = sorted(set(told or ()) - wanted)
        if wider:
            raise PluginRefused(
                f"The settings give it {what} that its manifest does not ask for: {wider[0]}."
            )
    return Permits(
        reads if settings.reads is None else frozenset(settings.reads),
        methods if settings.methods is None else frozenset(settings.methods),
    )


def plugins_of(settings: SkillsSettings, plane: PlaneSettings) -> Plugins:
    """As the settings say. Reads files; blocks."""
    ours = (plane.home, *((plane.platform_root,) if plane.platform_root is not None else ()))
    return Plugins(
        settings.plugins,
        waived=settings.plugins_without,
        bounds=Bounds(settings.plugin_timeout_s, settings.plugin_memory_bytes),
        base=plane.service_home("skills") / "sandbox",
        cgroups=Cgroups(Path(settings.plugin_cgroup) if settings.plugin_cgroup else own_cgroup()),
        guarded=tuple({str(path) for folder in ours for path in (folder.absolute(), folder.resolve())}),
    )
