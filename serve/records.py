"""Small JSON files that tell one process of another, and who a process is beyond its number.

A process id alone may have been given to another program since. Together with the tick of the kernel's clock
at which the process started, and the boot that this clock counts from, it names one process for good. (The
time of day would not do: it moves when the system's clock is set.)
"""

import contextlib
import functools
import os
import threading
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson
import psutil

from serve.errors import StorageError

PROC = Path("/proc")
_START_FIELD = 22
"""Which field of ``/proc/<pid>/stat`` is the start time, counted from one as in proc(5)."""


def write_json(path: Path, content: Mapping[str, Any], *, private: bool = False) -> None:
    """Replace the file at once, its folder made if need be: a reader sees the old or the new object.

    ``private`` keeps other users from reading it.

    Raises :class:`~serve.errors.StorageError` where that is impossible, and leaves no partial file then.
    Values that JSON does not know, such as paths, are written as their text.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}-{threading.get_native_id()}")
    text = orjson.dumps(dict(content), default=str, option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        flags = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        with os.fdopen(os.open(partial, flags, 0o600 if private else 0o666), "wb") as file:
            file.write(text)
        partial.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror or error}",
            "free some disk space, check who owns the folder, or set TENON_HOME to another one",
        ) from error
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """The object in the file; empty if there is none, or if it cannot be read as one."""
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}


@dataclass(frozen=True)
class ProcessIdentity:
    """One process for good: ``started`` in clock ticks since the ``boot`` of that id.

    Where there is no ``/proc``, ``started`` is in hundredths of a second since 1970 and ``boot`` is empty.
    """

    pid: int
    started: int
    boot: str

    @classmethod
    def of(cls, pid: int) -> "ProcessIdentity":
        """The identity of the process (or zombie) that has the number now, else ProcessLookupError."""
        boot = _boot()
        if boot:
            try:
                stat = (PROC / str(pid) / "stat").read_bytes()
            except FileNotFoundError as error:
                raise ProcessLookupError(f"there is no process {pid}") from error
            # The second field is the program's name in parentheses, which may hold spaces and parentheses.
            return cls(pid, int(stat.rpartition(b")")[2].split()[_START_FIELD - 3]), boot)
        try:
            return cls(pid, round(psutil.Process(pid).create_time() * 100), boot)
        except (psutil.NoSuchProcess, ValueError) as error:
            raise ProcessLookupError(f"there is no process {pid}") from error

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "ProcessIdentity | None":
        """The identity in a JSON object that may hold more, or None if it holds none."""
        pid, started, boot = (content.get(name) for name in ("pid", "started", "boot"))
        if isinstance(pid, int) and isinstance(started, int) and isinstance(boot, str):
            return cls(pid, started, boot)
        return None

    def to_json(self) -> dict[str, Any]:
        """The fields ``pid``, ``started`` and ``boot``."""
        return asdict(self)

    @property
    def process(self) -> psutil.Process | None:
        """The process while it lives; None for one that ended, a zombie, and another one of its number.

        One whose first thread has ended before the others lives as long as they do, and holds its ports and files.
        """
        try:
            process = psutil.Process(self.pid)
            ended = process.status() == psutil.STATUS_ZOMBIE and process.num_threads() <= 1
            if ProcessIdentity.of(self.pid) == self and not ended:
                return process
        except (psutil.Error, ProcessLookupError, ValueError):
            pass
        return None

    @property
    def alive(self) -> bool:
        """Whether the process lives."""
        return self.process is not None


@functools.cache
def _boot() -> str:
    """The kernel's name for this boot; empty where there is no ``/proc``."""
    try:
        return (PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return ""
