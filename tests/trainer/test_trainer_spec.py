"""Specs, steps, estimates and digests: arithmetic that people rely on."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from nightshift_kit.errors import FieldInvalid
from nightshift_trainer.backend_choice import BackendChoice
from nightshift_trainer.base_model import read_base_model
from nightshift_trainer.estimate import available_memory_bytes, memory_parts
from nightshift_trainer.spec import PRESETS, TARGET_MODULES, Spec, fill, smaller_micro_batch
from nightshift_trainer.weights import WeightsBroken, read_entries, weights_digest
from nightshift_trainer.worker.order import Order
from tests.trainer.training_support import Fixture

NAMED = {"base_model": "/m", "dataset": "/d"}


def test_a_preset_fills_what_is_left_open() -> None:
    spec = fill({**NAMED, "lora_rank": 4, "epochs": 0.0})
    assert (spec.preset, spec.lora_rank, spec.lora_alpha, spec.epochs) == ("workshop", 4, 64, 3.0)
    assert (spec.batch_size, spec.gradient_accumulation, spec.max_length) == (2, 8, 2048)


def test_zero_is_a_dropout_and_a_seed() -> None:
    spec = fill({**NAMED, "preset": "tiny", "lora_dropout": 0.0, "seed": 0})
    assert (spec.lora_dropout, spec.seed) == (0.0, 0)
    assert fill({**NAMED, "preset": "tiny"}).lora_dropout == PRESETS["tiny"]["lora_dropout"]


def test_every_violation_is_told() -> None:
    with pytest.raises(FieldInvalid) as caught:
        fill({"batch_size": -1, "quantization": "x"})
    assert {violation.field for violation in caught.value.violations} == {
        "spec.base_model",
        "spec.dataset",
        "spec.batch_size",
        "spec.quantization",
    }


@given(st.integers(1, 5000), st.integers(1, 16), st.integers(1, 16), st.floats(0.1, 5))
def test_steps_are_counted_as_the_loop_counts_them(
    rows: int, batch: int, accumulation: int, epochs: float
) -> None:
    spec = fill({**NAMED, "batch_size": batch, "gradient_accumulation": accumulation, "epochs": epochs})
    # transformers.Trainer.set_initial_training_values, version 5.17.
    batches = math.ceil(rows / batch)
    an_epoch = max(batches // accumulation + int(batches % accumulation > 0), 1)
    assert spec.total_steps(rows) == math.ceil(epochs * an_epoch)


@given(st.integers(1, 1024), st.integers(1, 64))
def test_smaller_micro_batches_keep_the_samples_of_a_step(batch: int, accumulation: int) -> None:
    smaller = smaller_micro_batch(batch, accumulation)
    if batch == 1:
        assert smaller is None
    else:
        assert smaller is not None
        assert smaller[0] * smaller[1] == batch * accumulation
        assert 1 <= smaller[0] < batch


def test_an_order_survives_json(tmp_path: Path) -> None:
    order = Order(fill(NAMED), tmp_path, device="cuda", threads=3)
    assert Order.from_dict(order.as_dict()) == order
    assert Spec.from_dict(order.spec.as_dict()) == order.spec


def test_the_adapters_size_is_what_peft_makes_of_it(tiny: Fixture, tmp_path: Path) -> None:
    import peft
    from transformers import AutoModelForCausalLM

    model = read_base_model(tiny.model)
    loaded = AutoModelForCausalLM.from_pretrained(tiny.model)
    assert model.parameter_count == sum(
        parameter.numel() for parameter in {id(p): p for p in loaded.parameters()}.values()
    )
    config = peft.LoraConfig(r=8, target_modules=list(TARGET_MODULES), task_type="CAUSAL_LM")
    adapted = peft.get_peft_model(loaded, config)
    trainable = sum(parameter.numel() for parameter in adapted.parameters() if parameter.requires_grad)
    assert model.lora_parameter_count(8, TARGET_MODULES) == trainable


def test_four_bits_take_less_than_a_quarter_of_the_linear_weights(tiny: Fixture) -> None:
    model = read_base_model(tiny.model)
    spec = tiny.spec()
    quantized = memory_parts(model, spec, "cuda")["weights"]
    whole = memory_parts(model, spec.replace(quantization="none"), "cuda")["weights"]
    saved = model.linear_parameter_count * (2 - (4 + 0.127) / 8)
    assert whole - quantized == pytest.approx(saved, abs=2)
    assert available_memory_bytes() > 2**20


@given(
    st.lists(
        st.tuples(st.text(min_size=1, max_size=9), st.integers(0, 5)), max_size=5, unique_by=lambda t: t[0]
    )
)
def test_safetensors_are_read_as_the_library_wrote_them(shapes: list[tuple[str, int]]) -> None:
    import tempfile

    tensors = {name: torch.arange(size, dtype=torch.float32) for name, size in shapes if name.isprintable()}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        safetensors.torch.save_file(tensors, path)
        assert {entry.name: entry.shape for entry in read_entries(path)} == {
            name: tuple(tensor.shape) for name, tensor in tensors.items()
        }
        first = weights_digest(path)
        # Metadata and layout of the file do not change what the weights are.
        safetensors.torch.save_file(tensors, path, {"format": "pt", "more": "x" * 99})
        assert weights_digest(path) == first
        if any(tensor.numel() for tensor in tensors.values()):
            name = next(name for name, tensor in tensors.items() if tensor.numel())
            tensors[name][-1] += 1
            safetensors.torch.save_file(tensors, path)
            assert weights_digest(path) != first


@given(st.binary(max_size=64))
def test_what_is_no_safetensors_is_refused(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "x.safetensors"
        path.write_bytes(data)
        try:
            entries = read_entries(path)
        except WeightsBroken:
            return
        assert all(entry.end <= len(data) for entry in entries)


def test_without_a_gpu_unsloth_is_not_chosen() -> None:
    import os

    choice = BackendChoice("auto", dict(os.environ))
    assert choice.choose("cpu") == "trl"
    # The real probe, in a real child: whatever keeps unsloth from importing here, trl takes its place.
    if not torch.cuda.is_available():
        assert choice.choose("cuda") == "trl"
    assert BackendChoice("trl", {}).choose("cuda") == "trl"
    assert BackendChoice("unsloth", {}).choose("cuda") == "unsloth"
