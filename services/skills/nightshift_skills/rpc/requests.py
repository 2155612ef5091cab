"""Checks of requests that are the same for several methods."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any

from google.protobuf import json_format
from google.protobuf.struct_pb2 import Struct

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.skills.v1 import skills_service_pb2 as pb
from nightshift_kit.errors import EnumRequired, EnumUnknown, FieldInvalid
from nightshift_kit.ids import check_id
from nightshift_kit.pages import Scalar, decode_token, encode_token, page_size, query_digest
from nightshift_kit.rpc.errors import NonFinite, RoleInsufficient
from nightshift_kit.rpc.identity import Identity
from nightshift_skills.activity import MOST_REPORTS
from nightshift_skills.approvals import ApprovalState
from nightshift_skills.skill import Skill

_KIND = re.compile(r"[a-z_]{1,32}")
_KIND_PREFIX = re.compile(r"[a-z0-9_.]{0,64}")
_DIGEST = re.compile(r"[0-9a-f]{64}")
_LONGEST_COMMENT = 4_000
_LONGEST_RUN_ID = 256


class Page:
    """Size and position of a page of a listing whose order is one column's."""

    def __init__(self, size: int, token: str, kind: type, **query: object) -> None:
        self.limit = page_size(size)
        self._digest = query_digest(**query)
        position = decode_token(token, self._digest, [kind])
        self._after: Scalar = None if position is None else position[0]

    @property
    def after_text(self) -> str:
        """Position as text; "" for the first page."""
        return "" if self._after is None else str(self._after)

    @property
    def after_number(self) -> int:
        """Position as a number; 0 for the first page."""
        return self._after if isinstance(self._after, int) else 0

    def cut(self, rows: list[Any], position: Any) -> tuple[list[Any], str]:
        """The page of one row too many, and the token of the next."""
        if len(rows) <= self.limit:
            return rows, ""
        rows = rows[: self.limit]
        return rows, encode_token([position(rows[-1])], self._digest)


def parameters(message: Struct) -> dict[str, Any]:
    """Parameters of a skill as JSON. Raises NonFinite for a number that JSON has not."""
    try:
        found = json_format.MessageToDict(message)
    except ValueError as error:
        raise NonFinite.at("parameters", "numbers must be finite") from error
    return {str(key): value for key, value in found.items()}


def digest(value: str, field: str) -> str:
    """A digest in hex, or ""."""
    if value and not _DIGEST.fullmatch(value):
        raise FieldInvalid.at(field, "expected 64 lower-case hex digits")
    return value


def request_id(value: str) -> str:
    """A UUID, or ""."""
    return check_id(value, "request_id") if value else ""


def comment(value: str) -> str:
    """A person's words."""
    if len(value) > _LONGEST_COMMENT or "\0" in value:
        raise FieldInvalid.at("comment", f"at most {_LONGEST_COMMENT} characters, none of them NUL")
    return value


def pausing(request: pb.UpdateScheduleRequest, identity: Identity) -> str:
    """Who pauses or resumes. Raises RoleInsufficient: resuming loosens, which an admin alone may."""
    if not request.paused and identity.role != "admin":
        raise RoleInsufficient(f"{identity.actor} lacks the role for this: resuming takes person:admin.")
    return identity.spiffe


def planning(skill: Skill, identity: Identity) -> Skill:
    """The skill, for a dry run. Raises RoleInsufficient: what asks a paid model takes an approver."""
    if skill.plan_spends and identity.kind == "person" and identity.role == "viewer":
        raise RoleInsufficient(
            f"{identity.actor} lacks the role for this: planning {skill.name} may ask a paid model, "
            "which takes person:approver."
        )
    return skill


def kind_prefix(value: str) -> str:
    """Beginning of a kind of audit events, or ""."""
    if not _KIND_PREFIX.fullmatch(value):
        raise FieldInvalid.at("kind_prefix", "expected at most 64 of [a-z0-9_.]")
    return value


def after_seq(value: int) -> int:
    """A position of a stream."""
    if value < 0:
        raise FieldInvalid.at("after_seq", "must not be negative")
    return value


def approve(value: int) -> bool:
    """Whether a decision approves."""
    if value == pb.DECISION_UNSPECIFIED:
        raise EnumRequired.at("decision", "say DECISION_APPROVE or DECISION_DENY")
    if value not in (pb.DECISION_APPROVE, pb.DECISION_DENY):
        raise EnumUnknown.at("decision", f"there is no decision {value}")
    return value == pb.DECISION_APPROVE


def approval_state(value: int) -> ApprovalState | None:
    """A filter by state; None for all."""
    if value == types.APPROVAL_STATE_UNSPECIFIED:
        return None
    if value not in types.ApprovalState.values():
        raise EnumUnknown.at("state", f"there is no state {value}")
    name = types.ApprovalState.Name(types.ApprovalState.ValueType(value))
    return ApprovalState(name.removeprefix("APPROVAL_STATE_"))


def activity(report: pb.ReportActivityRequest) -> tuple[str, datetime | None, int, str]:
    """Kind, send time, count and run id of a report.

    Raises:
        FieldInvalid: naming the field.
    """
    kind = report.kind or "request"
    if not _KIND.fullmatch(kind):
        raise FieldInvalid.at("kind", "expected at most 32 of [a-z_]")
    if not 0 <= report.count <= MOST_REPORTS:
        raise FieldInvalid.at("count", f"0 to {MOST_REPORTS}")
    if len(report.run_id) > _LONGEST_RUN_ID or not (report.run_id or "x").isprintable():
        raise FieldInvalid.at("run_id", f"at most {_LONGEST_RUN_ID} printable characters")
    sent: datetime | None = None
    if report.HasField("send_time"):
        try:
            sent = report.send_time.ToDatetime(tzinfo=UTC)
        except (ValueError, OverflowError) as error:
            raise FieldInvalid.at("send_time", "no instant of the years 1 to 9999") from error
    return kind, sent, report.count or 1, report.run_id
