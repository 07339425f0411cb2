import json
import os
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registry_samples import DOWN, EMBED, VOCABULARY, WIDTH, Q, lora_tensors, write_adapter, write_base
from safetensors.numpy import save_file

from serve.errors import AdapterRejected
from serve.registry.base import BUILTIN, BaseIdentity, identify_base
from serve.registry.validate import validate_adapter


def refusal(folder: Path, base: BaseIdentity, max_rank: int = 64) -> AdapterRejected:
    with pytest.raises(AdapterRejected) as caught:
        validate_adapter(folder, base, max_rank)
    assert caught.value.hint, "a refusal names the way out"
    return caught.value


def write_raw(folder: Path, header: bytes, data: bytes = b"", length: int | None = None) -> Path:
    write_adapter(folder)
    prefix = struct.pack("<Q", len(header) if length is None else length)
    (folder / "adapter_model.safetensors").write_bytes(prefix + header + data)
    return folder


def test_a_plain_adapter_is_accepted_with_its_facts(tmp_path: Path, base: BaseIdentity) -> None:
    folder = write_adapter(tmp_path / "a")
    facts = validate_adapter(folder, base, 64)
    assert (facts.rank, facts.alpha, facts.target_modules) == (4, 8.0, ("down_proj", "q_proj"))
    assert facts.parameters == 4 * (WIDTH + WIDTH) + 4 * (3 * WIDTH + WIDTH)
    assert facts.bytes == (folder / "adapter_model.safetensors").stat().st_size
    assert not facts.all_zero
    assert facts.warnings == ()


def test_variations_that_the_engine_serves_are_accepted(tmp_path: Path, base: BaseIdentity) -> None:
    tensors = lora_tensors()
    tensors[f"{DOWN}.lora_A.weight"] = np.ones((2, 3 * WIDTH), np.float16)
    tensors[f"{DOWN}.lora_B.weight"] = np.ones((WIDTH, 2), np.float16)
    tensors[f"{EMBED}.lora_embedding_A"] = np.ones((4, VOCABULARY), np.float32)
    tensors[f"{EMBED}.lora_embedding_B"] = np.ones((WIDTH, 4), np.float32)
    tensors[f"{EMBED}.base_layer.weight"] = np.ones((VOCABULARY, WIDTH), np.float32)
    folder = write_adapter(
        tmp_path / "a",
        tensors,
        target_modules=["q_proj", "down_proj", "embed_tokens"],
        use_rslora=True,
        rank_pattern={r"model.layers.\d+.mlp.down_proj": 2},
        alpha_pattern={"down_proj": 3.5},
        init_lora_weights="gaussian",
        a_key_of_the_future=1,
    )
    for left in ("README.md", "trainer_state.json", "chat_template.jinja", "merges.txt", "tokenizer.model"):
        (folder / left).write_text("x")
    assert validate_adapter(folder, base, 64).target_modules == ("down_proj", "embed_tokens", "q_proj")


@pytest.mark.parametrize("targets", [["all-linear"], [r".*_proj", "x"], "all-linear", r".*(q|down)_proj"])
def test_expressions_that_name_layers_are_not_run(
    tmp_path: Path, base: BaseIdentity, targets: object
) -> None:
    facts = validate_adapter(write_adapter(tmp_path / "a", target_modules=targets), base, 64)
    assert facts.target_modules == ("down_proj", "q_proj")


def test_layers_that_are_kept_the_same_are_named_by_either(tmp_path: Path, base: BaseIdentity) -> None:
    tensors = lora_tensors()
    tensors[f"{EMBED}.lora_embedding_A"] = np.ones((4, VOCABULARY), np.float32)
    tensors[f"{EMBED}.lora_embedding_B"] = np.ones((WIDTH, 4), np.float32)
    named = {"target_modules": ["q_proj", "down_proj", "lm_head"]}
    tied = write_adapter(tmp_path / "tied", tensors, ensure_weight_tying=True, **named)
    assert "embed_tokens" in validate_adapter(tied, base, 64).target_modules
    assert "embed_tokens" in refusal(write_adapter(tmp_path / "not", tensors, **named), base).message


