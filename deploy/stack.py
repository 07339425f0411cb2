"""The stack of one home on one machine: bring it up, take it down, say how it is."""

import asyncio
import json
import os
import socket
import subprocess
import time
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from deploy.controller import GATEWAY_GRACE, read_stack, write_stack
from deploy.processes import Record, end, ending, spawn
from serve.config import Settings
from serve.engine.process import end_recorded
from serve.errors import AlreadyUp, ConfigError, EngineStartFailed, NotUp, PortInUse
from serve.registry import Registry
from serve.registry.base import identify_base

CONTROLLER_GRACE = 75.0  # seconds: the gateway's 30 and the engine's 15, and room
PROBE_TIMEOUT = 2.0  # seconds that a part is given to answer a health check
READY_AFTER_ENGINE = 120.0  # seconds for the gateway, and for adapters to load, once the engine is ready


@dataclass(frozen=True)
class Part:
    """One process of the stack: ``state`` is running, starting, restarting, not answering or down."""

    state: str
    pid: int | None = None
    detail: str = ""

    @property
    def running(self) -> bool:
        """Whether it does its work."""
        return self.state == "running"


@dataclass(frozen=True)
class Status:
    """How the stack is; ``url`` is the gateway's, also while it is down."""

    home: Path
    url: str | None
    base: str | None
    controller: Part
    engine: Part
    gateway: Part
    adapters: list[dict[str, Any]] = field(default_factory=list)

    @property
    def healthy(self) -> bool:
        """Whether requests are answered and somebody watches."""
        return self.controller.running and self.engine.running and self.gateway.running

    @property
    def down(self) -> bool:
        """Whether nothing runs at all."""
        return all(part.pid is None for part in (self.controller, self.engine, self.gateway))

    def to_dict(self) -> dict[str, Any]:
        """The status for a script to read."""
        return {**asdict(self), "home": str(self.home), "healthy": self.healthy}


def status(home: Path) -> Status:
    """Look at every part: the process records, and what the parts answer."""
    settings = read_stack(home)
    state = home / "run"
    controller = process_part(Record.read(state / "controller.json"))
    engine = engine_part(state)
    gateway = gateway_part(state, restarting=controller.running)
    details = read_json(state / "engine.json")
    url = f"http://{dial(settings.host)}:{settings.port}" if settings else None
    return Status(home, url, details.get("base_name"), controller, engine, gateway, adapters_of(home))


def process_part(record: Record | None) -> Part:
    """The state of a part that is known by its process alone."""
    if record is None:
        return Part("down")
    return (
        Part("running", record.pid) if record.alive else Part("down", None, f"process {record.pid} is gone")
    )


def engine_part(state: Path) -> Part:
    """The engine as its supervisor last saw it, checked against the process and its health route."""
    details = read_json(state / "engine.json")
    if not details:
        return Part("down")
    record = Record.read(state / "engine.json")
    pid = record.pid if record is not None and record.alive else None
    known, restarts = str(details.get("state", "down")), int(details.get("restarts", 0))
    notes = [f"restarted {restarts} ×"] if restarts else []
    if details.get("last_exit") is not None:
        notes.append(f"last one {ending(int(details['last_exit']))}")
    if details.get("attached"):
        notes.append(f"attached to {details['url']}")
    elif pid is None and known in ("ready", "starting"):
        known = "down"
    if known == "ready":
        known = "running" if answers(f"{details['url']}/health") else "not answering"
    return Part({"backoff": "restarting"}.get(known, known), pid, "; ".join(notes))


def gateway_part(state: Path, *, restarting: bool) -> Part:
    """The gateway's process and whether it answers."""
    record = Record.read(state / "gateway.json")
    exit_record = read_json(state / "gateway-exit.json")
    note = ""
    if exit_record:
        ago = time.time() - float(exit_record["at"])
        note = f"last one {exit_record['reason']} {ago:.0f} s ago"
    if record is None or not record.alive:
        gone = f"process {record.pid} is gone" if record is not None else ""
        return Part("restarting" if restarting else "down", None, note or gone)
    ok = answers(f"{record.details['url']}/healthz")
    return Part("running" if ok else "not answering", record.pid, note)


def adapters_of(home: Path) -> list[dict[str, Any]]:
    """Every alias and every version that the engine was asked to hold, with its state there."""
    if not (home / "registry.db").exists():
        return []
    registry = Registry.open(home)
    try:
        aliases = {str(alias.target.ref): alias.name for alias in registry.aliases()}
        return [
            {
                "version": str(row.ref),
                "alias": aliases.get(str(row.ref)),
                "state": row.state,
                "reason": row.reason,
            }
            for row in registry.loaded()
        ]
    finally:
        registry.close()


def up(settings: Settings, say: Callable[[str], None]) -> Status:
    """Bring the stack up and wait until it answers; adopts what a crashed controller left running.

    Raises :class:`AlreadyUp` where all of it runs, :class:`PortInUse`, :class:`BaseModelError` or
    :class:`EngineStartFailed`; after a failed or interrupted start nothing is left running.
    """
    before = status(settings.home)
    running = read_stack(settings.home)
    if before.controller.running and running is not None:
        if before.healthy or not compatible(running, settings):
            raise AlreadyUp(
                f"the stack of {settings.home} is up already at {before.url} serving {running.model}",
                "see `tenon status`; to change its settings run `tenon down` first",
            )
        return wait_until_up(settings, None, say)
    child = start_controller(settings, before)
    try:
        return wait_until_up(settings, child, say)
    except BaseException:
        child.terminate()
        down(settings.home)
        raise


