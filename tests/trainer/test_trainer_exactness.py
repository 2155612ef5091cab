"""An interrupted training ends with the bits of an uninterrupted one, wherever it was interrupted."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from nightshift_trainer.worker.order import Order
from tests.trainer.training_support import Bench, Fixture, Told, worker_log


@pytest.fixture(scope="module")
def bench(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    bench.supervisor.warm_up()
    yield bench
    bench.close()


def interrupted(
    bench: Bench, order: Order, source: random.Random, stops: int
) -> tuple[dict[int, str], Told, list[str]]:
    """Trains with `stops` interruptions.

    Cooperative stops and kill -9 in turn, each at a random moment of a step.

    Answers the checkpoint digest by step, the last worker's words, and how each interruption went.
    """
    digests: dict[int, str] = {}
    ways: list[str] = []
    while True:
        bench.start(order)
        if len(ways) == stops:
            told = bench.follow()
            digests.update(told.steps())
            return digests, told, ways
        told = bench.follow(lambda message: message["kind"] == "step" and not message.get("restored"))
        assert told.end is None, worker_log(order)
        time.sleep(source.uniform(0, 0.06))
        if len(ways) % 2:
            bench.supervisor.kill("user")
        else:
            bench.supervisor.stop("user")
        end = bench.follow(told=told).end
        assert end is not None
        # A worker that had just finished would make the test end early and prove less.
        assert end.last is None or end.last["kind"] == "stopped", end
        ways.append("killed" if end.last is None else str(end.last["how"]))
        digests.update(told.steps())


def prove_exact(
    bench: Bench, tiny: Fixture, folder: Path, quantization: str, stops: int, seed: int
) -> list[str]:
    # Three passes over the rows, so that some interruptions lie beside the end of an epoch.
    spec = tiny.spec(
        quantization=quantization,
        lora_dropout=0.1,
        batch_size=2,
        gradient_accumulation=4,
        max_steps=max(24, 4 * stops),
        seed=seed,
    )
    reference = bench.run(Order(spec, folder / "reference"))
    assert reference.last()["kind"] == "succeeded", reference.last()
    digests, told, ways = interrupted(bench, Order(spec, folder / "job"), random.Random(seed), stops)
    assert told.last()["kind"] == "succeeded", told.last()
    assert len(ways) == stops
    # Adapter, optimiser, random numbers and place in the data after each single step …
    assert digests == reference.steps()
    assert sorted(digests) == list(range(1, spec.max_steps + 1))
    # … and what comes of it.
    assert told.last()["weights_digest"] == reference.last()["weights_digest"]
    return ways


@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_four_interruptions(bench: Bench, tiny: Fixture, tmp_path: Path, quantization: str) -> None:
    ways = prove_exact(bench, tiny, tmp_path, quantization, stops=4, seed=1)
    assert ways.count("killed") == 2


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("quantization", ["nf4", "none"])
def test_twenty_four_interruptions(bench: Bench, tiny: Fixture, tmp_path: Path, quantization: str) -> None:
    ways = prove_exact(bench, tiny, tmp_path, quantization, stops=24, seed=2)
    assert ways.count("killed") >= 12


def test_another_seed_is_another_training(bench: Bench, tiny: Fixture, tmp_path: Path) -> None:
    digests = {
        seed: bench.run(Order(tiny.spec(max_steps=2, seed=seed), tmp_path / str(seed))).steps()[2]
        for seed in (1, 2)
    }
    assert digests[1] != digests[2]


def test_a_fresh_process_gives_the_same_bits_as_a_forked_one(
    bench: Bench, tiny: Fixture, tmp_path: Path
) -> None:
    spec = tiny.spec(max_steps=3, lora_dropout=0.1)
    forked = bench.run(Order(spec, tmp_path / "forked"))
    fresh = bench.run(Order(spec, tmp_path / "fresh"), fork=False)
    assert forked.steps() == fresh.steps()
    assert forked.last()["weights_digest"] == fresh.last()["weights_digest"]