@pytest.mark.parametrize("side", ["A", "B"])
def test_an_adapter_of_zeros_is_recorded_as_such(tmp_path: Path, base: BaseIdentity, side: str) -> None:
    tensors = lora_tensors()
    for name in tensors:
        if f"lora_{side}" in name:
            tensors[name] *= -0.0
    assert validate_adapter(write_adapter(tmp_path / "a", tensors), base, 64).all_zero


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"peft_type": "IA3"}, "peft_type"),
        ({"use_dora": True}, "DoRA"),
        ({"bias": "all"}, "bias"),
        ({"lora_bias": True}, "lora_bias"),
        ({"modules_to_save": ["lm_head"]}, "modules_to_save"),
        ({"init_lora_weights": "pissa_niter_16"}, "pissa"),
        ({"init_lora_weights": "olora"}, "olora"),
        ({"layer_replication": [[0, 1]]}, "layer_replication"),
        ({"trainable_token_indices": [1]}, "tokens"),
        ({"alora_invocation_tokens": [1]}, "activated LoRA"),
        ({"use_qalora": True}, "QALoRA"),
        ({"target_parameters": ["experts"]}, "target_parameters"),
        ({"auto_map": {"AutoModel": "evil.py"}}, "code"),
        ({"task_type": "SEQ_CLS"}, "SEQ_CLS"),
        ({"r": 0}, "r is 0"),
        ({"r": -1}, "r is -1"),
        ({"r": "8"}, "r is '8'"),
        ({"r": 8.0}, "r is 8.0"),
        ({"r": True}, "r is True"),
        ({"r": 10**6}, "rank 1000000"),
        ({"lora_alpha": 0}, "lora_alpha"),
        ({"lora_alpha": "x"}, "lora_alpha"),
        ({"lora_alpha": 10**400}, "lora_alpha"),
        (
            {"lora_alpha": 1e308},
            "lora_alpha is 1e+308, not a number other than zero that the engine can hold",
        ),
        ({"alpha_pattern": {"q_proj": 1e308}}, "alpha_pattern"),
        ({"target_modules": None}, "names no target_modules"),
        ({"target_modules": []}, "target_modules is [], not names of layers"),
        ({"target_modules": ""}, "target_modules is ''"),
        ({"target_modules": ["q_proj", 1]}, "target_modules is ['q_proj', 1]"),
        ({"target_modules": ["q_proj"]}, "down_proj is updated, but is none of the target_modules"),
        ({"alpha_pattern": {"q_proj": 10**400}}, "alpha_pattern"),
        ({"rank_pattern": {"q_proj": 0}}, "rank_pattern"),
        ({"rank_pattern": {"q_proj": 128}}, "rank 128"),
        ({"rank_pattern": {"(a+)+": 4}}, "pattern"),
        ({"rank_pattern": {"q_proj(": 4}}, "pattern"),
        ({"rank_pattern": [4]}, "rank_pattern"),
        ({"alpha_pattern": {"q_proj": "x"}}, "alpha_pattern"),
        ({"r": 8}, "rank 4"),
    ],
)
def test_configurations_that_cannot_be_served(
    tmp_path: Path, base: BaseIdentity, change: dict[str, Any], said: str
) -> None:
    assert said in refusal(write_adapter(tmp_path / "a", **change), base).message


def test_a_rank_above_the_maximum_names_the_setting(tmp_path: Path, base: BaseIdentity) -> None:
    error = refusal(write_adapter(tmp_path / "a", lora_tensors(32), r=32), base, max_rank=16)
    assert "rank 32 is above the engine's maximum of 16" in error.message
    assert "TENON_MAX_LORA_RANK" in error.hint


@pytest.mark.parametrize(
    "text", ["", "[1]", "{", '{"r": 4, "r": 8}', '{"r": NaN}', "[" * 100_000, "\xff", " " * 2_000_000]
)
def test_a_configuration_that_is_no_object(tmp_path: Path, base: BaseIdentity, text: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / "adapter_config.json").write_bytes(text.encode("latin-1"))
    assert "adapter_config.json" in refusal(folder, base).message


@pytest.mark.parametrize("name", ["modeling.py", "hook.so", "run.SH"])
def test_code_is_refused(tmp_path: Path, base: BaseIdentity, name: str) -> None:
    folder = write_adapter(tmp_path / "a")
    (folder / name).write_bytes(b"x")
    assert f"{name} is code" in refusal(folder, base).message


