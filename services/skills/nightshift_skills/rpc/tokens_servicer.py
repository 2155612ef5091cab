"""TokensService: validate, one call of the core, render."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Any

from nightshift.skills.v1 import tokens_service_pb2 as pb
from nightshift.skills.v1 import tokens_service_pb2_grpc as pb_grpc
from nightshift_kit.clock import Clock
from nightshift_kit.errors import EnumRequired, FieldInvalid
from nightshift_kit.rpc.context import current_call
from nightshift_skills.errors import CertificateRequired
from nightshift_skills.local_tokens import LocalTokens
from nightshift_skills.resources import TokenName
from nightshift_skills.rpc import render, requests
from nightshift_skills.token_records import TokenRecord

_ROLES = {
    pb.PERSON_ROLE_VIEWER: "viewer",
    pb.PERSON_ROLE_APPROVER: "approver",
    pb.PERSON_ROLE_ADMIN: "admin",
}


class TokensServicer(pb_grpc.TokensServiceServicer):
    """The methods of TokensService."""

    def __init__(self, tokens: LocalTokens, clock: Clock) -> None:
        self._tokens = tokens
        self._clock = clock

    async def CreateToken(self, request: pb.CreateTokenRequest, context: Any) -> pb.CreateTokenResponse:
        """See the proto."""
        issuer = current_call().identity
        if issuer.token:
            # A stolen token must not be able to make itself successors.
            raise CertificateRequired("A token issues no token: come with an admin's certificate.")
        record, secret = await self._tokens.create(
            person=request.person,
            role=_role(request.role),
            ttl=_ttl(request),
            display_name=request.display_name,
            issuer=issuer.spiffe,
        )
        return pb.CreateTokenResponse(token=rendered(record, self._clock.now()), secret=secret)

    async def GetToken(self, request: pb.GetTokenRequest, context: Any) -> pb.LocalToken:
        """See the proto."""
        record = await self._tokens.get(TokenName.parse(request.name).id, current_call().identity.spiffe)
        return rendered(record, self._clock.now())

    async def ListTokens(self, request: pb.ListTokensRequest, context: Any) -> pb.ListTokensResponse:
        """See the proto."""
        page = requests.Page(
            request.page_size, request.page_token, str, of="tokens", active=request.active_only
        )
        rows = await self._tokens.page(
            current_call().identity.spiffe,
            active_only=request.active_only,
            before=page.after_text,
            limit=page.limit + 1,
        )
        rows, token = page.cut(rows, lambda row: row.id)
        now = self._clock.now()
        return pb.ListTokensResponse(tokens=[rendered(row, now) for row in rows], next_page_token=token)

    async def RevokeToken(self, request: pb.RevokeTokenRequest, context: Any) -> pb.LocalToken:
        """See the proto."""
        by = current_call().identity.spiffe
        return rendered(await self._tokens.revoke(TokenName.parse(request.name).id, by), self._clock.now())


def rendered(record: TokenRecord, now: datetime) -> pb.LocalToken:
    """A token without its secret."""
    return pb.LocalToken(
        name=record.name,
        state=pb.LocalTokenState.Value(f"LOCAL_TOKEN_STATE_{record.state(now).value}"),
        person=record.person,
        role=pb.PersonRole.Value(f"PERSON_ROLE_{record.role.upper()}"),
        display_name=record.display_name,
        issuer=record.issuer,
        create_time=render.timestamp(record.create_time),
        expire_time=render.timestamp(record.expire_time),
        revoke_time=render.timestamp(record.revoke_time),
        revoker=record.revoker,
    )


def _role(value: pb.PersonRole.ValueType) -> str:
    if value == pb.PERSON_ROLE_UNSPECIFIED:
        raise EnumRequired.at("role", "say PERSON_ROLE_VIEWER, PERSON_ROLE_APPROVER or PERSON_ROLE_ADMIN")
    return _ROLES[value]


def _ttl(request: pb.CreateTokenRequest) -> timedelta:
    try:
        return request.ttl.ToTimedelta()
    except (ValueError, OverflowError) as error:
        raise FieldInvalid.at("ttl", "no span of time") from error
