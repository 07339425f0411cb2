import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from serve.errors import RunNotFound, StorageError
from train import runs
from train.methods.checkpoints import Progress, clear_partial, prune, publish, read_progress, writing
from train.recipe import Recipe
from train.runs import Run, run_key


def test_the_key_depends_on_what_decides_the_result() -> None:
    recipe = Recipe.load()
    key = run_key(recipe, "rows", "base")
    assert key == run_key(
        Recipe.load(None, ["data.train=elsewhere.csv", "base=./tenon-tiny"]), "rows", "base"
    )
    others = [
        run_key(Recipe.load(None, ["lora.rank=8"]), "rows", "base"),
        run_key(Recipe.load(None, ["name=other"]), "rows", "base"),
        run_key(recipe, "other rows", "base"),
        run_key(recipe, "rows", "other base"),
        run_key(recipe, "rows", "base", {"gate_up_proj"}),
    ]
    assert len({key, *others}) == 6


def test_only_unfinished_runs_of_the_same_key_are_taken_up(tmp_path: Path) -> None:
    states = {
        "a-k-1": {"status": "interrupted"},
        "a-k-2": {"status": "failed", "resumable": True},
        "a-k-3": {"status": "failed", "resumable": False},
        "a-k-4": {"status": "finished", "resumable": False},
        "a-k-5": {"status": "running", "launcher": runs.this_process()},
        "a-other-9": {"status": "interrupted"},
        "b-k-9": {"status": "interrupted"},
    }
    for name, state in states.items():
        (tmp_path / name).mkdir()
        Run(tmp_path / name).update(**state)
    found = runs.find_unfinished(tmp_path, "a", "k")
    assert found == Run(tmp_path / "a-k-2")
    found.update(status="finished", resumable=False)
    assert runs.find_unfinished(tmp_path, "a", "k") == Run(tmp_path / "a-k-1")
    assert runs.create(tmp_path, "a", "k").folder.name == "a-k-6"


def test_a_run_whose_launcher_is_gone_is_taken_up(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a", "k")
    gone = {**runs.this_process(), "created": 1.0}
    run.update(status="running", launcher=gone)
    assert runs.find_unfinished(tmp_path, "a", "k") == run


def test_a_folder_that_never_got_a_state_is_cleared(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a", "k")
    assert runs.find_unfinished(tmp_path, "a", "k") is None
    assert run.folder.exists(), "another command has made it just now"
    old = time.time() - 2 * runs.FIRST_WORD
    os.utime(run.folder, (old, old))
    assert runs.find_unfinished(tmp_path, "a", "k") is None
    assert not run.folder.exists()


def test_a_run_whose_lock_cannot_be_made_is_a_storage_error(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a", "k")
    run.folder.rmdir()
    with pytest.raises(StorageError, match="cannot be written"), run.locked():
        pass


def test_a_run_is_held_by_one_process(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a", "k")
    code = (
        "import sys; from pathlib import Path; from train.runs import Run\n"
        "with Run(Path(sys.argv[1])).locked() as held: print(held is not None)"
    )
    ask = [sys.executable, "-c", code, str(run.folder)]
    with run.locked() as held:
        assert held is not None
        assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "False\n"
    assert subprocess.run(ask, capture_output=True, text=True, check=True).stdout == "True\n"


def test_find_refuses_what_is_no_run(tmp_path: Path) -> None:
    run = runs.create(tmp_path, "a", "k")
    assert runs.find(tmp_path, run.folder.name) == run
    for name in ("nothing", "../a", ""):
        with pytest.raises(RunNotFound):
            runs.find(tmp_path, name)


def fail_halfway(run: Run) -> None:
    with writing(run, Progress(step=5, total_steps=9)) as scratch:
        (scratch / "checkpoint-5").mkdir()
        (scratch / "checkpoint-5" / "weights").write_text("half")
        raise ZeroDivisionError


def test_a_checkpoint_is_there_whole_or_not_at_all(tmp_path: Path) -> None:
    run = Run(tmp_path)
    with pytest.raises(ZeroDivisionError):
        fail_halfway(run)
    assert run.latest_checkpoint() is None
    assert list(run.checkpoints.iterdir()) == []
    with writing(run, Progress(step=5, total_steps=9, best_step=5, best_loss=0.5)) as scratch:
        (scratch / "checkpoint-5").mkdir()
        (scratch / "checkpoint-5" / "weights").write_text("whole")
    step, folder = run.latest_checkpoint() or (0, tmp_path)
    assert (step, (folder / "weights").read_text()) == (5, "whole")
    assert read_progress(folder) == Progress(step=5, total_steps=9, best_step=5, best_loss=0.5)


def test_what_a_killed_run_left_of_a_checkpoint_does_not_count(tmp_path: Path) -> None:
    run = Run(tmp_path)
    (run.checkpoints / ".partial" / "checkpoint-7").mkdir(parents=True)
    (run.checkpoints / ".old-3").mkdir()
    assert run.latest_checkpoint() is None
    clear_partial(run)
    assert not (run.checkpoints / ".partial").exists()


def test_pruning_keeps_the_last_and_the_best(tmp_path: Path) -> None:
    run = Run(tmp_path)
    for step in (5, 10, 15, 20):
        (run.checkpoints / f"step-{step}").mkdir(parents=True)
    prune(run, Progress(best_step=10))
    assert [folder.name for _, folder in runs.checkpoints_in(run.checkpoints)] == ["step-10", "step-20"]


def test_publish_replaces_what_was_there(tmp_path: Path) -> None:
    for name in ("new", "old"):
        (tmp_path / name).mkdir()
        (tmp_path / name / name).touch()
    publish(tmp_path / "new", tmp_path / "old")
    assert [path.name for path in tmp_path.rglob("*")] == ["old", "new"]


def test_a_disk_that_refuses_is_a_storage_error_and_leaves_the_old_state(tmp_path: Path) -> None:
    run = Run(tmp_path)
    run.update(status="running")
    blocked = tmp_path / "state.json"
    saved = blocked.read_text()
    with pytest.raises(StorageError, match="cannot be written"):
        runs.write_text(tmp_path / "missing" / "state.json", "x")
    assert json.loads(saved)["status"] == "running"


def test_patience_counts_validations_without_a_better_loss() -> None:
    progress = Progress()
    assert progress.judge(1, 2.0, 0.1, 7.4)
    assert not progress.judge(2, 2.0, 0.2, 7.4)
    assert not progress.judge(3, 2.5, 0.3, 12.2)
    assert (progress.stale, progress.best_step, progress.best_token_accuracy) == (2, 1, 0.1)
    assert progress.judge(4, 1.5, 0.5, 4.5)
    assert (progress.stale, progress.best_step) == (0, 4)
