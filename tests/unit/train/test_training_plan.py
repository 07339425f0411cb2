import dataclasses
import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from serve.errors import DataError, RecipeError, StorageError, TrainingFailed
from serve.registry.base import BaseIdentity
from train.events import TrainEvent
from train.launch import _environment, _reference
from train.memory import FreeMemory, free_memory
from train.plan import learning_rate, make_plan
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


def rows(train: int, validation: int = 10, test: int = 6, longest: int = 300) -> SimpleNamespace:
    return SimpleNamespace(counts={"train": train, "validation": validation, "test": test}, longest=longest)


@pytest.mark.parametrize(
    ("count", "overrides", "steps"),
    [
        (100, ["train.batch_size=16", "train.epochs=1"], 7),
        (100, ["train.batch_size=16", "train.epochs=2.5"], 18),
        (100, ["train.batch_size=16", "train.gradient_accumulation=4", "train.epochs=3"], 6),
        (100, ["train.max_steps=11"], 11),
        (3, ["train.epochs=1"], 1),
        (4800, [], 300),  # once is enough
        (4784, [], 598),  # once would be too few steps
        (100, [], 21),  # thrice, and no more
        (6000, ["train.batch_size=8", "train.gradient_accumulation=4"], 376),
    ],
)
def test_steps(count: int, overrides: list[str], steps: int) -> None:
    assert make_plan(Recipe.load(None, overrides), rows(count), BASE).steps == steps


def test_a_validation_reads_a_sample_unless_told_otherwise() -> None:
    def read(*overrides: str, train: int = 100, validation: int = 9999) -> int:
        recipe = Recipe.load(None, list(overrides))
        return make_plan(recipe, rows(train, validation), BASE).validation_rows

    assert read() == 100
    assert read(validation=99) == 99
    assert read(train=96_000) == 1600  # a validation every 1,000 steps of 16 rows
    assert read("train.eval_every=500", train=96_000) == 800
    assert read("train.eval_every=500", "train.gradient_accumulation=2", train=96_000) == 1600
    assert read("train.eval_rows=300") == 300
    assert read("train.eval_rows=null") == 9999


def test_targets_and_sizes() -> None:
    plan = make_plan(Recipe.load(None, ["lora.rank=4"]), rows(100), BASE)
    assert plan.target_modules == ("q_proj", "up_proj")
    assert plan.adapter_parameters == 4 * (16 + 8) + 4 * (24 + 8)
    assert plan.base_parameters == 800 + 8 + 128 + 192 + 800
    assert plan.max_length == 512
    assert plan.learning_rate == 5e-3
    assert plan.warnings == ()


@pytest.mark.parametrize(
    ("parameters", "rate"),
    [(9_999_999, 5e-3), (10_000_000, 3e-3), (99_999_999, 3e-3), (100_000_000, 2e-4), (8_000_000_000, 2e-4)],
)
def test_larger_bases_learn_at_lower_rates(parameters: int, rate: float) -> None:
    assert learning_rate(Recipe.load(None, []), parameters) == rate
    assert learning_rate(Recipe.load(None, ["train.learning_rate=1e-4"]), parameters) == 1e-4


def test_an_unknown_layer_names_the_nearest() -> None:
    with pytest.raises(RecipeError, match=r"has no layer q_pro \(did you mean q_proj\?\)"):
        make_plan(Recipe.load(None, ["lora.target_modules=[q_pro]"]), rows(100), BASE)


def test_rank_and_layers_are_checked_at_once() -> None:
    with pytest.raises(
        RecipeError, match=r"lora\.rank 64 is above 16.*; lora\.target_modules: .*q_pro"
    ) as caught:
        make_plan(
            Recipe.load(None, ["lora.rank=64", "lora.target_modules=[q_pro]"]), rows(100), BASE, max_rank=16
        )
    assert "set lora.rank to 16" in caught.value.hint
    assert "q_proj" in caught.value.hint


@pytest.mark.parametrize(
    "more",
    [
        {
            "model.layers.0.mlp.experts.0.up_proj.weight": (24, 8),
            "model.layers.0.mlp.experts.1.up_proj.weight": (24, 8),
            "model.layers.0.mlp.gate.weight": (2, 8),
            "model.layers.0.mlp.shared_expert_gate.weight": (1, 8),
        },
        {"model.layers.0.mlp.experts.0.up_proj.weight": (24, 8), "model.layers.0.mlp.gate.wg.weight": (2, 8)},
        {
            "model.layers.0.block_sparse_moe.input_linear.weight": (2, 24, 8),
            "model.layers.0.block_sparse_moe.router.layer.weight": (2, 8),
        },
    ],
    ids=["qwen", "hunyuan", "granite"],
)
def test_experts_and_routers_get_no_update_which_is_said(more: dict[str, tuple[int, ...]]) -> None:
    moe = dataclasses.replace(BASE, shapes={**BASE.shapes, **more})
    plan = make_plan(Recipe.load(), rows(100), moe)
    assert set(plan.target_modules) <= {"q_proj", "up_proj"}
    assert "q_proj" in plan.target_modules
    assert any("experts of small get no update" in warning for warning in plan.warnings)
    router = next(name.split(".")[-2] for name in more if len(more[name]) == 2 and "experts" not in name)
    with pytest.raises(RecipeError, match=f"{router} is of the experts of small or their router"):
        make_plan(Recipe.load(None, [f"lora.target_modules=[q_proj, {router}]"]), rows(100), moe)