def test_what_trainers_leave_is_ignored_unread(tmp_path: Path, base: BaseIdentity) -> None:
    folder = write_adapter(tmp_path / "a")
    names = ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state_0.pth", "zero_to_fp32.py")
    for name in names:
        os.mkfifo(folder / name)  # whoever opened one would wait for ever
    (folder / "checkpoint-10").mkdir()
    (folder / "checkpoint-10" / "evil.py").write_text("raise SystemExit")
    (folder / "latest").symlink_to("/proc/self")
    note = validate_adapter(folder, base, 64).warnings[0]
    assert note.startswith("ignored and not read: checkpoint-10, latest, optimizer.pt and 4 more")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("adapter_model.bin", "beside adapter_model.safetensors it has adapter_model.bin, a pickle"),
        ("adapter_model.pt", "adapter_model.pt, a pickle"),
        ("adapter_model.pth", "adapter_model.pth, a pickle"),
        ("x.tar.gz", "x.tar.gz is an archive"),
        ("weights.ZIP", "weights.ZIP is an archive"),
        ("a.7z", "a.7z is an archive"),
    ],
)
def test_pickled_weights_and_archives_beside_the_two_files_are_refused_unread(
    tmp_path: Path, base: BaseIdentity, name: str, reason: str
) -> None:
    folder = write_adapter(tmp_path / "a")
    os.mkfifo(folder / name)  # whoever opened it would wait for ever
    error = refusal(folder, base)
    assert reason in error.message
    assert "alone" in error.hint


def test_only_a_pickle_says_how_to_save_instead(tmp_path: Path, base: BaseIdentity) -> None:
    for name in ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth"):
        folder = write_adapter(tmp_path / name)
        (folder / "adapter_model.safetensors").rename(folder / name)
        error = refusal(folder, base)
        assert "safe_serialization=True" in error.hint
        assert f"only {name}, a pickle" in error.message


def test_links_pipes_files_and_missing_folders_are_refused(tmp_path: Path, base: BaseIdentity) -> None:
    real = write_adapter(tmp_path / "real")
    linked = write_adapter(tmp_path / "linked")
    (linked / "adapter_model.safetensors").unlink()
    (linked / "adapter_model.safetensors").symlink_to(real / "adapter_model.safetensors")
    assert "symbolic link" in refusal(linked, base).message
    (tmp_path / "whole").symlink_to(real)
    assert "symbolic link" in refusal(tmp_path / "whole", base).message
    piped = write_adapter(tmp_path / "piped")
    (piped / "adapter_config.json").unlink()
    os.mkfifo(piped / "adapter_config.json")
    assert "not a regular file" in refusal(piped, base).message
    (tmp_path / "adapter.zip").write_bytes(b"PK")
    assert "archives are not taken" in refusal(tmp_path / "adapter.zip", base).message
    assert "no such folder" in refusal(tmp_path / "absent", base).message


def test_a_folder_above_the_adapter_says_where_it_is(tmp_path: Path, base: BaseIdentity) -> None:
    for number in (10, 20):
        checkpoint = write_adapter(tmp_path / "out" / f"checkpoint-{number}")
        os.utime(checkpoint, (number, number))
    assert f"give {tmp_path}/out/checkpoint-20" in refusal(tmp_path / "out", base).hint


def test_a_whole_model_is_no_adapter(tmp_path: Path, base: BaseIdentity) -> None:
    assert "TENON_MODEL" in refusal(base.path, base).hint


def test_missing_files_are_named(tmp_path: Path, base: BaseIdentity) -> None:
    (tmp_path / "empty").mkdir()
    message = refusal(tmp_path / "empty", base).message
    assert "no adapter_config.json" in message
    assert "no adapter_model.safetensors" in message


def test_an_adapter_of_another_base_by_shape(tmp_path: Path, base: BaseIdentity) -> None:
    error = refusal(write_adapter(tmp_path / "a", lora_tensors(width=24)), base)
    assert "24×24 in the adapter and 16×16 in the base tiny" in error.message
    assert "another base" in error.hint


def test_an_adapter_of_another_base_of_the_same_shapes(tmp_path: Path, base: BaseIdentity) -> None:
    other = write_base(tmp_path / "other", seed=1)
    error = refusal(write_adapter(tmp_path / "a", base_model_name_or_path=str(other)), base)
    assert f"trained on '{other}', which is another base than tiny" in error.message


