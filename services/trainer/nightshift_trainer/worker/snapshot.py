"""Everything that decides the next optimiser step, copied out of a running trainer and put back bit by bit.

The copy goes into one flat buffer that is already a safetensors file, by one fused copy; what is left to a
background thread is to hash, write and sync it. So the training thread pays for a memory copy, not for a
disk.

In it: adapter weights and optimiser state in their own dtypes (loading through peft would upcast the
adapter), random number generators of Python, NumPy, torch and every GPU, learning rate schedule, place in
the data.
"""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import safetensors.torch
import torch

_SAFE_DTYPES: Mapping[torch.dtype, str] = {
    torch.float64: "F64",
    torch.float32: "F32",
    torch.bfloat16: "BF16",
    torch.float16: "F16",
    torch.int64: "I64",
    torch.int32: "I32",
    torch.uint8: "U8",
    torch.int8: "I8",
    torch.bool: "BOOL",
}


@dataclass(frozen=True)
class Source:
    """What a snapshot is taken of. `optimizer` is torch's own, without accelerate's wrapper around it."""

    parameters: Mapping[str, torch.nn.Parameter]
    optimizer: torch.optim.Optimizer
    scheduler: torch.optim.lr_scheduler.LRScheduler


def random_state() -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """State of all random number generators: what are arrays, and the rest."""
    version, python_words, python_gauss = random.getstate()
    numpy_state = np.random.get_state(legacy=False)
    inner = numpy_state["state"]
    tensors = {
        "rng.python": torch.from_numpy(np.array(python_words, dtype=np.int64)),
        "rng.numpy": torch.from_numpy(np.asarray(inner["key"], dtype=np.int64)),
        "rng.torch": torch.get_rng_state(),
    }
    if _cuda_in_use():
        for index, state in enumerate(torch.cuda.get_rng_state_all()):
            tensors[f"rng.cuda.{index}"] = state
    rest = {
        "python": [version, python_gauss],
        "numpy": [
            numpy_state["bit_generator"],
            int(inner["pos"]),
            int(numpy_state["has_gauss"]),
            float(numpy_state["gauss"]),
        ],
    }
    return tensors, rest


def restore_random_state(tensors: Mapping[str, torch.Tensor], rest: Mapping[str, Any]) -> None:
    """The inverse of random_state."""
    version, python_gauss = rest["python"]
    random.setstate((version, tuple(tensors["rng.python"].tolist()), python_gauss))
    bit_generator, position, has_gauss, gauss = rest["numpy"]
    np.random.set_state(
        (bit_generator, tensors["rng.numpy"].numpy().astype(np.uint32), position, has_gauss, gauss)
    )
    torch.set_rng_state(tensors["rng.torch"])
    cuda = [tensors[f"rng.cuda.{index}"] for index in range(len(tensors)) if f"rng.cuda.{index}" in tensors]
    if cuda:
        torch.cuda.set_rng_state_all(cuda)


