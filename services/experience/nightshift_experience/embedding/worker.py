"""The embedding process: reads frames from its standard input, answers on its standard output.

Runs as ``python -m nightshift_experience.embedding.worker FOLDER SHA256 THREADS BATCH``. It ends when its
input ends, at once and in the middle of a batch: it holds no state, and whoever closed the pipe wants the
processor back.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
from pathlib import Path
from typing import Any, BinaryIO

from .framing import (
    HEADER,
    FrameError,
    Kind,
    decode_header,
    decode_texts,
    encode,
    encode_failure,
    encode_vectors,
)
from .model import file_sha256

_WEIGHTS = "model.safetensors"


def main(arguments: list[str]) -> int:
    """Loads the model and serves until the input ends; returns the exit status."""
    folder, expected_sha256, threads, batch_size = arguments
    # Libraries print progress bars and advice; the frames keep the real standard output to themselves.
    output = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)
    requests: queue.PriorityQueue[tuple[int, int, bytes]] = queue.PriorityQueue()
    reader = threading.Thread(target=_read, args=(sys.stdin.buffer, requests), daemon=True)
    reader.start()
    found = file_sha256(Path(folder) / _WEIGHTS)
    if found != expected_sha256:
        message = f"weights have SHA-256 {found}, expected {expected_sha256}"
        _send(output, encode(Kind.FAILED, 0, encode_failure("MODEL_REFUSED", message)))
        return 3
    model = _load(folder, int(threads))
    _send(output, encode(Kind.READY, 0))
    while True:
        # Kind.QUERY sorts before Kind.BULK: a person who searches waits for one batch at most.
        _, request_id, payload = requests.get()
        try:
            vectors = model.encode(
                decode_texts(payload),
                batch_size=int(batch_size),
                normalize_embeddings=True,
                convert_to_numpy=True,
                show_progress_bar=False,
            )
            answer = encode(Kind.VECTORS, request_id, encode_vectors(vectors))
        except (FrameError, RuntimeError, ValueError, TypeError, IndexError) as error:
            # The type alone: a message of the tokenizer may quote the user's text.
            answer = encode(Kind.FAILED, request_id, encode_failure("EMBEDDING_FAILED", type(error).__name__))
        _send(output, answer)


def _load(folder: str, threads: int) -> Any:
    import torch
    from sentence_transformers import SentenceTransformer

    torch.set_num_threads(threads)
    return SentenceTransformer(folder, device="cpu", local_files_only=True, trust_remote_code=False)


def _read(stream: BinaryIO, requests: queue.PriorityQueue[tuple[int, int, bytes]]) -> None:
    while True:
        header = stream.read(HEADER.size)
        if len(header) < HEADER.size:
            os._exit(0)
        try:
            length, kind, request_id = decode_header(header)
        except FrameError:
            os._exit(4)
        payload = stream.read(length)
        if len(payload) < length:
            os._exit(0)
        requests.put((int(kind), request_id, payload))


def _send(output: Any, frame: bytes) -> None:
    view = memoryview(frame)
    while view:
        view = view[output.write(view) :]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
