"""What stands between the wire and a servicer: one wrapped handler a method.

    count in ▸ identity ▸ grant ▸ deadline ▸ decode, validate ▸ servicer ▸ encode ▸ status, metrics, log, span

grpc.aio's interceptors would be five awaits and five closures for each call; the concerns live in modules of
their own and meet here once. Requests are decoded here rather than by grpc, so that an unknown caller learns
nothing about what parses, and malformed bytes get a typed answer.
"""

from __future__ import annotations

import asyncio
import inspect
import secrets
import traceback
from collections.abc import AsyncIterator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, NoReturn, Protocol

import grpc
import structlog
from google.protobuf.message import Message

from nightshift_kit.canonical import digest_message
from nightshift_kit.clock import Clock
from nightshift_kit.errors import (
    CallerNotAllowed,
    Code,
    DeadlineRequired,
    IdentityMissing,
    Internal,
    NightshiftError,
)
from nightshift_kit.grants import FenceGate, Grant, GrantVerifier
from nightshift_kit.otlp import SpanSink
from nightshift_kit.rpc.access_log import AccessLog
from nightshift_kit.rpc.context import Call, enter_call
from nightshift_kit.rpc.decoding import decode
from nightshift_kit.rpc.errors import (
    DeadlinePassed,
    DependencyUnavailable,
    IdentityInvalid,
    MethodUnimplemented,
    NonFinite,
    RoleInsufficient,
)
from nightshift_kit.rpc.identity import (
    Identity,
    SpiffeInvalid,
    allows,
    identity_of_peer,
    lacks_role_only,
)
from nightshift_kit.rpc.metrics import RpcMetrics
from nightshift_kit.rpc.passage import REQUEST_ID_KEY, Passage, ServicerContext
from nightshift_kit.rpc.policies import Kind, MethodRule, PolicyMissing
from nightshift_kit.rpc.statuses import DETAILS_KEY, decode_error, render
from nightshift_kit.rpc.token_door import TokenDoor
from nightshift_kit.rpc.tracing import Tracing
from nightshift_kit.rpc.traffic import Traffic

# What a call without a deadline gets, so that plain grpcurl works and nothing waits for ever. Commands may
# take longer: one of them can wait for a whole skill run.
_ASSUMED_DEADLINE_S: Final = {
    Kind.READ: 10.0,
    Kind.PLATFORM_WRITE: 10.0,
    Kind.CONTROL: 10.0,
    Kind.COMMAND: 60.0,
}


class Works(Protocol):
    """Where running background calls are made known, so that a stop reaches them (see rpc.stop)."""

    def track_call(
        self, grant: Grant, name: str, interrupt: Callable[[NightshiftError], None]
    ) -> Callable[[], None]:
        """Registers a call; the answer is to be called when it has ended."""
        ...


@dataclass(frozen=True, slots=True)
class Authority:
    """What acting methods are checked with."""

    verifier: GrantVerifier
    gate: FenceGate
    works: Works


