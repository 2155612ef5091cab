"""One of two replicas acts; the other takes over when it dies or hangs, and what hung writes nothing more."""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import grpc
import pytest

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_client.cli.plane import _health
from nightshift_client.cli.session import Session
from nightshift_kit.audit import Outbox
from nightshift_kit.clock import SystemClock
from nightshift_kit.rpc.channels import decode_error
from nightshift_skills.errors import StoreInUse
from nightshift_skills.only_replica import OnlyReplica
from nightshift_skills.replica import Replica as Process
from nightshift_skills.replica import is_gone, this_process
from tests.skills.replicas import LEASE_S, Replica, Replicas, counted, replicas_in
from tests.skills.skills_support import FAST, eventually, plane_in

ROUNDS = int(os.environ.get("SKILLS_TAKEOVERS", "6"))


async def check_audit(replica: Replica) -> pb.VerifyAuditResponse:
    """One unbroken chain, and nothing unsealed."""
    report: pb.VerifyAuditResponse = await eventually(
        lambda: replica.plane.call("VerifyAudit", pb.VerifyAuditRequest()),
        lambda found: not found.unsealed_count and not found.unreachable,
        timeout_s=60,
    )
    assert report.valid, report
    return report


def check_ticks(replicas: Replicas, tick_s: float, *, takeovers: int) -> None:
    """Each tick was made once: numbered without gaps, looked at once, and a new leader kept the distance."""
    ticks = replicas.ticks()
    assert [tick.number for tick in ticks] == list(range(1, len(ticks) + 1))
    terms = [tick.term for tick in ticks]
    assert terms == sorted(terms)
    assert len(set(terms)) <= takeovers + 1
    # Within a term it is the leader's own clock that keeps it.
    between = [
        later.time - earlier.time
        for earlier, later in itertools.pairwise(ticks)
        if later.term != earlier.term
    ]
    assert all(gap >= timedelta(seconds=tick_s) for gap in between), between
    # A leader that dies between the claim and the look takes that one look with it.
    looks = replicas.around.monitor.looks
    assert len(ticks) - takeovers - 1 <= looks <= len(ticks)


async def refused(replica: Replica, method: str, request: object) -> None:
    error = await replica.plane.refused(method, request)
    assert (error.code, error.reason) == (grpc.StatusCode.UNAVAILABLE, "STANDBY")
    assert error.retry_after_s
    assert error.metadata["leader_address"] in error.message


def ask_by_command(standby: Replica) -> None:
    """The command asks the leader where endpoints.json leads it to a standby, by calls and by streams."""
    entry = {
        "address": f"127.0.0.1:{standby.plane.plane_settings.port('skills')}",
        "control_address": f"127.0.0.1:{standby.plane.plane_settings.control_port('skills')}",
    }
    place = standby.plane.home / "endpoints.json"
    place.write_text(json.dumps({"services": {"skills": entry}}))
    asks: tuple[Callable[[Session], Any], ...] = (
        lambda session: session.call("skills", "GetLock", pb.GetLockRequest()),
        lambda session: next(session.stream("skills", "WatchApprovals", pb.WatchApprovalsRequest())),
    )
    for ask in asks:
        session = Session(json_output=True, timeout_s=20, home=standby.plane.home)
        try:
            assert session.address("skills") == entry["address"]
            assert _health(session, "skills") == "STANDBY"
            assert ask(session) is not None
            assert session.address("skills") != entry["address"]
            assert _health(session, "skills") == "SERVING"
        finally:
            session.close()
    place.unlink()


