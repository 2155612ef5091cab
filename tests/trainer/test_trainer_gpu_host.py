"""The GPU host: readings of the platform's services, unloading and loading under grants, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import math
import urllib.request
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from nightshift.trainer.v1 import resources_pb2 as types
from nightshift.trainer.v1 import trainer_service_pb2 as pb
from nightshift_kit.errors import SettingsInvalid
from nightshift_kit.grants import Tier
from nightshift_kit.ids import new_id
from nightshift_kit.rpc.channels import decode_error
from nightshift_kit.settings import service_settings
from nightshift_trainer.config import TrainerSettings
from nightshift_trainer.gpu import GpuMemory
from nightshift_trainer.gpu_host.choosing import Outcome, choose
from nightshift_trainer.gpu_host.gpu_service import Health
from nightshift_trainer.gpu_host.http import MAX_BODY_BYTES, strict_json
from nightshift_trainer.gpu_host.models import Form, HostModel, ModelRef, Reading, in_order
from nightshift_trainer.store.tables import gpu_intents
from tests.support.platform_server import PAGE, Answer, Platform, platform_server
from tests.trainer.conftest import Trainer, open_trainer

VRAM = "/api/health/vram"
MIB = 2**20
# 70 % of the stand-in's card.
TARGET = 70_000 * MIB
UNLOADED = pb.UNLOAD_OUTCOME_UNLOADED
ENOUGH_FREE = pb.UNLOAD_OUTCOME_ENOUGH_FREE
NONE_IDLE = pb.UNLOAD_OUTCOME_NONE_IDLE


@pytest.fixture
def platform() -> Iterator[Platform]:
    with platform_server() as running:
        yield running
        assert running.strangers == []
        assert running.devserver.active_users == []


@asynccontextmanager
async def trainer_beside(platform: Platform, home: Path, **settings: Any) -> AsyncIterator[Trainer]:
    told = {
        "gpu_service_url": platform.gpu.url,
        "ollama_url": platform.ollama.url,
        "gpu_host_timeout_s": 1.0,
        "unload_settle_s": 0.3,
        **settings,
    }
    async with open_trainer(home, **told) as trainer:
        yield trainer


def crowded(platform: Platform) -> list[types.ModelRef]:
    """95 % of the card: three idle models and one in use."""
    platform.gpu.load("text", "young", vram_mb=15_000, last_used=300.0)
    platform.gpu.load("diffusers", "old", vram_mb=20_000, last_used=100.0)
    platform.gpu.load("diffusers", "busy", vram_mb=30_000, last_used=50.0, in_use=1)
    platform.gpu.load("diffusers", "middle", vram_mb=30_000, last_used=200.0)
    return [ref(one.backend, one.model) for one in platform.gpu.models]


def ref(backend: str, model: str) -> types.ModelRef:
    return types.ModelRef(backend=backend, model=model)


def wish(models: list[types.ModelRef], target: int = TARGET) -> pb.UnloadIdleModelRequest:
    return pb.UnloadIdleModelRequest(models=models, target_used_bytes=target)


def spared(answer: pb.UnloadIdleModelResponse) -> dict[str, str]:
    return {one.model.model: one.reason for one in answer.spared}


def kinds(trainer: Trainer) -> list[str]:
    from nightshift_kit.audit import Outbox
    from nightshift_kit.clock import SystemClock

    outbox = Outbox("trainer", SystemClock())
    return [event.kind for event in trainer.db.read_sync(outbox.events, 0, 100)]


def open_intents(trainer: Trainer) -> int:
    def count(connection: Any) -> int:
        return len(connection.execute(gpu_intents.select()).all())

    return trainer.db.read_sync(count)


@pytest.mark.parametrize("form", ["old", "new"])
async def test_a_reading_tells_memory_models_and_their_order(
    platform: Platform, tmp_path: Path, form: Any
) -> None:
    crowded(platform)
    platform.gpu.form = form
    platform.gpu.foreign_mb = 1000
    platform.ollama.load("qwen3:4b", vram_mb=2000)
    preload = [{"model": "qwen3:4b"}, {"model": "gemma3:1b", "vram_bytes": 7}]
    async with trainer_beside(platform, tmp_path, preload_models=preload) as trainer:
        host = await trainer.stub.GetGpuHost(pb.GetGpuHostRequest(), timeout=10)
    assert host.name == "gpuHost"
    assert host.form == (types.GPU_HOST_FORM_OLD if form == "old" else types.GPU_HOST_FORM_NEW)
    assert (host.total_bytes, host.free_bytes) == (100_000 * MIB, 2000 * MIB)
    assert host.foreign_bytes == (0 if form == "old" else 3000 * MIB)
    assert [one.pid for one in host.processes] == ([] if form == "old" else [4711])
    assert [one.model.model for one in host.models] == ["busy", "old", "middle", "young", "qwen3:4b"]
    busy, last = host.models[0], host.models[-1]
    assert (busy.in_use, busy.use_known, busy.unloadable) == (1, True, True)
    assert busy.last_used_time.seconds == 50
    assert not last.use_known
    assert not last.HasField("last_used_time")
    assert [(one.model.model, one.loaded, one.installed) for one in host.preload_models] == [
        ("qwen3:4b", True, True),
        ("gemma3:1b", False, False),
    ]
    assert host.preload_models[0].vram_bytes == round(2000 * MIB * 1.2)
    assert host.preload_models[1].vram_bytes == 7
    assert not host.problems


async def test_without_a_gpu_service_nvml_tells(platform: Platform, tmp_path: Path) -> None:
    class OneGpu:
        def memory(self) -> GpuMemory:
            return GpuMemory("a card", 24 * 2**30, 5 * 2**30)

        def holds(self, pid: int) -> bool:
            return False

    async with open_trainer(tmp_path / "a", OneGpu(), ollama_url=platform.ollama.url) as trainer:
        host = await trainer.stub.GetGpuHost(pb.GetGpuHostRequest(), timeout=10)
    assert (host.form, host.free_bytes) == (types.GPU_HOST_FORM_NVML, 5 * 2**30)
    async with open_trainer(tmp_path / "b") as trainer:
        refused = await trainer.refused("GetGpuHost", pb.GetGpuHostRequest())
    assert (refused.code, refused.reason) == (
        grpc.StatusCode.FAILED_PRECONDITION,
        "GPU_HOST_UNCONFIGURED",
    )


BAD = {
    "a page": Answer(200, PAGE, "text/html"),
    "half a document": Answer(200, b'{"total_mb": 1'),
    "bad UTF-8": Answer(200, b'{"total_mb": "\xff"}'),
    "a list": Answer.json([1]),
    "nothing known": Answer.json({}),
    "deep": Answer(200, b"[" * 100_000),
    "long digits": Answer(200, b'{"total_mb": ' + b"9" * 5000 + b"}"),
    "too long": Answer(200, b" " * (MAX_BODY_BYTES + 1)),
    "a redirect": Answer(302, b"", headers={"Location": "/api/active-users"}),
    "not found": Answer.json({"error": "?"}, 404),
    "compressed": Answer(200, b"\x1f\x8b", headers={"Content-Encoding": "gzip"}),
}


def health(**changes: Any) -> dict[str, Any]:
    """A good answer with changes."""
    model = {"backend": "text", "model": "m", "vram_mb": 1.0, "in_use": 0, "last_used": 1.0}
    good = {"total_mb": 10.0, "free_mb": 5.0, "loaded_models": [model], "eviction_in_progress": False}
    return {**good, **changes}


def model_with(**changes: Any) -> dict[str, Any]:
    made = {**health()["loaded_models"][0], **changes}
    return health(loaded_models=[{key: value for key, value in made.items() if value is not ...}])


WRONG = {
    "NaN": health(free_mb=math.nan),
    "infinite": health(total_mb=math.inf),
    "negative": health(free_mb=-1.0),
    "a word": health(total_mb="10"),
    "more free than there is": health(free_mb=11.0),
    "no free": {key: value for key, value in health().items() if key != "free_mb"},
    "eviction unknown": health(eviction_in_progress=None),
    "use untold": model_with(in_use=...),
    "negative use": model_with(in_use=-1),
    "half a use": model_with(in_use=0.5),
    "a control in a name": model_with(model="a\x1b[31m"),
    "negative memory": model_with(vram_mb=-5.0),
    "far future": model_with(last_used=1e18),
}


@pytest.mark.parametrize("case", [*BAD, *WRONG])
async def test_a_bad_answer_is_refused_and_nothing_is_unloaded(
    platform: Platform, tmp_path: Path, case: str
) -> None:
    models = crowded(platform)
    platform.gpu.answer_with(VRAM, BAD.get(case) or Answer.json(WRONG[case]))
    async with trainer_beside(platform, tmp_path) as trainer:
        for method, request in (("GetGpuHost", pb.GetGpuHostRequest()), ("UnloadIdleModel", wish(models))):
            refused = await trainer.refused(method, request)
            assert (refused.code, refused.reason) == (
                grpc.StatusCode.FAILED_PRECONDITION,
                "GPU_HOST_INVALID",
            )
            assert refused.metadata["source"] == "gpu_service"
    assert platform.gpu.unloads == []


async def test_a_service_that_is_away_slow_or_broken_is_unavailable(
    platform: Platform, tmp_path: Path
) -> None:
    models = crowded(platform)
    async with trainer_beside(platform, tmp_path, gpu_host_timeout_s=0.2) as trainer:
        platform.gpu.answer_with(VRAM, Answer.json({}, 503))
        assert (await trainer.refused("GetGpuHost", pb.GetGpuHostRequest())).retry_after_s
        platform.gpu.answer_with(VRAM, None)
        platform.gpu.delay_s = 0.6
        refused = await trainer.refused("UnloadIdleModel", wish(models))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "GPU_HOST_UNAVAILABLE")
        platform.gpu.delay_s = 0
        platform.gpu.eviction_in_progress = True
        refused = await trainer.refused("UnloadIdleModel", wish(models))
        assert (refused.code, refused.reason) == (grpc.StatusCode.UNAVAILABLE, "EVICTION_IN_PROGRESS")
        platform.gpu.eviction_in_progress = False
        platform.ollama.answer_with("/api/ps", Answer(200, PAGE, "text/html"))
        host = await trainer.stub.GetGpuHost(pb.GetGpuHostRequest(), timeout=10)
        assert [(one.source, one.reason) for one in host.problems] == [("ollama", "GPU_HOST_INVALID")]
        answer = await trainer.act("UnloadIdleModel", wish([ref("ollama", "qwen3:4b")]))
        assert (answer.outcome, spared(answer)) == (NONE_IDLE, {"qwen3:4b": "its backend cannot be asked"})
    assert platform.gpu.unloads == []


async def test_the_idle_one_that_was_used_longest_ago_goes_until_the_target_is_kept(
    platform: Platform, tmp_path: Path
) -> None:
    models = crowded(platform)
    async with trainer_beside(platform, tmp_path) as trainer:
        answers = [await trainer.act("UnloadIdleModel", wish(models)) for _ in models]
        assert [answer.model.model for answer in answers] == ["old", "middle", "", ""]
        assert [answer.outcome for answer in answers] == [UNLOADED, UNLOADED, ENOUGH_FREE, ENOUGH_FREE]
        assert [answer.freed_bytes for answer in answers[:2]] == [20_000 * MIB, 30_000 * MIB]
        assert spared(answers[0]) == {"busy": "in use"}
        answer = await trainer.act("UnloadIdleModel", wish(models, target=0))
        assert answer.model.model == "young"
        answer = await trainer.act("UnloadIdleModel", wish(models, target=0))
        assert answer.outcome == NONE_IDLE
        assert spared(answer) == {
            "busy": "in use",
            "old": "not loaded",
            "middle": "not loaded",
            "young": "not loaded",
        }
        assert platform.gpu.unloaded == ["old", "middle", "young"]
        assert kinds(trainer) == [
            *["gpu.unload_intended", "gpu.model_unloaded"] * 2,
            *["gpu.nothing_unloaded"] * 2,
            "gpu.unload_intended",
            "gpu.model_unloaded",
            "gpu.nothing_unloaded",
        ]
        assert open_intents(trainer) == 0
    assert platform.evicted_in_use == []
    sent = platform.gpu.asked("/api/diffusers/unload")[0].document
    assert sent == {"model_id": "old"}


async def test_only_named_models_go(platform: Platform, tmp_path: Path) -> None:
    crowded(platform)
    platform.gpu.load("mmaudio", "strange", vram_mb=1, last_used=1.0)
    platform.gpu.load("heartmula", "song", vram_mb=1, last_used=1.0)
    platform.gpu.load("heartmula", "voice", vram_mb=1, last_used=2.0)
    named = [ref("mmaudio", "strange"), ref("heartmula", "song"), ref("text", "young")]
    async with trainer_beside(platform, tmp_path) as trainer:
        answer = await trainer.act("UnloadIdleModel", wish(named, target=0))
        assert answer.model.model == "young"
        reasons = spared(answer)
        assert reasons["strange"] == "its backend has no way to unload it"
        assert reasons["song"].startswith("its backend unloads all its models at once")
        both = [ref("heartmula", "song"), ref("heartmula", "voice")]
        answer = await trainer.act("UnloadIdleModel", wish(both, target=0))
        assert answer.model.model == "song"
        assert platform.gpu.unloaded == ["young", "song", "voice"]
        for bad in (wish([]), wish(named, target=-1), wish([*named, named[0]]), wish([ref("", "x")])):
            assert (await trainer.refused("UnloadIdleModel", bad)).reason == "FIELD_INVALID"


async def test_a_model_that_comes_into_use_after_the_look_is_spared(
    platform: Platform, tmp_path: Path
) -> None:
    models = crowded(platform)
    # The first look shows it idle; by the second, just before the unload, somebody uses it.
    platform.gpu.after(VRAM, lambda: platform.gpu.use("diffusers", "old"))
    async with trainer_beside(platform, tmp_path) as trainer:
        answer = await trainer.act("UnloadIdleModel", wish(models))
        assert (answer.outcome, answer.model.model) == (UNLOADED, "middle")
        assert spared(answer) == {"busy": "in use", "old": "in use"}
        # Used and idle again between two looks: last_used tells.
        platform.gpu.after(VRAM, lambda: platform.gpu.use("text", "young", in_use=0))
        platform.gpu.use("diffusers", "old", in_use=0)
        answer = await trainer.act("UnloadIdleModel", wish(models, target=0))
        assert answer.model.model == "old"
    assert platform.gpu.unloaded == ["middle", "old"]
    assert platform.evicted_in_use == []


async def test_models_that_never_rest_are_left_alone(platform: Platform, tmp_path: Path) -> None:
    platform.gpu.load("text", "restless", vram_mb=90_000, last_used=1.0)
    moments = iter(range(100, 200))

    def use() -> None:
        platform.gpu.use("text", "restless", in_use=0, last_used=float(next(moments)))

    for _ in range(20):
        platform.gpu.after(VRAM, use)
    async with trainer_beside(platform, tmp_path) as trainer:
        answer = await trainer.act("UnloadIdleModel", wish([ref("text", "restless")]))
    assert (answer.outcome, spared(answer)) == (NONE_IDLE, {"restless": "used meanwhile"})
    assert platform.gpu.unloads == []


async def test_a_lost_reply_unloads_once(platform: Platform, tmp_path: Path) -> None:
    models = crowded(platform)
    platform.gpu.lose_answers("/api/diffusers/unload")
    async with trainer_beside(platform, tmp_path) as trainer:
        answer = await trainer.act("UnloadIdleModel", wish(models))
        assert (answer.outcome, answer.model.model) == (UNLOADED, "old")
    assert platform.gpu.unloaded == ["old"]
    assert len(platform.gpu.asked("/api/diffusers/unload")) == 1


@pytest.mark.parametrize("meanwhile", ["gone", "in use", "used", "untouched"])
async def test_a_call_made_again_after_everything_was_lost_looks_first(
    platform: Platform, tmp_path: Path, meanwhile: str
) -> None:
    models, jti = crowded(platform), new_id()
    # The host falls silent with the unload: whether it happened, nobody can tell.
    if meanwhile == "untouched":
        platform.gpu.answer_with("/api/diffusers/unload", Answer.json({}, 503))
    platform.gpu.lose_answers("/api/diffusers/unload")
    platform.gpu.after("/api/diffusers/unload", lambda: platform.gpu.answer_with(VRAM, Answer.json({}, 503)))
    async with trainer_beside(platform, tmp_path) as trainer:
        request = wish(models)
        refused = await trainer.refused("UnloadIdleModel", request, jti=jti)
        assert refused.reason == "GPU_HOST_UNAVAILABLE"
        assert open_intents(trainer) == 1
        if meanwhile in ("in use", "used"):
            platform.gpu.load("diffusers", "old", vram_mb=20_000, last_used=900.0)
            platform.gpu.use("diffusers", "old", in_use=int(meanwhile == "in use"), last_used=900.0)
        platform.gpu.answer_with(VRAM, None)
        platform.gpu.answer_with("/api/diffusers/unload", None)
        answer = await trainer.act("UnloadIdleModel", request, jti=jti)
        again = await trainer.act("UnloadIdleModel", request, jti=jti)
        assert again == answer
        assert open_intents(trainer) == 0
        if meanwhile in ("gone", "untouched"):
            assert (answer.outcome, answer.model.model) == (UNLOADED, "old")
            assert kinds(trainer).count("gpu.model_unloaded") == 1
        else:
            assert (answer.outcome, spared(answer)) == (NONE_IDLE, {"old": "used meanwhile"})
            assert "old" in platform.gpu.loaded
            assert kinds(trainer)[-1] == "gpu.model_spared"
    assert platform.gpu.unloaded == ["old"]
    assert platform.evicted_in_use == []


async def test_an_intent_without_its_call_is_carried_out_once_when_the_trainer_is_back(
    platform: Platform, tmp_path: Path
) -> None:
    models, jti = crowded(platform), new_id()
    # Between the intent and the call the second look fails: the trainer ends there.
    platform.gpu.after(VRAM, lambda: platform.gpu.answer_with(VRAM, Answer.json({}, 503)))
    async with trainer_beside(platform, tmp_path) as trainer:
        assert (await trainer.refused("UnloadIdleModel", wish(models), jti=jti)).retry_after_s
        assert open_intents(trainer) == 1
    platform.gpu.answer_with(VRAM, None)
    assert platform.gpu.unloads == []
    async with trainer_beside(platform, tmp_path) as trainer:
        # Nothing goes on by itself: somebody has to ask, under the fence in force.
        await asyncio.sleep(0.2)
        assert platform.gpu.unloads == []
        answer = await trainer.act("UnloadIdleModel", wish(models), jti=jti)
        assert (answer.outcome, answer.model.model) == (UNLOADED, "old")
        assert open_intents(trainer) == 0
    assert platform.gpu.unloaded == ["old"]


async def test_a_stop_before_the_call_unloads_nothing(platform: Platform, tmp_path: Path) -> None:
    models = crowded(platform)
    looked = asyncio.Event()
    loop = asyncio.get_running_loop()
    platform.gpu.after(VRAM, lambda: loop.call_soon_threadsafe(looked.set))
    platform.gpu.delay_s = 0.3
    async with trainer_beside(platform, tmp_path) as trainer:
        call = asyncio.create_task(trainer.act("UnloadIdleModel", wish(models)))
        await looked.wait()
        await trainer.stop(2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert decode_error(caught.value).reason == "PREEMPTED"
    assert platform.gpu.unloads == []


async def test_a_stop_while_an_unload_is_on_its_way_ends_the_call_and_keeps_what_came_of_it(
    platform: Platform, tmp_path: Path
) -> None:
    models, jti = crowded(platform), new_id()
    left = asyncio.Event()
    loop = asyncio.get_running_loop()
    platform.gpu.before("/api/diffusers/unload", lambda: loop.call_soon_threadsafe(left.set))
    async with trainer_beside(platform, tmp_path) as trainer:
        platform.gpu.delay_s = 0.4
        call = asyncio.create_task(trainer.act("UnloadIdleModel", wish(models), jti=jti))
        await left.wait()
        events = await trainer.stop(2)
        assert any(event.running_count == 0 for event in events)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert decode_error(caught.value).reason == "PREEMPTED"
        platform.gpu.delay_s = 0
        # After quiet: the same grant under the new fence gets the answer that was kept.
        answer = await trainer.act("UnloadIdleModel", wish(models), jti=jti, fence=2)
        assert (answer.outcome, answer.model.model) == (UNLOADED, "old")
        assert kinds(trainer).count("gpu.model_unloaded") == 1
    assert platform.gpu.unloaded == ["old"]


async def test_a_backend_that_does_not_unload_is_told_of(platform: Platform, tmp_path: Path) -> None:
    models = crowded(platform)
    platform.gpu.unload_ignores = {"diffusers"}
    async with trainer_beside(platform, tmp_path) as trainer:
        refused = await trainer.refused("UnloadIdleModel", wish(models))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "UNLOAD_REFUSED")
        platform.gpu.answer_with("/api/diffusers/unload", Answer.json({"success": False}))
        assert (await trainer.refused("UnloadIdleModel", wish(models))).reason == "UNLOAD_REFUSED"
        platform.gpu.answer_with("/api/diffusers/unload", Answer.json({}, 404))
        assert (await trainer.refused("UnloadIdleModel", wish(models))).reason == "GPU_HOST_INVALID"
        assert open_intents(trainer) == 0


async def test_ollama_unloads_by_keep_alive_and_keeps_what_is_busy(
    platform: Platform, tmp_path: Path
) -> None:
    platform.gpu.load("text", "other", vram_mb=80_000, last_used=1.0, in_use=1)
    platform.ollama.load("qwen3:4b", vram_mb=4500)
    platform.ollama.load("gemma3:1b", vram_mb=1500)
    platform.ollama.running[0].busy = 1
    named = [ref("ollama", "qwen3:4b"), ref("ollama", "gemma3:1b")]
    async with trainer_beside(platform, tmp_path) as trainer:
        answer = await trainer.act("UnloadIdleModel", wish(named))
        assert answer.model.model == "gemma3:1b"
        answer = await trainer.act("UnloadIdleModel", wish(named))
        assert answer.outcome == NONE_IDLE
        assert spared(answer)["qwen3:4b"] == "in use"
    assert platform.ollama.loaded == ["qwen3:4b"]
    assert platform.ollama.asked("/api/generate")[0].document["keep_alive"] == 0


async def test_loading_asks_for_room_first(platform: Platform, tmp_path: Path) -> None:
    crowded(platform)
    platform.ollama.tags = {"qwen3:4b": 4000 * MIB, "gemma3:1b": 1000 * MIB}
    settings = {
        "preload_models": [{"model": "qwen3:4b"}, {"model": "gemma3:1b"}, {"model": "absent:1b"}],
        "vram_reserve_bytes": 1024 * MIB,
    }

    def load(model: str, vram_mb: int) -> pb.LoadModelRequest:
        return pb.LoadModelRequest(model=ref("ollama", model), vram_bytes=vram_mb * MIB)

    async with trainer_beside(platform, tmp_path, **settings) as trainer:
        # 5,000 MB are free, 1,024 of them stay free; 4,000 · 1.2 do not fit, whatever the caller says.
        refused = await trainer.refused("LoadModel", load("qwen3:4b", 1))
        assert (refused.code, refused.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "VRAM_INSUFFICIENT")
        assert refused.metadata["needed_bytes"] == str(4800 * MIB)
        assert platform.ollama.loaded == []
        jti = new_id()
        answer = await trainer.act("LoadModel", load("gemma3:1b", 1200), jti=jti)
        assert (answer.already_loaded, answer.vram_bytes) == (False, 1000 * MIB)
        assert await trainer.act("LoadModel", load("gemma3:1b", 1200), jti=jti) == answer
        assert len(platform.ollama.asked("/api/generate")) == 1
        sent = platform.ollama.asked("/api/generate")[0].document
        assert sent == {"model": "gemma3:1b", "prompt": "", "keep_alive": 14_400, "stream": False}
        assert (await trainer.act("LoadModel", load("gemma3:1b", 1200))).already_loaded
        assert (await trainer.refused("LoadModel", load("absent:1b", 1))).reason == "MODEL_UNKNOWN"
        assert (await trainer.refused("LoadModel", load("other:1b", 1))).reason == "FIELD_INVALID"
        assert (await trainer.refused("LoadModel", load("gemma3:1b", 0))).reason == "FIELD_INVALID"
        platform.ollama.running.clear()
        platform.ollama.lose_answers("/api/generate")
        jti = new_id()
        refused = await trainer.refused("LoadModel", load("gemma3:1b", 1200), jti=jti)
        assert refused.reason == "GPU_HOST_UNAVAILABLE"
        answer = await trainer.act("LoadModel", load("gemma3:1b", 1200), jti=jti)
        assert not answer.already_loaded
        assert len(platform.ollama.asked("/api/generate")) == 2
        assert kinds(trainer)[-3:] == ["gpu.model_was_loaded", "gpu.load_intended", "gpu.model_loaded"]


async def test_a_stop_calls_a_load_back(platform: Platform, tmp_path: Path) -> None:
    platform.ollama.tags = {"gemma3:1b": 1000 * MIB}
    platform.ollama.load_s = 0.5
    request = pb.LoadModelRequest(model=ref("ollama", "gemma3:1b"), vram_bytes=1200 * MIB)
    jti, left = new_id(), asyncio.Event()
    loop = asyncio.get_running_loop()
    platform.ollama.before("/api/generate", lambda: loop.call_soon_threadsafe(left.set))
    settings = {"preload_models": [{"model": "gemma3:1b"}]}
    async with trainer_beside(platform, tmp_path, **settings) as trainer:
        call = asyncio.create_task(trainer.act("LoadModel", request, jti=jti))
        await left.wait()
        await trainer.stop(2)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call
        assert decode_error(caught.value).reason == "PREEMPTED"
        assert kinds(trainer) == ["gpu.load_intended"]
        # The stand-in loads to the end all the same; the retry after quiet finds it, and asks no second time.
        answer = await trainer.act("LoadModel", request, jti=jti, fence=2)
        assert not answer.already_loaded
        assert kinds(trainer) == ["gpu.load_intended", "gpu.model_loaded"]
        assert open_intents(trainer) == 0
    assert len(platform.ollama.asked("/api/generate")) == 1


async def test_other_skills_and_lower_tiers_may_not_unload(platform: Platform, tmp_path: Path) -> None:
    models = crowded(platform)
    async with trainer_beside(platform, tmp_path) as trainer:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await trainer.stub.UnloadIdleModel(wish(models), timeout=5)
        assert decode_error(caught.value).reason == "GRANT_MISSING"
        refused = await trainer.refused("UnloadIdleModel", wish(models), skill="preload_models")
        assert refused.reason == "GRANT_SUBJECT"
        refused = await trainer.refused("UnloadIdleModel", wish(models), tier=Tier.AUTO)
        assert refused.reason == "TIER_INSUFFICIENT"
    assert platform.gpu.unloads == []


def test_the_stand_in_has_the_platforms_quirks() -> None:
    with platform_server() as platform:

        def get(url: str) -> tuple[str, bytes]:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return answer.headers["Content-Type"], answer.read()

        kind, body = get(f"{platform.devserver.url}/health")
        assert kind.startswith("text/html")
        assert body == PAGE
        kind, body = get(f"{platform.devserver.url}/api/settings/safety-level")
        assert json.loads(body)["safety_level"]
        get(f"{platform.devserver.url}/api/active-users")
        get(f"{platform.devserver.url}/api/queue-status")
        assert len(platform.devserver.active_users) == 2
        assert json.loads(get(f"{platform.comfyui.url}/queue")[1])["queue_running"] == []
        assert json.loads(get(f"{platform.comfyui.url}/system_stats")[1])["devices"]
        platform.gpu.load("diffusers", "m", vram_mb=1, in_use=1)
        request = urllib.request.Request(
            f"{platform.gpu.url}/api/diffusers/unload", data=b"{}", method="POST"
        )
        urllib.request.urlopen(request, timeout=5).close()
        assert [one.in_use for one in platform.evicted_in_use] == [1]
        assert len(platform.strangers) == 7


@pytest.mark.parametrize(
    "told",
    [
        {"gpu_service_url": "ftp://x"},
        {"gpu_service_url": "http://user@x"},
        {"ollama_url": "http://x?y"},
        {"preload_models": [{"model": "qwen3:4b"}]},
        {"preload_models": [{"model": "qwen3"}], "ollama_url": "http://x"},
        {"preload_models": [{"model": "a:b"}, {"model": "a:b"}], "ollama_url": "http://x"},
        {"preload_models": [{"model": "a:b", "backend": "diffusers"}], "ollama_url": "http://x"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(told: dict[str, Any]) -> None:
    with pytest.raises((ValidationError, SettingsInvalid)):
        TrainerSettings(**told)


def test_preloads_come_from_the_file(tmp_path: Path) -> None:
    from nightshift_kit.settings import PlaneSettings

    (tmp_path / "settings.toml").write_text(
        '[trainer]\nollama_url = "http://127.0.0.1:11434/"\n'
        '[[trainer.preload_models]]\nmodel = "qwen3:4b"\nvram_bytes = 5_000_000_000\n'
    )
    found = service_settings(TrainerSettings, "trainer", PlaneSettings(home=tmp_path))
    assert found.ollama_url == "http://127.0.0.1:11434"
    assert [(one.backend, one.model, one.vram_bytes) for one in found.preload_models] == [
        ("ollama", "qwen3:4b", 5_000_000_000)
    ]


_numbers = st.one_of(
    st.floats(allow_nan=True, allow_infinity=True), st.integers(-10, 10**10), st.text(max_size=3), st.none()
)


@given(
    st.fixed_dictionaries(
        {
            "total_mb": _numbers,
            "loaded_models": st.one_of(st.none(), st.just([])),
            "eviction_in_progress": st.booleans(),
        },
        optional={"free_mb": _numbers, "nvml_free_mb": _numbers, "foreign_vram_mb": _numbers},
    )
)
def test_whatever_health_says_it_is_refused_or_within_bounds(document: dict[str, Any]) -> None:
    try:
        found = Health.model_validate(document)
    except ValidationError:
        return
    assert 0 <= found.known_free_mb <= found.total_mb <= 1e9
    assert 0 <= found.foreign_vram_mb <= 1e9


@given(st.binary(max_size=200))
def test_no_bytes_break_the_reader_of_json(body: bytes) -> None:
    try:
        found = strict_json(body)
    except (ValueError, RecursionError):
        return
    assert json.loads(body) == found


def test_a_doubled_key_is_refused() -> None:
    with pytest.raises(ValueError, match="twice"):
        strict_json(b'{"in_use": 1, "in_use": 0}')


_refs = st.builds(
    ModelRef, st.sampled_from(["diffusers", "text", "heartmula", "mmaudio"]), st.sampled_from("abc")
)
_models = st.builds(
    lambda ref, in_use, last: HostModel(
        ref=ref,
        vram_bytes=1,
        in_use=in_use,
        use_known=True,
        last_used_s=last,
        priority="",
        unloadable=ref.backend != "mmaudio",
        whole_backend=ref.backend == "heartmula",
        mark=str(last),
    ),
    _refs,
    st.integers(0, 2),
    st.one_of(st.none(), st.floats(0, 9)),
)


@given(
    st.lists(_models, max_size=8, unique_by=lambda one: one.ref),
    st.lists(_refs, min_size=1, unique=True),
    st.integers(0, 100),
    st.integers(0, 100),
)
def test_the_choice_is_idle_allowed_and_oldest(
    models: list[HostModel], allowed: list[ModelRef], used: int, target: int
) -> None:
    reading = Reading(Form.OLD, 100, 100 - used, 0, False, in_order(models))
    choice = choose(reading, allowed, target)
    if used <= target:
        assert (choice.model, choice.outcome) == (None, Outcome.ENOUGH_FREE)
        return
    may_go = [one for one in models if one.ref in allowed and one.unloadable and not one.in_use]
    if choice.model is None:
        assert choice.outcome is Outcome.NONE_IDLE
        assert all(one.whole_backend for one in may_go)
        return
    assert choice.model in may_go
    siblings = [one for one in models if one.ref.backend == choice.model.ref.backend]
    assert not choice.model.whole_backend or all(not one.in_use and one.ref in allowed for one in siblings)
    ages = [one.last_used_s for one in may_go if not one.whole_backend and one.last_used_s is not None]
    if choice.model.last_used_s is not None:
        assert all(choice.model.last_used_s <= age for age in ages)
    else:
        assert not ages
    assert {one.ref for one in choice.spared}.isdisjoint({choice.model.ref})
