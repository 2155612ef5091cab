"""HTTP: a GET that says who it is, follows no redirect and reads little."""

from __future__ import annotations

import json

import httpx

from nightshift_monitor.declarations import ProbeDeclaration
from nightshift_monitor.forbidden import forbidden_path
from nightshift_monitor.observations import ProbeState, Seen

# The platform exempts requests with this header from its activity reports: the plane must not pre-empt
# itself.
PROBE_HEADERS = {"X-Nightshift-Probe": "1", "User-Agent": "nightshift-monitor"}
MAX_BODY_BYTES = 256 * 1024


class ForbiddenUrl(httpx.RequestError):
    """A URL that must never be polled was about to be: nothing was sent."""


class ProbeTransport(httpx.AsyncHTTPTransport):
    """The one way out for the monitor's HTTP requests: each says who it is, none is for a forbidden URL.

    Settings refuse such URLs already; what a redirect, or a caller of tomorrow, would ask for ends here.
    """

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Sends a request.

        Raises:
            ForbiddenUrl: its URL is one that must never be polled.
        """
        path = forbidden_path(str(request.url))
        if path is not None:
            raise ForbiddenUrl(f"{path} must never be polled", request=request)
        request.headers.update(PROBE_HEADERS)
        return await super().handle_async_request(request)


def new_http_client() -> httpx.AsyncClient:
    """A client that takes no proxy from the environment: probes are for hosts that are near."""
    return httpx.AsyncClient(
        transport=ProbeTransport(trust_env=False),
        headers=PROBE_HEADERS,
        follow_redirects=False,
        trust_env=False,
    )


class HttpLook:
    """Asks a URL."""

    def __init__(self, client: httpx.AsyncClient) -> None:
        self._client = client

    async def look(self, probe: ProbeDeclaration) -> Seen:
        """UP for the expected status (and JSON, where asked for); DOWN for anything else."""
        try:
            status, content_type, body = await fetch(self._client, probe.target, timeout_s=probe.timeout_s)
        except httpx.TimeoutException:
            return Seen(ProbeState.DOWN, f"no answer within {probe.timeout_s:g} s")
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return Seen(ProbeState.DOWN, describe(error))
        if status != probe.expect_status:
            return Seen(ProbeState.DOWN, f"HTTP {status}, expected {probe.expect_status}")
        if probe.expect_json and not _is_json(body):
            return Seen(
                ProbeState.DOWN,
                f"HTTP {status}, but no JSON ({content_type or 'no content type'}): a catch-all page?",
            )
        return Seen(ProbeState.UP, f"HTTP {status}")


async def fetch(client: httpx.AsyncClient, url: str, *, timeout_s: float) -> tuple[int, str, bytes]:
    """Status, content type and at most ``MAX_BODY_BYTES`` of the body.

    Raises:
        httpx.HTTPError, httpx.InvalidURL, OSError: where there is no answer.
    """
    async with client.stream("GET", url, timeout=timeout_s) as response:
        body = bytearray()
        async for chunk in response.aiter_bytes():
            body += chunk
            if len(body) >= MAX_BODY_BYTES:
                break
        return (
            response.status_code,
            response.headers.get("content-type", "").partition(";")[0],
            bytes(body[:MAX_BODY_BYTES]),
        )


def describe(error: BaseException) -> str:
    """What went wrong, in a few words and without addresses of objects."""
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200]


def _is_json(body: bytes) -> bool:
    if len(body) >= MAX_BODY_BYTES:
        # Cut off, so it cannot be parsed; its first character still tells a page from a document.
        return body.lstrip()[:1] in (b"{", b"[")
    try:
        json.loads(body)
    except (ValueError, RecursionError):
        return False
    return True
