"""Waiting for one's turn: what a replica serves, and refuses, while another one leads."""

from __future__ import annotations

from prometheus_client import Gauge

from nightshift.skills.v1 import (
    autonomy_service_pb2_grpc,
    control_service_pb2_grpc,
    skills_service_pb2_grpc,
    tokens_service_pb2_grpc,
)
from nightshift_kit.grants import FenceGate, GrantVerifier
from nightshift_kit.rpc.guard import Authority
from nightshift_kit.rpc.serve import Wiring
from nightshift_kit.rpc.server import AddToServer
from nightshift_kit.rpc.stop import StopHub
from nightshift_kit.rpc.tls import load_public_key
from nightshift_kit.storage import Database
from nightshift_skills.config import SkillsSettings
from nightshift_skills.leader import Leadership, LeaseRule
from nightshift_skills.replica import Replica

# Generated function and full name of each service.
MAIN_SERVICES: tuple[tuple[AddToServer, str], ...] = (
    (skills_service_pb2_grpc.add_SkillsServiceServicer_to_server, "nightshift.skills.v1.SkillsService"),
    (autonomy_service_pb2_grpc.add_AutonomyServiceServicer_to_server, "nightshift.skills.v1.AutonomyService"),
    (tokens_service_pb2_grpc.add_TokensServiceServicer_to_server, "nightshift.skills.v1.TokensService"),
)
CONTROL_SERVICE: tuple[AddToServer, str] = (
    control_service_pb2_grpc.add_ControlServiceServicer_to_server,
    "nightshift.skills.v1.ControlService",
)


async def leading(wiring: Wiring, settings: SkillsSettings) -> Leadership:
    """Returns when this replica leads; refuses all calls while another one does.

    Raises:
        Withdrawn: the service is to stop; let it through.
        NightshiftError: the store cannot be opened.
    """
    db = wiring.database(
        Database(settings.database_url, migrations="nightshift_skills", name="skills", readers=1)
    )
    port, control_port = wiring.settings.port("skills"), wiring.settings.control_port("skills")
    replica = Replica.here(f"127.0.0.1:{port}", f"127.0.0.1:{control_port}")
    place = Leadership(db, wiring.clock, replica, LeaseRule(settings.leader_lease_s))
    wiring.on_stop(place.leave)
    Gauge(
        "nightshift_skills_leading",
        "Whether this replica leads (1) or not (0).",
        registry=wiring.metrics.registry,
    ).set_function(lambda: float(place.leading))
    if not await place.begin():
        wiring.authority = authority(wiring, FenceGate(db, wiring.clock))
        await wiring.stand_by(
            place.follow, refusal=place.refusal, main=MAIN_SERVICES, control=(CONTROL_SERVICE,)
        )
    return place


def authority(wiring: Wiring, gate: FenceGate) -> Authority:
    """What skills' own acting method is checked with."""
    verifier = GrantVerifier(load_public_key(wiring.settings, "grant"), "skills", wiring.clock)
    return Authority(verifier, gate, StopHub(gate, wiring.clock))
