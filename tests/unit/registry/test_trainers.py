"""Adapters as other trainers write them, and that vLLM's own code agrees with what we accept."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from registry_samples import CONFIG, DOWN, Q, lora_tensors, write_adapter
from vllm_source import definition

from serve.errors import AdapterRejected
from serve.registry import Registry
from serve.registry.adapter_config import PLAIN_INITS, check_config
from serve.registry.base import BaseIdentity
from serve.registry.store import FILES
from serve.registry.validate import validate_adapter
from serve.registry.weights import LORA_NAME, without_prefix

# All that PEFT 0.21 writes, as it writes it for a plain adapter.
PEFT: dict[str, Any] = {
    "alora_invocation_tokens": None,
    "alpha_pattern": {},
    "arrow_config": None,
    "auto_mapping": None,
    "bias": "none",
    "corda_config": None,
    "ensure_weight_tying": False,
    "eva_config": None,
    "exclude_modules": None,
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "kasa_config": None,
    "layer_replication": None,
    "layers_pattern": None,
    "layers_to_transform": None,
    "loftq_config": {},
    "lora_bias": False,
    "lora_dropout": 0.05,
    "lora_ga_config": None,
    "megatron_config": None,
    "megatron_core": "megatron.core",
    "modules_to_save": None,
    "monteclora_config": None,
    "peft_version": "0.21.2",
    "qalora_group_size": 16,
    "rank_pattern": {},
    "revision": None,
    "target_parameters": None,
    "trainable_token_indices": None,
    "use_bdlora": None,
    "use_dora": False,
    "use_qalora": False,
    "use_rslora": False,
    "velora_config": None,
}
TRAINERS: dict[str, tuple[dict[str, Any], list[str]]] = {
    "llama-factory": (
        {"base_model_name_or_path": "/root/.cache/modelscope/hub/models/org/Tiny",
         "target_modules": ["model.layers.0.mlp.down_proj", "q_proj"]},
        ["README.md", "all_results.json", "trainer_log.jsonl", "training_args.bin", "training_loss.png",
         "tokenizer.json", "chat_template.jinja", "checkpoint-100/", "checkpoint-200/"],
    ),
    "axolotl": (
        {"base_model_name_or_path": "org/tiny", "modules_to_save": [], "layers_to_transform": [0],
         "target_modules": "all-linear"},
        ["README.md", "config.json", "tokenizer.model", "debug.log", "checkpoint-12/", "runs/"],
    ),
    "unsloth": (
        {"base_model_name_or_path": "unsloth/tiny-unsloth-bnb-4bit", "use_rslora": True,
         "auto_mapping": {"base_model_class": "Qwen3ForCausalLM", "parent_library": "transformers"},
         "target_modules": r"(?:.*?(?:language|text).*?(?:self_attn|attention|mlp).*?(?:q_proj|down_proj).*?)"},
        ["README.md", "added_tokens.json", "merges.txt", "special_tokens_map.json", "vocab.json"],
    ),
    "trl": (
        {"base_model_name_or_path": "/cache/models--org--tiny/snapshots/0123456789abcdef", "lora_alpha": 16,
         "rank_pattern": {"model.layers.0.mlp.down_proj": 4}, "alpha_pattern": {"q_proj": 32}},
        ["README.md", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "trainer_state.json"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("trainer", TRAINERS)
def test_folders_of_other_trainers_are_registered(
    trainer: str, tmp_path: Path, base: BaseIdentity, registry: Registry
) -> None:
    changes, files = TRAINERS[trainer]
    folder = write_adapter(tmp_path / "out", **{**PEFT, **changes})
    for name in files:
        path = folder / name
        if name.endswith("/"):
            write_adapter(path)
            (path / "optimizer.pt").write_bytes(b"\x80\x04.")
            (path / "zero_to_fp32.py").write_text("raise SystemExit")
        else:
            path.write_bytes(b"\x80\x04.")
    version = registry.register(folder, trainer, base, max_rank=64)
    assert any("ignored and not read" in warning for warning in version.facts.warnings)
    assert not any("only shapes" in warning for warning in version.facts.warnings)
    assert not any("not on this machine" in warning for warning in version.facts.warnings)
    assert sorted(path.name for path in version.path.iterdir()) == sorted(FILES)
    registry.verify(version.ref)


@pytest.mark.parametrize(
    ("hint", "known"),
    [
        ("org/Tiny", True),
        ("org/Tiny/", True),
        ("/elsewhere/models/Tiny", True),
        ("models--org--tiny/snapshots/0123", True),
        ("unsloth/tiny-bnb-4bit", True),
        ("unsloth/tiny-unsloth-bnb-4bit", True),
        ("org/tiny-AWQ", True),
        ("org/tiny-instruct", False),
        ("~nobody-of-this-name/tiny2", False),
        ("x" * 100_000, False),
        ("nul\0byte", False),
        ("esc\x1b[2J", False),
    ],
)
def test_names_of_bases(tmp_path: Path, base: BaseIdentity, hint: str, known: bool) -> None:
    facts = validate_adapter(write_adapter(tmp_path / "a", base_model_name_or_path=hint), base, 64)
    assert any("not on this machine" in warning for warning in facts.warnings) is not known
    assert all(len(warning) <= 300 and warning.isprintable() for warning in facts.warnings)


def renamed(change: Callable[[str], str]) -> dict[str, np.ndarray]:
    return {change(name): tensor for name, tensor in lora_tensors().items()}


@pytest.mark.parametrize("prefix", ["", "base_model.model.", "base_model.model.base_model.model."])
def test_keys_with_any_prefix_that_the_engine_strips(tmp_path: Path, base: BaseIdentity, prefix: str) -> None:
    tensors = renamed(lambda name: prefix + name.removeprefix("base_model.model."))
    facts = validate_adapter(write_adapter(tmp_path / "a", tensors), base, 64)
    assert facts.target_modules == ("down_proj", "q_proj")


@pytest.mark.parametrize(
    ("change", "said", "way_out"),
    [
        (lambda n: n.replace("lora_A.", "lora_A.default."), "adapter's name", "save_pretrained"),
        (lambda n: n.replace("layers.0", "_orig_mod.layers.0"), "no layer", "unwrapped"),
        (lambda n: n.replace("base_model.model.", "module."), "no layer", "unwrapped"),
        (lambda n: n.replace("model.layers.0.self_attn.q_proj", "lm_head"), "shares the embeddings", "lm_head"),
        (lambda n: n.replace("self_attn", "attention"), "no layer of the base", "another base"),
    ],
)  # fmt: skip
def test_keys_that_the_engine_would_not_find(
    tmp_path: Path, base: BaseIdentity, change: Callable[[str], str], said: str, way_out: str
) -> None:
    with pytest.raises(AdapterRejected, match=said) as caught:
        validate_adapter(write_adapter(tmp_path / "a", renamed(change)), base, 64)
    assert way_out in caught.value.hint


def test_a_weight_given_twice_under_two_names(tmp_path: Path, base: BaseIdentity) -> None:
    poisoned = np.full((4, 16), np.nan, np.float32)
    for name in (f"{Q}.lora_A.weight".removeprefix("base_model.model."), f"{Q}.lora_embedding_A"):
        tensors = {**lora_tensors(), name: poisoned}
        with pytest.raises(AdapterRejected, match="are the same weight"):
            validate_adapter(write_adapter(tmp_path / name, tensors), base, 64)


def test_half_an_embedding(tmp_path: Path, base: BaseIdentity) -> None:
    tensors = lora_tensors()
    tensors[f"{DOWN}.lora_embedding_A"] = tensors.pop(f"{DOWN}.lora_A.weight")
    with pytest.raises(AdapterRejected, match="half an embedding"):
        validate_adapter(write_adapter(tmp_path / "a", tensors), base, 64)


@pytest.mark.parametrize(
    ("change", "way_out"),
    [
        ({"use_dora": True}, "save_as_lora"),
        ({"peft_type": "VERA"}, "save_as_lora"),
        ({"peft_type": "PREFIX_TUNING"}, "train it as LoRA"),
        ({"init_lora_weights": "pissa"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "PiSSA_niter_4"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "loftq"}, "path_initial_model_for_weight_conversion"),
        ({"init_lora_weights": "corda"}, "path_initial_model_for_weight_conversion"),
        ({"modules_to_save": ["embed_tokens", "lm_head"]}, "without modules_to_save"),
        ({"bias": "lora_only"}, "bias='none'"),
        ({"use_qalora": True}, "use_qalora=False"),
        ({"alora_invocation_tokens": [1, 2]}, "plain LoRA"),
        ({"layer_replication": [[0, 1], [0, 1]]}, "layer_replication"),
        ({"use_rslora": "false"}, "PEFT wrote"),
        ({"bias": "x" * 100_000}, "bias='none'"),
        ({"rank_pattern": {f"m{n}": 4 for n in range(3000)}}, "at most 2,000"),
        ({"rank_pattern": {f".*m{n}": 4 for n in range(100)}}, "64 of them"),
        ({"rank_pattern": {"(.|.)" * 40 + "Z": 4}}, "in full"),
        ({"alpha_pattern": {".*.*.*q": 4}}, "in full"),
    ],
)
def test_what_cannot_be_served_names_the_way_out(
    tmp_path: Path, base: BaseIdentity, change: dict[str, Any], way_out: str
) -> None:
    with pytest.raises(AdapterRejected) as caught:
        validate_adapter(write_adapter(tmp_path / "a", **{**PEFT, **change}), base, 64)
    assert way_out in caught.value.hint
    assert len(caught.value.message) < 1000


def test_a_configuration_without_target_modules(tmp_path: Path, base: BaseIdentity) -> None:
    folder = write_adapter(tmp_path / "a")
    content = json.loads((folder / "adapter_config.json").read_text())
    del content["target_modules"]
    (folder / "adapter_config.json").write_text(json.dumps(content))
    with pytest.raises(AdapterRejected, match="target_modules"):
        validate_adapter(folder, base, 64)


def test_names_that_would_draw_on_a_terminal(tmp_path: Path, base: BaseIdentity) -> None:
    tensors = {**lora_tensors(), "\x1b[2Jx\n" + "y" * 10_000: np.ones(1, np.float32)}
    with pytest.raises(AdapterRejected) as caught:
        validate_adapter(write_adapter(tmp_path / "a", tensors), base, 64)
    assert caught.value.message.isprintable()
    assert len(caught.value.message) < 1000


def test_hostile_patterns_do_not_take_long(tmp_path: Path, base: BaseIdentity) -> None:
    hostile = {f".*{letter}.*Z": 4 for letter in "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ"}
    tensors = {**lora_tensors(), "a" * 5000 + ".lora_A.weight": np.ones((4, 4), np.float32)}
    tensors["a" * 5000 + ".lora_B.weight"] = np.ones((4, 4), np.float32)
    began = time.process_time()
    with pytest.raises(AdapterRejected):
        validate_adapter(write_adapter(tmp_path / "a", tensors, rank_pattern=hostile), base, 64)
    assert time.process_time() - began < 2


MODULE = st.sampled_from(["q_proj", "model.layers.0.mlp.down_proj", "layers.1.self_attn.q_proj", "lm_head"])
PATTERN = st.one_of(
    MODULE, st.sampled_from([r".*q_proj", r"^model.layers.\d+.mlp.*", "proj", "(q_proj|lm_head)"])
)
VALUE = st.sampled_from([0, -1, 1, 4, 64, 65, 8.0, "8", True, None, [], {}])
CONFIGS = st.fixed_dictionaries(
    {"peft_type": st.just("LORA")},
    optional={
        "r": st.one_of(st.integers(-1, 70), VALUE),
        "lora_alpha": st.one_of(st.integers(-1, 70), st.floats(allow_nan=False), VALUE),
        "target_modules": st.sampled_from([None, [], ["q_proj"], "all-linear", ".*"]),
        "bias": st.sampled_from(["none", "all", "lora_only", None]),
        "modules_to_save": st.sampled_from([None, [], ["lm_head"], ["score"]]),
        "use_rslora": st.sampled_from([True, False, None, "yes"]),
        "init_lora_weights": st.sampled_from([True, False, None, "gaussian", "eva", "EVA", "pissa", "lora_ga", "x"]),
        "rank_pattern": st.one_of(st.none(), st.dictionaries(PATTERN, VALUE, max_size=3)),
        "alpha_pattern": st.one_of(st.none(), st.dictionaries(PATTERN, VALUE, max_size=3)),
        **{
            name: st.sampled_from([None, False, True, [], [1], {}, {"a": 1}])
            for name in (
                *("use_dora", "lora_bias", "alora_invocation_tokens"),
                *("layer_replication", "use_bdlora", "use_qalora"),
            )
        },
    },
)  # fmt: skip


@settings(max_examples=500, deadline=None)
@given(CONFIGS, st.lists(MODULE, min_size=1, max_size=4))
def test_vllm_accepts_every_configuration_that_we_accept(config: dict[str, Any], modules: list[str]) -> None:
    plain, problems = check_config({**CONFIG, **config}, 64)
    helper = definition("lora/peft_helper", "PEFTHelper")
    if problems or plain is None:
        return
    theirs = helper.from_dict({**CONFIG, **config})
    theirs.validate_legal(SimpleNamespace(max_lora_rank=64))
    for module in modules:
        assert theirs.get_rank_and_scaling(module)[0] == plain.rank_of(module)


def test_what_vllm_reads_of_a_configuration_is_known() -> None:
    helper = definition("lora/peft_helper", "PEFTHelper")
    known = {
        *(
            "r",
            "lora_alpha",
            "target_modules",
            "bias",
            "modules_to_save",
            "use_rslora",
            "use_dora",
            "lora_bias",
        ),
        *("init_lora_weights", "alora_invocation_tokens", "layer_replication", "use_bdlora", "use_qalora"),
        *("rank_pattern", "alpha_pattern", "vllm_lora_scaling_factor", "vllm_max_position_embeddings"),
    }
    assert set(helper.__dataclass_fields__) == known, "a new vLLM reads more: look at adapter_config.py again"
    for init in (*PLAIN_INITS, *(name.upper() for name in PLAIN_INITS), True, False):
        assert helper(r=1, lora_alpha=1, target_modules=[], init_lora_weights=init)._init_is_supported()


@given(
    st.sampled_from(["", "base_model.model.", "base_model.model.base_model.model.", "base_model."]),
    st.sampled_from(["model.layers.0.mlp.down_proj", "lm_head", "lora_A.x", "m.lora_B"]),
    st.sampled_from(
        ["lora_A.weight", "lora_B.weight", "lora_embedding_A", "lora_embedding_B", "lora_A", "lora_A.bias",
         "lora_embedding_A.weight", "lora_A.default.weight", "weight", "score.weight"]
    ),
)  # fmt: skip
def test_vllm_reads_every_name_as_we_do(prefix: str, module: str, end: str) -> None:
    parse = definition("lora/utils", "parse_fine_tuned_lora_name")
    name = f"{prefix}{module}.{end}"
    match = LORA_NAME.fullmatch(without_prefix(name))
    if match and bool(match["table"]) != bool(match["weight"]):
        assert parse(name) == (match["module"], match["side"] == "A")
