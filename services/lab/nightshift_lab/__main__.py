"""Runs the lab: ``python -m nightshift_lab``. The only place where its objects meet."""

from __future__ import annotations

import asyncio

from nightshift.lab.v1 import lab_service_pb2_grpc
from nightshift_kit.audit import Outbox
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.serve import Wiring, run
from nightshift_kit.safe_files import FileEffects
from nightshift_kit.settings import service_settings
from nightshift_kit.storage import Database

from .config import LabSettings
from .platform import Production, open_root
from .promotions import Promotions
from .proposals import Proposals
from .rpc.servicer import LabServicer

SERVICE = "nightshift.lab.v1.LabService"


async def wire(wiring: Wiring) -> None:
    """Makes the lab's objects and puts them where they belong."""
    settings = service_settings(LabSettings, "lab", wiring.settings)
    wiring.settings.service_home("lab").mkdir(mode=0o700, parents=True, exist_ok=True)
    root = open_root(wiring.settings.platform_root)
    wiring.on_stop(root.close)
    db = wiring.database(Database(settings.database_url, migrations="nightshift_lab", name="lab"))
    wiring.acting(db)
    production = Production(root)
    outbox = Outbox("lab", wiring.clock)
    effects = FileEffects(root, db, clock=wiring.clock)
    promotions = Promotions(db, effects, production, outbox, wiring.clock, new_id)
    wiring.on_stop(promotions.close)
    proposals = Proposals(db, production, outbox, wiring.clock, new_id)
    # What a crash left between commit and rename, before anybody asks.
    await asyncio.to_thread(promotions.recover)

    async def watch_files() -> None:
        # Looked at from time to time: the flag is set by whatever thread met the failing disk.
        while effects.healthy:  # noqa: ASYNC110
            await asyncio.sleep(1.0)
        raise RuntimeError(effects.problem)

    wiring.spawn("files", watch_files)
    wiring.add(
        lab_service_pb2_grpc.add_LabServiceServicer_to_server,
        LabServicer(proposals, promotions, production),
        SERVICE,
    )


if __name__ == "__main__":
    raise SystemExit(run("lab", wire))
