"""A method without a usable policy keeps its server from being built; our own methods all have one."""

from __future__ import annotations

import asyncio
import importlib
import itertools
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool

from nightshift.type.v1 import policy_pb2
from nightshift_kit.clock import SystemClock
from nightshift_kit.grants import Tier
from nightshift_kit.rpc.policies import Kind, PolicyMissing, rules_of
from nightshift_kit.rpc.server import ServerBuilder
from nightshift_kit.rpc.tls import ensure_home
from nightshift_kit.settings import PlaneSettings

_NUMBERS = itertools.count()


def service_with(policy: policy_pb2.MethodPolicy | None) -> str:
    """A service made on the spot, with one method."""
    package = f"made.p{next(_NUMBERS)}"
    file = descriptor_pb2.FileDescriptorProto(
        name=f"{package}.proto",
        package=package,
        syntax="proto3",
        dependency=["google/protobuf/empty.proto", "nightshift/type/v1/policy.proto"],
    )
    importlib.import_module("google.protobuf.empty_pb2")
    method = file.service.add(name="Made").method.add(
        name="Do", input_type=".google.protobuf.Empty", output_type=".google.protobuf.Empty"
    )
    if policy is not None:
        method.options.Extensions[policy_pb2.policy].CopyFrom(policy)
    descriptor_pool.Default().AddSerializedFile(file.SerializeToString())
    return f"{package}.Made"


BAD = {
    "none": None,
    "no kind": policy_pb2.MethodPolicy(callers=["any"]),
    "unknown kind": policy_pb2.MethodPolicy(kind=99),  # type: ignore[arg-type]
    "unknown caller": policy_pb2.MethodPolicy(kind=policy_pb2.METHOD_KIND_READ, callers=["everybody"]),
    "unknown role": policy_pb2.MethodPolicy(kind=policy_pb2.METHOD_KIND_COMMAND, callers=["person:king"]),
    "acting without tier": policy_pb2.MethodPolicy(kind=policy_pb2.METHOD_KIND_ACTING, skill="x"),
    "acting without skill": policy_pb2.MethodPolicy(
        kind=policy_pb2.METHOD_KIND_ACTING, tier=policy_pb2.TIER_AUTO
    ),
    "a read with a tier": policy_pb2.MethodPolicy(
        kind=policy_pb2.METHOD_KIND_READ, tier=policy_pb2.TIER_AUTO
    ),
    "a write for anybody": policy_pb2.MethodPolicy(kind=policy_pb2.METHOD_KIND_PLATFORM_WRITE),
    "a command for anybody": policy_pb2.MethodPolicy(kind=policy_pb2.METHOD_KIND_COMMAND),
}


@pytest.mark.parametrize("policy", BAD.values(), ids=BAD.keys())
def test_refused(policy: policy_pb2.MethodPolicy | None, tmp_path: Path) -> None:
    name = service_with(policy)
    with pytest.raises(PolicyMissing, match=name):
        rules_of(name)
    settings = PlaneSettings(home=tmp_path / "home")
    ensure_home(settings)

    async def build() -> None:
        with pytest.raises(PolicyMissing):
            ServerBuilder("lab", settings, clock=SystemClock()).add(lambda *_: None, object(), name)

    asyncio.run(build())


@pytest.mark.parametrize(
    ("module", "services"),
    [
        ("nightshift.monitor.v1.monitor_service_pb2", ["nightshift.monitor.v1.MonitorService"]),
        ("nightshift.experience.v1.experience_service_pb2", ["nightshift.experience.v1.ExperienceService"]),
        ("nightshift.lab.v1.lab_service_pb2", ["nightshift.lab.v1.LabService"]),
        ("nightshift.trainer.v1.trainer_service_pb2", ["nightshift.trainer.v1.TrainerService"]),
        ("nightshift.skills.v1.skills_service_pb2", ["nightshift.skills.v1.SkillsService"]),
        (
            "nightshift.skills.v1.control_service_pb2",
            [f"nightshift.skills.v1.{name}Service" for name in ("Control", "Stop", "Outbox")],
        ),
    ],
)
def test_every_method_of_the_product_has_one(module: str, services: list[str]) -> None:
    importlib.import_module(module)
    for service in services:
        rules = rules_of(service)
        assert rules
        for rule in rules.values():
            assert (rule.kind is Kind.ACTING) == bool(rule.skills) == (rule.tier is not None)
            # What needs a person's approval happens once for it.
            if rule.tier is not None and rule.tier > Tier.AUTO:
                assert rule.single_use, rule.name


def test_what_a_rule_says() -> None:
    importlib.import_module("nightshift.trainer.v1.trainer_service_pb2")
    rule = rules_of("nightshift.trainer.v1.TrainerService")["ResumeTrainingJob"]
    assert rule.path == "/nightshift.trainer.v1.TrainerService/ResumeTrainingJob"
    assert rule.skills == {"skills/resume_training", "skills/train_adapter"}
    assert (rule.tier, rule.single_use, rule.server_streaming) == (Tier.CONFIRM, True, False)


async def test_a_servicer_of_the_wrong_shape_is_refused(tmp_path: Path) -> None:
    from nightshift.monitor.v1 import monitor_service_pb2_grpc as pb_grpc

    class Blocking(pb_grpc.MonitorServiceServicer):
        def GetStatus(self, request: Any, context: Any) -> Any:
            return None

    settings = PlaneSettings(home=tmp_path / "home")
    ensure_home(settings)
    builder = ServerBuilder("monitor", settings, clock=SystemClock())
    with pytest.raises(TypeError, match="GetStatus: the servicer's method must be a coroutine function"):
        builder.add(
            pb_grpc.add_MonitorServiceServicer_to_server,
            Blocking(),  # type: ignore[abstract]
            "nightshift.monitor.v1.MonitorService",
        )
