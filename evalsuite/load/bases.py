"""Writes bases with random weights in the shape of well-known models, without torch and without a hub.

They compute as much as the real ones and mean nothing, which is enough to measure speed.
"""

import json
import math
import shutil
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from serve.registry.base import identify_base

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
CONTEXT = 4096
# Weights repeat after so many: drawing a billion normal numbers takes longer than the engine's start.
_BLOCK = 2**20


@dataclass(frozen=True)
class Shape:
    """What fixes the work of a model: Llama's or Qwen3's layers, sizes in elements."""

    architecture: str
    layers: int
    width: int
    feed_forward: int
    heads: int
    key_value_heads: int
    head_width: int
    vocabulary: int
    tied: bool

    @property
    def qwen3(self) -> bool:
        """Whether queries and keys are normalised, as Qwen3 does."""
        return self.architecture.startswith("Qwen3")

    def config(self) -> dict[str, object]:
        """The ``config.json`` of transformers."""
        return {
            "architectures": [self.architecture],
            "model_type": "qwen3" if self.qwen3 else "llama",
            "num_hidden_layers": self.layers,
            "hidden_size": self.width,
            "intermediate_size": self.feed_forward,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.key_value_heads,
            "head_dim": self.head_width,
            "vocab_size": self.vocabulary,
            "tie_word_embeddings": self.tied,
            "max_position_embeddings": CONTEXT,
            "hidden_act": "silu",
            "rms_norm_eps": 1e-6,
            "attention_bias": False,
            "dtype": "bfloat16",
        }

    def tensors(self) -> Iterator[tuple[str, tuple[int, ...]]]:
        """Name and shape of every weight, in the order of the layers."""
        yield "model.embed_tokens.weight", (self.vocabulary, self.width)
        queries, keys = self.heads * self.head_width, self.key_value_heads * self.head_width
        for layer in range(self.layers):
            start = f"model.layers.{layer}."
            yield f"{start}input_layernorm.weight", (self.width,)
            yield f"{start}self_attn.q_proj.weight", (queries, self.width)
            yield f"{start}self_attn.k_proj.weight", (keys, self.width)
            yield f"{start}self_attn.v_proj.weight", (keys, self.width)
            yield f"{start}self_attn.o_proj.weight", (self.width, queries)
            if self.qwen3:
                yield f"{start}self_attn.q_norm.weight", (self.head_width,)
                yield f"{start}self_attn.k_norm.weight", (self.head_width,)
            yield f"{start}post_attention_layernorm.weight", (self.width,)
            yield f"{start}mlp.gate_proj.weight", (self.feed_forward, self.width)
            yield f"{start}mlp.up_proj.weight", (self.feed_forward, self.width)
            yield f"{start}mlp.down_proj.weight", (self.width, self.feed_forward)
        yield "model.norm.weight", (self.width,)
        if not self.tied:
            yield "lm_head.weight", (self.vocabulary, self.width)


# The quarter has a quarter of the layers and of the vocabulary, so that each step costs a quarter.
SHAPES = {
    "smollm2-135m": Shape("LlamaForCausalLM", 30, 576, 1536, 9, 3, 64, 49_152, True),
    "qwen3-0.6b": Shape("Qwen3ForCausalLM", 28, 1024, 3072, 16, 8, 128, 151_936, True),
    "qwen3-0.6b-quarter": Shape("Qwen3ForCausalLM", 7, 1024, 3072, 16, 8, 128, 37_984, True),
    "llama-3-8b": Shape("LlamaForCausalLM", 32, 4096, 14_336, 32, 8, 128, 128_256, False),
}


def write_base(folder: Path, shape: Shape, *, seed: int = 0) -> Path:
    """Write a base in hub format with random bfloat16 weights to ``folder``, and return it.

    Norms are one; all else has the standard deviation 1/sqrt(in). The tokenizer is the built-in base's, whose
    entries are the first of the vocabulary.
    """
    folder.mkdir(parents=True, exist_ok=True)
    built_in = identify_base("tenon-tiny").path
    for name in TOKENIZER_FILES:
        shutil.copyfile(built_in / name, folder / name)
    (folder / "config.json").write_text(json.dumps(shape.config(), indent=2))
    header, end = {}, 0
    for name, dimensions in shape.tensors():
        size = 2 * math.prod(dimensions)
        header[name] = {"dtype": "BF16", "shape": list(dimensions), "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    block = np.random.default_rng(seed).normal(size=_BLOCK).astype(np.float32)
    with (folder / "model.safetensors").open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for _, dimensions in shape.tensors():
            _write_tensor(file.write, dimensions, block)
    return folder


def _write_tensor(
    write: Callable[[bytes], object], dimensions: tuple[int, ...], block: npt.NDArray[np.float32]
) -> None:
    left = math.prod(dimensions)
    values = np.ones_like(block) if len(dimensions) == 1 else block * dimensions[1] ** -0.5
    # bfloat16 is the upper half of a float32.
    halves = (values.view(np.uint32) >> 16).astype("<u2").tobytes()
    while left > 0:
        part = min(left, _BLOCK)
        write(halves[: 2 * part])
        left -= part