@pytest.mark.postgres
async def test_a_standby_takes_over_from_a_leader_that_hangs_and_from_one_that_is_killed(
    tmp_path: Path, postgres_url: str
) -> None:
    async with replicas_in(tmp_path / "home", postgres_url) as replicas:
        for one in replicas.both:
            await one.spawn()
        first = await replicas.leader()
        second = replicas.other(first)
        await second.until("standby")

        await refused(second, "GetLock", pb.GetLockRequest())
        await refused(second, "RunSkill", pb.RunSkillRequest(name="skills/propose_config"))
        await refused(second, "EngageLock", pb.EngageLockRequest())
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await second.plane.report()
        where = decode_error(caught.value).metadata["leader_control_address"]
        assert where == f"127.0.0.1:{first.plane.plane_settings.control_port('skills')}"

        await asyncio.to_thread(ask_by_command, second)

        # One approval is pending, and one approved effect is under way when the leader hangs.
        pending = await replicas.propose(first)
        replicas.around.lab.delay_s = 0.5
        begun = await replicas.propose(first)
        await first.plane.decide(await first.plane.approval_of(begun))
        await first.plane.until(begun.name, types.SKILL_RUN_STATE_RUNNING)
        first.signal(signal.SIGSTOP)
        await second.until("ready")
        replicas.around.lab.delay_s = 0.0
        approval = await second.plane.approval_of(await second.plane.get(pending.name))
        assert approval.state == types.APPROVAL_STATE_PENDING
        await second.plane.decide(approval)
        for run in (pending, begun):
            done = await second.plane.until(run.name, timeout_s=60)
            assert done.state == types.SKILL_RUN_STATE_SUCCEEDED, done
        assert len(replicas.around.lab.effects) == len(replicas.around.lab.proposals) == 2

        # It wakes up, alone with the store: not one row of it changes, and it ends.
        second.signal(signal.SIGSTOP)
        before, effects = replicas.everything(), list(replicas.around.lab.effects)
        first.signal(signal.SIGCONT)
        assert await first.ended() == 3
        assert replicas.everything() == before
        assert replicas.around.lab.effects == effects
        second.signal(signal.SIGCONT)
        await second.until("ready")

        # Killed, on the same machine: nobody need wait for the lease.
        await first.spawn()
        await first.until("standby")
        pending = await replicas.propose(second)
        second.signal(signal.SIGKILL)
        await first.until("ready")
        await first.plane.decide(await first.plane.approval_of(pending))
        await first.plane.until(pending.name, timeout_s=60)
        assert len(replicas.around.lab.effects) == 3

        await check_audit(first)
        events = replicas.db.read_sync(Outbox("skills", SystemClock()).events, 0, 1000)
        began = [event.fields["cause"] for event in events if event.kind == "leader.began"]
        assert began == ["first", "silent", "gone"]
        # Told to end, it gives the lease back.
        first.signal(signal.SIGTERM)
        assert await first.ended() == 0
        assert len(replicas.ticks()) > 3
        check_ticks(replicas, FAST["tick_s"], takeovers=2)


@pytest.mark.postgres
@pytest.mark.slow
@pytest.mark.timeout(300 + 60 * ROUNDS)
async def test_random_ends_of_leaders_lose_no_approval_and_do_nothing_twice(
    tmp_path: Path, postgres_url: str
) -> None:
    chance = random.Random(20264)
    async with replicas_in(tmp_path / "home", postgres_url) as replicas:
        replicas.around.lab.delay_s = 0.15
        for one in replicas.both:
            await one.spawn()
        approved: list[str] = []

        async def work(replica: Replica) -> None:
            run = await replicas.propose(replica)
            await replica.plane.decide(await replica.plane.approval_of(run))
            approved.append(run.name)

        for number in range(ROUNDS):
            leader = await replicas.leader()
            standby = replicas.other(leader)
            await standby.until("standby")
            asking = asyncio.ensure_future(work(leader))
            await asyncio.sleep(chance.uniform(0, 0.9))
            hang = number % 2 == 0
            leader.signal(signal.SIGSTOP if hang else signal.SIGKILL)
            await standby.until("ready")
            if hang:
                await asyncio.sleep(chance.uniform(0, LEASE_S))
                leader.signal(signal.SIGCONT)
                assert await leader.ended() == 3
            await asyncio.wait([asking], timeout=60)
            if asking.done() and asking.exception() is not None:
                assert isinstance(asking.exception(), (grpc.aio.AioRpcError, AssertionError))
            await leader.ended()
            await leader.spawn()
        leader = await replicas.leader()
        for name in approved:
            done = await leader.plane.until(name, timeout_s=60)
            assert done.state == types.SKILL_RUN_STATE_SUCCEEDED, done
        listed = await eventually(
            lambda: leader.plane.runs("propose_config"),
            lambda runs: all(
                run.end_time.seconds or run.state == types.SKILL_RUN_STATE_AWAITING_APPROVAL for run in runs
            ),
            timeout_s=60,
        )
        succeeded = [run for run in listed if run.state == types.SKILL_RUN_STATE_SUCCEEDED]
        print(f"{ROUNDS} take-overs, {len(approved)} approvals acknowledged, {len(succeeded)} effects")
        assert set(approved) <= {run.name for run in succeeded}
        assert len(replicas.around.lab.effects) == len(succeeded) == len(replicas.around.lab.proposals)
        themes = [proposal.opportunity for proposal in replicas.around.lab.proposals.values()]
        assert len(set(themes)) == len(themes)
        await check_audit(leader)
        check_ticks(replicas, FAST["tick_s"], takeovers=ROUNDS)


