"""Pages: opaque tokens that fit one query, and the size of a page."""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
from collections.abc import Sequence

from nightshift_kit.canonical import canonical_json, digest_json
from nightshift_kit.errors import PageSizeInvalid, PageTokenInvalid

Scalar = str | int | float | bool | None

_TAG_BYTES = 8
_LONGEST_TOKEN = 4096
_INT64 = 2**63


def query_digest(**query: object) -> str:
    """Digest of what makes a query: parent, filter, order, the caller's view; never the page size.

    Args:
        **query: JSON values by name.
    """
    return digest_json(query)


def encode_token(position: Sequence[Scalar], digest: str) -> str:
    """Token for the page after ``position``.

    Args:
        position: Sort key of the last row sent, such as (created_us, run_id).
        digest: ``query_digest`` of the query that the page belongs to.

    Returns:
        URL-safe text. It holds no secret: a caller may read the position of a row it was shown.
    """
    body = canonical_json(list(position))
    return base64.urlsafe_b64encode(_tag(body, digest) + body).rstrip(b"=").decode("ascii")


def decode_token(
    token: str, digest: str, kinds: Sequence[type], *, field: str = "page_token"
) -> tuple[Scalar, ...] | None:
    """Position that a token stands for.

    Args:
        token: As the caller sent it; "" means the first page.
        digest: ``query_digest`` of the query that it came with.
        kinds: Type of each element of the position: str, int, float, bool or type(None). Nothing else passes,
            so that a forged token cannot put a value of another type into a query.
        field: Name of the field, for the error.

    Returns:
        The position, or None for the first page.

    Raises:
        PageTokenInvalid: Not one of ours, or of another query.
    """
    if not token:
        return None
    refused = PageTokenInvalid.at(field, "not a token of this query; start again without one")
    if len(token) > _LONGEST_TOKEN or not token.isascii():
        raise refused
    try:
        raw = base64.b64decode(token + "=" * (-len(token) % 4), altchars=b"-_", validate=True)
        tag, body = raw[:_TAG_BYTES], raw[_TAG_BYTES:]
        if tag != _tag(body, digest):
            raise refused
        position = json.loads(body)
    except (binascii.Error, ValueError, RecursionError) as error:
        raise refused from error
    if not isinstance(position, list) or len(position) != len(kinds):
        raise refused
    for element, kind in zip(position, kinds, strict=True):
        # A whole number stands for a float in canonical JSON; a bool is an int only to Python.
        fits = type(element) is kind or (kind is float and type(element) is int)
        if not fits or (type(element) is int and not -_INT64 <= element < _INT64):
            raise refused
        # No row has such a key, and no database takes it.
        if isinstance(element, str) and ("\0" in element or not _encodable(element)):
            raise refused
    return tuple(
        float(element) if kind is float else element for element, kind in zip(position, kinds, strict=True)
    )


def page_size(requested: int, default: int = 50, maximum: int = 1000, *, field: str = "page_size") -> int:
    """Rows of a page.

    Args:
        requested: What the caller asked for; 0 means the default, more than the maximum means the maximum.
        default: Rows where the caller does not say.
        maximum: Most rows.
        field: Name of the field, for the error.

    Raises:
        PageSizeInvalid: Below 0.
    """
    if requested < 0:
        raise PageSizeInvalid.at(field, "must be 0 (the default) or more")
    return min(requested or default, maximum)


def _encodable(text: str) -> bool:
    """Whether text is valid Unicode: JSON can spell half of a pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _tag(body: bytes, digest: str) -> bytes:
    # Binds a token to its query against mistakes, not forgery: a position is no secret and no right.
    return hashlib.sha256(digest.encode() + b"\0" + body).digest()[:_TAG_BYTES]
