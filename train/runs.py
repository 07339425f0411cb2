"""Run folders: everything that one training run keeps, and how an interrupted one is found again.

    <name>-<key>-<n>/
        state.json              status, who launched it, what came out
        job.json                what the worker is told
        metrics.jsonl           one line per step and validation, as they happen
        worker.log              what the libraries said
        asked.json              the first training row, and the tokens of its prompt
        checkpoints/step-<n>/   complete ones only: each gets this name when its last byte is on disk
        adapter/                the result: adapter_config.json and adapter_model.safetensors

``key`` is made of recipe, rows and base, so the same command finds its own unfinished run.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import time
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from serve.errors import RunNotFound, StorageError
from train.recipe import Recipe

UNFINISHED = frozenset({"running", "interrupted"})
STEP = re.compile(r"step-(\d+)")
# A worker whose launcher was killed takes a moment to end; its run is free only then.
LOCK_PATIENCE = 15.0
FIRST_WORD = 60.0
"""Seconds after which a folder without a state is no run that is about to begin."""


def run_key(recipe: Recipe, data_fingerprint: str, base_digest: str, unadapted: Collection[str] = ()) -> str:
    """Twelve hexadecimal digits, the same for the same recipe, rows, base and layers that get no update.

    How files and base are spelled does not count: what they hold is in the fingerprint and the digest.
    """
    settings = recipe.model_dump(mode="json", exclude={"data", "base"})
    text = json.dumps([settings, data_fingerprint, base_digest, *sorted(unadapted)], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def write_text(path: Path, text: str) -> None:
    """Replace ``path`` by ``text`` at once, on disk when this returns; raises StorageError."""
    scratch = path.with_name(f".{path.name}-{os.getpid()}")
    try:
        with scratch.open("w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            scratch.unlink(missing_ok=True)
        raise storage_error(path, error) from error


def storage_error(path: Path, error: Exception) -> StorageError:
    """What to tell a user whose disk refused to take ``path``."""
    reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return StorageError(
        f"{path} cannot be written: {reason}", "free some space and run the same command again: it resumes"
    )


@dataclass(frozen=True, slots=True)
class Run:
    """One run's folder."""

    folder: Path

    @property
    def adapter(self) -> Path:
        """Where the result stands once the run is finished."""
        return self.folder / "adapter"

    @property
    def checkpoints(self) -> Path:
        """The folder of complete checkpoints."""
        return self.folder / "checkpoints"

    @property
    def metrics(self) -> Path:
        """Steps and validations, one JSON object per line."""
        return self.folder / "metrics.jsonl"

    @property
    def log(self) -> Path:
        """What the libraries printed."""
        return self.folder / "worker.log"

    @property
    def asked(self) -> Path:
        """The first training row and the tokens of its prompt, which a server is to write alike."""
        return self.folder / "asked.json"

    @property
    def job(self) -> Path:
        """What the worker is told."""
        return self.folder / "job.json"

    def state(self) -> dict[str, Any]:
        """What state.json holds, empty where it cannot be read."""
        try:
            state = json.loads((self.folder / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}
        return state if isinstance(state, dict) else {}

    def update(self, **values: Any) -> None:
        """Merge ``values`` into state.json; raises StorageError."""
        state = {**self.state(), **values, "updated_at": time.time()}
        write_text(self.folder / "state.json", json.dumps(state, indent=2) + "\n")

    def latest_checkpoint(self) -> tuple[int, Path] | None:
        """Step and folder of the last complete checkpoint."""
        return max(checkpoints_in(self.checkpoints), default=None)

    @contextlib.contextmanager
    def locked(self, patience: float = 0.0) -> Iterator[int | None]:
        """Hold the run for this process; yields the lock's descriptor, None if another holds it after ``patience`` s.

        A worker inherits the descriptor, so the run stays held until launcher and worker are both gone.
        """
        try:
            descriptor = os.open(self.folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as error:
            raise storage_error(self.folder, error) from error
        deadline = time.monotonic() + patience
        try:
            while True:
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    if time.monotonic() >= deadline:
                        yield None
                        return
                    time.sleep(0.1)
                else:
                    yield descriptor
                    return
        finally:
            os.close(descriptor)


def metric_lines(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """The lines of a metrics.jsonl that are whole, each with what it tells: a killed worker may leave half of one."""
    found = []
    for line in path.read_text(encoding="utf-8", errors="replace").split("\n") if path.exists() else []:
        with contextlib.suppress(ValueError, LookupError, TypeError):
            event = json.loads(line)
            int(event["step"])
            found.append((line, event))
    return found


def checkpoints_in(folder: Path) -> list[tuple[int, Path]]:
    """Step and folder of each complete checkpoint, by step."""
    if not folder.is_dir():
        return []
    matches = ((STEP.fullmatch(entry.name), entry) for entry in folder.iterdir())
    return sorted((int(match[1]), entry) for match, entry in matches if match)


def create(runs_dir: Path, name: str, key: str) -> Run:
    """Make the folder of a new run; raises StorageError."""
    try:
        runs_dir.mkdir(parents=True, exist_ok=True)
        number = 1
        while True:
            folder = runs_dir / f"{name}-{key}-{number}"
            try:
                folder.mkdir()
            except FileExistsError:
                number += 1
                continue
            return Run(folder)
    except OSError as error:
        raise storage_error(runs_dir, error) from error


def find_unfinished(runs_dir: Path, name: str, key: str) -> Run | None:
    """The newest run of ``name`` and ``key`` that stopped before its end and can go on; None if there is none.

    A run that another live process works on is not taken.
    """
    prefix = f"{name}-{key}-"
    if not runs_dir.is_dir():
        return None
    numbered = [
        (int(entry.name.removeprefix(prefix)), entry)
        for entry in runs_dir.iterdir()
        if entry.name.startswith(prefix) and entry.name.removeprefix(prefix).isdigit()
    ]
    for _, folder in sorted(numbered, reverse=True):
        run = Run(folder)
        state = run.state()
        if not state:
            _remove_if_left(run)
            continue
        if state.get("status") not in UNFINISHED and not state.get("resumable"):
            continue
        if not _alive(state):
            return run
    return None


def _remove_if_left(run: Run) -> None:
    """Remove a run that was killed before its first word: nothing in it is worth keeping, and nobody else will.

    One that was made just now may be about to say it.
    """
    with contextlib.suppress(OSError, StorageError):
        if time.time() - run.folder.stat().st_mtime > FIRST_WORD:
            with run.locked() as held:
                if held is not None:
                    shutil.rmtree(run.folder, ignore_errors=True)


def find(runs_dir: Path, name: str) -> Run:
    """The run whose folder is called ``name``; raises RunNotFound."""
    folder = runs_dir / name
    if not name or Path(name).name != name or not folder.is_dir():
        raise RunNotFound(f"there is no run {name!r} in {runs_dir}", "each folder there is one run")
    return Run(folder)


def this_process() -> dict[str, Any]:
    """What tells this process from a later one with the same id."""
    return {"pid": os.getpid(), "created": psutil.Process().create_time()}


def _alive(state: Mapping[str, Any]) -> bool:
    """Whether the launcher that ``state`` names still works on the run."""
    launcher = state.get("launcher") or {}
    if state.get("status") != "running" or "pid" not in launcher:
        return False
    try:
        return bool(psutil.Process(launcher["pid"]).create_time() == launcher["created"])
    except psutil.NoSuchProcess:
        return False
