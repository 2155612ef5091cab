"""Text for people: what steers a terminal or hides is made visible; sizes, spans and instants in words."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from google.protobuf.duration_pb2 import Duration
    from google.protobuf.timestamp_pb2 import Timestamp

# Controls, formats (bidi, zero width), surrogates, private use, unassigned, line and paragraph separators.
_HIDDEN = frozenset({"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"})
# Letters that show nothing at all, and variation selectors, which only change the look of what stands before.
_BLANK = frozenset("\u115f\u1160\u17b4\u17b5\u3164\uffa0\u034f") | {
    chr(code) for code in range(0xFE00, 0xFE10)
}


def visible(text: str) -> str:
    """The text with every hidden or steering character as ``<U+202E>``."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        f"<U+{ord(character):04X}>"
        if unicodedata.category(character) in _HIDDEN or character in _BLANK
        else character
        for character in text
    )


def visible_lines(text: str) -> str:
    """As ``visible``, line by line; tabs become spaces."""
    return "\n".join(visible(line.rstrip("\r").replace("\t", "    ")) for line in text.split("\n"))


def one_line(text: str, length: int = 120) -> str:
    """A visible beginning of a text on one line."""
    words = visible(" ".join(text.split()))
    return words if len(words) <= length else words[: length - 1] + "…"


def short(name: str) -> str:
    """The id of a resource name."""
    return visible(name.rpartition("/")[2])


def who(actor: str) -> str:
    """spiffe://nightshift.local/person/admin/1000 → person/admin/1000."""
    return visible(re.sub(r"^spiffe://[^/]*/", "", actor))


def label(enum_name: str, prefix: str) -> str:
    """An enum value in words: ``SKILL_RUN_STATE_RUNNING`` → running."""
    return enum_name.removeprefix(prefix).lower().replace("_", " ")


def table(*columns: str | tuple[str, str], rows: Iterable[tuple[str | Text, ...]]) -> Table:
    """A table for 80 columns; a column may be ``(title, "right")`` or ``(title, "fixed")``."""
    made = Table(box=SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=(0, 1))
    for column in columns:
        title, manner = column if isinstance(column, tuple) else (column, "left")
        made.add_column(
            title,
            justify="right" if manner == "right" else "left",
            overflow="fold",
            no_wrap=manner in ("right", "fixed"),
        )
    for row in rows:
        made.add_row(*(cell if isinstance(cell, Text) else Text(visible(cell)) for cell in row))
    return made


def size(size_bytes: int) -> str:
    """1536 → 1.5 KiB."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB"):
        if abs(value) < 1024:
            return f"{value:.0f} {unit}" if unit == "B" else f"{value:.1f} {unit}"
        value /= 1024
    return f"{value:.1f} TiB"


def span(seconds: float) -> str:
    """0.042 → 42 ms; 75 → 1 min 15 s."""
    if seconds < 0:
        return f"-{span(-seconds)}"
    if seconds < 1:
        return f"{seconds * 1000:.0f} ms"
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours < 48 else f"{hours // 24} d {hours % 24} h"


def seconds_of(duration: Duration) -> float:
    """A duration in seconds."""
    return duration.seconds + duration.nanos / 1e9


def instant(timestamp: Timestamp) -> str:
    """An instant in local time; "" where absent."""
    if not timestamp.seconds and not timestamp.nanos:
        return ""
    try:
        return (
            (datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=timestamp.seconds))
            .astimezone()
            .strftime("%Y-%m-%d %H:%M")
        )
    except (OverflowError, ValueError):
        return "?"


def ago(timestamp: Timestamp) -> str:
    """How long ago, in words; "never" where absent."""
    if not timestamp.seconds and not timestamp.nanos:
        return "never"
    return f"{span(max(0.0, datetime.now(UTC).timestamp() - timestamp.seconds - timestamp.nanos / 1e9))} ago"
