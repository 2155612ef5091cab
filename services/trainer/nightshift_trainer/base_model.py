"""What can be known of a base model's folder without loading it."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nightshift_trainer.errors import BaseModelUnknown, TokenizerMismatch, UnsafeFormat
from nightshift_trainer.plain_files import NotPlain, read_plain
from nightshift_trainer.weights import TensorEntry, WeightsBroken, file_digest, read_entries

_DIGESTED_SUFFIXES = frozenset({".safetensors", ".json", ".jinja", ".txt", ".model"})
_PICKLE_SUFFIXES = frozenset({".bin", ".ckpt", ".joblib", ".pickle", ".pkl", ".pt", ".pth"})
_TOKENIZER_FILES = ("chat_template.jinja", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class BaseModel:
    """Shape of a decoder: sizes in elements, `parameters` by tensor as the files hold them."""

    folder: Path
    architecture: str
    hidden_size: int
    intermediate_size: int
    layer_count: int
    head_count: int
    kv_head_count: int
    head_size: int
    vocabulary_size: int
    tied_embeddings: bool
    parameters: Mapping[str, TensorEntry]

    @property
    def parameter_count(self) -> int:
        """Weights in all."""
        return sum(entry.count for entry in self.parameters.values())

    @property
    def linear_parameter_count(self) -> int:
        """Weights of the linear layers inside the decoder, which are what 4-bit quantisation replaces."""
        return sum(
            entry.count
            for name, entry in self.parameters.items()
            if ".layers." in name and len(entry.shape) == 2
        )

    def lora_parameter_count(self, rank: int, targets: tuple[str, ...]) -> int:
        """Weights of an adapter of `rank` on the named linear layers: rank x (inputs + outputs) for each."""
        return sum(
            rank * sum(entry.shape)
            for name, entry in self.parameters.items()
            if len(entry.shape) == 2 and any(name.endswith(f".{target}.weight") for target in targets)
        )


def read_base_model(folder: Path) -> BaseModel:
    """Reads config and the headers of the weights.

    Raises BaseModelUnknown where there is no such model, UnsafeFormat where its weights are pickled or its
    config names code.
    """
    if not folder.is_dir():
        raise BaseModelUnknown(f"There is no folder {folder}.", metadata={"base_model": str(folder)})
    refuse_pickles(folder)
    try:
        config = json.loads(read_plain(folder / "config.json"))
        _refuse_code(config, "config.json")
        files = sorted(folder.glob("*.safetensors"))
        if not files:
            raise BaseModelUnknown(f"{folder} holds no safetensors.", metadata={"base_model": str(folder)})
        parameters = {entry.name: entry for file in files for entry in read_entries(file)}
        heads = int(config["num_attention_heads"])
        hidden = int(config["hidden_size"])
        return BaseModel(
            folder=folder,
            architecture=str((config.get("architectures") or ["?"])[0]),
            hidden_size=hidden,
            intermediate_size=int(config["intermediate_size"]),
            layer_count=int(config["num_hidden_layers"]),
            head_count=heads,
            kv_head_count=int(config.get("num_key_value_heads") or heads),
            head_size=int(config.get("head_dim") or hidden // heads),
            vocabulary_size=int(config["vocab_size"]),
            tied_embeddings=bool(config.get("tie_word_embeddings", False)),
            parameters=parameters,
        )
    except (
        OSError,
        ValueError,
        KeyError,
        TypeError,
        AttributeError,
        IndexError,
        ZeroDivisionError,
        OverflowError,
        RecursionError,
    ) as error:
        what = str(error) if isinstance(error, (WeightsBroken, NotPlain)) else type(error).__name__
        raise BaseModelUnknown(
            f"{folder} is no decoder in Hugging Face format ({what}).", metadata={"base_model": str(folder)}
        ) from error


def refuse_pickles(folder: Path) -> None:
    """Raises UnsafeFormat for the first pickle in a folder, used or not."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _PICKLE_SUFFIXES:
            raise UnsafeFormat(
                f"{path.name} is a pickle, which runs code when it is opened. Keep safetensors only.",
                metadata={"file": path.name},
            )


def _refuse_code(config: Any, name: str) -> None:
    # `trust_remote_code` is never given; a model that asks for it is refused before a worker is started.
    if isinstance(config, dict) and config.get("auto_map"):
        raise UnsafeFormat(
            f"{name} names code of its own (auto_map), which is never run. Use a model that needs none.",
            metadata={"file": name},
        )


def base_model_digest(folder: Path) -> str:
    """SHA-256 over names and digests of the model's files, as hex. Reads all of them. Raises OSError."""
    digest = hashlib.sha256()
    for path in _digested_files(folder):
        digest.update(f"{path.name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def fingerprint(folder: Path) -> tuple[tuple[str, int, int, int], ...]:
    """Names, sizes, times and inodes of the model's files: unchanged means that a digest still holds."""
    return tuple(
        (path.name, status.st_size, status.st_mtime_ns, status.st_ino)
        for path in _digested_files(folder)
        for status in (path.stat(),)
    )


def _digested_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in _DIGESTED_SUFFIXES and path.is_file())


def tokenizer_digest(folder: Path) -> str:
    """SHA-256 over the files of the tokenizer, as hex. Raises OSError."""
    digest = hashlib.sha256()
    for name in _TOKENIZER_FILES:
        path = folder / name
        if path.is_file():
            digest.update(f"{name}\0{file_digest(path)}\n".encode())
    return digest.hexdigest()


def check_tokenizer(model: BaseModel) -> None:
    """Checks that the tokenizer belongs to the model.

    It is there, has a chat template, and no token beyond the embedding. Raises TokenizerMismatch.
    """
    folder = model.folder
    try:
        tokenizer = json.loads(read_plain(folder / "tokenizer.json"))
        config = json.loads(read_plain(folder / "tokenizer_config.json"))
        _refuse_code(config, "tokenizer_config.json")
        highest = max(
            max(_vocabulary_ids(tokenizer["model"]["vocab"]), default=-1),
            max((int(token["id"]) for token in tokenizer.get("added_tokens", ())), default=-1),
        )
        template = (folder / "chat_template.jinja").is_file() or bool(config.get("chat_template"))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise TokenizerMismatch(
            f"{folder} holds no usable tokenizer.json and tokenizer_config.json ({type(error).__name__})."
        ) from error
    embedded = next(
        (entry.shape[0] for name, entry in model.parameters.items() if name.endswith("embed_tokens.weight")),
        model.vocabulary_size,
    )
    if highest >= embedded:
        raise TokenizerMismatch(
            f"The tokenizer has token {highest}, the model embeds {embedded}: they are not of one model.",
            metadata={"highest_token": str(highest), "embedded": str(embedded)},
        )
    if not template:
        raise TokenizerMismatch("The tokenizer has no chat template, so rows of a chat cannot be rendered.")


def _vocabulary_ids(vocabulary: Any) -> list[int]:
    # BPE and WordPiece hold {token: id}, Unigram a list in order of ids.
    if isinstance(vocabulary, dict):
        return [int(value) for value in vocabulary.values()]
    return [len(vocabulary) - 1]


def bytes_of(entry: TensorEntry) -> int:
    """Bytes of a tensor as stored."""
    return entry.end - entry.begin


def megabytes(size_bytes: float) -> int:
    """For people: whole MiB, rounded up."""
    return math.ceil(size_bytes / 2**20)
