"""Adapters for vectors and classes: taken where the base is served for that, refused with the way out elsewhere."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from registry_samples import WIDTH, lora_tensors, write_adapter, write_base
from safetensors.numpy import load_file, save_file

from serve.errors import AdapterRejected, BaseModelError
from serve.registry import Registry
from serve.registry.base import BaseIdentity, identify_base
from serve.registry.serving import USUAL_LABELS, Serving
from serve.registry.validate import validate_adapter

EMBED = ("--runner", "pooling", "--convert", "embed")
CLASSIFY = ("--runner", "pooling", "--convert", "classify")
HEAD = "base_model.model.score"
SEQ_CLS: dict[str, Any] = {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}


def write_classifier(folder: Path, **config: Any) -> Path:
    """The tiny base with a head of two labels."""
    write_base(folder, **config)
    tensors = load_file(folder / "model.safetensors")
    save_file({**tensors, "score.weight": np.ones((2, WIDTH), np.float32)}, folder / "model.safetensors")
    return folder


def served(folder: Path, engine_args: Sequence[str] = ()) -> BaseIdentity:
    return identify_base(str(write_classifier(folder / "tiny", hidden_size=WIDTH)), engine_args)


def with_head(labels: int = 3, *, name: str = HEAD, **more: np.ndarray) -> dict[str, np.ndarray]:
    return {**lora_tensors(), f"{name}.weight": np.ones((labels, WIDTH), np.float32), **more}


def bare(tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The names of an adapter that was trained on AutoModel, which has no ``model.`` of its own."""
    return {name.replace("model.model.", "model."): value for name, value in tensors.items()}


def refusal(folder: Path, base: BaseIdentity) -> AdapterRejected:
    with pytest.raises(AdapterRejected) as caught:
        validate_adapter(folder, base, 64)
    assert caught.value.hint
    return caught.value


@pytest.mark.parametrize(
    ("architecture", "config", "args", "serving"),
    [
        ("Qwen3ForCausalLM", {}, "", Serving()),
        ("Qwen3ForCausalLM", {}, "--runner generate", Serving()),
        ("Qwen3ForCausalLM", {}, "--runner pooling", Serving("embed")),
        ("Qwen3ForCausalLM", {}, "--convert=embed", Serving("embed")),
        ("Qwen3ForCausalLM", {}, "--convert classify", Serving("classify", 2, USUAL_LABELS)),
        ("Qwen3ForCausalLM", {"num_labels": 40}, "--convert classify", Serving("classify", 40, 40)),
        (
            "Qwen3ForSequenceClassification",
            {"id2label": {"0": "a", "1": "b", "2": "c"}},
            "",
            Serving("classify", 3, 32),
        ),
        ("Qwen3ForSequenceClassification", {}, "--runner pooling --convert embed", Serving("embed")),
        ("Qwen3ForCausalLM", {}, "--convert classify --max_lora_cls_labels 5", Serving("classify", 2, 5)),
        (
            "Qwen3ForCausalLM",
            {},
            '--convert classify --hf-overrides {"num_labels":7}',
            Serving("classify", 7, 32),
        ),
        (
            "Qwen3ForCausalLM",
            {},
            '--hf-overrides {"architectures":["Qwen3ForSequenceClassification"]}',
            Serving("classify", 2, 32),
        ),
        ("Qwen3ForCausalLM", {}, "--hf-overrides {", Serving()),
    ],
)
def test_what_a_base_is_served_for(
    tmp_path: Path, architecture: str, config: dict[str, Any], args: str, serving: Serving
) -> None:
    folder = write_classifier(tmp_path / "tiny", architectures=[architecture], **config)
    assert identify_base(str(folder), args.split()).serving == serving


def test_a_base_that_is_to_classify_has_a_head(tmp_path: Path) -> None:
    folder = str(write_base(tmp_path / "tiny"))
    with pytest.raises(BaseModelError, match=r"no classification head \(score\.weight\)") as caught:
        identify_base(folder, CLASSIFY)
    assert "num_labels" in caught.value.hint
    made = (*CLASSIFY, "--hf-overrides", '{"classifier_from_token": ["no", "yes"]}')
    assert identify_base(folder, made).serving.purpose == "classify"


def test_sentence_transformers_make_vectors(tmp_path: Path) -> None:
    folder = write_base(tmp_path / "tiny")
    (folder / "modules.json").write_text("[]")
    assert identify_base(str(folder)).serving.purpose == "embed"


@pytest.mark.parametrize(
    ("said", "serving"),
    [
        (None, Serving()),
        ({"purpose": "classify", "base_labels": 3, "labels": 32, "new": 1}, Serving("classify", 3, 32)),
    ],
)
def test_what_a_record_says(said: Any, serving: Serving) -> None:
    assert Serving.of_json(said) == serving


@pytest.mark.parametrize("change", [lambda tensors: tensors, bare])
def test_an_adapter_for_vectors(tmp_path: Path, change: Any) -> None:
    folder = write_adapter(tmp_path / "a", change(lora_tensors()), task_type="FEATURE_EXTRACTION")
    facts = validate_adapter(folder, served(tmp_path, EMBED), 64)
    assert facts.target_modules == ("down_proj", "q_proj")


