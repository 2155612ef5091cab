"""Regenerations: the same request again with a new seed.

A chain holds the succeeded runs, with prompt and seed, of one session key, prompt, interception config and
output config, in the order of the milliseconds in their run ids. A run is a regeneration if its seed is that
of no earlier run of the chain; the first run is what it regenerates. Runs arrive late and change, so a
chain is always marked as a whole: it holds a handful of runs.
"""

from __future__ import annotations

import functools
import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from nightshift_experience.aggregation.contributions import CounterName
from nightshift_experience.runs import DIGEST_BYTES

_PREFIX_BYTES = 4
_REST_BYTES = DIGEST_BYTES - _PREFIX_BYTES


@dataclass(slots=True)
class Member:
    """One run of a chain."""

    run_id: str
    order_ms: int
    seed: int
    production: bool
    interception_config: str
    regeneration_of: str | None


def chain_key(session_key: str, prompt_digest: str, interception_config: str, output_config: str) -> bytes:
    """Key of the chain of runs with these four.

    Keys of one session begin alike, so that the runs of an hour touch a few pages of the index instead of
    one page each: the log of a batch stays small, however many runs there are.
    """
    parts = "\0".join((session_key, prompt_digest, interception_config, output_config))
    whole = hashlib.blake2b(parts.encode("utf-8", "surrogatepass"), digest_size=_REST_BYTES).digest()
    return _session_prefix(session_key) + whole


@functools.lru_cache(maxsize=4096)
def _session_prefix(session_key: str) -> bytes:
    return hashlib.blake2b(session_key.encode("utf-8", "surrogatepass"), digest_size=_PREFIX_BYTES).digest()


def marks(members: Sequence[Member]) -> dict[str, str | None]:
    """By run id: the first run of the chain for a regeneration, else None."""
    if len(members) == 1:
        return {members[0].run_id: None}
    ordered = sorted(members, key=lambda member: (member.order_ms, member.run_id))
    seeds: set[int] = set()
    found: dict[str, str | None] = {}
    for member in ordered:
        found[member.run_id] = None if not seeds or member.seed in seeds else ordered[0].run_id
        seeds.add(member.seed)
    return found


def add_chain(totals: Counter[CounterName], members: Iterable[Member], sign: int) -> None:
    """Add (`sign` 1) or take back (-1) what a chain counts: itself as a group, and its regenerations."""
    groups: set[str] = set()
    for member in members:
        if not member.production:
            continue
        config = member.interception_config
        if config and config not in groups:
            groups.add(config)
            totals["config", config, "groups"] += sign
        if member.regeneration_of is not None:
            totals["project", "", "regenerations"] += sign
            if config:
                totals["config", config, "regenerations"] += sign
