"""Records of processes that outlive the command that started them.

A process id alone may have been given to another program since; together with the time the process was
created it names one process for good.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from serve.errors import StorageError


@dataclass(frozen=True)
class Record:
    """What ``run/<name>.json`` says of a process; ``details`` holds the rest of the file."""

    pid: int
    created: float
    details: dict[str, Any]

    @classmethod
    def of(cls, pid: int, **details: Any) -> "Record":
        """A record of a living process."""
        return cls(pid, psutil.Process(pid).create_time(), details)

    @classmethod
    def read(cls, path: Path) -> "Record | None":
        """The record in ``path``, or None where there is none that can be read."""
        try:
            content = json.loads(path.read_bytes())
            return cls(int(content.pop("pid")), float(content.pop("create_time")), content)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def write(self, path: Path) -> None:
        """Write atomically, so that a reader never sees half a record."""
        write_json(path, {"pid": self.pid, "create_time": self.created, **self.details})

    @property
    def process(self) -> psutil.Process | None:
        """The process while it lives."""
        try:
            process = psutil.Process(self.pid)
            if abs(process.create_time() - self.created) < 1.0 and process.status() != psutil.STATUS_ZOMBIE:
                return process
        except psutil.Error:
            pass
        return None

    @property
    def alive(self) -> bool:
        """Whether the recorded process still lives."""
        return self.process is not None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write ``content`` to ``path`` atomically, else raise :class:`StorageError`."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.write_text(json.dumps(content, indent=1, default=str) + "\n")
        temporary.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise StorageError(
            f"{path} could not be written: {error.strerror}", "free disk space, or set TENON_HOME"
        ) from error


# Processes that may outlive us: kept, as Python warns of a running child that nobody refers to any more.
spawned: "list[subprocess.Popen[bytes]]" = []


def spawn(module: str, *arguments: str, log: Path) -> "subprocess.Popen[bytes]":
    """Start ``python -m module`` in a session of its own, its output appended to ``log``."""
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        child = subprocess.Popen(
            [sys.executable, "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    spawned.append(child)
    return child


def ending(code: int) -> str:
    """How a process ended, from the code that its parent got."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def end(record: Record, *, grace: float) -> bool:
    """Ask a process to end, and end it with its children after ``grace`` seconds; whether it obeyed."""
    process = record.process
    if process is None:
        return True
    family = [process]
    with contextlib.suppress(psutil.Error):
        family += process.children(recursive=True)
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while record.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    obeyed = not record.alive
    _, left = psutil.wait_procs(family, timeout=2.0 if obeyed else 0.0)
    for process in left:
        with contextlib.suppress(psutil.Error):
            process.kill()
    psutil.wait_procs(left, timeout=5.0)
    return obeyed
