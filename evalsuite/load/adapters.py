"""Writes PEFT adapter folders with random weights, without torch: for benchmarks and tests."""

import json
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file

from serve.registry.base import BaseIdentity

LINEAR = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


def write_adapter(
    folder: Path, base: BaseIdentity, *, rank: int = 8, scale: float = 0.5, seed: int = 0, zero: bool = False
) -> Path:
    """Write a LoRA on all linear layers of ``base`` with random weights to ``folder``, and return it.

    A has the standard deviation 1/sqrt(in), B ``scale``/sqrt(rank), so that the change of a layer's output is of
    the order of ``scale``; ``zero`` leaves B at zero.
    """
    random = np.random.default_rng(seed)
    tensors = {}
    for name, shape in base.shapes.items():
        module = name.removesuffix(".weight")
        if module.rsplit(".", 1)[-1] not in LINEAR:
            continue
        out, inner = shape
        tensors[f"base_model.model.{module}.lora_A.weight"] = random.normal(
            0, inner**-0.5, (rank, inner)
        ).astype(np.float32)
        b = np.zeros((out, rank)) if zero else random.normal(0, scale * rank**-0.5, (out, rank))
        tensors[f"base_model.model.{module}.lora_B.weight"] = b.astype(np.float32)
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": base.name,
        "r": rank,
        "lora_alpha": rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "target_modules": list(LINEAR),
        "inference_mode": True,
    }
    (folder / "adapter_config.json").write_text(json.dumps(config))
    return folder
