"""A real HTTP server that speaks the chat-completions API, with whatever faults a test wants of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Reply:
    """One answer; `content` is the model's text, unless `body` gives the raw bytes of the whole."""

    content: str | None = ""
    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    finish: str = "stop"
    refusal: str | None = None
    usage: dict[str, Any] | None = field(
        default_factory=lambda: {"prompt_tokens": 100, "completion_tokens": 50, "total_tokens": 150}
    )
    body: bytes | None = None
    delay_s: float = 0.0
    # More bytes than are sent: the connection ends half way.
    announce: int | None = None
    # Sent again and again, without an end, with a pause before each.
    endless: bytes = b""
    pause_s: float = 0.0

    def encoded(self, model: str) -> bytes:
        if self.body is not None:
            return self.body
        message = {"role": "assistant", "content": self.content}
        if self.refusal is not None:
            message["refusal"] = self.refusal
        answer: dict[str, Any] = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": model,
            "choices": [{"index": 0, "message": message, "finish_reason": self.finish, "logprobs": None}],
        }
        if self.usage is not None:
            answer["usage"] = self.usage
        return json.dumps(answer).encode()


@dataclass
class ChatServer:
    """A running server. `answer` is asked for each question; `seen` are the questions' bodies."""

    answer: Callable[[dict[str, Any]], Reply]
    port: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    paths: list[str] = field(default_factory=list)
    # Questions whose asker went away before the answer.
    abandoned: int = 0
    serving: set[asyncio.Task[None]] = field(default_factory=set)

    @property
    def base_url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self.serving.add(task)
        try:
            with suppress(ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                while await self._one(reader, writer):
                    pass
        finally:
            writer.transport.abort()
            self.serving.discard(task)

    async def _one(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        first = await reader.readline()
        if not first:
            return False
        headers: dict[str, str] = {}
        while (line := (await reader.readline()).strip()) != b"":
            name, _, value = line.decode().partition(":")
            headers[name.strip().lower()] = value.strip()
        body = json.loads(await reader.readexactly(int(headers.get("content-length", "0"))))
        self.paths.append(first.decode().split()[1])
        self.seen.append(body)
        self.headers.append(headers)
        reply = self.answer(body)
        if reply.delay_s:
            with suppress(TimeoutError):
                async with asyncio.timeout(reply.delay_s):
                    await reader.read(1)
                    self.abandoned += 1
                    return False
        data = reply.encoded(str(body.get("model", "")))
        length = reply.announce if reply.announce is not None else len(data)
        told = {"content-type": "application/json", "content-length": str(length), **reply.headers}
        if reply.endless:
            told["content-length"] = str(2**40)
        head = f"HTTP/1.1 {reply.status} Answer\r\n" + "".join(f"{k}: {v}\r\n" for k, v in told.items())
        writer.write(head.encode() + b"\r\n" + data)
        await writer.drain()
        while reply.endless:
            await asyncio.sleep(reply.pause_s)
            writer.write(reply.endless)
            await writer.drain()
        return reply.announce is None


@asynccontextmanager
async def chat_server(answer: Callable[[dict[str, Any]], Reply]) -> AsyncIterator[ChatServer]:
    """A server on an ephemeral port until the block ends."""
    server = ChatServer(answer)
    listening = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    server.port = listening.sockets[0].getsockname()[1]
    try:
        yield server
    finally:
        listening.close()
        for task in list(server.serving):
            task.cancel()
        await asyncio.gather(*server.serving, return_exceptions=True)


def one_after_the_other(*replies: Reply) -> Callable[[dict[str, Any]], Reply]:
    """Answers in this order; the last one again and again."""
    left = list(replies)
    return lambda _body: left.pop(0) if len(left) > 1 else left[0]
