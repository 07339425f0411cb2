"""Bases with random weights are such as the engine and the trainer read."""

import math
from dataclasses import replace
from pathlib import Path

import pytest

from evalsuite.load.bases import SHAPES, write_base
from serve.registry.base import identify_base

transformers = pytest.importorskip("transformers")


@pytest.mark.parametrize("name", sorted(SHAPES))
def test_transformers_computes_with_it(name: str, tmp_path: Path) -> None:
    small = {"layers": 2, "width": 64, "feed_forward": 96, "heads": 4, "key_value_heads": 2, "head_width": 16}
    shape = replace(SHAPES[name], vocabulary=7000, **small)
    folder = write_base(tmp_path / "base", shape)
    model, report = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not report["missing_keys"]
    assert not report["unexpected_keys"]
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer.apply_chat_template(
        [{"role": "user", "content": "hello"}], add_generation_prompt=True, return_tensors="pt"
    )["input_ids"]
    logits = model(input_ids=ids).logits
    assert logits.isfinite().all()
    assert 0.1 < logits.float().std() < 10


def test_it_has_the_parameters_of_the_model_it_is_shaped_after(tmp_path: Path) -> None:
    def parameters(name: str) -> int:
        return sum(math.prod(dimensions) for _, dimensions in SHAPES[name].tensors())

    assert parameters("smollm2-135m") == 134_515_008
    assert parameters("qwen3-0.6b") == 596_049_920
    assert parameters("llama-3-8b") == 8_030_261_248


def test_the_registry_reads_its_shapes(tmp_path: Path) -> None:
    shape = replace(SHAPES["qwen3-0.6b"], layers=1, width=64, feed_forward=96, vocabulary=7000)
    base = identify_base(str(write_base(tmp_path / "base", shape)))
    assert dict(base.shapes) == {name: dims for name, dims in shape.tensors() if len(dims) == 2} | {
        name: dims for name, dims in base.shapes.items() if len(dims) != 2
    }
