"""Calls by chance against an oracle of its own: callers, tiers, methods, states, and no divergence.

FUZZ_SEQUENCES chooses how many sequences the long form has, FUZZ_SEED repeats a run's choices.
"""

from __future__ import annotations

import os
import random
import secrets
from dataclasses import replace
from pathlib import Path

import pytest

from nightshift.skills.v1 import skills_service_pb2 as pb
from tests.adversary.fuzzing import Fuzz
from tests.adversary.oracle import Caller, Delegation, Oracle, Token
from tests.adversary.standings import SETTINGS, proven
from tests.skills.skills_support import plane_in

QUICK = 300
LONG = int(os.environ.get("FUZZ_SEQUENCES", "10000"))
LENGTH = 6


async def fuzz(folder: Path, sequences: int) -> Fuzz:
    """So many sequences on one plane."""
    seed = int(os.environ.get("FUZZ_SEED", "0")) or secrets.randbelow(2**31)
    print(f"FUZZ_SEED={seed} repeats the choices of this run")
    async with plane_in(folder / "home", **SETTINGS) as plane:
        began = (await plane.call("GetSchedule", pb.GetScheduleRequest())).fence
        # But for quiet moments somebody is there all the time: whatever acts, acts for a call of ours.
        await proven(plane)
        made = Fuzz(plane, random.Random(seed), Oracle(began, lock_fence=began))
        await made.prepare()
        await made.standings.at_rest()
        await made._told()
        try:
            while made.sequences < sequences and len(made.diverged) < 20:
                await made.sequence(LENGTH)
            await made.standings.audited()
        finally:
            await made.close()
    print(f"{made.sequences} sequences, {made.calls} calls, {len(made.diverged)} divergences")
    print(dict(made.seen), dict(made.standings.events))
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
    oracle.unlocks()
    wish = Delegation(True, "propose_config", True, 2, "projects/p/opportunities/a")
    refused = {
        oracle._why_not(replace(wish, skill="rollback"), Token("")),
        oracle._why_not(replace(wish, policy_fits=False), Token("")),
        oracle._why_not(wish, Token("", admin=False)),
        oracle._why_not(wish, Token("")),
    }
    assert refused == {"NOT_DELEGABLE", "POLICY_CHANGED", "ROLE_INSUFFICIENT", ""}
    oracle.gives("s/1", wish)
    oracle.arms("s/2", "promotions/1")
    assert oracle.covering("propose_config", "projects/p/opportunities/b1") == set()
    assert oracle.covering("propose_config", "projects/p/opportunities/a1") == {"s/1"}
    assert oracle.guardrail("promotions/2") == "NOT_ARMED"
    assert not oracle.bounded()
    assert (oracle.guardrail("promotions/1"), oracle.guardrail("promotions/1")) == ("", "NOT_ARMED")
    assert [one.state for one in oracle.standing.values()] == ["REVOKED", "SPENT"]