def test_layers_that_vllm_has_by_other_names_get_no_update_which_is_said() -> None:
    fused = {"model.layers.0.mlp.gate_up_proj.weight": (48, 8)}
    base = dataclasses.replace(
        BASE, shapes={**BASE.shapes, **fused}, unadapted=frozenset({"gate_up_proj", "embed_tokens"})
    )
    plan = make_plan(Recipe.load(None, ["lora.rank=4"]), rows(100), base)
    assert plan.target_modules == ("q_proj", "up_proj")
    (warning,) = plan.warnings
    assert warning.startswith("no update for gate_up_proj of small,")
    with pytest.raises(RecipeError, match="gate_up_proj of small is a layer that vLLM does not adapt"):
        make_plan(Recipe.load(None, ["lora.target_modules=[gate_up_proj]"]), rows(100), base)


def test_a_dense_base_may_have_a_layer_called_gate() -> None:
    dense = dataclasses.replace(BASE, shapes={**BASE.shapes, "model.layers.0.mlp.gate.weight": (24, 8)})
    plan = make_plan(Recipe.load(None, ["lora.rank=4"]), rows(100), dense)
    assert (plan.target_modules, plan.warnings) == (("gate", "q_proj", "up_proj"), ())


def test_layers_that_no_engine_adapts_are_refused_before_training() -> None:
    shapes = {"transformer.h.0.attn.c_attn.weight": (64, 192), "transformer.wte.weight": (100, 64)}
    with pytest.raises(RecipeError, match="Conv1D"):
        make_plan(Recipe.load(), rows(100), dataclasses.replace(BASE, shapes=shapes))


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


@pytest.mark.parametrize(("count", "said"), [(0, "no test rows"), (5, "too few test rows (5)"), (6, None)])
def test_too_few_test_rows_for_a_verdict_are_told(count: int, said: str | None) -> None:
    plan = make_plan(Recipe.load(), rows(100, test=count), BASE)
    told = [text for text in plan.warnings if "no verdict" in text]
    assert len(told) == (said is not None)
    assert all(said in text and "data.test" in text for text in told)


def test_a_rank_that_the_engine_will_not_load_is_refused_before_training() -> None:
    recipe = Recipe.load(None, ["lora.rank=32"])
    assert make_plan(recipe, rows(100), BASE, max_rank=32).adapter_parameters > 0
    with pytest.raises(RecipeError, match=r"lora\.rank 32 is above 16") as caught:
        make_plan(recipe, rows(100), BASE, max_rank=16)
    assert "TENON_MAX_LORA_RANK" in caught.value.hint


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A program of that name which writes its arguments down and answers what ``answer`` holds."""
    program = tmp_path / "nvidia-smi"
    program.write_text(f'#!/bin/sh\necho "$@" > {tmp_path}/asked\nexec cat {tmp_path}/answer\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return tmp_path


def test_on_a_gpu_its_own_free_memory_counts(nvidia_smi: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (nvidia_smi / "answer").write_text("1234\n")
    assert free_memory("cuda") == FreeMemory(1234 * 2**20, on_gpu=True)
    assert "--id=0" in (nvidia_smi / "asked").read_text()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-7,GPU-8")
    assert free_memory("cuda").on_gpu
    assert "--id=GPU-7 " in (nvidia_smi / "asked").read_text()
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert not free_memory("cuda").on_gpu
    assert not free_memory("cpu").on_gpu


@pytest.mark.parametrize("answer", [None, "", "[N/A]\n", "No devices were found\n"])
def test_where_no_gpu_answers_the_machines_memory_counts(nvidia_smi: Path, answer: str | None) -> None:
    if answer is not None:
        (nvidia_smi / "answer").write_text(answer)
    free = free_memory("cuda")
    assert not free.on_gpu
    assert free.bytes > 2**20


def test_a_training_sees_one_gpu_unless_the_user_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert _environment()["CUDA_VISIBLE_DEVICES"] == "0"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    assert _environment()["CUDA_VISIBLE_DEVICES"] == "2,3"


def test_an_adapter_names_its_base_by_hub_id_or_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for reference in ("tenon-tiny", str(tmp_path), "./small", "~/small"):
        assert _reference(Recipe.load(None, [f"base={reference}"]), BASE) == "small"
    recipe = Recipe.load(None, ["base=Qwen/Qwen3-0.6B"])
    assert _reference(recipe, BASE) == "Qwen/Qwen3-0.6B"
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    assert _reference(recipe, BASE) == "small"


def test_a_worker_tells_its_error_even_where_its_log_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "job.json").write_text("no JSON")
    with Path("/dev/full").open("w") as full:
        worker = subprocess.Popen(
            [sys.executable, "-m", "train.worker", "--run", str(tmp_path)],
            stdin=subprocess.PIPE,  # its end would end the worker
            stdout=subprocess.PIPE,
            stderr=full,
            text=True,
        )
        told = worker.stdout.read()
        worker.stdin.close()
        worker.wait(30)
        worker.stdout.close()
    assert TrainEvent.from_json(told.splitlines()[-1]).event == "error"


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
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), TrainingFailed, "the GPU ran out"),
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
    assert ("TENON_ENGINE_ARGS" in named.hint) == ("GPU" in words)