def compatible(running: Settings, wanted: Settings) -> bool:
    """Whether the running stack already is what is asked for."""
    return running.model_dump(exclude={"log_level"}) == wanted.model_dump(exclude={"log_level"})


def start_controller(settings: Settings, before: Status) -> "subprocess.Popen[bytes]":
    """Write what is wanted and start a controller; it adopts an engine and a gateway that still live."""
    if before.gateway.pid is None:
        check_port(settings.host, settings.port)
    identify_base(settings.model)
    write_stack(settings)
    for name in ("controller-error.json", "gateway-exit.json"):
        (settings.state / name).unlink(missing_ok=True)
    return spawn("deploy.controller", "--home", str(settings.home), log=settings.logs / "controller.log")


def wait_until_up(
    settings: Settings, child: "subprocess.Popen[bytes] | None", say: Callable[[str], None]
) -> Status:
    """Wait for engine and gateway, saying what is going on; ``child`` is the controller if we started it.

    A first start that fails is given up at once, as it would fail again; in a stack that ran before, the
    controller is given one more try.
    """
    started, deadline = time.time(), time.monotonic() + settings.engine_start_timeout + READY_AFTER_ENGINE
    allowed = (
        0 if child is not None else int(read_json(settings.state / "engine.json").get("restarts", 0)) + 1
    )
    while time.monotonic() < deadline:
        now = status(settings.home)
        if now.healthy and answers(f"{now.url}/readyz"):
            return now
        engine = read_json(settings.state / "engine.json")
        if (child.poll() is not None) if child is not None else not now.controller.running:
            failed = read_json(settings.state / "controller-error.json")
            hint = failed.get("hint") or f"see {settings.logs / 'controller.log'}"
            raise EngineStartFailed(failed.get("message", "the controller ended"), hint)
        failed_now = engine.get("state") == "backoff" and engine["since"] >= started
        if failed_now and int(engine.get("restarts", 0)) > allowed:
            raise EngineStartFailed(
                engine.get("error") or "the engine ended", engine.get("hint") or f"see {engine.get('log')}"
            )
        say(progress_of(now, engine))
        time.sleep(0.25)
    raise EngineStartFailed(
        f"the engine was not ready after {settings.engine_start_timeout:.0f} s",
        "see its log, or raise TENON_ENGINE_START_TIMEOUT",
    )


def progress_of(now: Status, engine: dict[str, Any]) -> str:
    """What a person waiting wants to read."""
    if not now.engine.running:
        return f"engine: {engine.get('stage') or engine.get('state', 'starting')}"
    return "gateway" if not now.gateway.running else "adapters"


def down(home: Path) -> list[str]:
    """Stop all parts, also those that a dead controller left behind; returns what was stopped."""
    state = home / "run"
    stopped = []
    for name, grace in (("controller", CONTROLLER_GRACE), ("gateway", GATEWAY_GRACE)):
        record = Record.read(state / f"{name}.json")
        if record is not None and record.alive:
            end(record, grace=grace)
            stopped.append(name)
        (state / f"{name}.json").unlink(missing_ok=True)
    engine = read_json(state / "engine.json")
    if engine.get("pid") is not None:
        asyncio.run(end_recorded(engine))
        stopped.append("engine")
    (state / "engine.json").unlink(missing_ok=True)
    return stopped


def require_up(home: Path) -> Status:
    """The status of a stack that answers, else raise :class:`NotUp`."""
    now = status(home)
    if not now.engine.running or not now.gateway.running:
        raise NotUp(
            f"the stack of {home} does not run", "start it with `tenon up --detach`, see `tenon status`"
        )
    return now


def check_port(host: str, port: int) -> None:
    """Raise :class:`PortInUse` unless the gateway could listen there."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            if isinstance(error, socket.gaierror) or error.errno == 99:
                raise ConfigError(f"{host} is no address of this machine", "use --host 127.0.0.1") from error
            raise PortInUse(
                f"port {port} of {host} cannot be listened on: {os.strerror(error.errno or 0)}",
                "stop what listens there, or choose another with --port",
            ) from error


def dial(host: str) -> str:
    """The address that reaches a server listening on ``host`` from this machine."""
    return {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)


def answers(url: str) -> bool:
    """Whether a GET of ``url`` is answered with success in time."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT) as response:
            return bool(response.status == 200)
    except (OSError, ValueError):
        return False


def get_json(url: str) -> dict[str, Any]:
    """The JSON that ``url`` answers, or an empty mapping where it does not."""
    try:
        with urllib.request.urlopen(url, timeout=PROBE_TIMEOUT) as response:
            content = json.loads(response.read())
            return content if isinstance(content, dict) else {}
    except (OSError, ValueError):
        return {}


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file, or an empty mapping where there is none."""
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}
