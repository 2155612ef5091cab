"""A run as a source tells of it, before it is merged with what other sources tell."""

from __future__ import annotations

import hashlib
import re
import unicodedata
from dataclasses import dataclass, field
from enum import IntEnum

# Of a prompt or a record: enough that collisions do not happen, half the bytes of the full digest.
DIGEST_BYTES = 16

PRIVACY_WITHHELD = "privacy_withheld"

_RUN_ID_MS = re.compile(r"run_(\d{12,14})_")


class Outcome(IntEnum):
    """How a run ended; the numbers are those of the proto's RunOutcome."""

    SUCCEEDED = 1
    BLOCKED = 2
    FAILED = 3
    INCOMPLETE = 4


class QaStatus(IntEnum):
    """What the platform's own quality check said; the numbers are those of the proto's QaStatus."""

    UNKNOWN = 0
    PASSED = 1
    WARNING = 2
    FAILED = 3


@dataclass(slots=True)
class Orchestration:
    """How a platform that works in rounds made a run: what was set, and what came of it."""

    mode: str = ""
    strategy: str = ""
    max_rounds: int | None = None
    max_cost_usd: float | None = None
    # Rounds that were used, and the verdict on the result.
    rounds: int | None = None
    qa_status: int = 0
    # What auto-tune changed: (field, value before, value taken, why).
    tuned: list[list[str]] = field(default_factory=list)


@dataclass(slots=True)
class RunRecord:
    """What one source tells about one run.

    Instants are microseconds since 1970 UTC. "" and None mean that the source does not tell.
    """

    run_id: str
    source: str
    start_us: int
    outcome: int
    revision: str = ""
    device: str = ""
    end_us: int | None = None
    duration_us: int | None = None
    language: str = ""
    # None: none, or withheld since it may hold personal data.
    prompt: str | None = None
    # Hex of `prompt_digest` of the whole prompt.
    prompt_digest: str = ""
    transformed_prompt: str | None = None
    interception_config: str = ""
    output_config: str = ""
    # Name that stands for an interception config unless it turns out to be an output config.
    config_name: str = ""
    seed: int | None = None
    cost_usd: float | None = None
    media_types: list[str] = field(default_factory=list)
    models: dict[str, str] = field(default_factory=dict)
    flags: list[str] = field(default_factory=list)
    safety_level: str = ""
    source_path: str = ""
    orchestration: Orchestration | None = None


def prompt_digest(prompt: str) -> str:
    """Hex digest by which equal prompts are recognised; surrounding white space does not count."""
    stripped = prompt.strip()
    return hashlib.sha256(stripped.encode("utf-8", "surrogatepass")).hexdigest()[: 2 * DIGEST_BYTES]


def run_id_ms(run_id: str) -> int | None:
    """UTC milliseconds that a run id of the form run_{ms}_{hex} carries, else None."""
    match = _RUN_ID_MS.match(run_id)
    return int(match.group(1)) if match else None


def cut_utf8(text: str, size_bytes: int) -> str:
    """The longest beginning of `text` that fits into `size_bytes` of UTF-8."""
    if len(text) * 4 <= size_bytes:
        return text
    data = text.encode("utf-8", "replace")
    if len(data) <= size_bytes:
        return text
    return data[:size_bytes].decode("utf-8", "ignore")


_ID_LIMIT = 200
_NOT_IN_IDS = frozenset(("Cc", "Cs", "Zl", "Zp"))


def is_valid_id(text: str) -> bool:
    """Whether `text` can be the last part of a resource name: 1 to 200 characters, no controls, no slash."""
    if not 0 < len(text) <= _ID_LIMIT or "/" in text:
        return False
    if text.isascii():
        return text.isprintable()
    return all(unicodedata.category(character) not in _NOT_IN_IDS for character in text)
