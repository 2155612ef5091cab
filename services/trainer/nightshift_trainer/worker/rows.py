"""Chat rows as token sequences with labels on the responses only.

How the assistant's words are found, best way first:
1. the template marks them itself (`{% generation %}`);
2. trl knows a marked version of this model's template;
3. the text up to each response is rendered alone; where it is a prefix of the whole, what follows it up to
   the end of the message is the response. Templates that rewrite earlier turns (thinking models drop old
   thoughts) have no such prefixes for earlier messages: then the loss is taken on the last response only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import safetensors
import safetensors.numpy
from datasets import Dataset

IGNORED = -100
_VERSION = 1


class TemplateUnusable(Exception):
    """The tokenizer's chat template is missing or cannot render the rows."""


@dataclass(frozen=True)
class TokenizedRows:
    """Rows ready to train on. `skipped` had no response left within the length."""

    dataset: Dataset
    skipped: int
    masking: str


def tokenized(path: Path, tokenizer: Any, *, max_length: int, key: str, cache: Path) -> TokenizedRows:
    """Reads, renders and tokenizes the rows of a JSON Lines file, or takes them from `cache`.

    `key` names everything else that the result depends on (digests of rows and tokenizer).
    Raises TemplateUnusable, OSError.
    """
    fingerprint = hashlib.sha256(json.dumps([_VERSION, key, max_length]).encode()).hexdigest()
    stored = _read_cache(cache, fingerprint)
    if stored is None:
        stored = _tokenize(path, tokenizer, max_length)
        _write_cache(cache, fingerprint, stored)
    arrays, masking, skipped = stored
    offsets = pa.array(arrays["offsets"], type=pa.int32())
    table = pa.table(
        {
            "input_ids": pa.ListArray.from_arrays(offsets, pa.array(arrays["input_ids"], type=pa.int64())),
            "labels": pa.ListArray.from_arrays(offsets, pa.array(arrays["labels"], type=pa.int64())),
        }
    )
    return TokenizedRows(Dataset(table), skipped, masking)


_Arrays = dict[str, "np.ndarray[Any, Any]"]
_Stored = tuple[_Arrays, str, int]


def _tokenize(path: Path, tokenizer: Any, max_length: int) -> _Stored:
    template, masking = _choose_template(tokenizer)
    ids: list[int] = []
    labels: list[int] = []
    offsets = [0]
    skipped = 0
    for row in _read_rows(path):
        row_ids, mask = _render(tokenizer, row["messages"], template, masking)
        row_ids, mask = row_ids[:max_length], mask[:max_length]
        # The first token is never predicted, so a label there teaches nothing.
        if not any(mask[1:]):
            skipped += 1
            continue
        ids.extend(row_ids)
        labels.extend(token if wanted else IGNORED for token, wanted in zip(row_ids, mask, strict=True))
        offsets.append(len(ids))
    arrays: _Arrays = {
        "input_ids": np.array(ids, dtype=np.int64),
        "labels": np.array(labels, dtype=np.int64),
        "offsets": np.array(offsets, dtype=np.int32),
    }
    return arrays, masking, skipped


def _read_rows(path: Path) -> Iterable[Mapping[str, Any]]:
    with path.open("rb") as file:
        for line in file:
            if line.strip():
                yield json.loads(line)


def _choose_template(tokenizer: Any) -> tuple[str | None, str]:
    if not tokenizer.chat_template:
        raise TemplateUnusable("the tokenizer of the base model has no chat template")
    if "{% generation" in tokenizer.chat_template or "{%- generation" in tokenizer.chat_template:
        return None, "template"
    from trl.chat_template_utils import get_training_chat_template

    try:
        return get_training_chat_template(tokenizer), "trl"
    except ValueError:
        return None, "prefix"


def _render(
    tokenizer: Any, messages: list[dict[str, str]], template: str | None, masking: str
) -> tuple[list[int], list[int]]:
    if masking != "prefix":
        encoded = tokenizer.apply_chat_template(
            messages,
            chat_template=template,
            tokenize=True,
            return_dict=True,
            return_assistant_tokens_mask=True,
            enable_thinking=False,
        )
        return list(encoded["input_ids"]), list(encoded["assistant_masks"])
    return _render_by_prefix(tokenizer, messages)


def _render_by_prefix(tokenizer: Any, messages: list[dict[str, str]]) -> tuple[list[int], list[int]]:
    def text(upto: int, *, prompt: bool) -> str:
        return str(
            tokenizer.apply_chat_template(
                messages[:upto], tokenize=False, add_generation_prompt=prompt, enable_thinking=False
            )
        )

    whole = text(len(messages), prompt=False)
    spans: list[tuple[int, int]] = []
    for index, message in enumerate(messages):
        if message["role"] != "assistant":
            continue
        before, through = text(index, prompt=True), text(index + 1, prompt=False)
        if whole.startswith(before) and whole.startswith(through):
            spans.append((len(before), len(through)))
    if not spans:
        # Some templates put something different before a response than they prompt with.
        begin = whole.rfind(messages[-1]["content"])
        if messages[-1]["role"] != "assistant" or begin < 0:
            raise TemplateUnusable("the chat template does not show where a response begins")
        spans.append((begin, len(whole)))
    encoded = tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
    mask = [
        int(any(begin <= start and end <= stop for begin, stop in spans) and end > start)
        for start, end in encoded["offset_mapping"]
    ]
    return list(encoded["input_ids"]), mask


def _read_cache(cache: Path, fingerprint: str) -> _Stored | None:
    try:
        with safetensors.safe_open(cache, "numpy") as file:
            metadata = file.metadata() or {}
            if metadata.get("fingerprint") != fingerprint:
                return None
            arrays: _Arrays = {name: file.get_tensor(name) for name in ("input_ids", "labels", "offsets")}
    except (OSError, safetensors.SafetensorError):
        return None
    return arrays, metadata["masking"], int(metadata["skipped"])


def _write_cache(cache: Path, fingerprint: str, stored: _Stored) -> None:
    arrays, masking, skipped = stored
    temporary = cache.with_suffix(".new")
    safetensors.numpy.save_file(
        arrays, temporary, {"fingerprint": fingerprint, "masking": masking, "skipped": str(skipped)}
    )
    temporary.replace(cache)
