"""Real trainings of a base with two layers."""

import contextlib
import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from peft import PeftModel
from safetensors.numpy import load_file, save_file
from small_base import Room, make_row, write_base, write_data
from support.interrupts import InterruptedPopen, ctrl_c_works
from support.workers import training_workers
from transformers import AutoModelForCausalLM, AutoTokenizer

from serve.errors import BaseModelError, TrainingFailed
from serve.registry.base import identify_base
from train import runs
from train.events import TrainEvent
from train.interruption import Interruption
from train.launch import TrainResult, read_metrics, run_training, settle, write_job
from train.methods.callbacks import MetricsFile
from train.methods.checkpoints import Progress
from train.methods.sft import has_own_attention, make_trainer, read_splits
from train.methods.tokens import load_tokenizer, stop_tokens, tokenize
from train.methods.trainer import LengthGroupedOrder
from train.plan import make_plan
from train.recipe import Recipe
from train.runs import Run

Trained = tuple[TrainResult, list[TrainEvent]]
OVERRIDES = [
    "train.epochs=10",
    "train.batch_size=16",
    "train.learning_rate=5e-3",
    "train.eval_every=20",
    "lora.rank=8",
    "lora.alpha=32",
    "lora.dropout=0.1",
]
STEPS = 100


@pytest.fixture(scope="module")
def recipe() -> Recipe:
    return Recipe.load(None, OVERRIDES)