@pytest.mark.postgres
@pytest.mark.slow
async def test_over_a_hundred_ticks_each_is_made_once(tmp_path: Path, postgres_url: str) -> None:
    async with replicas_in(tmp_path / "home", postgres_url, tick_s=0.2) as replicas:
        for one in replicas.both:
            await one.spawn()
        leader = await replicas.leader()
        await replicas.other(leader).until("standby")
        await counted(lambda: len(replicas.ticks()), 50, timeout_s=120)
        leader.signal(signal.SIGSTOP)
        successor = replicas.other(leader)
        await successor.until("ready")
        leader.signal(signal.SIGCONT)
        await leader.ended()
        await counted(lambda: len(replicas.ticks()), 120, timeout_s=120)
        successor.signal(signal.SIGTERM)
        assert await successor.ended() == 0
        check_ticks(replicas, 0.2, takeovers=1)


async def test_on_sqlite_a_second_process_is_refused_before_it_touches_anything(tmp_path: Path) -> None:
    async with plane_in(tmp_path / "home") as plane:
        fence = (await plane.call("GetSchedule", pb.GetScheduleRequest())).fence
        ended = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-m", "nightshift_skills"],
            env={
                **os.environ,
                "NIGHTSHIFT_HOME": str(plane.home),
                "NIGHTSHIFT_PORT_BASE": str(plane.port_base + 5),
            },
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert ended.returncode == 3
        assert f"process {os.getpid()} of skills has" in ended.stderr
        assert "On SQLite there is one replica" in ended.stderr
        assert (await plane.call("GetSchedule", pb.GetScheduleRequest())).fence == fence


def test_the_lock_of_a_file_is_free_again_when_its_holder_is_gone(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'folder' / 'skills.db'}"
    held = OnlyReplica(url)
    with pytest.raises(StoreInUse) as caught:
        OnlyReplica(url)
    assert caught.value.metadata == {"process": str(os.getpid())}
    held.release()
    held.release()
    OnlyReplica(url).release()
    # Replicas that share a database take no lock.
    OnlyReplica("postgresql+psycopg://somebody@nowhere/skills").release()


def test_a_process_that_ended_is_known_to_be_gone() -> None:
    ours = this_process()
    assert not is_gone(ours)
    kernel = ours.rpartition("/")[0].rpartition("/")[0]
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    try:
        started = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()[19]
        known = f"{kernel}/{child.pid}/{started}"
        assert not is_gone(known)
        # The number belongs to another one by now.
        assert is_gone(f"{kernel}/{child.pid}/{int(started) + 1}")
    finally:
        child.kill()
        # Dead, but not buried yet.
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert is_gone(known)
        child.communicate()
    assert is_gone(known)


@pytest.mark.parametrize("process", ["", "x", "another-boot/4026531836/1/5", "//1/2", "a/b/c/d"])
def test_of_a_process_elsewhere_nothing_is_known(process: str) -> None:
    assert not is_gone(process)


def test_a_replica_tells_where_it_is() -> None:
    here = Process.here("127.0.0.1:1", "127.0.0.1:2")
    assert here.name.endswith(f":{os.getpid()}")
    assert here.process == this_process()
