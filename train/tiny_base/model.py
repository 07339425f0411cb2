"""The shape of the built-in base, and the folder in hub format that holds it."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

import torch
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from train.tiny_base.tokenizer import CONTEXT

LAYERS, WIDTH, FEED_FORWARD, HEADS, KEY_VALUE_HEADS, HEAD_WIDTH = 6, 256, 512, 4, 2, 64


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0, layers: int = LAYERS) -> Qwen3ForCausalLM:
    """A Qwen3 model with random float32 weights: about 5 M parameters, embeddings tied, grouped-query attention."""
    torch.manual_seed(seed)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=WIDTH,
        intermediate_size=FEED_FORWARD,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        num_key_value_heads=KEY_VALUE_HEADS,
        head_dim=HEAD_WIDTH,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return Qwen3ForCausalLM(config)


def load_base(folder: Path) -> tuple[PreTrainedTokenizerFast, Qwen3ForCausalLM]:
    """Tokenizer and float32 model of a folder that ``save_base`` wrote."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return tokenizer, Qwen3ForCausalLM.from_pretrained(folder, dtype=torch.float32)


def save_base(model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write model (in bfloat16) and tokenizer to ``folder``, which is replaced as a whole if it exists.

    A reader that opens the folder while it is being replaced may miss it for an instant, but never sees half of it.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}-") as workplace:
        fresh = Path(workplace) / "fresh"
        copy = Qwen3ForCausalLM(model.config)
        copy.load_state_dict(model.state_dict())
        copy.to(torch.bfloat16)
        copy.generation_config = GenerationConfig(
            do_sample=False, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id
        )
        copy.save_pretrained(fresh)
        tokenizer.save_pretrained(fresh)
        for file in fresh.iterdir():
            file.chmod(0o644)
        if folder.exists():
            os.rename(folder, Path(workplace) / "old")  # noqa: PTH104  (Path.rename cannot say that both must be folders)
        shutil.move(fresh, folder)
