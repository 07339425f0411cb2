"""The learning of the built-in base: a plain loop, Muon for the matrices inside, AdamW for everything else."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from serve.engine.processor import multiplies_bfloat16
from train.tiny_base.drills import WeightedIds, drills
from train.tiny_base.tokenizer import render

# Documents of similar length share a batch, chosen among this many.
_POOL = 2048
# Copying is drilled in earnest while the first few pools are read, and kept up afterwards: drills per document.
_EARLY_POOLS, _EARLY_DRILLS, _LATER_DRILLS = 8, 0.2, 0.05
# What a token of the prompt counts, beside a token of the answer: its language is worth learning, its wording less.
_PROMPT_WEIGHT = 0.3


@dataclass(frozen=True)
class Budget:
    """How long to learn: a number of minutes (whatever the machine makes of them) or a number of steps."""

    minutes: float | None = None
    steps: int | None = None

    def spent(self, seconds: float, step: int) -> float:
        """The share that is spent, from 0 to 1."""
        by_time = seconds / (60 * self.minutes) if self.minutes else 0.0
        by_steps = step / self.steps if self.steps else 0.0
        return min(1.0, max(by_time, by_steps))


@dataclass(frozen=True)
class Settings:
    """What the learning depends on; learning rates are peaks."""

    batch_tokens: int = 4096
    max_length: int = 320
    matrix_rate: float = 0.02
    other_rate: float = 4e-3
    weight_decay: float = 0.01
    warmup: float = 0.02
    decay: float = 0.5


@dataclass(frozen=True)
class Progress:
    """One step, as it is reported: ``loss`` is in nats per weighted token, ``spent`` is the share of the budget."""

    step: int
    spent: float
    loss: float
    answer_loss: float
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Batch:
    """Token ids (rows, length) and the weight of each as something to predict, 0 where it is padding."""

    ids: Tensor
    weights: Tensor


def batches(
    documents: Iterable[Mapping[str, Any]],
    tokenizer: PreTrainedTokenizerFast,
    settings: Settings,
    seed: int = 0,
) -> Iterator[Batch]:
    """Cut a stream of documents, mixed with drills, into batches of about ``settings.batch_tokens`` tokens.

    Padding counts. A batch holds documents of similar length; documents longer than ``settings.max_length`` are left
    out.
    """
    chance = random.Random(seed)
    stream, practice = iter(documents), drills(tokenizer, seed)
    for number in count():
        pool = list(islice(stream, _POOL))
        if not pool:
            return
        share = _EARLY_DRILLS if number < _EARLY_POOLS else _LATER_DRILLS
        rows = [
            *_encode(pool, tokenizer, settings.max_length),
            *islice(practice, int(share * len(pool))),
        ]
        rows.sort(key=lambda row: len(row[0]))
        found: list[Batch] = []
        group: list[WeightedIds] = []
        for row in rows:
            if group and len(row[0]) * (len(group) + 1) > settings.batch_tokens:
                found.append(_pad(group, tokenizer))
                group = []
            group.append(row)
        if group:
            found.append(_pad(group, tokenizer))
        chance.shuffle(found)
        yield from found


def learn(
    model: Qwen3ForCausalLM,
    feed: Iterable[Batch],
    budget: Budget,
    settings: Settings,
    on_step: Callable[[Progress], None],
) -> int:
    """Train the model in place until the budget or the feed ends; return the number of steps."""
    optimizers = _optimizers(model, settings)
    started = time.monotonic()
    tokens = step = 0
    model.train()
    for batch in feed:
        spent = budget.spent(time.monotonic() - started, step)
        if spent >= 1:
            break
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * _rate(spent, settings)
        with _fast(model.device):
            hidden = model.model(input_ids=batch.ids[:, :-1]).last_hidden_state
        loss, answer_loss = _loss(model, hidden, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        step += 1
        tokens += batch.ids.numel()
        on_step(Progress(step, spent, loss.item(), answer_loss, tokens, time.monotonic() - started))
    return step


def _encode(
    pool: list[Mapping[str, Any]], tokenizer: PreTrainedTokenizerFast, max_length: int
) -> Iterator[WeightedIds]:
    parts = [render(document) for document in pool]
    given = tokenizer([part[0] for part in parts], add_special_tokens=False)["input_ids"]
    whole = tokenizer([part[0] + part[1] for part in parts], add_special_tokens=False)["input_ids"]
    for before, ids in zip(given, whole, strict=True):
        if len(ids) <= max_length:
            yield ids, [_PROMPT_WEIGHT] * len(before) + [1.0] * (len(ids) - len(before))


def _pad(group: list[WeightedIds], tokenizer: PreTrainedTokenizerFast) -> Batch:
    # Padding stands on the right, where causal attention never looks at it: no mask is needed.
    length = max(len(ids) for ids, _ in group)
    ids = [row + [tokenizer.pad_token_id] * (length - len(row)) for row, _ in group]
    weights = [row + [0.0] * (length - len(row)) for _, row in group]
    return Batch(torch.tensor(ids), torch.tensor(weights))


def _loss(model: Qwen3ForCausalLM, hidden: Tensor, batch: Batch) -> tuple[Tensor, float]:
    """The weighted mean of the cross-entropy, and its plain mean over the tokens of answers."""
    weights = batch.weights[:, 1:].flatten()
    kept = weights > 0
    with _fast(hidden.device):
        logits = model.lm_head(hidden.flatten(0, 1)[kept])
    losses = functional.cross_entropy(logits.float(), batch.ids[:, 1:].flatten()[kept], reduction="none")
    weights = weights[kept]
    answers = weights == 1
    return (losses * weights).sum() / weights.sum(), losses[answers].mean().item()


def _fast(device: torch.device) -> torch.autocast:
    """bfloat16 where the device multiplies it in hardware; elsewhere that takes several times as long as float32."""
    able = device.type == "cuda" or multiplies_bfloat16()
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=able)


def _rate(spent: float, settings: Settings) -> float:
    """Warm up, hold, then fall to zero in a straight line: the factor on the peak learning rate."""
    return min(1.0, spent / settings.warmup + 0.01, (1 - spent) / settings.decay)


def _optimizers(model: Qwen3ForCausalLM, settings: Settings) -> list[torch.optim.Optimizer]:
    matrices = [p for name, p in model.model.layers.named_parameters() if p.ndim == 2]
    inside = {id(p) for p in matrices}
    others = [p for p in model.parameters() if id(p) not in inside]
    found: list[torch.optim.Optimizer] = [
        torch.optim.Muon(matrices, lr=settings.matrix_rate, weight_decay=settings.weight_decay),
        torch.optim.AdamW(others, lr=settings.other_rate, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]
    for optimizer in found:
        for group in optimizer.param_groups:
            group["peak"] = group["lr"]
    return found
