"""A tiny base in hub format and adapters for it, written by hand; no torch."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

WIDTH, VOCABULARY = 16, 32
CONFIG: dict[str, Any] = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "tiny",
    "r": 4,
    "lora_alpha": 8,
    "bias": "none",
    "target_modules": ["q_proj", "down_proj"],
}
Q = "base_model.model.model.layers.0.self_attn.q_proj"
DOWN = "base_model.model.model.layers.0.mlp.down_proj"
EMBED = "base_model.model.model.embed_tokens"


def write_base(folder: Path, *, seed: int = 0, width: int = WIDTH, **config: Any) -> Path:
    """A one-layer base whose layers are big enough to be told apart."""
    random = np.random.default_rng(seed)
    shapes = {
        "model.embed_tokens.weight": (VOCABULARY, width),
        "model.layers.0.self_attn.q_proj.weight": (width, width),
        "model.layers.0.mlp.down_proj.weight": (width, 3 * width),
        "model.layers.0.input_layernorm.weight": (width,),
    }
    folder.mkdir(parents=True)
    tensors = {name: random.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}
    save_file(tensors, folder / "model.safetensors")
    content = {
        "architectures": ["Qwen3ForCausalLM"],
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 128,
        **config,
    }
    (folder / "config.json").write_text(json.dumps(content))
    (folder / "tokenizer.json").write_text("{}")
    return folder


def lora_tensors(rank: int = 4, *, width: int = WIDTH, seed: int = 0) -> dict[str, np.ndarray]:
    """A and B of both linear layers."""
    random = np.random.default_rng(seed)
    sizes = {Q: (width, width), DOWN: (width, 3 * width)}
    tensors = {}
    for module, (out, inner) in sizes.items():
        tensors[f"{module}.lora_A.weight"] = random.normal(size=(rank, inner)).astype(np.float32)
        tensors[f"{module}.lora_B.weight"] = random.normal(size=(out, rank)).astype(np.float32)
    return tensors


def write_adapter(
    folder: Path, tensors: dict[str, np.ndarray] | None = None, *, seed: int = 0, **config: Any
) -> Path:
    """A PEFT folder; ``config`` overrides single keys of its configuration."""
    folder.mkdir(parents=True)
    save_file(
        tensors if tensors is not None else lora_tensors(seed=seed), folder / "adapter_model.safetensors"
    )
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, **config}))
    return folder