@pytest.fixture(scope="module")
def trained(room: Room, recipe: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training that nothing interrupted."""
    events: list[TrainEvent] = []
    folder = tmp_path_factory.mktemp("runs")
    return run_training(recipe, room.prepared, room.base, folder, events.append), events


def weights(result: TrainResult) -> dict[str, np.ndarray]:
    return load_file(result.adapter_dir / "adapter_model.safetensors")


def test_the_task_is_learnt_and_told_as_it_happens(trained: Trained) -> None:
    result, events = trained
    steps = [event for event in events if event.event == "step"]
    evals = [event for event in events if event.event == "eval"]
    assert result.steps == STEPS
    assert result.resumed_from is None
    assert [event.step for event in steps] == list(range(1, STEPS + 1))
    assert [event.step for event in evals] == [20, 40, 60, 80, 100]
    assert evals[-1].loss < 0.5 * steps[0].loss
    assert evals[-1].token_accuracy > 0.9
    assert evals[-1].perplexity == pytest.approx(np.exp(evals[-1].loss))
    assert result.metrics["validation_token_accuracy"] == max(
        event.token_accuracy for event in evals if event.best
    )
    assert all(event.tokens_per_second > 0 and event.eta_seconds >= 0 for event in steps)
    assert steps[-1].eta_seconds == 0
    assert events[-1].event == "done"


def test_the_memory_it_took_is_about_what_was_planned(trained: Trained, recipe: Recipe, room: Room) -> None:
    planned = make_plan(recipe, room.prepared, room.base).memory
    assert 0.5 < trained[0].metrics["peak_memory"] / planned < 2


def test_metrics_are_kept(trained: Trained) -> None:
    result, events = trained
    told = [json.loads(event.to_json()) for event in events if event.event in ("step", "eval")]
    assert read_metrics(Run(result.run_dir)) == told
    assert Run(result.run_dir).state()["status"] == "finished"


def test_the_first_prompt_is_kept_with_its_tokens(trained: Trained, room: Room) -> None:
    asked = json.loads(Run(trained[0].run_dir).asked.read_text())
    row = json.loads((room.prepared.folder / "train.jsonl").read_text().splitlines()[0])
    tokenizer = AutoTokenizer.from_pretrained(room.base.path)
    text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
    assert asked == {
        "messages": row["prompt"],
        "tools": None,
        "tokens": tokenizer(text, add_special_tokens=False)["input_ids"],
        "day": None,
    }


def test_the_adapter_is_two_files_that_name_the_base(trained: Trained, room: Room) -> None:
    result, _ = trained
    assert names(result.adapter_dir) == ["adapter_config.json", "adapter_model.safetensors"]
    config = json.loads((result.adapter_dir / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == room.base.name == "small"
    assert config["target_modules"] == [
        "down_proj",
        "gate_proj",
        "k_proj",
        "o_proj",
        "q_proj",
        "up_proj",
        "v_proj",
    ]
    assert (config["r"], config["peft_type"], config["modules_to_save"]) == (8, "LORA", None)
    assert len(weights(result)) == 2 * 7 * 2
    assert all(np.isfinite(value).all() and value.any() for value in weights(result).values())


def test_peft_loads_the_adapter_and_it_answers(trained: Trained, room: Room) -> None:
    tokenizer = AutoTokenizer.from_pretrained(room.base.path)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(room.base.path), trained[0].adapter_dir
    )
    rows = [json.loads(line) for line in (room.prepared.folder / "validation.jsonl").read_text().splitlines()]
    right = 0
    for row in rows:
        text = tokenizer.apply_chat_template(row["prompt"], tokenize=False, add_generation_prompt=True)
        ids = tokenizer(text, return_tensors="pt")
        written = model.generate(**ids, max_new_tokens=4, do_sample=False)[0, ids["input_ids"].shape[1] :]
        right += tokenizer.convert_ids_to_tokens(written) == [row["completion"][0]["content"], "<|im_end|>"]
    assert right > 0.9 * len(rows)


class NarrowPopen(subprocess.Popen[str]):
    """A child that waits once it is a page of text ahead of what is read of it."""

    def __init__(self, *arguments: Any, **more: Any) -> None:
        super().__init__(*arguments, pipesize=4096, **more)


def test_killed_at_a_random_step_it_resumes_to_the_same_adapter(
    trained: Trained, room: Room, recipe: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", NarrowPopen)
    # The worker is some forty steps ahead at most, of about 200 bytes: in its pipe and in what was read of that.
    victim = int(np.random.default_rng().integers(21, STEPS - 60))

    def kill(event: TrainEvent) -> None:
        if event.event == "step" and event.step == victim:
            (worker,) = training_workers(psutil.Process())
            worker.send_signal(signal.SIGKILL)

    with pytest.raises(TrainingFailed, match=r"killed \(SIGKILL\)") as caught:
        run_training(recipe, room.prepared, room.base, tmp_path, kill)
    assert "goes on from step" in caught.value.hint
    (folder,) = tmp_path.iterdir()
    assert Run(folder).state()["resumable"]
    assert not Run(folder).adapter.exists()
    # Half a line and half a checkpoint, as a kill at a worse moment leaves them.
    with Run(folder).metrics.open("a") as file:
        file.write('{"event":"step","st')
    (Run(folder).checkpoints / ".partial" / "checkpoint-99").mkdir(parents=True)

    result = run_training(recipe, room.prepared, room.base, tmp_path)
    assert result.run_dir == folder
    # The kill is sent at the victim's step, before a checkpoint of that very step; the worker may be further by then.
    assert (victim - 1) // 20 * 20 <= result.resumed_from <= STEPS
    assert result.steps == trained[0].steps
    plain, resumed = read_metrics(Run(trained[0].run_dir)), read_metrics(Run(folder))
    assert [(line["event"], line["step"]) for line in resumed] == [
        (line["event"], line["step"]) for line in plain
    ]
    assert [line["loss"] for line in resumed] == pytest.approx([line["loss"] for line in plain], rel=1e-3)
    for name, value in weights(trained[0]).items():
        np.testing.assert_allclose(weights(result)[name], value, atol=1e-4)


def test_a_finished_run_gives_its_adapter_again_until_it_is_settled(room: Room, tmp_path: Path) -> None:
    recipe = Recipe.load(None, ["train.max_steps=2"])
    first = run_training(recipe, room.prepared, room.base, tmp_path)
    events: list[TrainEvent] = []
    again = run_training(recipe, room.prepared, room.base, tmp_path, events.append)
    assert (again.run_dir, again.resumed_from, again.steps) == (first.run_dir, 2, 2)
    assert not any(event.event == "step" for event in events)
    assert digest(again.adapter_dir) == digest(first.adapter_dir)
    assert again.metrics == first.metrics
    settle(again)
    anew = run_training(recipe, room.prepared, room.base, tmp_path)
    assert (anew.run_dir == first.run_dir, anew.resumed_from) == (False, None)


@pytest.mark.parametrize(
    ("length", "way_out"), [(256, "the base can read no more"), (64, "raise train.max_length")]
)
def test_rows_that_are_too_long_are_named_and_left_out(
    room: Room, tmp_path: Path, length: int, way_out: str
) -> None:
    rows = [make_row(number) for number in range(20)]
    rows[3]["prompt"] = [{"role": "user", "content": "please " * 300}]
    prepared = write_data(tmp_path / "data", rows, rows[:2])
    recipe = Recipe.load(None, [f"train.max_length={length}"])
    run = runs.create(tmp_path / "runs", "some", "key")
    job = write_job(run, recipe, prepared, room.base, make_plan(recipe, prepared, room.base))
    told: list[TrainEvent] = []
    splits = read_splits(job, AutoTokenizer.from_pretrained(room.base.path), told.append)
    assert len(splits["train"]) == 19
    (notice,) = told
    assert f"train.jsonl: 1 row has more than {length} tokens: 4 (id 000000000003, 3" in notice.message
    assert notice.hint == f"they are left out; {way_out}" + (" to keep them" if length == 64 else "")


def test_what_a_recipe_says_reaches_the_trainer(room: Room, tmp_path: Path) -> None:
    recipe = Recipe.load(
        None,
        [
            *("lora.rank=4", "lora.alpha=6", "lora.dropout=0.25", "lora.rslora=true"),
            *("lora.target_modules=[q_proj, up_proj]", "train.weight_decay=0.03", "train.max_grad_norm=0.7"),
            *("train.scheduler=cosine", "train.warmup_ratio=0.2", "train.seed=11", "train.batch_size=8"),
            *("train.gradient_accumulation=3", "train.gradient_checkpointing=true", "train.precision=bf16"),
            *("train.learning_rate=0.002", "train.epochs=1.5"),
        ],
    )
    run = runs.create(tmp_path / "runs", "some", "key")
    job = write_job(run, recipe, room.prepared, room.base, make_plan(recipe, room.prepared, room.base))
    tokenizer = load_tokenizer(room.base.path)
    splits = read_splits(job, tokenizer, lambda _: None)
    trainer = make_trainer(run, job, tokenizer, splits, Progress(), Interruption())
    args, lora = trainer.args, trainer.model.peft_config["default"]
    assert (lora.r, lora.lora_alpha, lora.lora_dropout, lora.use_rslora) == (4, 6, 0.25, True)
    assert set(lora.target_modules) == {"q_proj", "up_proj"}
    assert (args.weight_decay, args.max_grad_norm, args.lr_scheduler_type) == (0.03, 0.7, "cosine")
    assert (args.learning_rate, args.num_train_epochs, args.max_steps) == (0.002, 1.5, -1)
    assert (args.per_device_train_batch_size, args.gradient_accumulation_steps) == (8, 3)
    assert (args.seed, args.bf16, args.gradient_checkpointing) == (11, True, True)
    assert args.get_warmup_steps(100) == 20


def test_the_order_of_rows_is_that_of_seed_and_epoch() -> None:
    lengths = [5, 9, 7, 3, 8, 6, 4, 2] * 8

    def order(seed: int, epoch: int) -> list[int]:
        sampler = LengthGroupedOrder(lengths, 4, seed)
        sampler.set_epoch(epoch)
        return list(sampler)

    assert order(1, 0) == order(1, 0)
    assert sorted(order(1, 0)) == list(range(64))
    assert len({tuple(order(seed, epoch)) for seed in (1, 2) for epoch in (0, 1)}) == 4


def test_validation_counts_tokens_not_batches(trained: Trained, room: Room) -> None:
    result, _ = trained
    tokenizer = load_tokenizer(room.base.path)
    rows = tokenize(room.prepared.file("validation"), tokenizer, stop_tokens(tokenizer, room.base.path), 256)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(room.base.path, dtype=torch.float32), result.adapter_dir
    ).eval()
    loss, hits, count = 0.0, 0, 0
    for ids, labels in zip(rows.ids, rows.labels, strict=True):
        with torch.no_grad():
            scores = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].float(), -1)
        for place, wanted in enumerate(labels[1:]):
            if wanted != -100:
                loss, count = loss - float(scores[place, wanted]), count + 1
                hits += int(scores[place].argmax()) == wanted
    assert result.metrics["validation_loss"] == pytest.approx(loss / count, rel=0.05, abs=2e-3)
    assert result.metrics["validation_token_accuracy"] == pytest.approx(hits / count, abs=0.02)


def test_a_base_that_lacks_weights_is_refused(room: Room, tmp_path: Path) -> None:
    folder = write_base(tmp_path / "base")
    tensors = load_file(folder / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})
    base = identify_base(str(folder))
    with pytest.raises(BaseModelError, match=r"lacks weights: model\.layers\.1\.mlp\.up_proj\.weight"):
        run_training(Recipe.load(None, OVERRIDES), room.prepared, base, tmp_path / "runs")


def test_lines_of_metrics_that_are_damaged_are_left_out_of_a_resumed_run(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"event": "step", "step": 1}\n{"event": "st\x00}\n{"event": "step", "step": 3}\n{"ev')
    with contextlib.closing(MetricsFile(path, 2)) as file:
        file.write(TrainEvent(event="step", step=3))
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [1, 3]


def test_it_stops_early_and_keeps_the_best(room: Room, tmp_path: Path) -> None:
    rows = [make_row(number) for number in range(80)]
    # The validation split contradicts the training split, so its loss rises as the other falls.
    wrong = [
        make_row(number, answer=make_row(number + 1)["completion"][0]["content"]) for number in range(80, 112)
    ]
    prepared = write_data(tmp_path / "data", rows, wrong)
    overrides = [
        "train.max_steps=400",
        "train.learning_rate=5e-3",
        "train.eval_every=5",
        "train.early_stopping_patience=2",
    ]
    events: list[TrainEvent] = []
    result = run_training(Recipe.load(None, overrides), prepared, room.base, tmp_path / "runs", events.append)
    losses = {event.step: event.loss for event in events if event.event == "eval"}
    best = min(losses, key=losses.__getitem__)
    assert result.metrics["stopped_early"]
    assert result.steps == best + 10 < 400
    assert result.metrics["best_step"] == best
    assert result.metrics["validation_loss"] == losses[best]
    kept = Run(result.run_dir).checkpoints
    assert names(kept) == sorted([f"step-{best}", f"step-{result.steps}"])
    assert digest(kept / f"step-{best}") == digest(result.adapter_dir)


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "adapter_model.safetensors").read_bytes()).hexdigest()


def test_a_loss_that_is_no_number_ends_the_run_with_a_way_out(room: Room, tmp_path: Path) -> None:
    base = identify_base(str(write_base(tmp_path / "odd", poison=True)))
    with pytest.raises(TrainingFailed, match="training loss is nan at step 1") as caught:
        run_training(Recipe.load(None, OVERRIDES), room.prepared, base, tmp_path / "runs")
    assert "lower train.learning_rate" in caught.value.hint
    (folder,) = (tmp_path / "runs").iterdir()
    assert not Run(folder).adapter.exists()
    assert Run(folder).latest_checkpoint() is None


LAUNCHER = """
import sys
from pathlib import Path
from serve.registry.base import identify_base
from train.launch import run_training
from train.recipe import Recipe
from types import SimpleNamespace
base, data, out, *overrides = sys.argv[1:]
prepared = SimpleNamespace(folder=Path(data), counts={"train": 160, "validation": 32}, longest=90,
                           fingerprint="rows")
run_training(Recipe.load(None, overrides), prepared, identify_base(base), Path(out),
             lambda event: print(event.event, event.step, flush=True))
"""


@pytest.mark.parametrize(
    ("number", "both"),
    [
        (signal.SIGKILL, False),
        (signal.SIGINT, False),
        (signal.SIGKILL, True),
    ],  # both: as a service manager does
)
def test_a_launcher_that_ends_takes_its_worker_along(
    room: Room, tmp_path: Path, number: signal.Signals, both: bool
) -> None:
    overrides = ["train.max_steps=5000", "train.eval_every=3000"]
    script = [
        sys.executable,
        "-c",
        LAUNCHER,
        str(room.base.path),
        str(room.prepared.folder),
        str(tmp_path),
        *overrides,
    ]
    paths = os.pathsep.join([str(Path(__file__).parent), os.environ.get("PYTHONPATH", "")])
    launcher = subprocess.Popen(
        script,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    for line in launcher.stdout:
        if line.startswith("step") and int(line.split()[1]) >= 3:
            break
    (worker,) = psutil.Process(launcher.pid).children()
    if both:
        worker.terminate()
    launcher.send_signal(number)
    launcher.wait(20)
    launcher.stdout.close()
    worker.wait(15)
    key = runs.run_key(Recipe.load(None, overrides), "rows", room.base.digest)
    run = runs.find_unfinished(tmp_path, "support", key)
    assert run is not None
    # The worker was asked to end, not cut off: it kept what it had trained.
    assert (run.latest_checkpoint() or (0, None))[0] >= 3
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        with run.locked() as held:
            if held is not None:
                return
    pytest.fail("the run is still held")


@pytest.mark.parametrize(
    ("config", "eager"),
    [
        ({"model_type": "qwen3"}, False),
        ({"model_type": "gemma2"}, True),
        ({"model_type": "gemma2", "attn_logit_softcapping": None}, False),
        ({"model_type": "gpt_oss"}, True),
    ],
)
def test_a_base_is_trained_with_its_own_attention(
    tmp_path: Path, config: dict[str, object], eager: bool
) -> None:
    (tmp_path / "config.json").write_text(json.dumps(config))
    assert has_own_attention(tmp_path) == eager


def test_a_worker_whose_start_is_interrupted_is_not_left_behind(
    room: Room, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", InterruptedPopen)
    recipe = Recipe.load(None, ["train.max_steps=5000"])
    with ctrl_c_works(), pytest.raises(KeyboardInterrupt):
        run_training(recipe, room.prepared, room.base, tmp_path)
    worker = InterruptedPopen.started.pop()
    assert worker.returncode is not None
    assert not psutil.pid_exists(worker.pid)
