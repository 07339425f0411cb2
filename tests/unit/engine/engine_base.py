"""The base that the engine tests pretend to serve: one linear layer, no files."""

from pathlib import Path

from serve.registry.base import BaseIdentity

BASE = BaseIdentity(
    name="base",
    path=Path("/fake/base"),
    digest="b" * 64,
    architecture="Qwen3ForCausalLM",
    shapes={"model.layers.0.self_attn.q_proj.weight": (16, 16)},
    max_length=1024,
    vocab_size=64,
)
