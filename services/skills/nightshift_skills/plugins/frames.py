"""What is said over a plug-in's socket: frames of 4 bytes of length and JSON, typed strictly, bounded."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError

from nightshift_skills.errors import PluginViolation

MOST_BYTES: Final = 1 << 20
MOST_TOTAL_BYTES: Final = 8 << 20

# Words without control characters: nothing that a terminal or a log would obey.
_Line = Annotated[str, StringConstraints(max_length=512, pattern=r"^[^\x00-\x1f\x7f-\x9f]*$")]
_Text = Annotated[str, StringConstraints(max_length=4000, pattern=r"^[^\x00-\x09\x0b-\x1f\x7f-\x9f]*$")]
_Name = Annotated[str, StringConstraints(max_length=256, pattern=r"^[A-Za-z0-9][\w./@+-]*$")]
_Method = Annotated[str, StringConstraints(max_length=256, pattern=r"^/[\w.]+/\w+$")]


class _Frame(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, extra="forbid")


class ReadFrame(_Frame):
    """Asks for a read."""

    type: Literal["read"]
    id: int = Field(ge=1, le=1_000_000)
    method: _Method
    arguments: dict[str, Any]


class AttemptFrame(_Frame):
    """The child's own word of something that it must not do."""

    type: Literal["attempt"]
    what: Annotated[str, StringConstraints(max_length=64, pattern=r"^[\w.]+$")]
    detail: str = Field(max_length=400)


class CallFrame(_Frame):
    """One call of a plan."""

    method: _Method
    arguments: dict[str, Any]


class PlanFrame(_Frame):
    """A plan."""

    type: Literal["plan"]
    subject: _Name
    summary: _Line
    calls: list[CallFrame] = Field(min_length=1, max_length=20)
    base_versions: dict[_Name, _Line] = Field(max_length=100)
    evidence: list[_Line] = Field(max_length=20)
    reasoning: _Text
    cost_usd: float = Field(ge=0, allow_inf_nan=False)
    vram_bytes: int = Field(ge=0, lt=1 << 50)
    duration_s: float = Field(ge=0, le=864_000, allow_inf_nan=False)


class NothingFrame(_Frame):
    """Nothing to do."""

    type: Literal["nothing"]
    reason: _Line


class ErrorFrame(_Frame):
    """The plug-in raised."""

    type: Literal["error"]
    kind: str = Field(max_length=80)
    message: str = Field(max_length=400)


Frame = ReadFrame | AttemptFrame | PlanFrame | NothingFrame | ErrorFrame
_ADAPTER: TypeAdapter[Frame] = TypeAdapter(Annotated[Frame, Field(discriminator="type")])


def encode(message: Mapping[str, Any]) -> bytes:
    """A frame to the child."""
    data = json.dumps(message, allow_nan=False).encode()
    return len(data).to_bytes(4, "big") + data


def decode(data: bytes) -> Frame:
    """A frame from the child.

    Raises:
        PluginViolation: no JSON, or none of the frames that there are.
    """
    try:
        value = json.loads(data, parse_constant=_no_constant, object_pairs_hook=_no_duplicates)
        return _ADAPTER.validate_python(value)
    except ValidationError as error:
        problem = error.errors(include_url=False, include_input=False, include_context=False)[0]
        where = ".".join(str(part) for part in problem["loc"])[:100]
        raise PluginViolation(
            f"The plug-in sent a frame that is none: {where}: {problem['type']}.",
            metadata={"violation": "frame"},
        ) from error
    except (ValueError, RecursionError) as error:
        raise PluginViolation(
            "The plug-in sent bytes that are no JSON.", metadata={"violation": "frame"}
        ) from error


class FrameReader:
    """Reads frames of one child, within what one child may say."""

    def __init__(self, reader: asyncio.StreamReader) -> None:
        self._reader = reader
        self._total = 0

    async def read(self) -> Frame:
        """The next frame.

        Raises:
            PluginViolation: too long, too much, or malformed.
            EOFError: the child is gone.
        """
        length = int.from_bytes(await self._exactly(4), "big")
        self._total += length + 4
        if length > MOST_BYTES or self._total > MOST_TOTAL_BYTES:
            raise PluginViolation(
                f"The plug-in says too much: a frame of {length} bytes, {self._total} in all.",
                metadata={"violation": "flood"},
            )
        return decode(await self._exactly(length))

    async def _exactly(self, count: int) -> bytes:
        try:
            return await self._reader.readexactly(count)
        except (asyncio.IncompleteReadError, ConnectionError) as error:
            raise EOFError from error


def _no_constant(name: str) -> Any:
    raise ValueError(name)


def _no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        raise ValueError("a key twice")
    return value
