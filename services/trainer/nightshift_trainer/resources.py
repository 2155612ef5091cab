"""Resource names of the trainer: parsed and formatted here and nowhere else."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from nightshift_kit.errors import IdInvalid

# The one GPU host; a singleton has no id.
GPU_HOST = "gpuHost"

_ID = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")


@dataclass(frozen=True)
class _Name:
    """One collection, one id."""

    id: str
    collection: ClassVar[str]

    @property
    def name(self) -> str:
        """As callers see it."""
        return f"{self.collection}/{self.id}"


@dataclass(frozen=True)
class TrainingJobName(_Name):
    """trainingJobs/{training_job}."""

    collection: ClassVar[str] = "trainingJobs"

    @classmethod
    def parse(cls, name: str) -> TrainingJobName:
        """Raises IdInvalid."""
        return cls(_id_of(name, cls.collection))


@dataclass(frozen=True)
class AdapterName(_Name):
    """adapters/{adapter}."""

    collection: ClassVar[str] = "adapters"

    @classmethod
    def parse(cls, name: str) -> AdapterName:
        """Raises IdInvalid."""
        return cls(_id_of(name, cls.collection))


def _id_of(name: str, collection: str) -> str:
    prefix, separator, identifier = name.partition("/")
    if prefix != collection or not separator or not _ID.fullmatch(identifier):
        raise IdInvalid.at("name", f"must be {collection}/ and an id of a-z, 0-9 and -")
    return identifier