class Snapshots:
    """Takes snapshots of one trainer into one reusable buffer.

    One thread takes them; the next must not be taken while the previous one is being written.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._states_seen = -1
        self._file = memoryview(b"")
        self._lasting: list[torch.Tensor] = []
        self._lasting_views: list[torch.Tensor] = []
        self._random_views: dict[str, torch.Tensor] = {}

    def take(self) -> tuple[memoryview, dict[str, Any]]:
        """Copies everything; answers the safetensors file, and what JSON can say of the rest."""
        optimizer = self._source.optimizer
        random_tensors, random_rest = random_state()
        # Optimisers make their states with the first step and change them in place ever after.
        if len(optimizer.state) != self._states_seen:
            self._lay_out(random_tensors)
            self._states_seen = len(optimizer.state)
        with torch.no_grad():
            torch._foreach_copy_(self._lasting_views, self._lasting, non_blocking=True)
            for name, view in self._random_views.items():
                view.copy_(random_tensors[name])
        if any(tensor.is_cuda for tensor in self._lasting[:1]):
            torch.cuda.synchronize()
        groups = [
            {key: value for key, value in group.items() if key != "params"}
            for group in optimizer.param_groups
        ]
        return self._file, {
            "optimizer_groups": _plain(groups),
            "optimizer_plain": _plain(self._read_plain_states()),
            "scheduler": _plain(self._source.scheduler.state_dict()),
            "rng": random_rest,
        }

    def _lay_out(self, random_tensors: Mapping[str, torch.Tensor]) -> None:
        lasting: dict[str, torch.Tensor] = {
            f"adapter.{name}": parameter for name, parameter in self._source.parameters.items()
        }
        for name, parameter in self._source.parameters.items():
            for key, value in self._source.optimizer.state.get(parameter, {}).items():
                if isinstance(value, torch.Tensor):
                    lasting[f"optimizer.{name}|{key}"] = value
        tensors = {**lasting, **random_tensors}
        # The widest dtypes first keep every tensor aligned without gaps, which safetensors does not allow.
        order = sorted(tensors, key=lambda name: (-tensors[name].element_size(), name))
        header: dict[str, Any] = {}
        offset = 0
        for name in order:
            tensor = tensors[name]
            size = tensor.numel() * tensor.element_size()
            header[name] = {
                "dtype": _SAFE_DTYPES[tensor.dtype],
                "shape": list(tensor.shape),
                "data_offsets": [offset, offset + size],
            }
            offset += size
        body = json.dumps(header, separators=(",", ":")).encode()
        body += b" " * (-len(body) % 8)
        head = struct.pack("<Q", len(body)) + body
        # Pinned memory lets the GPU copy at the bus's full speed.
        flat = torch.empty(len(head) + offset, dtype=torch.uint8, pin_memory=_cuda_in_use())
        self._file = flat.numpy().data.cast("B")
        self._file[: len(head)] = head
        data = flat[len(head) :]

        def view(name: str) -> torch.Tensor:
            begin, end = header[name]["data_offsets"]
            return data[begin:end].view(tensors[name].dtype).view(tensors[name].shape)

        self._lasting = list(lasting.values())
        self._lasting_views = [view(name) for name in lasting]
        self._random_views = {name: view(name) for name in random_tensors}

    def _read_plain_states(self) -> dict[str, dict[str, Any]]:
        found: dict[str, dict[str, Any]] = {}
        for name, parameter in self._source.parameters.items():
            for key, value in self._source.optimizer.state.get(parameter, {}).items():
                if not isinstance(value, torch.Tensor):
                    found.setdefault(name, {})[key] = value
        return found


def restore_weights(parameters: Mapping[str, torch.nn.Parameter], stored: bytes) -> dict[str, torch.Tensor]:
    """Puts the adapter's weights back and answers all stored tensors.

    Raises ValueError where the checkpoint is of another adapter: names, shapes and dtypes must agree.
    """
    tensors = safetensors.torch.load(stored)
    names = {name.removeprefix("adapter.") for name in tensors if name.startswith("adapter.")}
    if names != set(parameters):
        raise ValueError("the checkpoint holds other adapter weights than the model")
    with torch.no_grad():
        for name, parameter in parameters.items():
            value = tensors[f"adapter.{name}"]
            if value.dtype != parameter.dtype or value.shape != parameter.shape:
                raise ValueError(f"{name} has another dtype or shape in the checkpoint")
            parameter.copy_(value)
    return tensors


def restore_optimizer(source: Source, tensors: Mapping[str, torch.Tensor], state: Mapping[str, Any]) -> None:
    """Puts optimiser and schedule back, without torch's own casting of states to the parameters' dtype."""
    parameters = source.parameters
    source.optimizer.state.clear()
    for full, value in tensors.items():
        if full.startswith("optimizer."):
            name, key = full.removeprefix("optimizer.").rsplit("|", 1)
            # A step counter stays on the CPU unless the fused kernels want it beside the weights.
            fused = any(
                group.get("fused") or group.get("capturable") for group in source.optimizer.param_groups
            )
            device = parameters[name].device if key != "step" or fused else torch.device("cpu")
            source.optimizer.state[parameters[name]][key] = value.to(device, copy=True)
    for name, values in state["optimizer_plain"].items():
        source.optimizer.state[parameters[name]].update(values)
    for group, stored in zip(source.optimizer.param_groups, state["optimizer_groups"], strict=True):
        for key, value in stored.items():
            group[key] = tuple(value) if isinstance(value, list) else value
    source.scheduler.load_state_dict(dict(state["scheduler"]))


def _cuda_in_use() -> bool:
    return bool(torch.cuda.is_initialized())  # type: ignore[no-untyped-call]


def _plain(value: Any) -> Any:
    """JSON's view of a state dict; raises TypeError for what JSON cannot say exactly."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, torch.Tensor) and value.numel() == 1:
        return value.item()
    raise TypeError(f"a state holds {type(value).__name__}, which JSON cannot say exactly")
