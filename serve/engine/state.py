"""``run/engine.json``: how the engine does, for the gateway and ``tenon status``."""

import dataclasses
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from serve.errors import StorageError


@dataclass(frozen=True)
class EngineState:
    """What is known of the engine.

    ``state``: ``starting`` (``stage`` says how far, ``stage_seconds`` after how long it came there),
    ``ready``, ``down`` (it ended; ``error`` and ``hint`` say why) or ``backoff`` (waiting to start it again).
    ``since`` is when that state began, in seconds since 1970. ``pid``, ``create_time``, ``port``,
    ``fingerprint``, ``log`` and ``scratch`` are set for an engine of our own. ``restarts`` counts since the controller
    started.
    """

    state: str = "down"
    since: float = 0.0
    attached: bool = False
    url: str | None = None
    base_name: str | None = None
    max_model_len: int | None = None
    pid: int | None = None
    create_time: float | None = None
    port: int | None = None
    fingerprint: str | None = None
    log: str | None = None
    scratch: str | None = None
    restarts: int = 0
    last_exit: int | None = None
    stage: str = ""
    stage_seconds: float = 0.0
    error: str = ""
    hint: str = ""

    def but(self, *, state: str, **changes: Any) -> "EngineState":
        """A copy with ``changes``; ``since`` is now if the state is another one."""
        since = self.since if state == self.state and self.since else time.time()
        return dataclasses.replace(self, state=state, since=since, **changes)


def write_state(path: Path, state: EngineState) -> None:
    """Replace the file at once: a reader sees the old or the new object, never half of one."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_bytes(orjson.dumps(state, option=orjson.OPT_INDENT_2))
        scratch.replace(path)
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error}", "free some disk space, or check who owns it"
        ) from error


def read_state(path: Path) -> Mapping[str, Any]:
    """The object in the file; empty if there is none, or if something else wrote it."""
    try:
        content = orjson.loads(path.read_bytes())
    except (OSError, orjson.JSONDecodeError):
        return {}
    return content if isinstance(content, dict) else {}
