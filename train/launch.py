"""Runs a training as a child process, so that whatever happens to it, this process stays light and alive."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve import errors
from serve.errors import StorageError, TenonError, TrainingFailed
from serve.interrupts import interrupts_wait
from serve.registry.base import BaseIdentity
from serve.registry.hub import HUB_ID
from train import runs
from train.data.prepare import Prepared
from train.events import TrainEvent
from train.plan import Plan, make_plan
from train.recipe import Recipe
from train.runs import Run

# The worker finishes its step and writes a checkpoint when it is told to end; longer steps are cut off.
GRACE = 15.0


@dataclass(frozen=True, slots=True)
class TrainResult:
    """A finished run. ``steps`` were trained in all, ``seconds`` are of this launch alone.

    ``metrics`` holds ``train_loss``, ``best_step``, ``peak_memory`` (bytes) and, with a validation split,
    ``validation_loss``, ``validation_perplexity`` and ``validation_token_accuracy`` of the checkpoint that became the
    adapter.
    """

    run_dir: Path
    adapter_dir: Path
    steps: int
    resumed_from: int | None
    metrics: dict[str, Any]
    seconds: float


def run_training(
    recipe: Recipe,
    prepared: Prepared,
    base: BaseIdentity,
    runs_dir: Path,
    on_event: Callable[[TrainEvent], None] = lambda event: None,
) -> TrainResult:
    """Train an adapter, resuming the unfinished run of the same recipe, rows and base if there is one.

    ``on_event`` is called in this thread for each event. Whatever ends this call early, KeyboardInterrupt
    included, ends the worker with it and leaves the run resumable. So is a finished one, which then gives its adapter
    at once, until :func:`settle` is told what became of that. Raises RecipeError, DataError, StorageError and
    TrainingFailed.
    """
    started = time.monotonic()
    plan = make_plan(recipe, prepared, base)
    key = runs.run_key(recipe, prepared.fingerprint, base.digest, base.unadapted)
    with _hold(runs_dir, recipe.name, key) as (run, lock):
        run.update(status="running", launcher=runs.this_process(), resumable=True)
        write_job(run, recipe, prepared, base, plan)
        try:
            with _worker(run, lock) as process:
                last = _follow(process, on_event)
            metrics, resumed_from = _finish(run, process.returncode, last)
        except TenonError as error:
            _note(
                run, status="failed", resumable=not isinstance(error, errors.InputError), error=error.message
            )
            raise
        except BaseException:
            _note(run, status="interrupted")
            raise
        run.update(status="finished", steps=last.step, metrics=metrics)
    seconds = time.monotonic() - started
    return TrainResult(run.folder, run.adapter, last.step, resumed_from, metrics, seconds)


def settle(result: TrainResult) -> None:
    """Have the next run of the same recipe train anew: the adapter of this one is registered, or was refused."""
    _note(Run(result.run_dir), resumable=False)


@contextlib.contextmanager
def _hold(runs_dir: Path, name: str, key: str) -> Iterator[tuple[Run, int]]:
    """The run to go on with, else a new one, held by this process."""
    run = runs.find_unfinished(runs_dir, name, key)
    if run is not None:
        with run.locked(runs.LOCK_PATIENCE) as lock:
            if lock is not None:
                yield run, lock
                return
    run = runs.create(runs_dir, name, key)
    with run.locked() as lock:
        if lock is None:
            raise StorageError(f"{run.folder} was taken by another process", "run the same command again")
        yield run, lock


def write_job(run: Run, recipe: Recipe, prepared: Prepared, base: BaseIdentity, plan: Plan) -> dict[str, Any]:
    """Write what the worker needs to know into the run's folder, and return it."""
    job = {
        "recipe": recipe.model_dump(mode="json"),
        "data": str(prepared.folder.absolute()),
        "data_fingerprint": prepared.fingerprint,
        "base": {
            "name": base.name,
            "path": str(base.path),
            "digest": base.digest,
            "reference": _reference(recipe, base),
            "max_length": base.max_length,
        },
        "plan": asdict(plan),
    }
    runs.write_text(run.job, json.dumps(job, indent=2) + "\n")
    return job


def _reference(recipe: Recipe, base: BaseIdentity) -> str:
    """What the adapter's config calls its base: the hub id that leads to it, else its name, never a path."""
    is_hub_id = HUB_ID.fullmatch(recipe.base) and not Path(recipe.base).expanduser().is_dir()
    return recipe.base if is_hub_id else base.name


def _environment() -> dict[str, str]:
    """Ours, with what keeps libraries offline, quiet and gentle on shared cores."""
    ours = str(Path(__file__).resolve().parents[1])
    environment = {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "true",
        # Threads that spin at barriers halve the speed as soon as something else wants a core.
        "OMP_WAIT_POLICY": "PASSIVE",
        # With several GPUs in sight transformers would train on all of them by DataParallel, which PEFT, our
        # validation and exact resumption are not made for.
        "CUDA_VISIBLE_DEVICES": "0",
        **os.environ,
    }
    paths = [ours, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**environment, "PYTHONPATH": os.pathsep.join(paths)}


