"""The skills service: the only place where its objects meet."""

from __future__ import annotations

import asyncio
import time
from functools import partial
from pathlib import Path
from zoneinfo import ZoneInfo

import grpc
from prometheus_client import Counter

from nightshift_kit.audit import Outbox
from nightshift_kit.audit.checkpoint_copy import CheckpointCopy
from nightshift_kit.audit.checkpoints import Checkpoints
from nightshift_kit.grants import FenceGate, GrantMinter
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.channels import channel_to, credential_for
from nightshift_kit.rpc.identity import identity_of_certificate
from nightshift_kit.rpc.serve import Wiring, run
from nightshift_kit.rpc.tls import load_private_key, load_public_key
from nightshift_kit.settings import service_settings
from nightshift_kit.storage import Database
from nightshift_kit.tokens import RegisterWriter, plane_id
from nightshift_kit.tokens.register import REGISTER
from nightshift_skills.activity import ActivityRelay
from nightshift_skills.agenda import Agenda
from nightshift_skills.arming import Arming, GuardrailRollback
from nightshift_skills.autonomy import Autonomy
from nightshift_skills.backoff import BackoffRule
from nightshift_skills.books import Books
from nightshift_skills.budgets import Budgets, GpuMeter
from nightshift_skills.catalogue import BUILT_IN
from nightshift_skills.config import SkillsSettings
from nightshift_skills.desk import Desk
from nightshift_skills.events import USERS_CAME, USERS_LEFT, Events
from nightshift_skills.executor import Executor
from nightshift_skills.fences import Fences
from nightshift_skills.gate import Gate
from nightshift_skills.granting import Granting
from nightshift_skills.health import HealthCheck
from nightshift_skills.local_tokens import LocalTokens
from nightshift_skills.lockdown import Lockdown
from nightshift_skills.only_replica import OnlyReplica
from nightshift_skills.pauses import Pauses
from nightshift_skills.planner import Planner
from nightshift_skills.plugins.host import plugins_of
from nightshift_skills.ports import ACTING_SERVICES, AUDITED_SERVICES
from nightshift_skills.preemption import STOPS_EVERYTHING, Preemptor
from nightshift_skills.preemption_log import PreemptionLog
from nightshift_skills.progress import Progress
from nightshift_skills.proposals import ApprovalRule, Proposals
from nightshift_skills.readiness import Readiness
from nightshift_skills.registry import Registry
from nightshift_skills.rpc.autonomy_servicer import AutonomyServicer
from nightshift_skills.rpc.clients import (
    ActingClient,
    ExperienceClient,
    LabClient,
    MonitorClient,
    OutboxClient,
    StopClient,
    TrainerClient,
    close_all,
)
from nightshift_skills.rpc.control_servicer import ControlServicer
from nightshift_skills.rpc.skills_servicer import SkillsServicer
from nightshift_skills.rpc.standing_by import CONTROL_SERVICE, MAIN_SERVICES, authority, leading
from nightshift_skills.rpc.tokens_servicer import TokensServicer
from nightshift_skills.scheduler import Pace, Scheduler
from nightshift_skills.sealer import Sealer
from nightshift_skills.skill import Limits
from nightshift_skills.standing import policy_digest
from nightshift_skills.stop_thread import StopThread
from nightshift_skills.stops import Leases, Stops
from nightshift_skills.store import plane
from nightshift_skills.store.reports import KeptReports, list_reports
from nightshift_skills.ticks import Ticks
from nightshift_skills.triggers import Triggers


async def wire(wiring: Wiring) -> None:
    """Makes everything and starts what must run before the first call is served."""
    await assemble(wiring)


