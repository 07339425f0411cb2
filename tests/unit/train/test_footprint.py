"""What a pass keeps of memory, as estimated and as autograd keeps it, over architectures, precisions and settings."""

from typing import Any

import pytest
import torch
import transformers
from peft import LoraConfig, get_peft_model

from serve.registry.base import layer_name
from train.footprint import footprint, has_bf16, tokens_in
from train.methods import sft
from train.plan import NOT_LINEAR

ROWS, TOKENS, RANK = 2, 96, 8
SIZES = {
    "vocab_size": 500,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 0,
}
BASES: dict[str, tuple[str, dict[str, Any]]] = {
    "qwen3": (
        "Qwen3Config",
        {"hidden_size": 256, "intermediate_size": 768, "num_key_value_heads": 2, "head_dim": 64},
    ),
    "llama": ("LlamaConfig", {"hidden_size": 256, "intermediate_size": 1024, "num_key_value_heads": 1}),
    "gemma3": (
        "Gemma3TextConfig",
        {"hidden_size": 256, "intermediate_size": 1024, "num_key_value_heads": 2, "head_dim": 64},
    ),
    "phi3": ("Phi3Config", {"hidden_size": 256, "intermediate_size": 1024, "num_key_value_heads": 4}),
    "starcoder2": (
        "Starcoder2Config",
        {"hidden_size": 256, "intermediate_size": 1024, "num_key_value_heads": 1},
    ),
}


def adapted(base: str, dtype: torch.dtype, dropout: float = 0.0) -> Any:
    """A random base with an adapter, as a training has it."""
    torch.manual_seed(0)
    name, sizes = BASES[base]
    config = getattr(transformers, name)(**{**SIZES, **sizes})
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype, attn_implementation="sdpa")
    lora = LoraConfig(r=RANK, lora_dropout=dropout, target_modules="all-linear", task_type="CAUSAL_LM")
    return get_peft_model(model, lora).train()


def kept(model: Any, dtype: torch.dtype) -> int:
    """Bytes that a pass of the layers keeps for the backward one, but for parameters."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    seen: dict[int, torch.Tensor] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        seen.setdefault(tensor.untyped_storage().data_ptr(), tensor)
        return tensor

    ids = torch.randint(1, SIZES["vocab_size"], (ROWS, TOKENS))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=dtype == torch.bfloat16),
    ):
        output = model.get_base_model().base_model(input_ids=ids, use_cache=False)
    assert output.last_hidden_state.requires_grad
    return sum(tensor.untyped_storage().nbytes() for place, tensor in seen.items() if place not in own)


def estimated(model: Any, dtype: torch.dtype, dropout: float = 0.0) -> Any:
    shapes = {
        name.replace(".base_layer", ""): tuple(parameter.shape)
        for name, parameter in model.get_base_model().named_parameters()
        if "lora_" not in name
    }
    linear = {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 2 and not any(word in name for word in NOT_LINEAR)
    }
    assert {layer_name(name) for name in linear} >= {"o_proj"}
    return footprint(
        shapes,
        linear,
        adapter=0,
        tokens=ROWS * TOKENS,
        vocabulary=SIZES["vocab_size"],
        bf16=dtype == torch.bfloat16,
        dropout=dropout > 0,
    )


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize("base", BASES)
def test_what_a_pass_keeps_is_estimated(base: str, dtype: torch.dtype) -> None:
    model = adapted(base, dtype)
    ratio = estimated(model, dtype).kept / kept(model, dtype)
    assert (
        0.75 < ratio < (1.6 if base == "starcoder2" else 1.33)
    )  # whose layers have no gates, which keep more


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_dropout_on_updates_keeps_more(dtype: torch.dtype) -> None:
    model = adapted("qwen3", dtype, dropout=0.1)
    ratio = estimated(model, dtype, dropout=0.1).kept / kept(model, dtype)
    assert 0.75 < ratio < 1.33


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_with_checkpointing_each_block_keeps_its_input(dtype: torch.dtype) -> None:
    model = adapted("llama", dtype)
    model.enable_input_require_grads()
    model.get_base_model().gradient_checkpointing_enable({"use_reentrant": False})
    found, known = estimated(model, dtype), kept(model, dtype)
    one_block = found.kept / SIZES["num_hidden_layers"]
    assert 0.75 < (found.checkpointed - one_block) / known < 1.33


def test_tokens_of_a_row_are_at_most_what_is_read() -> None:
    assert tokens_in(len("abc" * 10), 512) == 10
    assert tokens_in(len("语言模型".encode()), 512) == 4
    assert tokens_in(99_999, 512) == 512


def test_the_cpu_has_bf16_where_torch_says_so() -> None:
    assert has_bf16("cpu") == sft.has_bf16()
    assert has_bf16("cuda")
