"""Unsloth: faster and leaner on CUDA.

It patches trl and transformers when it is imported, so it must come first and only in a process that
trains; without a GPU its import raises.

Only the Apache-2.0 core is used.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import unsloth  # type: ignore[import-not-found, unused-ignore]  # isort: skip - must patch before trl is imported
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from nightshift_trainer.spec import TARGET_MODULES, Spec
from nightshift_trainer.worker.backends.base import Loaded


class UnslothBackend:
    """CUDA only."""

    def load(self, spec: Spec, device: str) -> Loaded:
        """Loads base model and tokenizer and attaches the adapter. Raises ValueError without CUDA."""
        if device != "cuda":
            raise ValueError("unsloth trains on CUDA only")
        model, tokenizer = unsloth.FastLanguageModel.from_pretrained(
            model_name=spec.base_model,
            max_seq_length=spec.max_length,
            load_in_4bit=spec.quantization == "nf4",
            local_files_only=True,
            trust_remote_code=False,
        )
        model = unsloth.FastLanguageModel.get_peft_model(
            model,
            r=spec.lora_rank,
            lora_alpha=spec.lora_alpha,
            lora_dropout=spec.lora_dropout,
            target_modules=list(TARGET_MODULES),
            bias="none",
            use_gradient_checkpointing="unsloth",
            random_state=spec.seed,
        )
        return Loaded(model, tokenizer, None)

    def trainer_class(self) -> Any:
        """Trl's SFTTrainer as unsloth has patched it."""
        return SFTTrainer

    def config_class(self) -> Any:
        """Trl's SFTConfig as unsloth has patched it."""
        return SFTConfig

    def prepare_to_save(self, model: Any, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors."""
        model.save_pretrained(folder)