def test_the_base_that_the_config_names(tmp_path: Path, base: BaseIdentity) -> None:
    same = write_adapter(tmp_path / "same", base_model_name_or_path=str(base.path))
    assert validate_adapter(same, base, 64).base_digest == base.digest
    copy = write_base(tmp_path / "copy")
    elsewhere = write_adapter(tmp_path / "b", base_model_name_or_path=str(copy))
    assert validate_adapter(elsewhere, base, 64).base_digest == base.digest
    hub = validate_adapter(write_adapter(tmp_path / "c", base_model_name_or_path="org/Tiny"), base, 64)
    assert (hub.base_digest, hub.warnings) == (None, ())
    unknown = validate_adapter(write_adapter(tmp_path / "d", base_model_name_or_path="org/huge"), base, 64)
    assert "org/huge" in unknown.warnings[0]
    silent = validate_adapter(write_adapter(tmp_path / "e", base_model_name_or_path=None), base, 64)
    assert "does not say" in silent.warnings[0]


def test_a_folder_that_is_called_as_the_built_in_base(tmp_path: Path) -> None:
    base = identify_base(str(write_base(tmp_path / BUILTIN)))
    adapter = write_adapter(tmp_path / "a", base_model_name_or_path=BUILTIN)
    error = refusal(adapter, base)
    assert "the built-in one and not the folder of that name" in error.message
    assert "name this otherwise" in error.hint
    assert validate_adapter(adapter, base, 64, trained_here=True).base_digest == base.digest


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("base_model.model.model.layers.0.input_layernorm.lora_A.weight", (4, WIDTH), "no lora_B"),
        ("base_model.model.model.layers.9.self_attn.q_proj.lora_B.weight", (WIDTH, 4), "no lora_A"),
        (f"{Q}.lora_magnitude_vector.weight", (WIDTH,), "DoRA"),
        (f"{Q}.lora_B.bias", (WIDTH,), "bias"),
        (f"{EMBED}.weight", (VOCABULARY + 1, WIDTH), "added tokens"),
        (f"{EMBED}.base_layer.weight", (VOCABULARY + 1, WIDTH), "tokens were added"),
        ("base_model.model.score.weight", (2, WIDTH), "no LoRA weight"),
        ("something.else", (1,), "no LoRA weight"),
    ],
)
def test_tensors_that_do_not_belong(
    tmp_path: Path, base: BaseIdentity, name: str, shape: tuple[int, ...], said: str
) -> None:
    tensors = {**lora_tensors(), name: np.ones(shape, np.float32)}
    assert said in refusal(write_adapter(tmp_path / "a", tensors), base).message


def test_modules_that_the_base_does_not_have(tmp_path: Path, base: BaseIdentity) -> None:
    for module in ("model.layers.7.self_attn.q_proj", "model.layers.0.input_layernorm"):
        tensors = lora_tensors()
        tensors[f"base_model.model.{module}.lora_A.weight"] = np.ones((4, WIDTH), np.float32)
        tensors[f"base_model.model.{module}.lora_B.weight"] = np.ones((WIDTH, 4), np.float32)
        folder = write_adapter(tmp_path / module, tensors)
        assert f"{module} is no layer of the base" in refusal(folder, base).message


def test_pairs_of_different_rank(tmp_path: Path, base: BaseIdentity) -> None:
    tensors = {**lora_tensors(), f"{Q}.lora_B.weight": np.ones((WIDTH, 3), np.float32)}
    assert "no pair of one rank" in refusal(write_adapter(tmp_path / "a", tensors), base).message


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float16])
def test_values_that_are_not_finite(tmp_path: Path, base: BaseIdentity, value: float, dtype: type) -> None:
    tensors: dict[str, np.ndarray] = {name: tensor.astype(dtype) for name, tensor in lora_tensors().items()}
    tensors[f"{Q}.lora_B.weight"][3, 2] = value
    message = refusal(write_adapter(tmp_path / "a", tensors), base).message
    assert f"{Q}.lora_B.weight holds values that are not finite" in message


@pytest.mark.parametrize(("word", "said"), [(0x7FC0, True), (0xFF80, True), (0x7F7F, False), (0x8000, False)])
def test_bfloat16_is_understood(tmp_path: Path, base: BaseIdentity, word: int, said: bool) -> None:
    header, data = {}, b""
    for name, tensor in lora_tensors().items():
        words = np.zeros(tensor.shape, np.uint16)
        words[0, 0] = word
        header[name] = {
            "dtype": "BF16",
            "shape": tensor.shape,
            "data_offsets": [len(data), len(data) + words.nbytes],
        }
        data += words.tobytes()
    folder = write_raw(tmp_path / "a", json.dumps(header).encode(), data)
    if said:
        assert "not finite" in refusal(folder, base).message
    else:
        assert validate_adapter(folder, base, 64).all_zero is (word == 0x8000)


