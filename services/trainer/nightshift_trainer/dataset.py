"""Chat rows, checked before anything is trained on them.

No word of a row ever stands in an error or a log.
"""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightshift_trainer.errors import ChatRowInvalid, CorpusEmpty, DatasetUnknown
from nightshift_trainer.plain_files import open_plain

ROLES = ("system", "user", "assistant", "tool")

# A row longer than this is no chat; it would also be read as one line into memory.
MAXIMUM_ROW_BYTES = 8 * 1024 * 1024


@dataclass(frozen=True)
class Dataset:
    """What is known of a dataset file. `digest` is over its bytes, as hex."""

    path: Path
    digest: str
    row_count: int
    size_bytes: int


def read_dataset(path: Path) -> Dataset:
    """Checks every row of a JSON Lines file.

    Raises DatasetUnknown, CorpusEmpty, ChatRowInvalid with the first bad row, counted from 1 among all lines.
    """
    digest = hashlib.sha256()
    count = 0
    size = 0
    try:
        if not path.is_file():
            raise DatasetUnknown(f"There is no file {path}.", metadata={"dataset": str(path)})
        with open_plain(path) as file:
            number = 0
            while line := file.readline(MAXIMUM_ROW_BYTES + 1):
                number += 1
                digest.update(line)
                size += len(line)
                if len(line) > MAXIMUM_ROW_BYTES:
                    raise _invalid(number, f"is longer than {MAXIMUM_ROW_BYTES} bytes")
                if line.strip():
                    check_row(line, number)
                    count += 1
    except OSError as error:
        raise DatasetUnknown(
            f"{path} cannot be read: {error.strerror}.", metadata={"dataset": str(path)}
        ) from error
    if not count:
        raise CorpusEmpty(f"{path} has no rows.", metadata={"dataset": str(path)})
    return Dataset(path, digest.hexdigest(), count, size)


def check_row(line: bytes, number: int) -> None:
    """Checks one row {"messages".

    [{"role", "content"}, …]}: known roles, text everywhere, at least one response, and a person's words
    before it. Raises ChatRowInvalid.
    """
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        raise _invalid(number, "is not JSON in UTF-8") from None
    messages = row.get("messages") if isinstance(row, dict) else None
    if not isinstance(messages, list) or not messages:
        raise _invalid(number, 'has no list "messages"')
    for position, message in enumerate(messages):
        problem = _problem_of(message)
        if problem:
            raise _invalid(number, f"message {position + 1} {problem}")
    roles = [message["role"] for message in messages]
    if "assistant" not in roles:
        raise _invalid(number, "has no response to learn from")
    if "user" not in roles[: roles.index("assistant")]:
        raise _invalid(number, "has a response before anybody asked")


def _problem_of(message: Any) -> str:
    if not isinstance(message, dict):
        return "is no object"
    role, content = message.get("role"), message.get("content")
    if role not in ROLES:
        return f"has no role of {', '.join(ROLES)}"
    if not isinstance(content, str):
        return "has no text"
    if role == "assistant" and not content.strip():
        return "is an empty response"
    try:
        content.encode()
    except UnicodeEncodeError:
        return "holds half a surrogate pair"
    return ""


def _invalid(number: int, problem: str) -> ChatRowInvalid:
    return ChatRowInvalid(f"Row {number} {problem}.", metadata={"row": str(number)})
