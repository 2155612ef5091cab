"""What the trainer refuses, over the wire, with the reason that its page promises."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
import safetensors.torch
import torch

from nightshift.trainer.v1 import resources_pb2
from nightshift.trainer.v1 import trainer_service_pb2 as pb
from nightshift_kit.rpc.channels import decode_error
from nightshift_trainer.gpu import GpuMemory
from tests.trainer.conftest import Trainer, open_trainer
from tests.trainer.training_support import Fixture, make_fixture

pytestmark = pytest.mark.asyncio(loop_scope="module")

IA, FP, NF = "INVALID_ARGUMENT", "FAILED_PRECONDITION", "NOT_FOUND"
USER = {"role": "user", "content": "Who?"}
ANSWER = {"role": "assistant", "content": "I."}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def trainer(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Trainer]:
    async with open_trainer(tmp_path_factory.mktemp("home")) as opened:
        yield opened


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> Fixture:
    return make_fixture(tmp_path_factory.mktemp("pristine"))


@dataclass
class Bad:
    """A way to ask wrongly: changes to the spec, or damage to the files."""

    code: str
    reason: str
    spec: dict[str, Any] | None = None
    damage: Callable[[Fixture], object] | None = None
    metadata: dict[str, str] | None = None


def rows(*lines: object) -> Callable[[Fixture], object]:
    """Damage: other rows; text is written as it is."""

    def write(fixture: Fixture) -> None:
        text = "\n".join(line if isinstance(line, str) else json.dumps(line) for line in lines)
        fixture.rows.write_text(text + "\n" if text else "", encoding="utf-8")

    return write


def chat(*messages: object) -> dict[str, object]:
    return {"messages": list(messages)}


def config(**changes: Any) -> Callable[[Fixture], object]:
    def write(fixture: Fixture) -> None:
        path = fixture.model / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return write


def larger_tokenizer(fixture: Fixture) -> None:
    path = fixture.model / "tokenizer.json"
    content = json.loads(path.read_text())
    content["added_tokens"].append({**content["added_tokens"][-1], "id": 99_999, "content": "<|far|>"})
    path.write_text(json.dumps(content))


GOOD = chat(USER, ANSWER)


def fifo(name: str) -> Callable[[Fixture], object]:
    """Damage: a file is a FIFO that nobody writes into."""

    def replace(fixture: Fixture) -> None:
        path = fixture.rows if name == "rows" else fixture.model / name
        path.unlink()
        os.mkfifo(path)

    return replace


def endless(name: str) -> Callable[[Fixture], object]:
    """Damage: a file is a link to a device that never ends."""

    def replace(fixture: Fixture) -> None:
        path = fixture.rows if name == "rows" else fixture.model / name
        path.unlink()
        path.symlink_to("/dev/zero")

    return replace


def sparse(name: str, size_bytes: int) -> Callable[[Fixture], object]:
    """Damage: a file is far too large, without taking room on the disk."""
    return lambda fixture: os.truncate(fixture.model / name, size_bytes)


def tokenizer_config(**changes: Any) -> Callable[[Fixture], object]:
    def write(fixture: Fixture) -> None:
        path = fixture.model / "tokenizer_config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return write


PD = "PERMISSION_DENIED"
REMOTE_CODE = {"AutoModelForCausalLM": "modeling_evil.EvilForCausalLM"}

CASES = {
    "no base model": Bad(IA, "FIELD_INVALID", {"base_model": ""}),
    "no dataset": Bad(IA, "FIELD_INVALID", {"dataset": ""}),
    "relative dataset": Bad(IA, "FIELD_INVALID", {"dataset": "rows.jsonl"}),
    "model outside the adapters' home": Bad(IA, "FIELD_INVALID", {"base_model": "../../etc"}),
    "NUL in a path": Bad(IA, "FIELD_INVALID", {"base_model": "/tmp/a\0b"}),
    "unknown preset": Bad(IA, "FIELD_INVALID", {"preset": "gigantic"}),
    "rank below zero": Bad(IA, "FIELD_INVALID", {"lora_rank": -1}),
    "dropout of one": Bad(IA, "FIELD_INVALID", {"lora_dropout": 1.0}),
    "dropout not a number": Bad(IA, "NON_FINITE", {"lora_dropout": float("nan")}),
    "unknown quantization": Bad(IA, "FIELD_INVALID", {"quantization": "int3"}),
    "unknown device": Bad(IA, "FIELD_INVALID", {"device": "tpu"}),
    "negative learning rate": Bad(IA, "FIELD_INVALID", {"learning_rate": -1e-4}),
    "infinite learning rate": Bad(IA, "NON_FINITE", {"learning_rate": float("inf")}),
    "adapter id with a slash": Bad(IA, "FIELD_INVALID", {"adapter_id": "a/b"}),
    "digest that is none": Bad(IA, "FIELD_INVALID", {"dataset_digest": "beef"}),
    "no such model": Bad(NF, "BASE_MODEL_UNKNOWN", {"base_model": "/nowhere/at/all"}),
    "no such dataset": Bad(NF, "DATASET_UNKNOWN", {"dataset": "/nowhere/rows.jsonl"}),
    "no GPU": Bad(FP, "GPU_UNAVAILABLE", {"device": "cuda"}),
    "broken config": Bad(
        NF, "BASE_MODEL_UNKNOWN", damage=lambda f: (f.model / "config.json").write_text("{")
    ),
    "no weights": Bad(NF, "BASE_MODEL_UNKNOWN", damage=lambda f: (f.model / "model.safetensors").unlink()),
    "weights cut short": Bad(
        NF,
        "BASE_MODEL_UNKNOWN",
        damage=lambda f: (f.model / "model.safetensors").write_bytes(
            (f.model / "model.safetensors").read_bytes()[:-10]
        ),
    ),
    "pickled weights": Bad(
        "PERMISSION_DENIED",
        "UNSAFE_FORMAT",
        damage=lambda f: (f.model / "model.safetensors").rename(f.model / "pytorch_model.bin"),
        metadata={"file": "pytorch_model.bin"},
    ),
    "a pickle beside the weights": Bad(
        "PERMISSION_DENIED",
        "UNSAFE_FORMAT",
        damage=lambda f: (f.model / "training_args.bin").write_bytes(b"x"),
    ),
    "no tokenizer": Bad(FP, "TOKENIZER_MISMATCH", damage=lambda f: (f.model / "tokenizer.json").unlink()),
    "tokenizer of a larger model": Bad(FP, "TOKENIZER_MISMATCH", damage=larger_tokenizer),
    "no chat template": Bad(
        FP, "TOKENIZER_MISMATCH", damage=lambda f: (f.model / "chat_template.jinja").unlink()
    ),
    "empty dataset": Bad(FP, "CORPUS_EMPTY", damage=rows()),
    "only blank lines": Bad(FP, "CORPUS_EMPTY", damage=rows("", "  ")),
    "not JSON": Bad(IA, "CHAT_ROW_INVALID", damage=rows(GOOD, "{"), metadata={"row": "2"}),
    "not an object": Bad(IA, "CHAT_ROW_INVALID", damage=rows([1]), metadata={"row": "1"}),
    "no messages": Bad(IA, "CHAT_ROW_INVALID", damage=rows({"prompt": "x"}), metadata={"row": "1"}),
    "unknown role": Bad(IA, "CHAT_ROW_INVALID", damage=rows(chat({"role": "robot", "content": ""}))),
    "text that is a number": Bad(IA, "CHAT_ROW_INVALID", damage=rows(chat({"role": "user", "content": 5}))),
    "no response": Bad(IA, "CHAT_ROW_INVALID", damage=rows(GOOD, GOOD, chat(USER)), metadata={"row": "3"}),
    "empty response": Bad(
        IA, "CHAT_ROW_INVALID", damage=rows(chat(USER, {"role": "assistant", "content": " "}))
    ),
    "response before a question": Bad(IA, "CHAT_ROW_INVALID", damage=rows(chat(ANSWER, USER))),
    "half a surrogate": Bad(
        IA,
        "CHAT_ROW_INVALID",
        damage=rows('{"messages":[{"role":"user","content":"\\ud800"},{"role":"assistant","content":"x"}]}'),
    ),
    "config is a FIFO": Bad(NF, "BASE_MODEL_UNKNOWN", damage=fifo("config.json")),
    "config never ends": Bad(NF, "BASE_MODEL_UNKNOWN", damage=endless("config.json")),
    "config is huge": Bad(NF, "BASE_MODEL_UNKNOWN", damage=sparse("config.json", 2**36)),
    "config nests deeply": Bad(
        NF,
        "BASE_MODEL_UNKNOWN",
        damage=lambda f: (f.model / "config.json").write_text("[" * 200_000),
    ),
    "no heads": Bad(NF, "BASE_MODEL_UNKNOWN", damage=config(num_attention_heads=0, head_dim=None)),
    "weights are a FIFO": Bad(NF, "BASE_MODEL_UNKNOWN", damage=fifo("model.safetensors")),
    "weights never end": Bad(NF, "BASE_MODEL_UNKNOWN", damage=endless("model.safetensors")),
    "tokenizer is a FIFO": Bad(FP, "TOKENIZER_MISMATCH", damage=fifo("tokenizer.json")),
    "tokenizer is huge": Bad(FP, "TOKENIZER_MISMATCH", damage=sparse("tokenizer.json", 2**36)),
    "dataset is a FIFO": Bad(NF, "DATASET_UNKNOWN", damage=fifo("rows")),
    "dataset never ends": Bad(NF, "DATASET_UNKNOWN", damage=endless("rows")),
    "model brings code": Bad(
        PD, "UNSAFE_FORMAT", damage=config(auto_map=REMOTE_CODE), metadata={"file": "config.json"}
    ),
    "tokenizer brings code": Bad(
        PD,
        "UNSAFE_FORMAT",
        damage=tokenizer_config(auto_map={"AutoTokenizer": ["evil.EvilTokenizer", None]}),
        metadata={"file": "tokenizer_config.json"},
    ),
    "adapter id climbs": Bad(IA, "FIELD_INVALID", {"adapter_id": "../../x"}),
    "adapter id hidden": Bad(IA, "FIELD_INVALID", {"adapter_id": ".ssh"}),
    "deep nesting": Bad(IA, "CHAT_ROW_INVALID", damage=rows("[" * 100_000)),
}


def damaged(case: Bad, pristine: Fixture, folder: Path) -> Fixture:
    shutil.copytree(pristine.model, folder / "model")
    shutil.copy(pristine.rows, folder / "rows.jsonl")
    fixture = Fixture(folder / "model", folder / "rows.jsonl")
    if case.damage is not None:
        case.damage(fixture)
    return fixture


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
async def test_estimates_and_jobs_refuse_alike(
    trainer: Trainer, pristine: Fixture, tmp_path: Path, case: Bad
) -> None:
    fixture = damaged(case, pristine, tmp_path)
    spec = resources_pb2.TrainingSpec(
        **{
            "base_model": str(fixture.model),
            "dataset": str(fixture.rows),
            "preset": "tiny",
            "device": "cpu",
            **(case.spec or {}),
        }
    )
    estimate = await trainer.refused("EstimateTraining", pb.EstimateTrainingRequest(spec=spec))
    assert (estimate.code.name, estimate.reason) == (case.code, case.reason), estimate
    if case.metadata:
        assert case.metadata.items() <= estimate.metadata.items()
    # A job needs digests on top; given wrong ones, what is wrong with the rest is still said first.
    spec.dataset_digest = spec.dataset_digest or "0" * 64
    spec.base_model_digest = "0" * 64
    job = await trainer.refused("CreateTrainingJob", pb.CreateTrainingJobRequest(spec=spec))
    assert (job.code.name, job.reason) == (case.code, case.reason), job


async def test_rows_never_stand_in_an_error(trainer: Trainer, pristine: Fixture, tmp_path: Path) -> None:
    fixture = damaged(
        Bad("", "", damage=rows(chat({"role": "user", "content": "Canary Petersen"}))), pristine, tmp_path
    )
    spec = resources_pb2.TrainingSpec(
        base_model=str(fixture.model), dataset=str(fixture.rows), preset="tiny", device="cpu"
    )
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await trainer.stub.EstimateTraining(pb.EstimateTrainingRequest(spec=spec), timeout=10)
    assert decode_error(caught.value).reason == "CHAT_ROW_INVALID"
    assert "Canary" not in str(caught.value)


async def test_a_job_needs_the_digests_it_was_planned_with(
    trainer: Trainer, pristine: Fixture, tmp_path: Path
) -> None:
    fixture = damaged(Bad("", ""), pristine, tmp_path)
    planned = await trainer.planned(fixture)
    bare = resources_pb2.TrainingSpec()
    bare.CopyFrom(planned)
    bare.dataset_digest = ""
    refused = await trainer.refused("CreateTrainingJob", pb.CreateTrainingJobRequest(spec=bare))
    assert (refused.code.name, refused.reason) == (IA, "FIELD_INVALID")
    assert [violation.field for violation in refused.violations] == ["spec.dataset_digest"]
    with fixture.rows.open("a") as file:
        file.write(json.dumps(GOOD) + "\n")
    refused = await trainer.refused("CreateTrainingJob", pb.CreateTrainingJobRequest(spec=planned))
    assert (refused.code.name, refused.reason) == ("ABORTED", "CORPUS_CHANGED")
    planned = await trainer.planned(fixture)
    config(rope_theta=5000)(fixture)
    refused = await trainer.refused("CreateTrainingJob", pb.CreateTrainingJobRequest(spec=planned))
    assert (refused.code.name, refused.reason) == ("ABORTED", "CORPUS_CHANGED")


NAMES = {
    "GetTrainingJob": (pb.GetTrainingJobRequest, "trainingJobs", "TRAINING_JOB_UNKNOWN"),
    "PauseTrainingJob": (pb.PauseTrainingJobRequest, "trainingJobs", "TRAINING_JOB_UNKNOWN"),
    "ResumeTrainingJob": (pb.ResumeTrainingJobRequest, "trainingJobs", "TRAINING_JOB_UNKNOWN"),
    "CancelTrainingJob": (pb.CancelTrainingJobRequest, "trainingJobs", "TRAINING_JOB_UNKNOWN"),
    "GetAdapter": (pb.GetAdapterRequest, "adapters", "ADAPTER_UNKNOWN"),
}


@pytest.mark.parametrize("method", NAMES)
async def test_names(trainer: Trainer, method: str) -> None:
    request, collection, reason = NAMES[method]
    unknown = await trainer.refused(method, request(name=f"{collection}/nobody"))
    assert (unknown.code.name, unknown.reason) == (NF, reason)
    for name in ("", "nobody", f"{collection}/", f"{collection}/../x", f"{collection}/A", f"other/{'a' * 9}"):
        refused = await trainer.refused(method, request(name=name))
        assert (refused.code.name, refused.reason) == (IA, "ID_INVALID"), name


@pytest.mark.parametrize("method", ["ListTrainingJobs", "ListAdapters"])
async def test_pages(trainer: Trainer, method: str) -> None:
    request = {"ListTrainingJobs": pb.ListTrainingJobsRequest, "ListAdapters": pb.ListAdaptersRequest}[method]
    assert (await trainer.refused(method, request(page_size=-1))).reason == "PAGE_SIZE_INVALID"
    assert (await trainer.refused(method, request(page_token="bm9uc2Vuc2U"))).reason == "PAGE_TOKEN_INVALID"


async def test_watching_what_is_not_there(trainer: Trainer) -> None:
    for request, reason in (
        (pb.WatchTrainingJobRequest(name="trainingJobs/nobody"), "TRAINING_JOB_UNKNOWN"),
        (pb.WatchTrainingJobRequest(name="nobody"), "ID_INVALID"),
        (pb.WatchTrainingJobRequest(name="trainingJobs/a", after_seq=-1), "FIELD_INVALID"),
    ):
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in trainer.stub.WatchTrainingJob(request, timeout=10):
                pass
        assert decode_error(caught.value).reason == reason


@pytest.mark.parametrize(
    "method", ["CreateTrainingJob", "PauseTrainingJob", "ResumeTrainingJob", "CancelTrainingJob"]
)
async def test_nobody_acts_without_a_grant(trainer: Trainer, method: str) -> None:
    request = getattr(pb, f"{method}Request")()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await getattr(trainer.stub, method)(request, timeout=5)
    assert decode_error(caught.value).reason == "GRANT_MISSING"


class SmallGpu:
    """A GPU with room for nothing."""

    def memory(self) -> GpuMemory | None:
        return GpuMemory("small", 2**31, 2**20)

    def holds(self, pid: int) -> bool:
        return False


async def test_too_little_memory(pristine: Fixture, tmp_path: Path) -> None:
    async with open_trainer(tmp_path / "home", SmallGpu()) as trainer:
        spec = await trainer.planned(pristine, device="auto")
        assert spec.device == "cuda"
        refused = await trainer.refused("CreateTrainingJob", pb.CreateTrainingJobRequest(spec=spec))
        assert (refused.code.name, refused.reason) == (FP, "VRAM_INSUFFICIENT")
        assert int(refused.metadata["needed_bytes"]) > 2**20


async def test_weights_that_are_not_numbers_end_the_job(
    trainer: Trainer, pristine: Fixture, tmp_path: Path
) -> None:
    fixture = damaged(Bad("", ""), pristine, tmp_path)
    weights = safetensors.torch.load_file(fixture.model / "model.safetensors")
    weights["model.norm.weight"] = torch.full_like(weights["model.norm.weight"], float("nan"))
    safetensors.torch.save_file(weights, fixture.model / "model.safetensors", {"format": "pt"})
    ended = await trainer.finished((await trainer.create(fixture)).name)
    assert ended.state == resources_pb2.TRAINING_JOB_STATE_FAILED
    assert ended.failure.reason == "LOSS_NON_FINITE"
    assert ended.step == 0


async def test_rows_without_room_for_a_response_end_the_job(
    trainer: Trainer, pristine: Fixture, tmp_path: Path
) -> None:
    fixture = damaged(
        Bad("", "", damage=rows(chat({"role": "user", "content": "why " * 200}, ANSWER))), pristine, tmp_path
    )
    ended = await trainer.finished((await trainer.create(fixture, max_length=32)).name)
    assert ended.failure.reason == "CORPUS_EMPTY"


async def test_resuming_from_what_is_left(trainer: Trainer, pristine: Fixture, tmp_path: Path) -> None:
    fixture = damaged(Bad("", ""), pristine, tmp_path)
    job = await trainer.create(fixture, max_steps=500)
    await trainer.until_step(job.name, 4)
    await trainer.act("PauseTrainingJob", pb.PauseTrainingJobRequest(name=job.name))
    folder = trainer.home / "trainer" / "jobs" / job.name.split("/")[1] / "checkpoints"
    resume = pb.ResumeTrainingJobRequest(name=job.name)

    (folder / "a" / "optimizer.pt").write_bytes(b"pickle")
    assert (await trainer.refused("ResumeTrainingJob", resume)).reason == "UNSAFE_FORMAT"
    (folder / "a" / "optimizer.pt").unlink()

    latest = json.loads((folder / "LATEST").read_text())
    good = (folder / latest["slot"] / "tensors.safetensors").read_bytes()
    (folder / latest["slot"] / "tensors.safetensors").write_bytes(good[:-1] + bytes([good[-1] ^ 1]))
    await trainer.act("ResumeTrainingJob", resume)
    news = await trainer.until_step(job.name, latest["step"] + 1)
    events = [point.event for message in news for point in message.points]
    assert "fell_back" in events
    await trainer.act("PauseTrainingJob", pb.PauseTrainingJobRequest(name=job.name))

    for slot in ("a", "b"):
        (folder / slot / "state.json").write_text("{}")
    refused = await trainer.refused("ResumeTrainingJob", resume)
    assert (refused.code.name, refused.reason) == ("DATA_LOSS", "CHECKPOINT_CORRUPT")

    fixture.rows.write_text(json.dumps(GOOD) + "\n")
    assert (await trainer.refused("ResumeTrainingJob", resume)).reason == "CORPUS_CHANGED"
    await trainer.act("CancelTrainingJob", pb.CancelTrainingJobRequest(name=job.name))


async def test_an_adapters_name_is_given_once(trainer: Trainer, pristine: Fixture) -> None:
    await trainer.finished((await trainer.create(pristine, adapter_id="only-one", max_steps=1)).name)
    spec = await trainer.planned(pristine, adapter_id="only-one", max_steps=1)
    refused = await trainer.refused("CreateTrainingJob", pb.CreateTrainingJobRequest(spec=spec))
    assert (refused.code.name, refused.reason) == ("ALREADY_EXISTS", "ADAPTER_EXISTS")
