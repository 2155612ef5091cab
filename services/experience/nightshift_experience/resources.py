"""Resource names of experience; the only place that splits or joins them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Self

from nightshift_experience.runs import is_valid_id
from nightshift_kit.errors import IdInvalid

_PROJECT = re.compile(r"[a-z0-9](?:[a-z0-9._-]{0,61}[a-z0-9])?")


def _parts(name: str, field: str, pattern: str) -> list[str]:
    """The variable parts of a name of the form "projects/{project}/runs/{run}". Raises IdInvalid."""
    wanted, given = pattern.split("/"), name.split("/")
    fits = len(wanted) == len(given) and all(
        is_valid_id(part) if want.startswith("{") else part == want
        for want, part in zip(wanted, given, strict=True)
    )
    if not fits:
        raise IdInvalid.at(
            field, f"must have the form {pattern!r}; ids have up to 200 characters, no controls"
        )
    return [part for want, part in zip(wanted, given, strict=True) if want.startswith("{")]


def parse_project(name: str, field: str = "parent") -> str:
    """The project's id out of "projects/{project}". Raises IdInvalid."""
    (project,) = _parts(name, field, "projects/{project}")
    return _checked(project, field)


def project_name(project: str) -> str:
    """Name of a project: "projects/{project}"."""
    return f"projects/{project}"


def _checked(project: str, field: str) -> str:
    if not _PROJECT.fullmatch(project):
        raise IdInvalid.at(field, "a project id has 1 to 63 lower-case letters, digits, '-', '_' and '.'")
    return project


def parse_profile(name: str, field: str = "name") -> str:
    """The project's id out of "projects/{project}/profile". Raises IdInvalid."""
    (project,) = _parts(name, field, "projects/{project}/profile")
    return _checked(project, field)


def profile_name(project: str) -> str:
    """Name of a project's profile: "projects/{project}/profile"."""
    return f"projects/{project}/profile"


def parse_tuning(name: str, field: str = "name") -> str:
    """The project's id out of "projects/{project}/tuning"; "" for "tuning". Raises IdInvalid."""
    if name == "tuning":
        return ""
    (project,) = _parts(name, field, "projects/{project}/tuning")
    return _checked(project, field)


def tuning_name(project: str) -> str:
    """Name of what is tuned: "projects/{project}/tuning", or "tuning" for the global switch."""
    return f"projects/{project}/tuning" if project else "tuning"


@dataclass(frozen=True, slots=True)
class RunName:
    """Name of a run: "projects/{project}/runs/{run}"."""

    project: str
    run: str

    @classmethod
    def parse(cls, name: str, field: str = "name") -> Self:
        """Raises IdInvalid."""
        project, run = _parts(name, field, "projects/{project}/runs/{run}")
        return cls(_checked(project, field), run)

    @property
    def name(self) -> str:
        """The resource name."""
        return f"projects/{self.project}/runs/{self.run}"


@dataclass(frozen=True, slots=True)
class ImportJobName:
    """Name of an import: "projects/{project}/importJobs/{import_job}"."""

    project: str
    import_job: str

    @classmethod
    def parse(cls, name: str, field: str = "name") -> Self:
        """Raises IdInvalid."""
        project, job = _parts(name, field, "projects/{project}/importJobs/{import_job}")
        return cls(_checked(project, field), job)

    @property
    def name(self) -> str:
        """The resource name."""
        return f"projects/{self.project}/importJobs/{self.import_job}"


@dataclass(frozen=True, slots=True)
class OpportunityName:
    """Name of an opportunity: "projects/{project}/opportunities/{opportunity}"."""

    project: str
    opportunity: str

    @classmethod
    def parse(cls, name: str, field: str = "name") -> Self:
        """Raises IdInvalid."""
        project, opportunity = _parts(name, field, "projects/{project}/opportunities/{opportunity}")
        return cls(_checked(project, field), opportunity)

    @property
    def name(self) -> str:
        """The resource name."""
        return f"projects/{self.project}/opportunities/{self.opportunity}"


@dataclass(frozen=True, slots=True)
class SessionName:
    """Name of a session: "projects/{project}/sessions/{session}"."""

    project: str
    session: str

    @classmethod
    def parse(cls, name: str, field: str = "name") -> Self:
        """Raises IdInvalid."""
        project, session = _parts(name, field, "projects/{project}/sessions/{session}")
        return cls(_checked(project, field), session)

    @property
    def name(self) -> str:
        """The resource name."""
        return f"projects/{self.project}/sessions/{self.session}"
