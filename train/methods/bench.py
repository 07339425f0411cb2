"""What sharing the starts of rows saves, measured: ``python -m train.methods.bench [RECIPE] [key=value…]``.

The trainer of a recipe takes the same batches of its rows from the same weights padded and shared, in turns in one
process. Timed are forward and backward; the optimizer's update is the same for both. ``--json`` for scripts.
"""

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from serve.errors import TenonError
from serve.registry.base import identify_base
from train import runs
from train.data.prepare import prepare
from train.interruption import Interruption
from train.launch import write_job
from train.methods import sft
from train.methods.checkpoints import Progress
from train.methods.shared_starts import Batch
from train.methods.tokens import load_tokenizer
from train.methods.trainer import AdapterTrainer
from train.plan import make_plan
from train.recipe import Recipe

Way = tuple[str, str]


def make_trainers(recipe: Recipe, folder: Path) -> dict[str, AdapterTrainer]:
    """A trainer that pads and one that shares, of the same weights and rows, in ``folder``."""
    base = identify_base(recipe.base)
    prepared = prepare(recipe.data, folder / "data")
    run = runs.create(folder, recipe.name, "bench")
    job = json.loads(json.dumps(write_job(run, recipe, prepared, base, make_plan(recipe, prepared, base))))
    tokenizer = load_tokenizer(base.path)
    splits = sft.read_splits(job, tokenizer, lambda event: None)
    return {
        way: sft.make_trainer(run, job, tokenizer, splits, Progress(), Interruption(), share=way == "shared")
        for way in ("padded", "shared")
    }


def some_batches(trainer: AdapterTrainer, number: int) -> list[Batch]:
    """``number`` batches from all over the first epoch, as the trainer collates them."""
    batches = list(trainer.get_train_dataloader())
    return batches[:: max(1, len(batches) // number)][:number]


def seconds(trainer: AdapterTrainer, batches: Sequence[Mapping[str, Any]]) -> tuple[float, float]:
    """Seconds of forward and backward over ``batches``, and the sum of their losses (nats)."""
    total, started = 0.0, time.perf_counter()
    for batch in batches:
        trainer.model.zero_grad()
        loss = trainer.compute_loss(trainer.model, dict(batch))
        loss.backward()
        total += float(loss.detach())
    return time.perf_counter() - started, total


def measure(trainers: Mapping[str, AdapterTrainer], batches: int, rounds: int) -> dict[str, Any]:
    """Tokens per second of both ways by round, after one round to warm up, and the ratio shared over padded."""
    feeds = {way: some_batches(trainer, batches) for way, trainer in trainers.items()}
    tokens = sum(int(batch["attention_mask"].sum()) for batch in feeds["padded"])
    times: dict[str, list[float]] = {way: [] for way in trainers}
    losses: dict[str, float] = {}
    for number in range(rounds + 1):
        for way in sorted(trainers, reverse=number % 2 == 1):
            spent, losses[way] = seconds(trainers[way], feeds[way])
            if number:
                times[way].append(spent)
    ratios = [one / other for one, other in zip(times["padded"], times["shared"], strict=True)]
    return {
        "row_tokens": tokens,
        "computed_tokens": {
            way: sum(batch["input_ids"].numel() for batch in feed) for way, feed in feeds.items()
        },
        "tokens_per_second": {way: round(tokens / statistics.median(spent)) for way, spent in times.items()},
        "ratio": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "loss_difference": abs(losses["padded"] - losses["shared"]) / batches,
        "threads": torch.get_num_threads(),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the command line asks for."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("recipe", nargs="*", help="a recipe file and key=value, as for tenon train")
    parser.add_argument("--batches", type=int, default=8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args(arguments)
    files = [word for word in options.recipe if "=" not in word]
    overrides = [word for word in options.recipe if "=" in word]
    with tempfile.TemporaryDirectory() as folder:
        try:
            recipe = Recipe.load(Path(files[0]) if files else None, overrides)
            found = measure(make_trainers(recipe, Path(folder)), options.batches, options.rounds)
        except TenonError as error:
            sys.stderr.write(f"{error.message}; {error.hint}\n")
            return error.exit_code
    lines = [json.dumps(found)] if options.json else [f"{name}: {value}" for name, value in found.items()]
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