@contextlib.contextmanager
def _worker(run: Run, lock: int) -> Iterator[subprocess.Popen[str]]:
    """The worker in a process group of its own; it is gone when this ends, however that comes about."""
    try:
        log = run.log.open("ab")
    except OSError as error:
        raise runs.storage_error(run.log, error) from error
    process: subprocess.Popen[str] | None = None
    try:
        with log, interrupts_wait():
            process = subprocess.Popen(
                [sys.executable, "-P", "-m", "train.worker", "--run", str(run.folder)],
                stdin=subprocess.PIPE,  # held open: its end tells the worker that this process is gone
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                encoding="utf-8",
                env=_environment(),
                start_new_session=True,
                pass_fds=(lock,),
            )
        yield process
        process.wait()
    except BaseException:
        if process is not None:
            _end(process)
        raise
    finally:
        for pipe in (process.stdin, process.stdout) if process is not None else ():
            if pipe is not None:
                with contextlib.suppress(OSError):
                    pipe.close()


def _end(process: subprocess.Popen[str]) -> None:
    """Ask the worker's group to end, then make it."""
    for number, patience in ((signal.SIGTERM, GRACE), (signal.SIGKILL, None)):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, number)
        try:
            process.wait(patience)
        except subprocess.TimeoutExpired:
            continue
        except KeyboardInterrupt:
            # A second ctrl-C: no more patience.
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
        return


def _follow(process: subprocess.Popen[str], on_event: Callable[[TrainEvent], None]) -> TrainEvent:
    """Pass events on until the worker closes its stream; returns the last one."""
    if process.stdout is None:
        raise TrainingFailed("the worker has no event stream", "report this")
    last = TrainEvent(event="phase", message="starting the training process")
    on_event(last)
    for line in process.stdout:
        try:
            last = TrainEvent.from_json(line)
        except ValueError:
            continue  # the last line of a worker that was killed
        on_event(last)
    return last


def _finish(run: Run, returncode: int, last: TrainEvent) -> tuple[dict[str, Any], int | None]:
    """Metrics and where it resumed, from a worker that ended; raises what went wrong."""
    if last.event == "error":
        raise _error_class(last.code)(last.message or "the training failed", last.hint or "")
    if last.event != "done" or returncode != 0:
        raise _died(run, returncode, last)
    metrics = {
        "train_loss": _last_loss(run),
        "best_step": last.best_step,
        "stopped_early": bool(last.stopped_early),
        "validation_loss": last.loss,
        "validation_perplexity": last.perplexity,
        "validation_token_accuracy": last.token_accuracy,
        # A launch that finds the run finished takes less than the training did.
        "peak_memory": max(last.peak_memory or 0, run.state().get("metrics", {}).get("peak_memory", 0)),
    }
    return {key: value for key, value in metrics.items() if value is not None}, last.resumed_from


def _last_loss(run: Run) -> float | None:
    """The last training loss in metrics.jsonl."""
    losses = [line for line in read_metrics(run) if line["event"] == "step"]
    return float(losses[-1]["loss"]) if losses else None


def read_metrics(run: Run) -> list[dict[str, Any]]:
    """The lines of metrics.jsonl; a torn last line is left out."""
    return [event for _, event in runs.metric_lines(run.metrics)]


def _error_class(code: str | None) -> type[TenonError]:
    """The class of :mod:`serve.errors` with this code."""
    classes: Mapping[str, type[TenonError]] = {
        value.code: value
        for value in vars(errors).values()
        if isinstance(value, type) and issubclass(value, TenonError)
    }
    return classes.get(code or "", TrainingFailed)


def _died(run: Run, returncode: int, last: TrainEvent) -> TrainingFailed:
    """The error for a worker that ended without a word."""
    checkpoint = run.latest_checkpoint()
    goes_on = f"from step {checkpoint[0]}" if checkpoint else "from the start"
    if returncode < 0:
        name = signal.Signals(-returncode).name
        return TrainingFailed(
            f"the training process was killed ({name}) after step {last.step}",
            f"the same command goes on {goes_on}; if the machine ran out of memory, lower train.batch_size",
        )
    with contextlib.suppress(OSError):
        lines = run.log.read_text(encoding="utf-8", errors="replace").splitlines()
        telling = [line for line in lines if line.strip()]
        return TrainingFailed(
            f"the training process ended after step {last.step} (exit code {returncode}): "
            + (telling[-1] if telling else "it said nothing"),
            f"its log: {run.log}",
        )
    return TrainingFailed(
        f"the training process ended after step {last.step} (exit code {returncode}), and {run.log} cannot be read",
        f"the same command goes on {goes_on}",
    )


def _note(run: Run, **values: Any) -> None:
    """Update the run's state if the disk lets us: another error is on its way to the user."""
    with contextlib.suppress(StorageError):
        run.update(**values)


__all__ = ["GRACE", "TrainResult", "read_metrics", "run_training", "settle"]
