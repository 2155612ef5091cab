"""The policy of each method, read from the descriptors when a server is built.

Every method carries the option `(nightshift.type.v1.policy)`; a server with a method that lacks it, or whose
policy makes no sense, is not built. The standard services (health, reflection, channelz) are exempt.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from google.protobuf import descriptor_pool, message_factory
from google.protobuf.descriptor import MethodDescriptor
from google.protobuf.message import Message

from nightshift.type.v1 import policy_pb2
from nightshift_kit.grants import Tier
from nightshift_kit.rpc.identity import is_pattern


class PolicyMissing(RuntimeError):
    """A method without a usable policy; the server does not start."""


class Kind(Enum):
    """What calling a method amounts to (nightshift.type.v1.MethodKind)."""

    READ = policy_pb2.METHOD_KIND_READ
    PLATFORM_WRITE = policy_pb2.METHOD_KIND_PLATFORM_WRITE
    ACTING = policy_pb2.METHOD_KIND_ACTING
    COMMAND = policy_pb2.METHOD_KIND_COMMAND
    CONTROL = policy_pb2.METHOD_KIND_CONTROL


@dataclass(frozen=True, slots=True)
class MethodRule:
    """All that the guard must know about one method.

    Attributes:
        path: As on the wire ("/nightshift.lab.v1.LabService/PromoteProposal").
        name: As in a grant's scope ("nightshift.lab.v1.LabService/PromoteProposal").
        callers: Patterns; empty means anybody known.
        tier: Lowest tier of a grant, for acting methods.
        skills: Resource names of the skills whose grants may name it ("skills/promote_config").
        plugins: Whether grants of plug-in skills may name it too.
    """

    path: str
    name: str
    kind: Kind
    request_class: type[Message]
    response_class: type[Message]
    client_streaming: bool
    server_streaming: bool
    callers: tuple[str, ...] = ()
    tier: Tier | None = None
    skills: frozenset[str] = frozenset()
    single_use: bool = False
    plugins: bool = False


def rules_of(full_name: str) -> dict[str, MethodRule]:
    """Rules of all methods of a service, by method name.

    Args:
        full_name: Of the service ("nightshift.lab.v1.LabService"); its module must be imported.

    Raises:
        PolicyMissing: a method has no policy, or one that makes no sense.
    """
    service = descriptor_pool.Default().FindServiceByName(full_name)
    return {method.name: _rule(method) for method in service.methods}


def _rule(method: MethodDescriptor) -> MethodRule:
    name = f"{method.containing_service.full_name}/{method.name}"
    options = method.GetOptions()
    if not options.HasExtension(policy_pb2.policy):
        raise PolicyMissing(f"{name} carries no (nightshift.type.v1.policy)")
    policy = options.Extensions[policy_pb2.policy]
    try:
        kind = Kind(policy.kind)
    except ValueError:
        raise PolicyMissing(f"{name} says no kind in its policy") from None
    unknown = [pattern for pattern in policy.callers if not is_pattern(pattern)]
    if unknown:
        raise PolicyMissing(f"{name} names callers that nobody knows: {', '.join(unknown)}")
    tier = None
    if kind is Kind.ACTING:
        if policy.tier == policy_pb2.TIER_UNSPECIFIED or not policy.skill:
            raise PolicyMissing(f"{name} acts, but its policy lacks the tier or the skill")
        tier = Tier(policy.tier)
    elif policy.tier or policy.skill or policy.also_skills or policy.single_use or policy.plugins:
        raise PolicyMissing(f"{name} has a tier, a skill or single_use, but is no acting method")
    if kind in {Kind.PLATFORM_WRITE, Kind.COMMAND, Kind.CONTROL} and not policy.callers:
        raise PolicyMissing(f"{name} changes something, but does not say who may call it")
    return MethodRule(
        path=f"/{name}",
        name=name,
        kind=kind,
        request_class=message_factory.GetMessageClass(method.input_type),
        response_class=message_factory.GetMessageClass(method.output_type),
        client_streaming=method.client_streaming,
        server_streaming=method.server_streaming,
        callers=tuple(policy.callers),
        tier=tier,
        skills=frozenset(f"skills/{skill}" for skill in (policy.skill, *policy.also_skills) if skill),
        single_use=policy.single_use,
        plugins=policy.plugins,
    )
