"""Safetensors files read without torch: what they hold and the digest of it.

Format: 8 bytes little-endian length, that many bytes of JSON {name: {dtype, shape, data_offsets}}, then the
data.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from nightshift_trainer.plain_files import open_plain

_LENGTH = struct.Struct("<Q")
_MAXIMUM_HEADER_BYTES = 100 * 1024 * 1024
_CHUNK_BYTES = 1024 * 1024


class WeightsBroken(ValueError):
    """The file is no safetensors file, or was cut short."""


@dataclass(frozen=True)
class TensorEntry:
    """One tensor: dtype as safetensors spells it ("F32", "BF16", …), shape, and where its bytes lie."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int

    @property
    def count(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def read_entries(path: Path) -> tuple[TensorEntry, ...]:
    """The tensors of a file, by name; offsets count from the file's beginning.

    Raises WeightsBroken, OSError.
    """
    with open_plain(path) as file:
        return _entries(file, path.stat().st_size)


def _entries(file: BinaryIO, size_bytes: int) -> tuple[TensorEntry, ...]:
    raw = file.read(_LENGTH.size)
    if len(raw) < _LENGTH.size:
        raise WeightsBroken("the file is too short")
    (length,) = _LENGTH.unpack(raw)
    if length > min(_MAXIMUM_HEADER_BYTES, size_bytes - _LENGTH.size):
        raise WeightsBroken("the header is longer than the file")
    try:
        header = json.loads(file.read(length))
        data = _LENGTH.size + length
        entries = tuple(
            TensorEntry(
                name=name,
                dtype=entry["dtype"],
                shape=tuple(int(extent) for extent in entry["shape"]),
                begin=data + int(entry["data_offsets"][0]),
                end=data + int(entry["data_offsets"][1]),
            )
            for name, entry in sorted(header.items())
            if name != "__metadata__"
        )
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise WeightsBroken("the header is not what safetensors writes") from error
    if any(not data <= entry.begin <= entry.end <= size_bytes for entry in entries):
        raise WeightsBroken("a tensor lies outside the file")
    return entries


def weights_digest(path: Path) -> str:
    """SHA-256 over name, dtype, shape and bytes of each tensor in the order of names, as hex.

    Unlike a digest of the file it does not depend on how a library lays out or pads it.
    Raises WeightsBroken, OSError.
    """
    digest = hashlib.sha256()
    with open_plain(path) as file:
        for entry in _entries(file, path.stat().st_size):
            digest.update(json.dumps([entry.name, entry.dtype, list(entry.shape)]).encode() + b"\n")
            file.seek(entry.begin)
            left = entry.end - entry.begin
            while left:
                piece = file.read(min(left, _CHUNK_BYTES))
                if not piece:
                    raise WeightsBroken("the file was cut short")
                digest.update(piece)
                left -= len(piece)
    return digest.hexdigest()


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes, as hex. Raises OSError."""
    with open_plain(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
