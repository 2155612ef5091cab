"""A run that a privacy check stops after its words were stored: they go again, from every file."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nightshift.experience.v1 import experience_service_pb2 as pb
from nightshift.experience.v1 import resources_pb2 as types
from nightshift.experience.v1.experience_service_pb2_grpc import ExperienceServiceStub
from nightshift_kit.grants import Tier
from tests.experience.experience_support import PARENT, Experience, experience

NAME = "Brunhelde Pfuetzenreuter draws a dragon in the Muckenbrinkgasse"
DEVICE = "6f1c1c5e-3f5b-4a57-9a0e-0b8d1d5f7a11_2026-05-04"
RUN = "run_1777888800000_abc123"


def write(root: Path, *, blocked: bool) -> None:
    folder = root / "exports" / "json" / "2026-05-04" / DEVICE / RUN
    (folder / "final").mkdir(parents=True, exist_ok=True)
    (folder / "final" / "01_input.txt").write_text(NAME)
    entities = [
        {"sequence": 1, "type": "input", "filename": "01_input.txt", "timestamp": "2026-05-04T10:00:00"},
        {"sequence": 2, "type": "output_image", "filename": "02_output_image.png"},
    ]
    (folder / "final" / "02_output_image.png").write_bytes(b"png")
    if blocked:
        error = {"error_type": "safety_blocked", "details": {"check": "dsgvo", "input_text": NAME}}
        (folder / "final" / "03_error.json").write_text(json.dumps(error))
        entities.append(
            {
                "sequence": 3,
                "type": "error",
                "filename": "03_error.json",
                "metadata": {"error_type": "safety_blocked"},
            }
        )
    record = {
        "run_id": RUN,
        "timestamp": "2026-05-04T10:00:00",
        "config_name": "farbhunger",
        "safety_level": "kids",
        "user_id": "anonymous",
        "device_id": DEVICE,
        "expected_outputs": ["image"],
        "current_state": {"stage": 0, "step": 0, "progress": 0},
        "entities": entities,
    }
    (folder / "metadata.json").write_text(json.dumps(record))


async def embed(service: Experience) -> None:
    answer = await service.serving.act(
        ExperienceServiceStub,
        "EmbedPending",
        pb.EmbedPendingRequest(parent=PARENT),
        skill="build_embeddings",
        tier=Tier.AUTO,
        timeout_s=120,
    )
    assert answer.remaining_count == 0


def files_with(home: Path, words: tuple[str, ...]) -> list[str]:
    held = []
    for path in sorted(home.rglob("*")):
        if path.is_file():
            content = path.read_bytes()
            held += [f"{path.relative_to(home)}: {word}" for word in words if word.encode() in content]
    return held


@pytest.mark.slow
@pytest.mark.parametrize("told_live", [False, True])
async def test_words_that_are_blocked_late_are_in_no_file(tmp_path: Path, told_live: bool) -> None:
    home, words = tmp_path / "home", ("Brunhelde", "Pfuetzenreuter", "Muckenbrinkgasse")
    async with experience(home) as service:
        if told_live:
            run = types.Run(name=f"{PARENT}/runs/{RUN}", prompt=NAME, device=DEVICE)
            run.outcome = types.RUN_OUTCOME_SUCCEEDED
            run.start_time.FromJsonString("2026-05-04T08:00:00Z")
            platform = service.serving.stub(ExperienceServiceStub, "platform/default")
            await platform.RecordRun(pb.RecordRunRequest(parent=PARENT, run=run), timeout=10)
        else:
            write(tmp_path, blocked=False)
            await service.import_all(tmp_path)
        await embed(service)
        assert files_with(home, words), "the test would find nothing anyway"
        write(tmp_path, blocked=True)
        job = await service.import_all(tmp_path)
        assert job.state == types.IMPORT_JOB_STATE_SUCCEEDED
        # The idle machine sees that there is something to do, and does it.
        state = await service.stub.GetExperienceState(pb.GetExperienceStateRequest(parent=PARENT), timeout=10)
        assert state.pending_embedding_count == 1
        await embed(service)
        runs = await service.runs()
        assert runs[RUN].prompt == ""
        hits = await service.stub.SearchRuns(
            pb.SearchRunsRequest(parent=PARENT, query="a dragon in the alley"), timeout=30
        )
        assert not [hit for hit in hits.hits if hit.run.name.endswith(RUN)]
    # Nothing is running any more: what is left is on the disk.
    assert files_with(home, words) == []
