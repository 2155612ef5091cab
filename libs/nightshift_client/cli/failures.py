"""Errors of the plane in words: what it is, what happened, what to do."""

from __future__ import annotations

from typing import Any

from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from nightshift_client.cli.session import EXIT_REFUSED, EXIT_UNREACHABLE, CommandFailed

_ROLE = "This needs another role: nightshift credentials create person NAME --role approver|admin, or a token"
ADVICE = {
    "APPROVAL_DECIDED": "Look at it with: nightshift approvals show APPROVAL",
    "APPROVAL_EXPIRED": "Run the skill again; it asks anew.",
    "AUDIT_UNAVAILABLE": "Free space and check the plane with: nightshift status",
    "CALLER_NOT_ALLOWED": _ROLE,
    "CERTIFICATE_REQUIRED": "Leave NIGHTSHIFT_CLIENT_TOKEN_FILE out, and come with an admin's certificate.",
    "CONFIG_EXISTS": "Choose another id: production's configs are never overwritten.",
    "CONTENT_CHANGED": "Look at the proposal again: nightshift lab show PROPOSAL",
    "COOLDOWN": "See when it may run again with: nightshift skills schedule",
    "CORPUS_CHANGED": "The dataset is not the one of the plan: plan again.",
    "DB_BUSY": "Try again in a moment.",
    "DIRECTORY_NOT_FOUND": "Name the folder that holds exports/json; the plane must be able to read it.",
    "DISK_FULL": "Free some space; nothing of the call was done.",
    "DRAINING": "The plane is stopping; start it with: nightshift up",
    "DRIFT_DETECTED": "Somebody else changed the file. Compare and put it right by hand, or leave it.",
    "ETAG_MISMATCH": "It changed since you looked: look again and repeat.",
    "GLOBAL_LOCK": "An admin lifts the lock with: nightshift unlock",
    "GPU_BUSY": "One training at a time: nightshift train list",
    "GRANT_MISSING": "Acting goes through skills: nightshift skills run SKILL",
    "IMPORT_RUNNING": "Wait for the running import, or follow it with: nightshift import --watch",
    "INCIDENT_ACKNOWLEDGED": "Somebody is at it: nightshift incidents show INCIDENT",
    "INCIDENT_RESOLVED": "It is over: nightshift incidents list",
    "INCIDENT_UNKNOWN": "See them with: nightshift incidents list --state all",
    "JOB_STATE": "See its state with: nightshift train list",
    "MODEL_UNAVAILABLE": "The embedding process starts anew; try again in a few seconds.",
    "NOT_FOUND": "Names as an earlier answer gave them; lists: nightshift --help",
    "PLATFORM_MISSING": "Stop the plane, set NIGHTSHIFT_PLATFORM_ROOT (or platform_root in section [plane] of"
    " settings.toml), and start it again.",
    "OVERLOADED": "Try again in a moment.",
    "PARAMETERS_INVALID": "See what it takes with: nightshift skills show SKILL",
    "PLAN_EXPIRED": "Run the skill again; it plans anew.",
    "PLAN_CHANGED": "The plan is another one by now: look at it again and confirm that one.",
    "PREEMPTED": "A user is here. It goes on by itself after quiet.",
    "PROTECTED_FILE": "This file is never changed by the plane, whoever asks.",
    "ROLE_INSUFFICIENT": _ROLE,
    "SELF_APPROVAL": "Somebody else must approve this.",
    "SKILL_MODIFIED": "The skill's code changed since the start: restart the plane.",
    "SKILL_UNKNOWN": "See them with: nightshift skills list",
    "STANDBY": "No replica leads at this moment; try again in a few seconds.",
    "STORAGE_READ_ONLY": "The store takes no writes; see the service's log and restart it.",
    "TOKENS_NOT_PUBLISHED": "It is tried again each second; free space and look at: nightshift status",
    "TOKEN_EXPIRED": "An admin issues another: nightshift tokens create PERSON",
    "TOKEN_FOREIGN": "It is for another plane: name that one's folder with --home.",
    "TOKEN_INVALID": "Put the whole token, and nothing else, into the file of NIGHTSHIFT_CLIENT_TOKEN_FILE.",
    "TOKEN_REVOKED": "An admin issues another: nightshift tokens create PERSON",
    "TOKEN_UNKNOWN": "An admin sees those that are good: nightshift tokens list",
    "USER_ACTIVE": "Users go first. What is missing: nightshift activity",
}
UNREACHABLE = frozenset({"UNAVAILABLE", "DEADLINE_EXCEEDED", "CANCELLED"})


def failure(error: Any, service: str) -> CommandFailed:
    """The words for a failed call."""
    code = error.code().name if error.code() is not None else "UNKNOWN"
    message, reason, metadata, fields = _details(error)
    lines = [message or error.details() or code]
    lines += [f"  {violation.field}: {violation.description}" for violation in fields]
    text = "\n".join(line for index, line in enumerate(lines) if index == 0 or line.strip() not in lines[0])
    if not reason and code in UNREACHABLE:
        what = "did not answer in time" if code == "DEADLINE_EXCEEDED" else "cannot be reached"
        return CommandFailed(
            EXIT_UNREACHABLE,
            f"{service} {what} ({text})",
            reason="UNREACHABLE",
            advice="See what runs with: nightshift status; start the plane with: nightshift up --detach",
            code=code,
        )
    return CommandFailed(
        EXIT_REFUSED,
        text,
        reason=reason or code,
        advice=ADVICE.get(reason, ""),
        code=code,
        metadata=metadata,
    )


def _details(error: Any) -> tuple[str, str, dict[str, str], list[Any]]:
    """Message, reason, metadata and field violations of a rich error; empty where there is none."""
    for key, value in error.trailing_metadata() or ():
        if key != "grpc-status-details-bin":
            continue
        try:
            status = status_pb2.Status.FromString(value)
            info, bad_request = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
            for detail in status.details:
                if detail.Is(error_details_pb2.ErrorInfo.DESCRIPTOR):
                    detail.Unpack(info)
                elif detail.Is(error_details_pb2.BadRequest.DESCRIPTOR):
                    detail.Unpack(bad_request)
        except DecodeError:
            break
        return status.message, info.reason, dict(info.metadata), list(bad_request.field_violations)
    return "", "", {}, []