def test_bare_names_fit_no_base_that_writes(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", bare(lora_tensors()))
    assert "is no layer of the base" in refusal(folder, served(tmp_path)).message


def test_one_layer_under_both_names(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", {**lora_tensors(), **bare(lora_tensors())})
    assert "are the same layer" in refusal(folder, served(tmp_path, EMBED)).message


@pytest.mark.parametrize("labels", [1, 2, 5, USUAL_LABELS])
def test_an_adapter_with_its_own_head(tmp_path: Path, labels: int) -> None:
    base = served(tmp_path, CLASSIFY)
    plain = validate_adapter(write_adapter(tmp_path / "plain"), base, 64)
    bias = {f"{HEAD}.bias": np.zeros(labels, np.float32)}
    folder = write_adapter(tmp_path / "a", with_head(labels, **bias), **SEQ_CLS)
    assert validate_adapter(folder, base, 64).parameters == plain.parameters + labels * (WIDTH + 1)


def test_a_head_beside_zero_lora_has_an_effect(tmp_path: Path) -> None:
    zeros = {name: np.zeros_like(value) for name, value in lora_tensors().items()}
    base = served(tmp_path, CLASSIFY)
    assert validate_adapter(write_adapter(tmp_path / "zero", zeros), base, 64).all_zero
    head = {f"{HEAD}.weight": np.ones((2, WIDTH), np.float32)}
    folder = write_adapter(tmp_path / "a", {**zeros, **head}, **SEQ_CLS)
    assert not validate_adapter(folder, base, 64).all_zero


@pytest.mark.parametrize(
    ("tensors", "said", "way_out"),
    [
        (with_head(USUAL_LABELS + 1), "33 labels, and the engine takes 32", "--max-lora-cls-labels 33"),
        (
            {**lora_tensors(), f"{HEAD}.weight": np.ones((3, WIDTH + 1), np.float32)},
            "is 3×17",
            "another base",
        ),
        ({**lora_tensors(), f"{HEAD}.weight": np.ones(3, np.float32)}, "where the base takes labels×16", ""),
        ({**lora_tensors(), f"{HEAD}.bias": np.ones(3, np.float32)}, "a bias but no weight", ""),
        (with_head(**{f"{HEAD}.bias": np.ones(2, np.float32)}), "has a bias of 2 for 3 labels", ""),
        (with_head(name="base_model.model.classifier"), "calls score", "name it score"),
        (with_head(**{"score.weight": np.ones((3, WIDTH), np.float32)}), "are the same weight", ""),
        (with_head(**{f"{HEAD}.weight": np.full((3, WIDTH), np.nan, np.float32)}), "not finite", ""),
        ({f"{HEAD}.weight": np.ones((3, WIDTH), np.float32)}, "a head and no LoRA weights", "target_modules"),
        (with_head(name="base_model.model.model.score"), "no LoRA weight", ""),
    ],
)
def test_heads_that_do_not_fit(
    tmp_path: Path, tensors: dict[str, np.ndarray], said: str, way_out: str
) -> None:
    error = refusal(write_adapter(tmp_path / "a", tensors, **SEQ_CLS), served(tmp_path, CLASSIFY))
    assert said in error.message
    assert way_out in error.hint


def test_a_head_that_modules_to_save_does_not_name(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a", with_head(), task_type="SEQ_CLS")
    assert "modules_to_save does not name" in refusal(folder, served(tmp_path, CLASSIFY)).message


@pytest.mark.parametrize(
    ("args", "config", "said", "way_out"),
    [
        ((), {"task_type": "FEATURE_EXTRACTION"}, "the base generates text here", "--convert embed'"),
        ((), SEQ_CLS, "brings a classification head", "--convert classify'"),
        (EMBED, SEQ_CLS, "the base makes vectors of texts here", "--convert classify'"),
        (CLASSIFY, {"task_type": "FEATURE_EXTRACTION"}, "the base classifies texts here", "--convert embed'"),
        (CLASSIFY, {"task_type": "TOKEN_CLS"}, "no head of an adapter's own for single tokens", "SEQ_CLS"),
        (CLASSIFY, {"task_type": ["SEQ_CLS"]}, "which no engine serves", "SEQ_CLS"),
        (
            CLASSIFY,
            {"modules_to_save": ["score", "lm_head"]},
            "brings whole layers",
            "without modules_to_save",
        ),
        (CLASSIFY, {"modules_to_save": "score"}, "not a list of names", "that PEFT wrote"),
    ],
)
def test_what_the_engine_is_not_there_for(
    tmp_path: Path, args: tuple[str, ...], config: dict[str, Any], said: str, way_out: str
) -> None:
    error = refusal(write_adapter(tmp_path / "a", **config), served(tmp_path, args))
    assert said in error.message
    assert way_out in error.hint


def test_plain_lora_fits_every_purpose(tmp_path: Path) -> None:
    folder = write_adapter(tmp_path / "a")
    base = served(tmp_path)
    for args in ((), EMBED, CLASSIFY):
        again = identify_base(str(base.path), args)
        assert again.digest == base.digest
        assert validate_adapter(folder, again, 64).rank == 4


def test_the_registry_keeps_an_adapter_with_a_head(tmp_path: Path) -> None:
    base = served(tmp_path, CLASSIFY)
    folder = write_adapter(tmp_path / "a", with_head(), **SEQ_CLS)
    with Registry.open(tmp_path / "home") as registry:
        version = registry.register(folder, "urgency", base, max_rank=64)
        registry.verify(version.ref)
    assert json.loads((version.path / "adapter_config.json").read_text())["task_type"] == "SEQ_CLS"
