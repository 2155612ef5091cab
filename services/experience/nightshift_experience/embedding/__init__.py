"""Sentence embeddings, computed by a model in a child process.

Wiring (in the service's ``__main__``)::

    model = find_model(settings.embedding_model)          # "minilm" or the path of a folder
    embedder = EmbeddingProcess(model, EmbeddingSettings(threads=…, idle_unload_s=…))
    …
    await embedder.stop_background()                      # on Stop: bulk work ends, its child is killed
    await embedder.close()                                # at shutdown

Nothing is started before the first text; a dead child is replaced at the next text.
"""

from .errors import EmbeddingStopped, ModelRefused, ModelUnavailable
from .model import MINILM, ModelFiles, find_model
from .process import EmbeddingProcess, EmbeddingSettings

__all__ = [
    "MINILM",
    "EmbeddingProcess",
    "EmbeddingSettings",
    "EmbeddingStopped",
    "ModelFiles",
    "ModelRefused",
    "ModelUnavailable",
    "find_model",
]