async def assemble(wiring: Wiring) -> GuardrailRollback:
    """As `wire`; gives the entry by which a guardrail that fell executes an armed rollback."""
    settings = service_settings(SkillsSettings, "skills", wiring.settings)
    # Refused settings (a loosened tier) must keep the service from starting at all.
    plugins = await asyncio.to_thread(plugins_of, settings, wiring.settings)
    registry = Registry((*BUILT_IN, *plugins.skills), tiers=settings.tiers, cooldowns_s=settings.cooldowns_s)
    zone = ZoneInfo(wiring.settings.time_zone)
    triggers = Triggers.of(
        registry,
        zone,
        crons=settings.crons,
        intervals_s=settings.intervals_s,
        new_runs=settings.new_data_runs,
    )
    budgets = Budgets.from_settings(registry, zone, settings.budget, settings.skill_budget, settings.budgets)
    events = Events()
    # Before anything of the store is touched, its schema included.
    wiring.hold(OnlyReplica(settings.database_url).release)
    place = await leading(wiring, settings)
    db = wiring.database(
        Database(settings.database_url, migrations="nightshift_skills", name="skills", guard=place.guard)
    )
    outbox = Outbox("skills", wiring.clock)
    wiring.audit_refusals(db, outbox)
    books = Books(db, outbox, wiring.clock, new_id)

    credential = credential_for(wiring.settings, "service/skills")

    def dial(service: str, *, control: bool) -> grpc.aio.Channel:
        told = settings.control_addresses if control else settings.addresses
        peers = wiring.settings
        if settings.peers_port_base is not None and service != "skills":
            peers = peers.model_copy(update={"port_base": settings.peers_port_base})
        port = peers.control_port(service) if control else peers.port(service)
        return channel_to(told.get(service, f"127.0.0.1:{port}"), service, credential)

    # Skills asks itself, too: set_autonomy has its effect here, under a grant like any other.
    mains = {service: dial(service, control=False) for service in (*AUDITED_SERVICES, "skills")}
    controls = {service: dial(service, control=True) for service in AUDITED_SERVICES}
    wiring.on_stop(lambda: close_all([*mains.values(), *controls.values()]))

    # The first transaction of a start raises the fence: it begins the next block.
    reserved_to = await db.read(plane.get_reserved_fence)
    fences = await asyncio.to_thread(Fences, partial(db.write_sync, plane.save_reserved_fence), reserved_to)
    gate = Gate(lambda: fences.current, fences.raise_one)
    progress = Progress(
        books,
        failed_rest_s=settings.failed_rest_s,
        on_answered=lambda *answered: arming.answered(*answered),
    )
    await progress.orphaned()
    if (await db.read(plane.get_lock)).engaged:
        gate.restore_lock()

    rule = BackoffRule(settings.backoff_first_s, settings.backoff_max_s, settings.backoff_clean_s)
    log = PreemptionLog(books, await db.read(plane.get_backoff, rule), wiring.metrics.registry)
    monitor = MonitorClient(mains["monitor"])
    relay = ActivityRelay(
        monitor,
        lambda: log.backoff_until,
        store=KeptReports(db),
        waiting=await db.read(list_reports),
        ids=new_id,
    )
    if reserved_to:
        # Not the first life of this plane: a request of a user may have been acknowledged in the last one
        # and not passed on any more. So quiet counts from now.
        relay.note("restart", wiring.clock.now(), 1, "")

    stop_thread = StopThread()
    wiring.on_stop(stop_thread.close)
    stop_port = await stop_thread.call(_stop_port(dial, stop_thread))
    stops = Stops(stop_port, ACTING_SERVICES, wiring.clock)

    # Grants for methods of skills itself are as void as any others after the lock and each other stop.
    grant_gate = FenceGate(db, wiring.clock)
    grant_gate.raise_in_memory(fences.current)

    def began(preemption: plane.Preemption) -> None:
        plugins.stop_all()
        grant_gate.raise_in_memory(preemption.fence, everything=preemption.cause in STOPS_EVERYTHING)
        log.began(preemption)
        if preemption.cause == "user":
            events.publish(USERS_CAME)

    preemptor = Preemptor(
        gate=gate,
        fences=fences,
        stops=stops,
        relay=relay,
        record=log.record,
        clock=wiring.clock,
        ids=new_id,
        on_begin=began,
    )
    preemptor.attach(stop_thread.loop)
    # What an earlier life of this process left running has no run behind it any more.
    await stop_thread.call(preemptor.announce("restart", on_purpose_too=gate.locked or place.after_silence))
    if place.after_silence:
        await stop_thread.keep(preemptor.take_over())
    leases = Leases(stop_port, ACTING_SERVICES, gate.leases, fences.raise_above, leads=lambda: place.leading)
    gate.on_enter(partial(leases.hurry, stop_thread.loop))
    await stop_thread.keep(leases.run())

    experience, lab, trainer = (
        ExperienceClient(mains["experience"]),
        LabClient(mains["lab"]),
        TrainerClient(mains["trainer"]),
    )
    limits = Limits(
        project=settings.project,
        min_production_runs=settings.min_production_runs,
        detect_min_new_runs=settings.detect_min_new_runs,
        aggregate_interval_s=settings.aggregate_interval_s,
        embed_batch=settings.embed_batch,
        vram_high_percent=settings.vram_high_percent,
        vram_target_percent=settings.vram_target_percent,
    )
    approval_rule = ApprovalRule(
        ttl_s=settings.approval_ttl_s,
        two_person=settings.two_person,
        denied_rest_s=settings.denied_rest_s,
        per_hour=settings.approval_requests_per_hour,
        max_pending=settings.max_pending_approvals,
    )
    autonomy = Autonomy(
        books=books,
        registry=registry,
        gate=gate,
        readiness=Readiness(
            books=books,
            gate=gate,
            monitor=monitor,
            verify=lambda: sealer.verify(),
            min_runs=settings.autonomy_min_runs,
        ),
        policy_digest=policy_digest(registry, limits, approval_rule, budgets, settings.max_background_runs),
    )
    # Ends what was approved under another policy, before anything can cite it.
    await autonomy.look()
    arming = Arming(books, autonomy)

    async def delegation(skill: str) -> str:
        await autonomy.require_ready(skill)
        return autonomy.policy_digest

    planner = Planner(
        registry=registry,
        books=books,
        experience=experience,
        lab=lab,
        trainer=trainer,
        limits=limits,
        delegation=delegation,
    )
    proposals = Proposals(books, approval_rule, lambda skill: registry.get(skill).cooldown_s, budgets)
    meter = GpuMeter(books, budgets)
    await proposals.forsake({skill.id for skill in registry})
    acting = ActingClient(mains.__getitem__)
    plugins.attach(books, acting, gate)
    await plugins.announce()
    granting = Granting(
        GrantMinter(load_private_key(wiring.settings, "grant"), wiring.clock),
        identity_of_certificate(credential.certificate_pem).thumbprint,
        registry.digest,
        time.monotonic,
        place.check,
    )
    executor = Executor(
        registry=registry,
        planner=planner,
        progress=progress,
        books=books,
        gate=gate,
        granting=granting,
        acting=acting,
        trainer=trainer,
        call_retry_s=settings.call_retry_s,
        on_idle=lambda: scheduler.poke(),
        on_worked=meter.worked,
        spans=wiring.spans,
    )
    agenda = Agenda(
        registry=registry,
        triggers=triggers,
        budgets=budgets,
        events=events,
        autonomy=autonomy,
        planner=planner,
        proposals=proposals,
        progress=progress,
        executor=executor,
        gate=gate,
        books=books,
        experience=experience,
        lab=lab,
        limits=limits,
    )
    scheduler = Scheduler(
        pace=Pace(settings.tick_s, settings.platform_gone_grace_s, settings.max_background_runs),
        registry=registry,
        agenda=agenda,
        proposals=proposals,
        progress=progress,
        executor=executor,
        gate=gate,
        preemptor=preemptor,
        relay_settled=lambda: relay.settled,
        backoff_until=lambda: log.backoff_until,
        books=books,
        monitor=monitor,
        trainer=trainer,
        health=HealthCheck(registry, planner, progress, books, acting),
        autonomy=autonomy,
        claim_tick=Ticks(books, place.term, settings.tick_s).claim,
        leads=lambda: place.leading,
        on_quiet=partial(events.publish, USERS_LEFT),
    )
    loop = asyncio.get_running_loop()

    def wake() -> None:
        loop.call_soon_threadsafe(scheduler.poke)

    events.wake_for((kind for skill in registry for kind in skill.events), wake)
    desk = Desk(
        registry=registry,
        planner=planner,
        proposals=proposals,
        progress=progress,
        executor=executor,
        scheduler=scheduler,
        gate=gate,
        books=books,
        stop_run=lambda run_id: stop_thread.call(preemptor.stop_run(run_id)),
    )
    autonomy.cancel = lambda run_id, by: desk.cancel(run_id, initiator=by)
    lockdown = Lockdown(books, gate, preemptor, scheduler.poke)
    copy_failed = Counter(
        "nightshift_checkpoint_copy_failed",
        "Times that the audit's checkpoints could not be written to their second place.",
        registry=wiring.metrics.registry,
    )
    audit_key = load_public_key(wiring.settings, "audit")
    checkpoints = Checkpoints(wiring.settings.home / "audit" / "checkpoints.jsonl", audit_key)
    second_place = Path(settings.checkpoint_copy) if settings.checkpoint_copy else None
    sealer = Sealer(
        books=books,
        outboxes=OutboxClient(controls),
        services=AUDITED_SERVICES,
        checkpoints=checkpoints,
        private_key=load_private_key(wiring.settings, "audit"),
        checkpoint_interval_s=settings.checkpoint_interval_s,
        copy=None
        if second_place is None
        else CheckpointCopy(second_place, checkpoints, lambda path: Checkpoints(path, audit_key)),
        on_copy_failed=copy_failed.inc,
        on_sealed=events.sealed,
    )

    async def leave() -> None:
        gate.shut()
        plugins.end()
        await executor.close()
        await meter.settled()
        if not place.lost:
            await stop_thread.call(preemptor.announce_end())
            await sealer.close()

    wiring.on_stop(leave)
    servicer = SkillsServicer(
        registry=registry,
        plugins=plugins,
        desk=desk,
        scheduler=scheduler,
        pauses=Pauses(books, scheduler.poke),
        preemptor=preemptor,
        lockdown=lockdown,
        sealer=sealer,
        books=books,
        gate=gate,
        fences=fences,
    )
    wiring.authority = authority(wiring, grant_gate)
    tokens = await _local_tokens(wiring, books)
    wiring.spawn("register of tokens", tokens.keep_published)
    served = (servicer, AutonomyServicer(autonomy, books), TokensServicer(tokens, wiring.clock))
    for (add, name), made in zip(MAIN_SERVICES, served, strict=True):
        wiring.add(add, made, name)
    wiring.add_control(CONTROL_SERVICE[0], ControlServicer(preemptor, lockdown), CONTROL_SERVICE[1])

    async def tell_health(leading: bool) -> None:
        await wiring.say_healthy(leading, "the store does not confirm that this replica leads")

    wiring.spawn("lease", partial(place.keep, wiring.fail))
    wiring.spawn("lease watch", partial(place.watch, tell_health))
    wiring.spawn("activity relay", relay.run)
    wiring.spawn("scheduler", scheduler.run)
    wiring.spawn("monitor watch", scheduler.watch_monitor)
    wiring.spawn("sealer", sealer.run)
    return GuardrailRollback(
        autonomy=autonomy,
        registry=registry,
        planner=planner,
        proposals=proposals,
        executor=executor,
        gate=gate,
    )


async def _local_tokens(wiring: Wiring, books: Books) -> LocalTokens:
    """Local tokens; the register says before the first call what the database says."""
    plane = plane_id((wiring.settings.home / "ca" / "ca.pem").read_bytes())
    key = load_private_key(wiring.settings, "token")
    tokens = LocalTokens(books, RegisterWriter(wiring.settings.home / REGISTER, plane, key), plane)
    await tokens.begin()
    return tokens


async def _stop_port(dial: object, thread: StopThread) -> StopClient:
    """The stop channels, made on the loop on which they are used."""
    assert callable(dial)
    channels: dict[str, grpc.aio.Channel] = {
        service: dial(service, control=True) for service in ACTING_SERVICES
    }
    thread.on_close(partial(close_all, list(channels.values())))
    return StopClient(channels)


if __name__ == "__main__":
    raise SystemExit(run("skills", wire))
