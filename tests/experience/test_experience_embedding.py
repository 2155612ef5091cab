"""The embedding process: real model, real child."""

from __future__ import annotations

import asyncio
import os
import shutil
import time
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nightshift_experience.embedding import (
    EmbeddingProcess,
    EmbeddingSettings,
    EmbeddingStopped,
    ModelRefused,
    ModelUnavailable,
    find_model,
    framing,
)
from nightshift_experience.embedding.framing import FrameError, Kind
from nightshift_experience.embedding.model import MINILM_SHA256, file_sha256

PATIENT = EmbeddingSettings(query_wait_s=120.0, start_timeout_s=120.0)


@pytest.fixture
async def embedder() -> AsyncIterator[EmbeddingProcess]:
    process = EmbeddingProcess(find_model(), PATIENT)
    yield process
    await process.close()


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    # A zombie has exited; only its parent has not asked yet.
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"


def test_packaged_model_is_found_and_is_the_promised_one() -> None:
    model = find_model("minilm")
    assert model.dimension == 384
    assert file_sha256(model.weights) == MINILM_SHA256 == model.weights_sha256


def test_folders_that_are_no_model_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ModelRefused):
        find_model("relative/folder")
    with pytest.raises(ModelRefused):
        find_model(str(tmp_path / "absent"))
    (tmp_path / "pytorch_model.bin").write_bytes(b"pickle")
    with pytest.raises(ModelRefused):
        find_model(str(tmp_path))


@given(st.lists(st.text(max_size=50), max_size=20))
def test_texts_survive_the_frame(texts: list[str]) -> None:
    frame = framing.encode(Kind.BULK, 7, framing.encode_texts(texts))
    length, kind, request_id = framing.decode_header(frame[: framing.HEADER.size])
    payload = frame[framing.HEADER.size :]
    assert (length, kind, request_id) == (len(payload), Kind.BULK, 7)
    clean = [text.encode("utf-8", "replace").decode() for text in texts]
    assert framing.decode_texts(payload) == clean


@given(st.integers(0, 5), st.integers(1, 9))
def test_vectors_survive_the_frame(rows: int, columns: int) -> None:
    vectors = np.arange(rows * columns, dtype=np.float32).reshape(rows, columns)
    assert (framing.decode_vectors(framing.encode_vectors(vectors)) == vectors).all()


@given(st.binary(max_size=64))
def test_bytes_that_are_no_frame_are_refused_by_type(data: bytes) -> None:
    for decode in (
        framing.decode_header,
        framing.decode_texts,
        framing.decode_vectors,
        framing.decode_failure,
    ):
        try:
            decode(data)
        except FrameError:
            continue


def test_an_announced_giant_is_refused() -> None:
    with pytest.raises(FrameError):
        framing.decode_header(framing.HEADER.pack(framing.MAX_PAYLOAD_BYTES + 1, Kind.BULK, 1))


async def test_vectors_are_unit_in_order_and_near_in_meaning(embedder: EmbeddingProcess) -> None:
    assert embedder.pid is None
    texts = ["a kitten sleeps on the sofa", "the tax return is late", "a young cat naps on the couch", ""]
    vectors = await embedder.embed_bulk(texts)
    assert vectors.shape == (4, 384)
    assert vectors.dtype == np.float32
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1.0, atol=1e-5)
    assert vectors[0] @ vectors[2] > vectors[0] @ vectors[1] + 0.3
    query = await embedder.embed_query(texts[2])
    assert np.allclose(query, vectors[2], atol=1e-5)
    assert await embedder.embed_query(texts[2]) is query


async def test_broken_unicode_and_giants_are_embedded(embedder: EmbeddingProcess) -> None:
    vectors = await embedder.embed_bulk(["\ud800 half", "word " * 20_000, "\x00"])
    assert np.isfinite(vectors).all()


