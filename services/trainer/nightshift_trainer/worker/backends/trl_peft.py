"""trl + peft, and bitsandbytes for 4 bits: runs on CUDA and on a CPU, NF4 included."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from nightshift_trainer.spec import TARGET_MODULES, Spec
from nightshift_trainer.worker.backends.base import Loaded


class TrlBackend:
    """The reference backend."""

    def load(self, spec: Spec, device: str) -> Loaded:
        """Loads the base model from safetensors only, in NF4 with double quantisation or as it is."""
        # A GPU computes in bf16; a CPU in fp32, since most have no fast bf16.
        compute = torch.bfloat16 if device == "cuda" else torch.float32
        extra: dict[str, Any] = {}
        if spec.quantization == "nf4":
            extra["quantization_config"] = transformers.BitsAndBytesConfig(  # type: ignore[no-untyped-call]
                load_in_4bit=True,
                bnb_4bit_quant_type="nf4",
                bnb_4bit_use_double_quant=True,
                bnb_4bit_compute_dtype=compute,
            )
        tokenizer = transformers.AutoTokenizer.from_pretrained(
            spec.base_model, local_files_only=True, trust_remote_code=False
        )
        model = transformers.AutoModelForCausalLM.from_pretrained(
            spec.base_model,
            dtype=compute,
            device_map={"": device},
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            **extra,
        )
        if spec.quantization == "nf4":
            model = peft.prepare_model_for_kbit_training(  # type: ignore[no-untyped-call]
                model, use_gradient_checkpointing=device == "cuda"
            )
        return Loaded(model, tokenizer, lora_config(spec))

    def trainer_class(self) -> Any:
        """Trl's SFTTrainer."""
        return SFTTrainer

    def config_class(self) -> Any:
        """Trl's SFTConfig."""
        return SFTConfig

    def prepare_to_save(self, model: Any, folder: Path) -> None:
        """Writes adapter_config.json and adapter_model.safetensors."""
        model.save_pretrained(folder)


def lora_config(spec: Spec) -> Any:
    """The adapter that a spec describes, on all linear layers of attention and feed-forward."""
    return peft.LoraConfig(
        r=spec.lora_rank,
        lora_alpha=spec.lora_alpha,
        lora_dropout=spec.lora_dropout,
        target_modules=list(TARGET_MODULES),
        task_type="CAUSAL_LM",
    )
