"""The loss is taken on responses, and on nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

from nightshift_trainer.worker.rows import IGNORED, TemplateUnusable, tokenized
from tests.trainer.training_support import Fixture

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Describe the lantern."},
    {"role": "assistant", "content": "It folds a quiet street."},
    {"role": "user", "content": "And then?"},
    {"role": "assistant", "content": "Then it remembers."},
]

PLAIN = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""

# Earlier answers are rendered differently once something follows, as thinking models do.
REWRITING = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{{ message['content'] if loop.last or message['role'] != 'assistant' else 'cut' }}<|im_end|>
{% endfor -%}
{%- if add_generation_prompt -%}<|im_start|>assistant
{% endif -%}"""


def learned(tiny: Fixture, folder: Path, template: str | None, *rows: Any, max_length: int = 256) -> Any:
    tokenizer = AutoTokenizer.from_pretrained(tiny.model)
    if template is not None:
        tokenizer.chat_template = template
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps({"messages": row}) + "\n" for row in rows))
    found = tokenized(path, tokenizer, max_length=max_length, key="k", cache=folder / "cache.safetensors")
    texts = []
    for row in found.dataset:
        assert len(row["input_ids"]) == len(row["labels"]) <= max_length
        assert all(
            label in (IGNORED, token) for token, label in zip(row["input_ids"], row["labels"], strict=True)
        )
        texts.append(tokenizer.decode([label for label in row["labels"] if label != IGNORED]))
    return found, texts


def test_a_template_that_marks_its_responses(tiny: Fixture, tmp_path: Path) -> None:
    found, texts = learned(tiny, tmp_path, None, CHAT)
    assert found.masking == "template"
    assert texts == ["It folds a quiet street.<|im_end|>Then it remembers.<|im_end|>"]


def test_a_template_without_marks(tiny: Fixture, tmp_path: Path) -> None:
    found, texts = learned(tiny, tmp_path, PLAIN, CHAT)
    assert found.masking == "prefix"
    assert texts[0].replace("\n", "") == "It folds a quiet street.<|im_end|>Then it remembers.<|im_end|>"


def test_a_template_that_rewrites_earlier_turns(tiny: Fixture, tmp_path: Path) -> None:
    _, texts = learned(tiny, tmp_path, REWRITING, CHAT)
    assert texts[0].replace("\n", "") == "Then it remembers.<|im_end|>"


def test_rows_whose_response_does_not_fit_are_counted(tiny: Fixture, tmp_path: Path) -> None:
    long = [{"role": "user", "content": "why " * 100}, {"role": "assistant", "content": "So."}]
    found, texts = learned(tiny, tmp_path, None, long, CHAT[1:3], max_length=60)
    assert found.skipped == 1
    assert texts == ["It folds a quiet street.<|im_end|>"]


def test_what_was_rendered_once_is_kept(tiny: Fixture, tmp_path: Path) -> None:
    first, _ = learned(tiny, tmp_path, None, CHAT)
    again = tokenized(
        tmp_path / "not-read-again", None, max_length=256, key="k", cache=tmp_path / "cache.safetensors"
    )
    assert again.dataset[:] == first.dataset[:]
    assert (again.skipped, again.masking) == (first.skipped, first.masking)
    with pytest.raises(FileNotFoundError):
        # Another key: the rows are others.
        tokenized(
            tmp_path / "not-there",
            AutoTokenizer.from_pretrained(tiny.model),
            max_length=256,
            key="other",
            cache=tmp_path / "cache.safetensors",
        )


def test_a_tokenizer_without_a_template(tiny: Fixture, tmp_path: Path) -> None:
    with pytest.raises(TemplateUnusable):
        learned(tiny, tmp_path, "", CHAT)
