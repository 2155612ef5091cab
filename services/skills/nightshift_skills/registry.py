"""The skills in force: declarations, tiers as the settings tighten them, digests of their code."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from nightshift_kit.canonical import digest_json
from nightshift_kit.grants import Tier
from nightshift_skills.errors import SkillModified, SkillUnknown, TierLoosened
from nightshift_skills.skill import Skill


@dataclass(frozen=True, slots=True)
class Registered:
    """A skill with the digest of its code and declaration as they were at the start."""

    skill: Skill
    source: Path
    source_digest: str
    digest: str


class Registry:
    """All skills by id."""

    def __init__(
        self,
        skills: Iterable[Skill],
        *,
        tiers: Mapping[str, str],
        cooldowns_s: Mapping[str, float],
    ) -> None:
        """Applies the settings.

        Args:
            skills: The built-in ones, and the plug-ins'.
            tiers: Skill id → "AUTO", "CONFIRM" or "MANUAL"; may only tighten.
            cooldowns_s: Skill id → rest in seconds.

        Raises:
            SkillUnknown: a setting names no skill.
            TierLoosened: a setting would give a skill more freedom than it was built with.
        """
        built_in = {skill.id: skill for skill in skills}
        for name in (*tiers, *cooldowns_s):
            if name not in built_in:
                raise SkillUnknown(f"The settings name a skill that does not exist: {name}.")
        self._entries: dict[str, Registered] = {}
        for skill in built_in.values():
            tightened = replace(
                skill,
                tier=_tightened(skill, tiers.get(skill.id)),
                cooldown_s=cooldowns_s.get(skill.id, skill.cooldown_s),
            )
            self._entries[skill.id] = _register(tightened)

    def __iter__(self) -> Iterator[Skill]:
        """The skills in the order of their declaration."""
        return (entry.skill for entry in self._entries.values())

    def get(self, name: str) -> Skill:
        """A skill by its id or resource name. Raises SkillUnknown."""
        return self._entry(name).skill

    def digest(self, name: str) -> str:
        """Digest of a skill's code and declaration at the start, in hex. Raises SkillUnknown."""
        return self._entry(name).digest

    def check_unmodified(self, name: str) -> None:
        """Compares the skill's code with what it was at the start.

        Raises:
            SkillModified: it differs, or cannot be read any more.
            PluginRefused: it is a plug-in that must not run on this machine.
        """
        entry = self._entry(name)
        if entry.skill.code is not None:
            entry.skill.code.check()
            return
        try:
            now = hashlib.sha256(entry.source.read_bytes()).hexdigest()
        except OSError as error:
            raise SkillModified(f"The code of {name} cannot be read: {error.strerror}.") from error
        if now != entry.source_digest:
            raise SkillModified(
                f"The code of {name} changed since the service started; restart skills to take it on.",
                metadata={"skill": name},
            )

    def _entry(self, name: str) -> Registered:
        entry = self._entries.get(name.removeprefix("skills/"))
        if entry is None:
            raise SkillUnknown("There is no such skill; see: nightshift skills list.")
        return entry


def _tightened(skill: Skill, wanted: str | None) -> Tier:
    if wanted is None:
        return skill.tier
    try:
        tier = Tier[wanted.upper()]
    except KeyError as error:
        raise TierLoosened(f"{wanted!r} is no tier; {skill.id} is {skill.tier.name}.") from error
    if tier < skill.tier:
        raise TierLoosened(
            f"{skill.id} is {skill.tier.name}; a setting may tighten that, not loosen it to {tier.name}.",
            metadata={"skill": skill.name, "tier": skill.tier.name},
        )
    return tier


def _register(skill: Skill) -> Registered:
    source = Path(inspect.getfile(skill.plan))
    if skill.code is None:
        source_digest = hashlib.sha256(source.read_bytes()).hexdigest()
    else:
        source_digest = skill.code.digest
    digest = digest_json(
        {
            "id": skill.id,
            "tier": skill.tier.name,
            "methods": list(skill.methods),
            "triggers": list(skill.triggers),
            "cooldown_s": float(skill.cooldown_s),
            "parameters": skill.parameters.model_json_schema(),
            "source": source_digest,
        }
    )
    return Registered(skill, source, source_digest, digest)
