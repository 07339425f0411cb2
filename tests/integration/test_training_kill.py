"""A training that is killed goes on with the same command and ends at the same step."""

import contextlib
import json
import os
import random
import signal
import subprocess
import time
from pathlib import Path

import psutil
import pytest
from support.commands import TENON, environment, tenon
from support.workers import training_workers

STEPS = 36
RECIPE = f"""
name: killed
data:
  limit: 200
lora:
  rank: 4
train:
  max_steps: {STEPS}
  batch_size: 2
  save_every: 4
  eval_every: 12
  eval_rows: 20
"""


def metrics(home: Path) -> list[dict[str, object]]:
    """The events of the only run of a home."""
    files = list((home / "runs").glob("*/metrics.jsonl"))
    lines = files[0].read_text().splitlines() if files else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def killed_at(step: int, home: Path, recipe: Path, *, worker_only: bool) -> int:
    """Train, and SIGKILL the worker, or the command as well, at a step; the command's exit code."""
    with subprocess.Popen(
        [*TENON, "train", str(recipe)],
        env=environment(home),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    ) as command:
        while not any(event.get("event") == "step" and event["step"] >= step for event in metrics(home)):
            assert command.poll() is None
            time.sleep(0.02)
        workers = training_workers(psutil.Process(command.pid))
        if not worker_only:
            os.kill(command.pid, signal.SIGKILL)
        for worker in workers:
            with contextlib.suppress(psutil.NoSuchProcess):
                worker.kill()
    return command.returncode


@pytest.mark.timeout(240)
def test_killed_at_random_steps(tmp_path: Path) -> None:
    home, recipe = tmp_path / "home", tmp_path / "recipe.yaml"
    recipe.write_text(RECIPE)
    assert killed_at(random.randint(5, 8), home, recipe, worker_only=True) == 6
    assert killed_at(random.randint(10, 14), home, recipe, worker_only=False) == -signal.SIGKILL
    done = tenon(home, "train", str(recipe))
    assert done.returncode == 0, done.stderr
    assert "resumed at" in done.stdout
    assert f"{STEPS} steps" in done.stdout
    assert "Registered killed@v1" in done.stdout
    steps = [event["step"] for event in metrics(home) if event.get("event") == "step"]
    assert steps == sorted(set(steps))
    assert steps[-1] == STEPS
    assert len(list((home / "runs").iterdir())) == 1
