"""Trainings that are stopped for users and killed, and must end with the weights of an undisturbed one."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from nightshift.skills.v1 import resources_pb2 as types
from nightshift.trainer.v1 import trainer_service_pb2 as pb
from nightshift.trainer.v1.trainer_service_pb2_grpc import TrainerServiceStub
from tests.chaos.commanding import Person
from tests.support.plane import RealPlane

# It lasts as long as the killing: each resumption loads the libraries anew, and is often stopped before.
TRAINING_PATIENCE_S = 1500.0


class Trainings:
    """One training after the other with the same seed.

    Attributes:
        digests: Weights' digests of those that ended.
    """

    def __init__(self, plane: RealPlane, person: Person, model: Path, rows: Path, max_steps: int) -> None:
        self._plane = plane
        self._person = person
        self._trainer = plane.stub(TrainerServiceStub, "trainer")
        self._parameters = {
            "base_model": str(model),
            "dataset": str(rows),
            "preset": "tiny",
            "device": "cpu",
            "lora_dropout": 0.1,
            "max_steps": max_steps,
            "seed": 11,
        }
        self.digests: list[str] = []

    async def train(self, adapter_id: str) -> str:
        """One training from plan to adapter; its weights' digest."""
        parameters: dict[str, Any] = {**self._parameters, "adapter_id": adapter_id}
        plan = await self._person.plan("train_adapter", **parameters)
        assert plan is not None
        run = await self._person.run("train_adapter", plan_digest=plan.digest, **parameters)
        with self._person.flights.under_way("train"):
            run = await self._person.ended(run, TRAINING_PATIENCE_S)
        assert run.state == types.SKILL_RUN_STATE_SUCCEEDED, run
        request = pb.GetAdapterRequest(name=f"adapters/{adapter_id}")
        adapter, _ = await self._person.flights.insist(
            "look", lambda: self._trainer.GetAdapter(request, timeout=5), quiet=True
        )
        self.digests.append(adapter.weights_digest)
        return str(adapter.weights_digest)

    async def again_and_again(self, stop: asyncio.Event) -> None:
        """Trains until stopped; at least once to the end."""
        number = 0
        while not number or not stop.is_set():
            number += 1
            await self.train(f"disturbed-{number}")
