import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.errors import DataError, RecipeError, StorageError, TrainingFailed
from serve.registry.base import BaseIdentity
from train.events import TrainEvent
from train.plan import make_plan
from train.recipe import Recipe
from train.runs import Run
from train.worker import name_error

SHAPES = {
    "model.embed_tokens.weight": (100, 8),
    "model.layers.0.input_layernorm.weight": (8,),
    "model.layers.0.self_attn.q_proj.weight": (16, 8),
    "model.layers.0.mlp.up_proj.weight": (24, 8),
    "lm_head.weight": (100, 8),
}
BASE = BaseIdentity("small", Path("/nowhere"), "d" * 64, "Qwen3ForCausalLM", SHAPES, 512, 100)


def rows(train: int, validation: int = 10) -> SimpleNamespace:
    return SimpleNamespace(counts={"train": train, "validation": validation, "test": 0})


@pytest.mark.parametrize(
    ("count", "overrides", "steps"),
    [
        (100, ["train.batch_size=16", "train.epochs=1"], 7),
        (100, ["train.batch_size=16", "train.epochs=2.5"], 18),
        (100, ["train.batch_size=16", "train.gradient_accumulation=4", "train.epochs=3"], 6),
        (100, ["train.max_steps=11"], 11),
        (3, ["train.epochs=1"], 1),
    ],
)
def test_steps(count: int, overrides: list[str], steps: int) -> None:
    assert make_plan(Recipe.load(None, overrides), rows(count), BASE).steps == steps


def test_targets_and_sizes() -> None:
    plan = make_plan(Recipe.load(None, ["lora.rank=4"]), rows(100), BASE)
    assert plan.target_modules == ("q_proj", "up_proj")
    assert plan.adapter_parameters == 4 * (16 + 8) + 4 * (24 + 8)
    assert plan.base_parameters == 800 + 8 + 128 + 192 + 800
    assert plan.max_length == 512
    assert plan.learning_rate == 2e-3
    assert plan.warnings == ()


def test_an_unknown_layer_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"has no layer q_pro \(did you mean q_proj\?\)"):
        make_plan(Recipe.load(None, ["lora.target_modules=[q_pro]"]), rows(100), BASE)


def test_no_rows_is_an_error() -> None:
    with pytest.raises(DataError, match="training split has no rows"):
        make_plan(Recipe.load(), rows(0), BASE)


def test_warnings() -> None:
    plan = make_plan(Recipe.load(None, ["lora.rank=64", "train.max_length=4096"]), rows(5, 0), BASE)
    text = " / ".join(plan.warnings)
    for part in (
        "cut to 512",
        "no validation rows",
        "lora.rank 64 is above the width 8",
        "fewer than one batch",
    ):
        assert part in text


def test_planning_and_launching_import_nothing_heavy() -> None:
    code = (
        "import sys, json, train.recipe, train.plan, train.runs, train.launch, train.worker, train.events\n"
        "heavy = ['torch', 'transformers', 'trl', 'peft', 'datasets']\n"
        "print(json.dumps([name for name in heavy if name in sys.modules]))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == []


def test_events_survive_the_pipe_and_skip_what_is_none() -> None:
    event = TrainEvent(event="step", step=3, total_steps=9, loss=0.5, message="é")
    assert json.loads(event.to_json()) == {
        "event": "step",
        "step": 3,
        "total_steps": 9,
        "loss": 0.5,
        "message": "é",
    }
    assert TrainEvent.from_json(event.to_json()) == event
    for line in ("", "{", "3", '{"step": 1}'):
        with pytest.raises(ValueError, match=r"."):
            TrainEvent.from_json(line)


@pytest.mark.parametrize(
    ("error", "kind", "words"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "/x/metrics.jsonl"),
            StorageError,
            "/x/metrics.jsonl",
        ),
        (
            RuntimeError("[enforce fail at inline_container.cc] PytorchStreamWriter failed"),
            StorageError,
            "checkpoints",
        ),
        (
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried"),
            TrainingFailed,
            "out of memory",
        ),
        (MemoryError(), TrainingFailed, "out of memory"),
        (KeyError("x"), TrainingFailed, "KeyError"),
        (DataError("row 3"), DataError, "row 3"),
    ],
)
def test_errors_of_libraries_get_a_cause_and_a_way_out(
    tmp_path: Path, error: Exception, kind: type[Exception], words: str
) -> None:
    named = name_error(error, Run(tmp_path))
    assert type(named) is kind
    assert words in named.message
    assert named.hint or isinstance(error, DataError)
