"""JSON over HTTP with services of the platform: bounded, strict, never redirected, and known as a probe."""

from __future__ import annotations

import asyncio
import json
from typing import Any, TypeVar

import httpx
from pydantic import BaseModel, ValidationError

from nightshift_trainer.errors import GpuHostInvalid, GpuHostUnavailable

# The platform exempts requests with this header from its activity reports: the plane must not pre-empt
# itself. Compression is declined, so that what is read is as long as what is sent.
PROBE_HEADERS = {
    "X-Nightshift-Probe": "1",
    "User-Agent": "nightshift-trainer",
    "Accept": "application/json",
    "Accept-Encoding": "identity",
}
# A card holds a few dozen models; a registry of a thousand installed ones stays below this.
MAX_BODY_BYTES = 2**20

T = TypeVar("T", bound=BaseModel)


def new_http_client() -> httpx.AsyncClient:
    """A client that takes no proxy from the environment: these services are near."""
    return httpx.AsyncClient(headers=PROBE_HEADERS, follow_redirects=False, trust_env=False)


class HostHttp:
    """One service of the platform."""

    def __init__(self, client: httpx.AsyncClient, base_url: str, source: str) -> None:
        """`base_url` without a slash at its end; `source` names the service in errors."""
        self._client = client
        self._base_url = base_url
        self.source = source

    async def get(self, path: str, answer: type[T], *, timeout_s: float) -> T:
        """See ask."""
        return await self.ask("GET", path, None, answer, timeout_s=timeout_s)

    async def post(self, path: str, document: object, answer: type[T], *, timeout_s: float) -> T:
        """See ask."""
        return await self.ask("POST", path, document, answer, timeout_s=timeout_s)

    async def ask(
        self, method: str, path: str, document: object | None, answer: type[T], *, timeout_s: float
    ) -> T:
        """Asks once and parses the answer.

        Raises:
            GpuHostUnavailable: no answer within `timeout_s` in all, or 5xx, 408, 429; it may have acted.
            GpuHostInvalid: any other answer than 200 with the expected JSON.
        """
        where = f"{self.source} {method} {path}"
        try:
            async with asyncio.timeout(timeout_s):
                status, body = await self._exchange(method, path, document, timeout_s, where)
        except (TimeoutError, httpx.TimeoutException) as error:
            raise GpuHostUnavailable(
                f"{where}: no answer within {timeout_s:g} s.", metadata=self._about(path), retry_after_s=1.0
            ) from error
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            raise GpuHostUnavailable(
                f"{where}: {_words(error)}.", metadata=self._about(path), retry_after_s=1.0
            ) from error
        if status >= 500 or status in (408, 429):
            raise GpuHostUnavailable(
                f"{where}: HTTP {status}.",
                metadata={**self._about(path), "status": str(status)},
                retry_after_s=1.0,
            )
        if status != 200:
            raise self._invalid(path, f"{where}: HTTP {status}, expected 200", status=str(status))
        try:
            return answer.model_validate(strict_json(body))
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False, include_context=False)[0]
            place = ".".join(map(str, first["loc"]))
            raise self._invalid(path, f"{where}: {place}: {first['msg']}", field=place) from error
        except (ValueError, RecursionError) as error:
            raise self._invalid(path, f"{where}: the answer is no JSON ({_words(error)})") from error

    async def _exchange(
        self, method: str, path: str, document: object | None, timeout_s: float, where: str
    ) -> tuple[int, bytes]:
        body = bytearray()
        async with self._client.stream(
            method, self._base_url + path, json=document, timeout=timeout_s
        ) as response:
            if response.headers.get("content-encoding", "identity").lower() != "identity":
                raise self._invalid(path, f"{where}: the answer is compressed, which was declined")
            async for chunk in response.aiter_raw():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise self._invalid(path, f"{where}: the answer is longer than {MAX_BODY_BYTES} bytes")
            return response.status_code, bytes(body)

    def _invalid(self, path: str, message: str, **metadata: str) -> GpuHostInvalid:
        return GpuHostInvalid(f"{message}.", metadata={**self._about(path), **metadata})

    def _about(self, path: str) -> dict[str, str]:
        return {"source": self.source, "path": path}


def strict_json(body: bytes) -> Any:
    """A JSON document; NaN, Infinity and doubled keys are refused. Raises ValueError, RecursionError."""

    def refuse(word: str) -> float:
        raise ValueError(f"{word} is no JSON number")

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            raise ValueError("a key stands twice in one object")
        return found

    return json.loads(body.decode("utf-8"), parse_constant=refuse, object_pairs_hook=unique)


def _words(error: BaseException) -> str:
    text = str(error).strip() or type(error).__name__
    return text.splitlines()[0][:200].rstrip(".")
