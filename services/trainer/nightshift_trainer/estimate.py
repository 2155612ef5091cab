"""How much memory a training takes, by part, from the shapes of base model and spec.

Formulas: weights and optimiser follow QLoRA (arXiv 2305.14314, section 3 and appendix); activations follow
Korthikanti et al. 2022 (arXiv 2205.05198), equation 2, without the attention matrix, which scaled-dot-
product attention does not keep. They are estimates; the peak that was measured is shown beside them after
each job.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from nightshift_trainer.base_model import BaseModel, megabytes
from nightshift_trainer.gpu import Gpus
from nightshift_trainer.spec import TARGET_MODULES, Spec

# NF4 keeps 4 bits a weight; with double quantisation its constants take another 0.127 bits.
_NF4_BYTES = (4 + 0.127) / 8

# trl takes the loss over so many tokens at a time.
_LOGITS_CHUNK_TOKENS = 256

# Measured: a process that has imported torch, transformers, peft and trl; and a CUDA context with cuBLAS
# workspaces.
_CPU_CONTEXT_BYTES = 500 * 2**20
_CUDA_CONTEXT_BYTES = 800 * 2**20

# Korthikanti et al.: 34 bytes a token and hidden unit for one layer at 16 bits.
_ACTIVATION_BYTES_16 = 34


def memory_parts(model: BaseModel, spec: Spec, device: str) -> dict[str, int]:
    """Bytes by part: weights, adapter, optimizer (with gradients), activations, logits, context."""
    cuda = device == "cuda"
    compute_bytes = 2 if cuda else 4
    quantized = model.linear_parameter_count if spec.quantization == "nf4" else 0
    weights = quantized * _NF4_BYTES + (model.parameter_count - quantized) * compute_bytes
    adapter = model.lora_parameter_count(spec.lora_rank, TARGET_MODULES)
    # trl trains the adapter of a quantised model in bf16, any other in fp32; AdamW keeps two moments alike.
    adapter_bytes = 2 if spec.quantization == "nf4" else 4
    tokens = spec.batch_size * spec.max_length
    a_layer = tokens * model.hidden_size * _ACTIVATION_BYTES_16 * compute_bytes // 2
    if cuda:
        # Checkpointing keeps each layer's input and recomputes one layer at a time.
        activations = tokens * model.hidden_size * compute_bytes * model.layer_count + a_layer
    else:
        activations = a_layer * model.layer_count
    logits = min(tokens, _LOGITS_CHUNK_TOKENS) * model.vocabulary_size * 4 * 3
    return {
        "weights": int(weights),
        "adapter": adapter * adapter_bytes,
        "optimizer": adapter * adapter_bytes * 3,
        "activations": int(activations),
        "logits": logits,
        "context": _CUDA_CONTEXT_BYTES if cuda else _CPU_CONTEXT_BYTES,
    }


@dataclass(frozen=True)
class Room:
    """Whether a training fits now, and in words what that rests on."""

    fits: bool
    detail: str


def room_for(
    parts: Mapping[str, int], device: str, gpus: Gpus, *, budget_bytes: int, reserve_bytes: int
) -> Room:
    """Compares an estimate with what is free: NVML's free memory less the reserve, or the machine's own."""
    needed = sum(parts.values())
    if device == "cuda":
        gpu = gpus.memory()
        if gpu is None:
            return Room(False, "There is no GPU that NVML can see.")
        free = max(0, gpu.free_bytes - reserve_bytes)
        if budget_bytes:
            free = min(free, budget_bytes)
        where = f"{gpu.name}: {megabytes(free)} MiB may be used of {megabytes(gpu.total_bytes)} MiB"
    else:
        free = available_memory_bytes()
        where = f"CPU: {megabytes(free)} MiB are available"
    verdict = "fits" if needed <= free else "does not fit"
    return Room(needed <= free, f"{megabytes(needed)} MiB estimated. {where}; it {verdict}.")


def available_memory_bytes(meminfo: Path = Path("/proc/meminfo")) -> int:
    """MemAvailable of proc(5)."""
    for line in meminfo.read_text().splitlines():
        if line.startswith("MemAvailable:"):
            return int(line.split()[1]) * 1024
    return 0
