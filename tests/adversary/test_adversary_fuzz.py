"""Calls by chance against an oracle of its own: callers, tiers, methods, states, and no divergence.

FUZZ_SEQUENCES chooses how many sequences the long form has, FUZZ_SEED repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import secrets
from pathlib import Path

import pytest

from nightshift.skills.v1 import skills_service_pb2 as pb
from tests.adversary.fuzzing import Fuzz
from tests.adversary.oracle import Caller, Oracle
from tests.skills.skills_support import plane_in

QUICK = 300
LONG = int(os.environ.get("FUZZ_SEQUENCES", "10000"))
LENGTH = 6


async def fuzz(folder: Path, sequences: int) -> Fuzz:
    """So many sequences on one plane."""
    seed = int(os.environ.get("FUZZ_SEED", "0")) or secrets.randbelow(2**31)
    print(f"FUZZ_SEED={seed} repeats the choices of this run")
    async with plane_in(folder / "home") as plane:
        # Somebody is there all the time: whatever acts, acts for a call of ours.
        plane.around.monitor.tell(idle=False)
        fence = (await plane.call("GetSchedule", pb.GetScheduleRequest())).fence
        made = Fuzz(plane, random.Random(seed), Oracle(fence, lock_fence=fence))
        made.prepare()
        await made._told()
        try:
            while made.sequences < sequences and len(made.diverged) < 20:
                await made.sequence(LENGTH)
        finally:
            await made.close()
    print(f"{made.sequences} sequences, {made.calls} calls, {len(made.diverged)} divergences")
    print(dict(made.seen))
    return made


async def test_some_hundred_sequences(tmp_path: Path) -> None:
    made = await fuzz(tmp_path, QUICK)
    assert not made.diverged, "\n".join(made.diverged)
    # Every kind of answer was asked for: an oracle that lets everything through would not get here.
    assert len(made.seen) > 12, made.seen


@pytest.mark.slow
@pytest.mark.timeout(3600)
async def test_ten_thousand_sequences(tmp_path: Path) -> None:
    made = await fuzz(tmp_path, LONG)
    assert not made.diverged, "\n".join(made.diverged)


def test_the_oracle_by_hand() -> None:
    """What is written down, told to the oracle in single cases."""
    oracle = Oracle(fence=7)
    viewer, approver, admin = (Caller("person", role, role) for role in ("viewer", "approver", "admin"))
    assert oracle.may_call([], viewer) == ""
    assert oracle.may_call([], Caller("stranger", "x")) == "IDENTITY_INVALID"
    assert oracle.may_call(["person:admin"], approver) == "ROLE_INSUFFICIENT"
    assert oracle.may_call(["person:approver"], admin) == ""
    assert oracle.may_call(["service:skills"], Caller("service", "lab")) == "CALLER_NOT_ALLOWED"
    assert oracle.may_call(["service:skills"], admin) == "CALLER_NOT_ALLOWED"
    assert oracle.may_call(["platform", "person:viewer"], Caller("platform", "p")) == ""
    oracle.locks()
    oracle.locks()
    assert (oracle.fence, oracle.lock_fence) == (8, 8)
