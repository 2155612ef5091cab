"""Ids: UUIDv7, so that they sort by the time of their making."""

from __future__ import annotations

import re
from collections.abc import Callable

import uuid_utils

from nightshift_kit.errors import IdInvalid

IdFactory = Callable[[], str]

_UUID = re.compile(r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}", re.ASCII)


def new_id() -> str:
    """A fresh UUIDv7 in its 36-character lower-case form."""
    return str(uuid_utils.uuid7())


def check_id(value: str, field: str) -> str:
    """Give ``value`` back if it is a UUID in its 36-character lower-case form.

    Args:
        value: What a caller sent.
        field: Where it stood, for the error.

    Raises:
        IdInvalid: It is not.
    """
    if not _UUID.fullmatch(value):
        raise IdInvalid.at(field, "expected a UUID in lower case with hyphens")
    return value
