"""Brings the stack of one home up and takes it down."""

import asyncio
import contextlib
import subprocess
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from deploy.fleet import planned, planned_servers
from deploy.net import answers
from deploy.processes import GATEWAY_GRACE, NOT_STARTED, end, holding, recorded, spawn
from deploy.stack_file import stack_file, write_stack
from deploy.status import Status, processes, status
from serve.config import Settings
from serve.engine.state import forget, read_records, record_files
from serve.errors import (
    AlreadyUp,
    EngineStartFailed,
    Unavailable,
)
from serve.interrupts import interrupts_wait
from serve.log_lines import message_of
from serve.net import check_reach, listen
from serve.prices import Prices
from serve.records import ProcessIdentity, read_json
from serve.registry import Registry

CONTROLLER_GRACE = 75.0  # seconds: the gateway's 30 and the engine's 15, and room
READY_AFTER_ENGINE = 120.0  # seconds for the gateway, once the engine is ready


def up(settings: Settings, say: Callable[[str], None]) -> Status:
    """Bring the stack up and wait until it answers; adopts what a crashed controller left running.

    Raises :class:`AlreadyUp` where all of it runs, :class:`PortInUse`, :class:`BaseModelError` or
    :class:`EngineStartFailed`. After a failed or interrupted start, what ran before still runs and nothing
    else does.
    """
    taken = AlreadyUp(
        f"another command brings the stack of {settings.home} up", "wait for it; see `tenon status`"
    )
    with holding(settings.state / "up.lock", taken):
        before = processes(settings.home)
        if before.healthy:
            raise AlreadyUp(
                f"the stack of {settings.home} is up already at {before.url} serving {before.base}",
                "see `tenon status`; to change its settings run `tenon down` first",
            )
        child: subprocess.Popen[bytes] | None = None
        try:
            if not before.controller.running:
                prepare(settings, before, say)
                with interrupts_wait():
                    child = spawn(
                        "deploy.controller",
                        *("--home", str(settings.home)),
                        log=settings.logs / "controller.log",
                    )
            return wait_until_up(settings, child, say)
        except BaseException:
            if child is not None:
                undo(child, settings.home, before)
            raise


def prepare(settings: Settings, before: Status, say: Callable[[str], None]) -> None:
    """Check and write what is wanted, for a controller that adopts an engine and a gateway that still live."""
    if before.gateway.pid is None:
        check_gateway(settings)
    planned_servers(settings, planned(settings, say))
    write_stack(settings)
    (settings.state / "gateway-exit.json").unlink(missing_ok=True)


def check_gateway(settings: Settings) -> None:
    """Find out at once what would keep a gateway from starting.

    Raises PortInUse, or ConfigError for an address of this machine's that is none, or that others reach while there
    are no keys, and for prices that cannot be read.
    """
    with contextlib.closing(listen(settings.host, settings.port)) as sock, Registry.of(settings) as registry:
        check_reach(sock, keys=registry.keys_used())
    Prices.load(settings.prices)


def undo(child: "subprocess.Popen[bytes]", home: Path, before: Status) -> None:
    """Take back a start: what was down before goes down, what was adopted stays up."""
    if before.down:
        child.terminate()
        with suppress(subprocess.TimeoutExpired):
            child.wait(CONTROLLER_GRACE)
        down(home)
        return
    child.kill()  # asked politely, it would stop what it adopted
    child.wait()
    (home / "run" / "controller.json").unlink(missing_ok=True)
    if before.gateway.pid is None:
        end_gateway(home)
    end_engines(home, {name for name, part in before.engines.items() if part.pid is not None})


def wait_until_up(
    settings: Settings, child: "subprocess.Popen[bytes] | None", say: Callable[[str], None]
) -> Status:
    """Wait for engines and gateway, saying what is going on; ``child`` is the controller if we started it.

    A first start that fails is given up at once, as it would fail again; in a stack that ran before, the
    controller is given one more try. An engine that fails is not waited for where another one has its base.
    """
    started, deadline = time.time(), time.monotonic() + settings.engine_start_timeout + READY_AFTER_ENGINE
    before = read_records(settings.state)
    tries = {
        name: 0 if child is not None else int(was.get("restarts", 0)) + 1 for name, was in before.items()
    }
    plan = planned(settings)
    names = [part.name for part in plan] + [part.name for part in planned_servers(settings, plan)]
    while time.monotonic() < deadline:
        now = processes(settings.home)
        failed = failures(settings, started, tries)
        if all_up(now, names, failed) and answers(f"{now.url}/readyz"):
            return status(settings.home)
        if (child.poll() is not None) if child is not None else not now.controller.running:
            raise EngineStartFailed(
                f"the controller ended: {last_line(settings.logs / 'controller.log')}",
                f"see {settings.logs / 'controller.log'}",
            )
        raise_failure(settings, now, started, failed, names)
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
    started: float,
    failed: Mapping[str, Mapping[str, Any]],
    names: Collection[str],
) -> None:
    """Raise what the engines of a base or the gateway failed with since ``started``.

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
    if gateway.get("failures", 0) > 1 and gateway["at"] >= started:
        log, reason = settings.logs / "gateway.log", str(gateway["reason"])
        why = reason if reason.startswith(NOT_STARTED) else last_line(log)
        raise Unavailable(f"the gateway does not start: {why}", f"see {log}")


def base_of(engine: Mapping[str, Any]) -> object:
    """What joins the engines of a base: its digest, or its name where nobody but a server knows it."""
    return engine.get("base_digest") or engine.get("base_name")


def last_line(log: Path) -> str:
    """The last line of a log that says something."""
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return "it left no log"
    return next((message_of(line.strip()) for line in reversed(lines) if line.strip()), "its log is empty")


def progress_of(settings: Settings, now: Status) -> str:
    """What a person waiting wants to read."""
    for name, engine in read_records(settings.state).items():
        if name not in now.engines or not now.engines[name].running:
            return f"{name}: {engine.get('stage') or engine.get('state', 'starting')}"
    if not now.engines:
        return "engine: starting"
    return "gateway"


def down(home: Path) -> list[str]:
    """Stop all parts, also those that a dead controller left behind; returns what was stopped."""
    stopped = []
    controller = recorded(home / "run" / "controller.json")
    if controller is not None:
        end(controller, grace=CONTROLLER_GRACE)
        stopped.append("controller")
    stopped += ["gateway"] * end_gateway(home) + end_engines(home)
    for name in ("controller.json", "gateway-exit.json"):
        (home / "run" / name).unlink(missing_ok=True)
    stack_file(home).unlink(missing_ok=True)
    return stopped


def end_gateway(home: Path) -> bool:
    """Let the gateway finish what it has in flight and end it; whether it ran."""
    path = home / "run" / "gateway.json"
    gateway = recorded(path)
    if gateway is not None:
        end(gateway, grace=GATEWAY_GRACE)
    path.unlink(missing_ok=True)
    return gateway is not None


def end_engines(home: Path, kept: Collection[str] = ()) -> list[str]:
    """End the engines of our own, but for those that are ``kept``, with all that they started; those that ended."""
    ended = []
    for name, path in record_files(home / "run").items():
        if name not in kept:
            record = read_json(path)
            if ProcessIdentity.read(record) is not None:  # it did not end in order
                # Imported here, as it brings the engine's client, which takes as long as the rest of most commands.
                from serve.engine.process import end_recorded

                ended += [name] * asyncio.run(end_recorded(record))
            forget(path)
    return ended
