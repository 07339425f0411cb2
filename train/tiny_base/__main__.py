"""Make the built-in base: ``python -m train.tiny_base --out FOLDER --minutes 36``."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from train.tiny_base import corpus
from train.tiny_base.model import load_base, new_model, save_base
from train.tiny_base.pretrain import Budget, Settings, batches, learn
from train.tiny_base.pretrain import Progress as Step
from train.tiny_base.tokenizer import learn_tokenizer, whole_texts

_VOCABULARY_DOCUMENTS = 60_000
# Copying comes late in learning and everything about JSON waits for it, so the first documents are rich in it.
_EARLY_DOCUMENTS = 20_000
_EARLY_WEIGHTS = {"fields": 40, "intent_and_fields": 30, "one_value": 25, "quoting": 15, "correction": 8}


def main() -> None:
    """Read the options, learn the vocabulary and the model, write the folder."""
    options = _options()
    torch.set_num_threads(options.threads)
    budget = Budget(minutes=None if options.steps else options.minutes, steps=options.steps)
    if options.go_on:
        tokenizer, model = load_base(options.go_on)
    else:
        tokenizer = learn_tokenizer(
            whole_texts(islice(corpus.documents(options.seed), _VOCABULARY_DOCUMENTS))
        )
        model = new_model(tokenizer, options.seed)
    settings = Settings()
    feed = batches(_lessons(options.seed + 1, not options.go_on), tokenizer, settings, options.seed)
    columns = (
        BarColumn(),
        TextColumn("{task.percentage:>3.0f} %"),
        TextColumn("{task.description}"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, refresh_per_second=1) as bar:
        task = bar.add_task("", total=1.0)
        saved = 0.0

        def show(step: Step) -> None:
            nonlocal saved
            speed = step.tokens / step.seconds
            line = f"step {step.step}  loss {step.loss:.3f}  answers {step.answer_loss:.3f}  {speed:,.0f} tokens/s"
            bar.update(task, completed=step.spent, description=line)
            if options.log and step.step % 20 == 0:
                with options.log.open("a") as log:
                    log.write(f"{step.spent:.4f} {line} {step.tokens:,} tokens {step.seconds:.0f} s\n")
            if step.seconds - saved >= 60 * options.checkpoint_minutes:
                saved = step.seconds
                save_base(model, tokenizer, options.out.with_name(options.out.name + "-checkpoint"))

        learn(model, feed, budget, settings, show)
    save_base(model, tokenizer, options.out)


def _lessons(seed: int, from_the_start: bool) -> Iterator[Mapping[str, Any]]:
    if from_the_start:
        yield from islice(corpus.documents(seed, _EARLY_WEIGHTS), _EARLY_DOCUMENTS)
    yield from corpus.documents(seed + 1)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m train.tiny_base", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write")
    parser.add_argument("--minutes", type=float, default=36.0, help="how long to learn")
    parser.add_argument(
        "--steps", type=int, help="how many steps to learn; the same on every machine, unlike minutes"
    )
    parser.add_argument("--go-on", type=Path, help="folder of a base to go on with instead of starting anew")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--checkpoint-minutes", type=float, default=10.0)
    parser.add_argument("--log", type=Path, help="file to append progress to")
    return parser.parse_args()


if __name__ == "__main__":
    main()
