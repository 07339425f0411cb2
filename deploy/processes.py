"""Starts processes that outlive the command that started them, ends them again, and lets one alone do its work."""

import contextlib
import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import psutil

from serve.config import DRAIN_SECONDS
from serve.errors import AlreadyUp, StorageError
from serve.records import ProcessIdentity, read_json

NOT_STARTED = "could not be started"  # how the reason begins that a gateway has no log of its own
# Seconds: it ends by itself after the first of them, and tells those it cuts off.
GATEWAY_GRACE = DRAIN_SECONDS + 5.0

# Processes that may outlive us: kept, as Python warns of a running child that nobody refers to any more.
spawned: "list[subprocess.Popen[bytes]]" = []


def recorded(path: Path) -> ProcessIdentity | None:
    """The living process that a file of ``run/`` names, if there is one."""
    identity = ProcessIdentity.read(read_json(path))
    return identity if identity is not None and identity.alive else None


@contextlib.contextmanager
def holding(lock: Path, taken: AlreadyUp) -> Iterator[None]:
    """Hold a lock of ``run/``, which the kernel frees when we die; raises ``taken`` where another process has it."""
    try:
        lock.parent.mkdir(parents=True, exist_ok=True)
        file = lock.open("w")
    except OSError as error:
        raise StorageError(
            f"{lock} cannot be written: {error.strerror}", "set TENON_HOME to another folder"
        ) from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise taken from error
        yield


def spawn(
    module: str, *arguments: str, log: Path, variables: Mapping[str, str] | None = None
) -> "subprocess.Popen[bytes]":
    """Start ``python -m module`` in a session of its own, its output appended to ``log``; else StorageError.

    It sees our environment with ``variables`` on top; a secret goes there, as everybody may read arguments.
    """
    try:
        log.parent.mkdir(parents=True, exist_ok=True)
        output = log.open("ab")
    except OSError as error:
        raise StorageError(
            f"the log {log} cannot be written: {error.strerror}", "free some disk space, or set TENON_HOME"
        ) from error
    with output:
        child = subprocess.Popen(
            # -P: a file of the user's that is called train.py or serve.py must not stand in for ours.
            [sys.executable, "-P", "-m", module, *arguments],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            env={**os.environ, **(variables or {})},
        )
    spawned.append(child)
    return child


def ending(code: int) -> str:
    """How a process ended, from the code that its parent got."""
    return f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with exit code {code}"


def end(identity: ProcessIdentity, *, grace: float) -> bool:
    """Ask a process to end, and end it with its children after ``grace`` seconds; whether it obeyed."""
    process = identity.process
    if process is None:
        return True
    family = [process]
    with contextlib.suppress(psutil.Error):
        family += process.children(recursive=True)
    with contextlib.suppress(psutil.Error):
        process.send_signal(signal.SIGTERM)
    deadline = time.monotonic() + grace
    while identity.alive and time.monotonic() < deadline:
        time.sleep(0.05)
    obeyed = not identity.alive
    _, left = psutil.wait_procs(family, timeout=2.0 if obeyed else 0.0)
    for member in left:
        with contextlib.suppress(psutil.Error):
            member.kill()
    psutil.wait_procs(left, timeout=5.0)
    for child in spawned:  # or Python warns at its own end that they still run
        child.poll()
    return obeyed