class Guard:
    """Wraps the handlers of one server."""

    def __init__(
        self,
        *,
        clock: Clock,
        insecure_allowed: bool,
        door: TokenDoor,
        authority: Authority | None,
        traffic: Traffic,
        metrics: RpcMetrics,
        spans: SpanSink | None = None,
    ) -> None:
        self._clock = clock
        self._insecure_allowed = insecure_allowed
        self._door = door
        self._authority = authority
        self._traffic = traffic
        self._metrics = metrics
        self._access_log = AccessLog()
        self._tracing = Tracing(spans) if spans is not None else None
        self._begins_trace = self._tracing.begins if self._tracing is not None else None
        self._logger: Any = structlog.get_logger()

    def handler(self, rule: MethodRule, behaviour: Callable[..., Any]) -> grpc.RpcMethodHandler[Any, Any]:
        """The handler to register instead of the servicer's own.

        Raises:
            PolicyMissing: an acting method with a request stream, or on a server that cannot check grants.
            TypeError: the servicer's method is not a coroutine function (unary answer) or an async generator
                (stream).
        """
        if rule.kind is Kind.ACTING and (self._authority is None or rule.client_streaming):
            raise PolicyMissing(f"{rule.name} acts, but this server cannot check its grants")
        behaviour = _checked(rule, behaviour)
        if rule.client_streaming and rule.server_streaming:
            return grpc.stream_stream_rpc_method_handler(self._streamed(rule, behaviour))
        if rule.server_streaming:
            return grpc.unary_stream_rpc_method_handler(self._streamed(rule, behaviour))
        if rule.client_streaming:
            return grpc.stream_unary_rpc_method_handler(self._single(rule, behaviour))
        return grpc.unary_unary_rpc_method_handler(self._single(rule, behaviour))

    def _single(self, rule: MethodRule, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """Handler with one answer."""
        assumed_s = None if rule.client_streaming else _ASSUMED_DEADLINE_S.get(rule.kind)

        async def serve(incoming: Any, context: ServicerContext) -> bytes:
            passage = Passage(rule, context, self._begins_trace)
            untrack: Callable[[], None] | None = None
            try:
                self._traffic.enter(passage)
                request, call, untrack = self._admit(passage, incoming)
                enter_call(call)
                if call.deadline_s is None and assumed_s is not None:
                    answer = await _within(assumed_s, behaviour(request, context))
                else:
                    answer = await behaviour(request, context)
                data: bytes = answer.SerializeToString()
            except asyncio.CancelledError:
                failure = self._cancelled(passage)
            except grpc.aio.AbortError:
                self._aborted(passage)
                raise
            except Exception as error:  # noqa: BLE001 - the one place where every error gets its status
                failure = self._failure(passage, error)
            else:
                self._succeed(passage)
                return data
            finally:
                if untrack is not None:
                    untrack()
                self._traffic.leave(passage)
            return await self._refuse(passage, failure)

        return serve

    def _streamed(self, rule: MethodRule, behaviour: Callable[..., Any]) -> Callable[..., Any]:
        """Handler with a stream of answers."""

        async def serve(incoming: Any, context: ServicerContext) -> AsyncIterator[bytes]:
            passage = Passage(rule, context, self._begins_trace)
            untrack: Callable[[], None] | None = None
            try:
                self._traffic.enter(passage)
                request, call, untrack = self._admit(passage, incoming)
                enter_call(call)
                async with aclosing(behaviour(request, context)) as answers:
                    async for answer in answers:
                        # A stream may last for days; a token ends when it ends.
                        self._door.check(call.identity)
                        yield answer.SerializeToString()
            except asyncio.CancelledError:
                failure = self._cancelled(passage)
            except GeneratorExit:
                # The caller left while gRPC was sending.
                self._finish(passage, "CANCELLED", "")
                raise
            except grpc.aio.AbortError:
                self._aborted(passage)
                raise
            except Exception as error:  # noqa: BLE001 - the one place where every error gets its status
                failure = self._failure(passage, error)
            else:
                self._succeed(passage)
                return
            finally:
                if untrack is not None:
                    untrack()
                self._traffic.leave(passage)
            await self._refuse(passage, failure)

        return serve

    def _admit(self, passage: Passage, incoming: Any) -> tuple[Any, Call, Callable[[], None] | None]:
        """Checks a call in the order identity, grant, deadline, validation; gives request and call."""
        rule = passage.rule
        identity = self._identify(passage)
        remaining_s = passage.context.time_remaining()
        call = Call(
            method=rule.name,
            identity=identity,
            request_id=passage.trace.request_id,
            trace_id=passage.trace.trace_id,
            deadline_s=remaining_s,
            clock=self._clock,
        )
        if rule.kind is Kind.ACTING:
            return self._admit_acting(passage, call, incoming)
        if rule.client_streaming:
            return _requests(rule.request_class, incoming), call, None
        return decode(rule.request_class, incoming), call, None

    def _admit_acting(
        self, passage: Passage, call: Call, incoming: bytes
    ) -> tuple[Message, Call, Callable[[], None]]:
        rule, authority = passage.rule, self._authority
        assert authority is not None
        assert rule.tier is not None
        grant = authority.verifier.verify(
            passage.grant_token,
            method=rule.name,
            tier=rule.tier,
            skills=rule.skills,
            plugins=rule.plugins,
            thumbprint=call.identity.thumbprint,
        )
        passage.skill, passage.skill_run = grant.skill, grant.skill_run
        request: Message | None = None
        problem: NightshiftError | None = None
        try:
            request = decode(rule.request_class, incoming)
            call.arguments_digest = _digest(request)
        except NightshiftError as error:
            # Said last: what is wrong with the grant or the deadline comes before.
            problem = error
        else:
            authority.verifier.check_arguments(grant, call.arguments_digest)
        # First known to the stop, then checked against the fence: a stop in between is noticed either way.
        untrack = authority.works.track_call(
            grant, f"{rule.name} {call.request_id}", passage.interrupt_threadsafe
        )
        try:
            authority.gate.check(grant)
            _require_deadline(call, rule)
            request = _or_raise(request, problem)
        except BaseException:
            untrack()
            raise
        call.grant = grant
        call.single_use = rule.single_use
        call.gate = authority.gate
        return request, call, untrack

    def _identify(self, passage: Passage) -> Identity:
        try:
            identity = identity_of_peer(
                passage.context.auth_context(),
                insecure_allowed=self._insecure_allowed,
                now=self._clock.now(),
            )
        except SpiffeInvalid as error:
            raise IdentityInvalid(f"The certificate is not usable here: {error}.") from error
        if passage.tokens:
            identity = self._door.admit(
                passage.tokens,
                identity,
                auth_context=passage.context.auth_context(),
                peer=passage.context.peer(),
            )
        if identity is None:
            raise IdentityMissing(
                "This service knows its callers by their certificates, or by a local token; none came."
            )
        passage.identity = identity
        callers = passage.rule.callers
        if not allows(callers, identity):
            metadata = {"caller": identity.actor, "callers": ", ".join(callers)}
            if lacks_role_only(callers, identity):
                raise RoleInsufficient(
                    f"{identity.actor} lacks the role for this: it takes {', '.join(callers)}.",
                    metadata=metadata,
                )
            raise CallerNotAllowed(
                f"{identity.actor} may not call this: it takes {', '.join(callers)}.", metadata=metadata
            )
        return identity

    def _cancelled(self, passage: Passage) -> NightshiftError:
        """Why the call was cancelled, where we did it. Goes on being cancelled where the caller left."""
        reason = passage.interruption()
        if reason is None:
            self._finish(passage, "CANCELLED", "")
            raise
        return reason

    def _failure(self, passage: Passage, error: Exception) -> NightshiftError:
        if isinstance(error, NightshiftError):
            return error
        if isinstance(error, grpc.aio.AioRpcError):
            return _relayed(error)
        if isinstance(error, NotImplementedError):
            return MethodUnimplemented(f"This server does not have {passage.rule.name}.")
        reference = secrets.token_hex(6)
        # As text: a logger that renders tracebacks with local variables would show the request.
        self._logger.error(
            "unexpected error",
            method=passage.rule.name,
            reference=reference,
            exception="".join(traceback.format_exception(error)),
        )
        return Internal(
            f"Something went wrong inside; the log has it under {reference}.",
            metadata={"reference": reference},
        )

    async def _refuse(self, passage: Passage, error: NightshiftError) -> NoReturn:
        code, message, details = render(error)
        self._door.note(passage, error)
        self._finish(passage, code.name, error.reason)
        await passage.context.abort(
            code, message, ((DETAILS_KEY, details), (REQUEST_ID_KEY, passage.trace.request_id))
        )

    def _succeed(self, passage: Passage) -> None:
        passage.context.set_trailing_metadata(((REQUEST_ID_KEY, passage.trace.request_id),))
        self._finish(passage, "OK", "")

    def _aborted(self, passage: Passage) -> None:
        code: Any = passage.context.code()
        self._finish(passage, getattr(code, "name", "UNKNOWN"), "")

    def _finish(self, passage: Passage, code: str, reason: str) -> None:
        duration_s = passage.finish()
        self._metrics.observe(passage.rule.name, code, reason, duration_s)
        self._access_log.write(passage, code, reason, duration_s)
        if self._tracing is not None:
            self._tracing.finished(passage, code, reason, duration_s)


def _require_deadline(call: Call, rule: MethodRule) -> None:
    if call.deadline_s is None and not rule.server_streaming:
        raise DeadlineRequired("Calls that act need a deadline.")


def _or_raise(request: Message | None, problem: NightshiftError | None) -> Message:
    if problem is not None:
        raise problem
    assert request is not None
    return request


async def _requests(request_class: type[Message], incoming: AsyncIterator[bytes]) -> AsyncIterator[Message]:
    async for data in incoming:
        yield decode(request_class, data)


async def _within(timeout_s: float, coroutine: Any) -> Any:
    try:
        async with asyncio.timeout(timeout_s) as limit:
            return await coroutine
    except TimeoutError as error:
        if limit.expired():
            raise DeadlinePassed(f"Not done within the {timeout_s:.0f} s that reads get.") from error
        raise


def _digest(request: Message) -> str:
    try:
        return digest_message(request)
    except ValueError as error:
        raise NonFinite("Arguments must be finite numbers and valid text.") from error


def _relayed(error: grpc.aio.AioRpcError) -> NightshiftError:
    """Passes on what a service that we called said; its transport's own words stay in the log."""
    rich = decode_error(error)
    if not rich.reason:
        return DependencyUnavailable(
            "A service that this call needs did not answer.", metadata={"code": rich.code.name}
        )
    # The class tells code and reason, and here they come from another process.
    kind = type("Relayed", (NightshiftError,), {"code": Code[rich.code.name], "reason": rich.reason})
    relayed: NightshiftError = kind(
        rich.message, metadata=rich.metadata, violations=rich.violations, retry_after_s=rich.retry_after_s
    )
    return relayed


def _checked(rule: MethodRule, behaviour: Callable[..., Any]) -> Callable[..., Any]:
    fits = inspect.isasyncgenfunction if rule.server_streaming else inspect.iscoroutinefunction
    if fits(behaviour):
        return behaviour
    if getattr(behaviour, "__module__", "").endswith("_pb2_grpc"):
        return _missing_stream if rule.server_streaming else _missing
    shape = "an async generator" if rule.server_streaming else "a coroutine function"
    raise TypeError(f"{rule.name}: the servicer's method must be {shape}")


async def _missing(_request: Any, _context: Any) -> Any:
    raise MethodUnimplemented("This server does not have the method.")


async def _missing_stream(_request: Any, _context: Any) -> AsyncIterator[Any]:
    for answer in [await _missing(_request, _context)]:
        yield answer