def test_other_dtypes(tmp_path: Path, base: BaseIdentity) -> None:
    tensors = {name: tensor.astype(np.float64) for name, tensor in lora_tensors().items()}
    assert "dtype F64" in refusal(write_adapter(tmp_path / "a", tensors), base).message


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: str = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape or [(end - begin) // 4], "data_offsets": [begin, end]}


@pytest.mark.parametrize(
    ("header", "data", "said"),
    [
        (b"", b"", "not JSON"),
        (b"[]", b"", "not JSON"),
        (b'{"a": 1}', b"", "not an object"),
        (b'{"a": {}, "a": {}}', b"", "twice"),
        (json.dumps({"a": entry(0, 8), "b": entry(4, 12)}).encode(), b"x" * 12, "overlaps"),
        (json.dumps({"a": entry(0, 4), "b": entry(8, 12)}).encode(), b"x" * 12, "hole"),
        (json.dumps({"a": entry(0, 16)}).encode(), b"x" * 8, "truncated"),
        (json.dumps({"a": entry(0, 4)}).encode(), b"x" * 8, "no tensor"),
        (json.dumps({"a": entry(0, 4, [2**40, 2**40])}).encode(), b"x" * 4, "does not need"),
        (json.dumps({"a": entry(0, 4, [-1])}).encode(), b"x" * 4, "malformed shape"),
        (json.dumps({"a": entry(0, 4, [True])}).encode(), b"x" * 4, "malformed shape"),
        (json.dumps({"a": entry(8, 4, [1])}).encode(), b"x" * 8, "does not need"),
        (json.dumps({"a": entry(0, 4, dtype="F3")}).encode(), b"x" * 4, "unknown dtype"),
        (json.dumps({f"t{n}": entry(0, 0, [0]) for n in range(5_000)}).encode(), b"", "5,000 tensors"),
        (json.dumps({f"t{n}": entry(0, 0, [0]) for n in range(100_000)}).encode(), b"", "its header claims"),
        (b"{}", b"", "no weights"),
        (b'{"__metadata__": {"format": "pt"}}', b"", "no weights"),
        (b"{" + b'"a":{' * 50_000, b"", "not valid JSON"),
    ],
    ids=range(18),
)
def test_malformed_weight_files(
    tmp_path: Path, base: BaseIdentity, header: bytes, data: bytes, said: str
) -> None:
    assert said in refusal(write_raw(tmp_path / "a", header, data), base).message


@pytest.mark.parametrize("length", [2**63, 2**30, 200])
def test_a_header_that_claims_more_than_there_is(tmp_path: Path, base: BaseIdentity, length: int) -> None:
    assert "header" in refusal(write_raw(tmp_path / "a", b"{}", length=length), base).message


def test_a_file_that_is_cut_off_anywhere_is_refused(tmp_path: Path, base: BaseIdentity) -> None:
    folder = write_adapter(tmp_path / "a")
    whole = (folder / "adapter_model.safetensors").read_bytes()
    for length in range(0, len(whole), 97):
        (folder / "adapter_model.safetensors").write_bytes(whole[:length])
        refusal(folder, base)


def test_all_problems_come_in_one_error(tmp_path: Path, base: BaseIdentity) -> None:
    tensors = lora_tensors()
    tensors[f"{Q}.lora_A.weight"] = np.ones((4, 3), np.float32)
    folder = write_adapter(tmp_path / "a", tensors, use_dora=True, bias="all")
    (folder / "evil.py").write_text("")
    message = refusal(folder, base).message
    assert all(said in message for said in ("evil.py", "DoRA", "bias", "16×3 in the adapter", str(folder)))


def test_many_problems_stay_readable(tmp_path: Path, base: BaseIdentity) -> None:
    folder = write_adapter(tmp_path / "a")
    save_file(
        {f"x{number}": np.ones(1, np.float32) for number in range(20)}, folder / "adapter_model.safetensors"
    )
    assert "and 17 more like these" in refusal(folder, base).message
