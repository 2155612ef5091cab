"""Runs the lab: ``python -m nightshift_lab``. The only place where its objects meet."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable

import structlog

from nightshift.lab.v1 import lab_service_pb2_grpc
from nightshift_kit.audit import Outbox
from nightshift_kit.ids import new_id
from nightshift_kit.llm import LlmClient
from nightshift_kit.rpc.serve import Wiring, run
from nightshift_kit.safe_files import FileEffects
from nightshift_kit.settings import service_settings
from nightshift_kit.storage import Database

from .catalog import Catalog
from .changes import Changes
from .config import LabSettings
from .errors import PlatformMissing
from .platform import NoProduction, Production, open_root
from .promotions import Promotions
from .proposals import Proposals
from .reports import Reports
from .rpc.servicer import LabServicer
from .rpc.stoppable import Stoppable
from .translation.drafting import Drafting
from .translation.revisions import Revisions

SERVICE = "nightshift.lab.v1.LabService"


async def wire(wiring: Wiring) -> None:
    """Makes the lab's objects and puts them where they belong."""
    settings = service_settings(LabSettings, "lab", wiring.settings)
    wiring.settings.service_home("lab").mkdir(mode=0o700, parents=True, exist_ok=True)
    db = wiring.database(Database(settings.database_url, migrations="nightshift_lab", name="lab"))
    hub = wiring.acting(db)
    outbox = Outbox("lab", wiring.clock)
    production: Callable[[], Catalog]
    effects: FileEffects | None = None
    try:
        root = open_root(wiring.settings.platform_root)
    except PlatformMissing as problem:
        structlog.get_logger("nightshift.lab").warning("no_platform", problem=problem.message, show=True)
        production = NoProduction(problem)
    else:
        wiring.on_stop(root.close)
        production = Production(root)
        effects = FileEffects(root, db, clock=wiring.clock)
        wiring.spawn("files", functools.partial(_watch, effects))
    changes = Changes(db, effects, production, outbox, wiring.clock)
    promotions = Promotions(db, changes, wiring.clock, new_id)
    wiring.on_stop(changes.close)
    proposals = Proposals(db, production, outbox, wiring.clock, new_id)
    llm = LlmClient(settings.llm)
    wiring.on_stop(llm.close)
    drafting = Drafting(db, production, llm, settings.llm_budget_usd_per_day, outbox, wiring.clock)
    # What a crash left between commit and rename, before anybody asks.
    await asyncio.to_thread(changes.recover)
    wiring.add(
        lab_service_pb2_grpc.add_LabServiceServicer_to_server,
        LabServicer(
            proposals,
            promotions,
            production,
            Reports(db, production, outbox, wiring.clock),
            drafting,
            Revisions(changes, wiring.clock, new_id),
            Stoppable(hub),
        ),
        SERVICE,
    )


async def _watch(effects: FileEffects) -> None:
    """Ends, and makes the service NOT_SERVING, when files can no longer be changed."""
    # Looked at from time to time: the flag is set by whatever thread met the failing disk.
    while effects.healthy:  # noqa: ASYNC110
        await asyncio.sleep(1.0)
    raise RuntimeError(effects.problem)


if __name__ == "__main__":
    raise SystemExit(run("lab", wire))
