"""What happens after each step: when to validate, save and stop, and what is told and written down."""

import math
import os
import time
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from transformers import TrainerCallback, TrainerControl, TrainerState

from serve.errors import TrainingFailed
from train.events import TrainEvent
from train.interruption import Interrupted, Interruption
from train.methods.checkpoints import Progress, prune
from train.methods.trainer import perplexity
from train.runs import Run, metric_lines

Emit = Callable[[TrainEvent], None]
# Speed is that of the last steps: early ones are slow, and other work on the machine comes and goes.
WINDOW = 50


class Schedule(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Validates and saves every ``every`` steps and at the end, judges, stops early, prunes, obeys interruptions."""

    def __init__(
        self,
        run: Run,
        progress: Progress,
        interruption: Interruption,
        emit: Emit,
        *,
        every: int,
        save_every: int | None,
        patience: int,
        validates: bool,
    ) -> None:
        self._run, self._progress, self._interruption, self._emit = run, progress, interruption, emit
        self._every, self._save_every, self._patience, self._validates = (
            every,
            save_every,
            patience,
            validates,
        )

    def on_step_end(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Ask the trainer for a validation or a checkpoint where one is due."""
        step = state.global_step
        due = step % self._every == 0 or step >= state.max_steps
        control.should_evaluate = due and self._validates
        control.should_save = due or (self._save_every is not None and step % self._save_every == 0)
        control.should_save |= self._interruption.asked

    def on_evaluate(
        self, args: Any, state: TrainerState, control: TrainerControl, metrics: Mapping[str, float], **_: Any
    ) -> None:
        """Note the best checkpoint; stop when too many validations brought nothing better."""
        loss, accuracy = metrics["eval_loss"], metrics["eval_token_accuracy"]
        _check_finite(loss, state.global_step, "validation loss")
        best = self._progress.judge(state.global_step, loss, accuracy, metrics["eval_perplexity"])
        if 0 < self._patience <= self._progress.stale and state.global_step < state.max_steps:
            self._progress.stopped = control.should_training_stop = True
        event = TrainEvent(
            event="eval",
            step=state.global_step,
            total_steps=state.max_steps,
            loss=loss,
            token_accuracy=accuracy,
            perplexity=metrics["eval_perplexity"],
            best=best,
        )
        self._emit(event)

    def on_save(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Drop old checkpoints; end here if told to."""
        prune(self._run, self._progress)
        self._emit(TrainEvent(event="checkpoint", step=state.global_step, total_steps=state.max_steps))
        if self._interruption.asked:
            raise Interrupted


class Reporter(TrainerCallback):  # type: ignore[misc]  # transformers is not typed
    """Tells of each step: loss, token accuracy, speed, time left."""

    def __init__(self, emit: Emit) -> None:
        self._emit = emit
        self._times: deque[tuple[float, int, float]] = deque(maxlen=WINDOW)

    def on_train_begin(self, args: Any, state: TrainerState, control: TrainerControl, **_: Any) -> None:
        """Start the clock."""
        self._times.append((time.monotonic(), state.global_step, 0.0))

    def on_log(
        self, args: Any, state: TrainerState, control: TrainerControl, logs: Mapping[str, float], **_: Any
    ) -> None:
        """Turn the trainer's numbers for one step into an event."""
        if "loss" not in logs:
            return
        step, loss = state.global_step, logs["loss"]
        _check_finite(loss, step, "training loss")
        now, tokens = time.monotonic(), logs.get("num_tokens", 0.0)
        then, step_then, tokens_then = self._times[0]
        self._times.append((now, step, tokens))
        elapsed = max(now - then, 1e-9)
        event = TrainEvent(
            event="step",
            step=step,
            total_steps=state.max_steps,
            loss=loss,
            token_accuracy=logs.get("mean_token_accuracy"),
            perplexity=perplexity(loss),
            learning_rate=logs.get("learning_rate"),
            grad_norm=logs.get("grad_norm"),
            epoch=round(state.epoch or 0.0, 4),
            tokens_per_second=round((tokens - tokens_then) / elapsed, 1),
            eta_seconds=round((state.max_steps - step) * elapsed / max(step - step_then, 1), 1),
        )
        self._emit(event)


class MetricsFile:
    """Appends steps and validations to metrics.jsonl as they happen."""

    def __init__(self, path: Path, resume_step: int) -> None:
        """Keep the lines up to ``resume_step`` of an earlier launch: the steps after it are trained again."""
        kept = [line for line, event in metric_lines(path) if event["step"] <= resume_step]
        scratch = path.with_name(f".{path.name}")
        with scratch.open("w", encoding="utf-8") as file:
            file.write("".join(f"{line}\n" for line in kept))
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
        self._file = path.open("a", encoding="utf-8")

    def write(self, event: TrainEvent) -> None:
        """Append ``event`` if it is a step or a validation."""
        if event.event in ("step", "eval"):
            self._file.write(event.to_json() + "\n")
            self._file.flush()

    def close(self) -> None:
        """Write no more."""
        self._file.close()


def _check_finite(loss: float, step: int, what: str) -> None:
    if not math.isfinite(loss):
        raise TrainingFailed(
            f"the {what} is {loss} at step {step}",
            "lower train.learning_rate (try a third of it); train.precision=fp32 helps where bf16 overflows",
        )
