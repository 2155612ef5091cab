"""Makes a tiny Qwen3 with random weights, its own tokenizer and rows to train it on.

Nothing is downloaded: the model comes from a config, the byte-level BPE tokenizer is trained on the rows,
and both are saved as one folder in Hugging Face format. The demo and the tests train adapters for it; it is
far too small to say anything sensible, and just large enough to show that it learns.

    python examples/tiny_model.py OUT --hidden 64 --layers 2 --rows 200 --seed 0

writes ``OUT/model/`` and ``OUT/rows.jsonl``. The same arguments give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path
from typing import Any

_WHO = ("The lantern", "A river", "My neighbour", "The archive", "An old map", "This garden", "The workshop")
_DOES = ("remembers", "folds", "repaints", "counts", "mirrors", "carries", "unfolds")
_WHAT = (
    "a quiet street",
    "every window",
    "its own shadow",
    "the long afternoon",
    "one small stone",
    "all the stairs",
)
_HOW = ("slowly", "from above", "layer by layer", "without colour", "against the light")

_SPECIAL_TOKENS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")

# The generation block is what marks the assistant's words, so that the loss is taken on them alone.
_CHAT_TEMPLATE = """{%- for message in messages -%}
<|im_start|>{{ message['role'] }}
{% if message['role'] == 'assistant' -%}
{% generation %}{{ message['content'] }}<|im_end|>{% endgeneration %}
{%- else -%}
{{ message['content'] }}<|im_end|>
{%- endif %}
{% endfor -%}
{%- if add_generation_prompt -%}
<|im_start|>assistant
{% endif -%}"""


def make_rows(count: int, seed: int) -> list[dict[str, Any]]:
    """Chat rows ``{"messages".

    [{"role", "content"}, …]}``; the answers follow a pattern that can be learnt.
    """
    source = random.Random(seed)
    rows = []
    for number in range(count):
        who, does, what, how = (source.choice(words) for words in (_WHO, _DOES, _WHAT, _HOW))
        answer = f"{who} {does} {what}, {how}; then it {source.choice(_DOES)} {source.choice(_WHAT)}."
        rows.append(
            {
                "messages": [
                    {"role": "user", "content": f"Describe {who.lower()} (sheet {number % 17}), {how}."},
                    {
                        "role": "assistant",
                        "content": answer,
                    },
                ]
            }
        )
    return rows


def write_rows(path: Path, rows: list[dict[str, Any]]) -> None:
    """Writes rows as JSON Lines."""
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def make_model(
    folder: Path,
    texts: list[str],
    *,
    hidden: int = 64,
    layers: int = 2,
    vocabulary: int = 1024,
    seed: int = 0,
) -> None:
    """Writes a Qwen3 of `layers` x `hidden` and a tokenizer trained on `texts` into `folder`."""
    # Imported here: whoever only wants rows need not wait for torch.
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    inner.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=vocabulary,
            special_tokens=list(_SPECIAL_TOKENS),
            initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=inner, eos_token="<|im_end|>", pad_token="<|endoftext|>", model_max_length=2048
    )
    tokenizer.chat_template = _CHAT_TEMPLATE
    config = Qwen3Config(
        vocab_size=max(vocabulary, len(tokenizer)),
        hidden_size=hidden,
        intermediate_size=3 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=max(16, hidden // 4),
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)  # type: ignore[no-untyped-call]
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save_pretrained(folder)
    model.save_pretrained(folder)


def make(
    out: Path, *, hidden: int = 64, layers: int = 2, rows: int = 200, seed: int = 0
) -> tuple[Path, Path]:
    """Writes model folder and rows file below `out`; answers (model folder, rows file)."""
    out.mkdir(parents=True, exist_ok=True)
    made = make_rows(rows, seed)
    rows_file = out / "rows.jsonl"
    write_rows(rows_file, made)
    texts = [message["content"] for row in made for message in row["messages"]]
    make_model(out / "model", [*texts, "system user assistant"], hidden=hidden, layers=layers, seed=seed)
    return out / "model", rows_file


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description="Make a tiny Qwen3, its tokenizer and rows to train it on.")
    parser.add_argument("out", type=Path, metavar="OUT")
    parser.add_argument("--hidden", type=int, default=64)
    parser.add_argument("--layers", type=int, default=2)
    parser.add_argument("--rows", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    model, rows_file = make(
        arguments.out,
        hidden=arguments.hidden,
        layers=arguments.layers,
        rows=arguments.rows,
        seed=arguments.seed,
    )
    size_bytes = sum(file.stat().st_size for file in model.iterdir())
    print(f"{model} ({size_bytes:,} bytes), {rows_file} ({arguments.rows} rows)")


if __name__ == "__main__":
    main()
