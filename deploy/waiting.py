"""How a command waits for the stack that it brings up, and what it tells where that does not come."""

import contextlib
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from deploy.fleet import planned, planned_servers
from deploy.net import answers
from deploy.processes import NOT_STARTED, ending
from deploy.status import Status, processes, status
from serve.config import Settings
from serve.engine.state import read_records
from serve.errors import EngineStartFailed, Unavailable
from serve.log_lines import message_of
from serve.records import read_json

READY_AFTER_ENGINE = 120.0  # seconds for the gateway, once the engine is ready


@dataclass(frozen=True)
class Since:
    """A moment (seconds since 1970) before a start: what was recorded before and logged by then is not of that start.

    ``logged`` are the sizes that logs had, in bytes.
    """

    time: float
    logged: Mapping[Path, int]

    @classmethod
    def now(cls, logs: Path) -> "Since":
        """This moment."""
        sizes = {}
        for path in logs.glob("*.log"):
            with contextlib.suppress(OSError):
                sizes[path] = path.stat().st_size
        return cls(time.time(), sizes)

    def last_line(self, log: Path) -> str:
        """The last line of a log since then that says something; empty where there is none."""
        try:
            with log.open("rb") as file:
                file.seek(self.logged.get(log, 0))
                lines = file.read().decode(errors="replace").splitlines()
        except OSError:
            return ""
        return next((message_of(line.strip()) for line in reversed(lines) if line.strip()), "")


def wait_until_up(
    settings: Settings, child: "subprocess.Popen[bytes] | None", since: Since, say: Callable[[str], None]
) -> Status | None:
    """Wait for engines and gateway, saying what is going on; ``child`` is the controller if we started it.

    One that was there may end meanwhile, as when it was told to before we came; then there is None.

    A first start that fails is given up at once, as it would fail again; in a stack that ran before, the
    controller is given one more try. An engine that fails is not waited for where another one has its base.
    """
    deadline = time.monotonic() + settings.engine_start_timeout + READY_AFTER_ENGINE
    before = read_records(settings.state)
    tries = {
        name: 0 if child is not None else int(was.get("restarts", 0)) + 1 for name, was in before.items()
    }
    plan = planned(settings)
    names = [part.name for part in plan] + [part.name for part in planned_servers(settings, plan)]
    while time.monotonic() < deadline:
        now = processes(settings.home)
        failed = failures(settings, since.time, tries)
        if all_up(now, names, failed) and answers(f"{now.url}/readyz"):
            return status(settings.home)
        if child is None and not now.controller.running:
            return None
        if child is not None and child.poll() is not None:
            log = settings.logs / "controller.log"
            raise EngineStartFailed(
                f"the controller {ending(child.returncode)}: {since.last_line(log) or 'it said nothing'}",
                f"see {log}",
            )
        raise_failure(settings, now, since, failed, names)
        say(progress_of(settings, now))
        time.sleep(0.25)
    raise EngineStartFailed(
        f"the engine was not ready after {settings.engine_start_timeout:.0f} s",
        "see its log, or raise TENON_ENGINE_START_TIMEOUT",
    )


def failures(settings: Settings, started: float, tries: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """The records of engines that failed since ``started`` so that waiting on is of no use, by name."""
    found = {}
    for name, engine in read_records(settings.state).items():
        down = engine.get("state") in ("down", "backoff") and engine.get("error")
        again = not engine.get("attached") and int(engine.get("restarts", 0)) <= tries.get(name, 0)
        if down and engine["since"] >= started and not again:
            found[name] = engine
    return found


def all_up(now: Status, names: Collection[str], failed: Collection[str]) -> bool:
    """Whether all runs, engines of these ``names`` among it, but for those that failed."""
    running = {name for name, part in now.engines.items() if part.running}
    return now.controller.running and now.gateway.running and running.issuperset(set(names) - set(failed))


def raise_failure(
    settings: Settings,
    now: Status,
    since: Since,
    failed: Mapping[str, Mapping[str, Any]],
    names: Collection[str],
) -> None:
    """Raise what the engines of a base or the gateway failed with.

    As long as one of ``names`` has told nothing yet, it may be what the base of a failed one is served by.
    """
    records = read_records(settings.state)
    hopeful = {base_of(engine) for name, engine in records.items() if name not in failed}
    all_told = records.keys() >= set(names)
    for name, engine in failed.items():
        if all_told and base_of(engine) not in hopeful:
            log = settings.logs / f"{name}.log"
            raise EngineStartFailed(engine["error"], engine.get("hint") or f"see {log}")
    gateway = read_json(settings.state / "gateway-exit.json")
    if gateway.get("failures", 0) > 1 and gateway["at"] >= since.time:
        log, why = settings.logs / "gateway.log", str(gateway["reason"])
        if not why.startswith(NOT_STARTED):
            why += f": {since.last_line(log) or 'it said nothing'}"
        raise Unavailable(f"the gateway does not start, it {why}", f"see {log}")


def base_of(engine: Mapping[str, Any]) -> object:
    """What joins the engines of a base: its digest, or its name where nobody but a server knows it."""
    return engine.get("base_digest") or engine.get("base_name")


def progress_of(settings: Settings, now: Status) -> str:
    """What a person waiting wants to read."""
    for name, engine in read_records(settings.state).items():
        if name not in now.engines or not now.engines[name].running:
            return f"{name}: {engine.get('stage') or engine.get('state', 'starting')}"
    if not now.engines:
        return "engine: starting"
    return "gateway"