async def test_a_dead_child_is_replaced(embedder: EmbeddingProcess) -> None:
    before = await embedder.embed_query("first")
    pid = embedder.pid
    assert pid is not None
    os.kill(pid, 9)
    again = await embedder.embed_query("second")
    assert embedder.pid not in (None, pid)
    assert again.shape == before.shape


@pytest.mark.slow
async def test_stop_kills_bulk_work_and_lets_queries_come_back(embedder: EmbeddingProcess) -> None:
    await embedder.embed_query("warm")
    pid = embedder.pid
    assert pid is not None
    bulk = asyncio.create_task(embedder.embed_bulk([f"sentence number {i} of many" for i in range(4000)]))
    await asyncio.sleep(0.3)
    began = time.monotonic()
    await embedder.stop_background()
    assert not alive(pid)
    with pytest.raises(EmbeddingStopped):
        await bulk
    assert time.monotonic() - began < 5.0
    assert (await embedder.embed_query("after")).shape == (384,)


async def test_stop_while_the_child_is_starting(embedder: EmbeddingProcess) -> None:
    bulk = asyncio.create_task(embedder.embed_bulk(["one", "two"]))
    while embedder.pid is None:
        await asyncio.sleep(0.01)
    pid = embedder.pid
    await embedder.stop_background()
    with pytest.raises(EmbeddingStopped):
        await bulk
    assert not alive(pid)


async def test_a_query_overtakes_bulk_work(embedder: EmbeddingProcess) -> None:
    await embedder.embed_query("warm")
    bulk = asyncio.create_task(embedder.embed_bulk([f"sentence number {i} of many" for i in range(3000)]))
    await asyncio.sleep(0.2)
    await embedder.embed_query("a person is waiting")
    assert not bulk.done()
    await embedder.stop_background()
    with pytest.raises(EmbeddingStopped):
        await bulk


@pytest.mark.slow
async def test_an_idle_child_is_unloaded_and_comes_back() -> None:
    embedder = EmbeddingProcess(find_model(), EmbeddingSettings(query_wait_s=120.0, idle_unload_s=0.2))
    try:
        await embedder.embed_query("one")
        pid = embedder.pid
        assert pid is not None
        for _ in range(100):
            if embedder.pid is None and not alive(pid):
                break
            await asyncio.sleep(0.05)
        assert embedder.pid is None
        assert not alive(pid)
        assert (await embedder.embed_query("two")).shape == (384,)
    finally:
        await embedder.close()


async def test_a_query_does_not_wait_for_a_slow_start() -> None:
    embedder = EmbeddingProcess(find_model(), EmbeddingSettings(query_wait_s=0.05))
    try:
        with pytest.raises(ModelUnavailable) as caught:
            await embedder.embed_query("hello")
        assert caught.value.retry_after_s
        # The child goes on starting, so that a retry succeeds.
        assert (await embedder.embed_query("hello", timeout_s=120.0)).shape == (384,)
    finally:
        await embedder.close()


async def test_changed_weights_are_refused(tmp_path: Path) -> None:
    model = find_model()
    folder = tmp_path / "model"
    shutil.copytree(model.folder, folder)
    with (folder / "model.safetensors").open("r+b") as stream:
        stream.seek(-1, os.SEEK_END)
        last = stream.read(1)
        stream.seek(-1, os.SEEK_END)
        stream.write(bytes([last[0] ^ 1]))
    changed = type(model)(folder, model.weights_sha256, model.dimension)
    embedder = EmbeddingProcess(changed, PATIENT)
    try:
        with pytest.raises(ModelRefused):
            await embedder.embed_query("hello")
        with pytest.raises((ModelRefused, ModelUnavailable)):
            await embedder.embed_bulk(["hello"])
    finally:
        await embedder.close()


async def test_nothing_is_embedded_after_close(embedder: EmbeddingProcess) -> None:
    await embedder.close()
    with pytest.raises(ModelUnavailable):
        await embedder.embed_query("late")
    assert embedder.pid is None
