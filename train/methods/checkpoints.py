"""Checkpoints that are whole or not there, and what a run has to remember beside the trainer's state."""

import contextlib
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from train.runs import Run, checkpoints_in

PROGRESS = "progress.json"
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


@dataclass(slots=True)
class Progress:
    """Which checkpoint is the best so far (lowest validation loss) and whether to stop.

    ``stale`` counts validations since then. Kept in every checkpoint, so that a resumed run stops where the
    uninterrupted one would have.
    """

    step: int = 0
    total_steps: int = 0
    best_step: int | None = None
    best_loss: float | None = None
    best_token_accuracy: float | None = None
    best_perplexity: float | None = None
    stale: int = 0
    stopped: bool = False

    @property
    def finished(self) -> bool:
        """Whether no step is left."""
        return self.stopped or 0 < self.total_steps <= self.step

    def judge(self, step: int, loss: float, token_accuracy: float, perplexity: float) -> bool:
        """Take in a validation; whether its loss is the lowest so far."""
        if self.best_loss is not None and loss >= self.best_loss:
            self.stale += 1
            return False
        self.best_step, self.best_loss = step, loss
        self.best_token_accuracy, self.best_perplexity = token_accuracy, perplexity
        self.stale = 0
        return True


def read_progress(checkpoint: Path) -> Progress:
    """The progress that was kept in ``checkpoint``."""
    return Progress(**json.loads((checkpoint / PROGRESS).read_text(encoding="utf-8")))


@contextlib.contextmanager
def writing(run: Run, progress: Progress) -> Iterator[Path]:
    """A scratch folder that becomes the checkpoint of ``progress.step`` at the end, all of it on disk."""
    scratch = run.checkpoints / ".partial"
    clear_partial(run)
    scratch.mkdir(parents=True)
    try:
        yield scratch
        (written,) = scratch.iterdir()
        (written / PROGRESS).write_text(json.dumps(asdict(progress)), encoding="utf-8")
        publish(written, run.checkpoints / f"step-{progress.step}")
    finally:
        clear_partial(run)


def clear_partial(run: Run) -> None:
    """Remove what a killed run had not finished writing."""
    shutil.rmtree(run.checkpoints / ".partial", ignore_errors=True)


def prune(run: Run, progress: Progress) -> None:
    """Remove all checkpoints but the last and the best."""
    steps = checkpoints_in(run.checkpoints)
    keep = {steps[-1][0], progress.best_step} if steps else set()
    for step, folder in steps:
        if step not in keep:
            doomed = run.checkpoints / f".old-{step}"
            folder.rename(doomed)
            shutil.rmtree(doomed, ignore_errors=True)


def publish(folder: Path, target: Path) -> None:
    """Flush ``folder`` to disk and give it the name ``target`` at once, replacing what had it."""
    for file in folder.rglob("*"):
        if file.is_file():
            _sync(file)
    _sync(folder)
    if target.exists():
        shutil.rmtree(target)
    folder.rename(target)
    _sync(target.parent)


def export(run: Run, checkpoint: Path, base: str) -> None:
    """Make the run's adapter folder from a checkpoint: config and weights, nothing else.

    The config names the base as ``base`` (its hub id or name), not by where it lay on this machine, and lists its
    modules in order, so that the same training gives the same files.
    """
    scratch = run.folder / ".adapter"
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir()
    try:
        config = json.loads((checkpoint / ADAPTER_FILES[0]).read_text(encoding="utf-8"))
        config["base_model_name_or_path"] = base
        config["inference_mode"] = True
        if isinstance(config.get("target_modules"), list):
            config["target_modules"] = sorted(config["target_modules"])
        text = json.dumps(config, indent=2, sort_keys=True) + "\n"
        (scratch / ADAPTER_FILES[0]).write_text(text, encoding="utf-8")
        shutil.copyfile(checkpoint / ADAPTER_FILES[1], scratch / ADAPTER_FILES[1])
        publish(scratch, run.adapter)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
