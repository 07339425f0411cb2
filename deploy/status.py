"""How the stack of a home is: what its records in ``run/`` say, checked against what lives and answers."""

import time
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from deploy.net import answers
from deploy.processes import ending, recorded
from deploy.stack_file import read_stack
from serve.config import Settings
from serve.engine.kinds import OPENAI
from serve.engine.state import FIRST, address_in, read_records, record_files
from serve.errors import NotUp, StorageError
from serve.net import bare, url_of
from serve.records import read_json
from serve.registry import Registry

STOPPING, SILENT = "stopping", "not answering"
SILENT_PATIENCE = 20.0
"""Seconds that parts which live are given to answer, as on a machine that is busy."""


@dataclass(frozen=True)
class Part:
    """One process of the stack: ``state`` is running, starting, restarting, not answering, stopping or down."""

    state: str
    pid: int | None = None
    detail: str = ""

    @property
    def running(self) -> bool:
        """Whether it does its work."""
        return self.state == "running"


@dataclass(frozen=True)
class Status:
    """How the stack is; ``url`` is the gateway's, also while it is down.

    ``engine`` is the first of the ``engines``, which are known by their names.
    """

    home: Path
    url: str | None
    base: str | None
    controller: Part
    engine: Part
    gateway: Part
    engines: dict[str, Part] = field(default_factory=dict)
    adapters: list[dict[str, Any]] = field(default_factory=list)
    registry: str = ""
    """Why the registry cannot be read; empty where it can."""

    @property
    def healthy(self) -> bool:
        """Whether requests are answered and somebody watches."""
        engines = self.engines.values() or [self.engine]
        return self.controller.running and self.gateway.running and all(part.running for part in engines)

    @property
    def down(self) -> bool:
        """Whether nothing runs at all."""
        parts = (self.controller, self.engine, self.gateway, *self.engines.values())
        return all(part.pid is None for part in parts)

    def to_dict(self) -> dict[str, Any]:
        """The status for a script to read."""
        return {**asdict(self), "home": str(self.home), "healthy": self.healthy}


def status(home: Path) -> Status:
    """Look at every part and at the registry: the process records, what the parts answer, what is loaded."""
    now = processes(home)
    try:
        return replace(now, adapters=adapters_of(read_stack(home) or Settings.read(home=home)))
    except StorageError as error:  # requests are answered all the same
        return replace(now, registry=f"{error.message} ({error.hint})")


def processes(home: Path) -> Status:
    """The status without what the registry says, for who asks often or only for what runs."""
    settings = read_stack(home)
    state = home / "run"
    controller = controller_part(state)
    engines = {name: engine_part(path) for name, path in record_files(state).items()}
    gateway = gateway_part(state, restarting=controller.running)
    bases = dict.fromkeys(record.get("base_name") for record in read_records(state).values())
    # What goes down is not asked for any more.
    url = url_of(settings.host, settings.port) if settings else read_json(state / "gateway.json").get("url")
    base = ", ".join(filter(None, bases)) or None
    return Status(home, url, base, controller, engines.get(FIRST, Part("down")), gateway, engines)


def controller_part(state: Path) -> Part:
    """The controller, which is known by its process alone."""
    controller, details = recorded(state / "controller.json"), read_json(state / "controller.json")
    if controller is not None:
        return Part(STOPPING if details.get(STOPPING) else "running", controller.pid)
    gone = details.get("pid")
    return Part("down", None, f"process {gone} is gone" if gone else "")


def engine_part(path: Path) -> Part:
    """The engine of a record as its supervisor last saw it, checked against the process and its health route."""
    details = read_json(path)
    if not details:
        return Part("down")
    engine = recorded(path)
    pid = engine.pid if engine is not None else None
    known, restarts = str(details.get("state", "down")), int(details.get("restarts", 0))
    notes = [f"restarted {restarts} ×"] if restarts else []
    if details.get("last_exit") is not None:
        notes.append(f"last one {ending(int(details['last_exit']))}")
    if details.get("attached"):
        notes.append(f"attached to {bare(str(details['url']))}")
        notes += filter(None, [details.get("warning")])
    elif pid is None and known in ("ready", "starting"):
        known = "down"
    if known == "ready":
        paths = ("/health", "/v1/models") if details.get("kind") == OPENAI else ("/health",)
        address = address_in(path, details)
        known = "running" if any(answers(address + each) for each in paths) else SILENT
    return Part({"backoff": "restarting"}.get(known, known), pid, "; ".join(notes))


def gateway_part(state: Path, *, restarting: bool) -> Part:
    """The gateway's process and whether it answers."""
    gateway = recorded(state / "gateway.json")
    details, past = read_json(state / "gateway.json"), read_json(state / "gateway-exit.json")
    note = f"last one {past['reason']} {time.time() - float(past['at']):.0f} s ago" if past else ""
    if gateway is None:
        gone = f"process {details['pid']} is gone" if "pid" in details else ""
        return Part("restarting" if restarting else "down", None, note or gone)
    return Part("running" if answers(f"{details['url']}/healthz") else SILENT, gateway.pid, note)


def adapters_of(settings: Settings) -> list[dict[str, Any]]:
    """Every version that an engine was asked to hold, with its state there and the aliases that mean it."""
    if settings.database_url is None and not settings.database.exists():
        return []
    with Registry.of(settings) as registry:
        aliases = registry.aliases()
        return [
            {
                "version": str(row.ref),
                "aliases": [alias.name for alias in aliases if row.ref in alias.refs],
                "engine": row.engine,
                "state": row.state,
                "reason": row.reason,
            }
            for row in registry.loaded()
        ]


def require_up(home: Path) -> Status:
    """The status of a stack that answers, within 20 seconds where its parts live, else raise :class:`NotUp`."""
    deadline = time.monotonic() + SILENT_PATIENCE
    while True:
        now = processes(home)
        engines = now.engines.values()
        if any(part.running for part in engines) and now.gateway.running:
            return now
        if not any(part.state == SILENT for part in (*engines, now.gateway)):
            raise NotUp(
                f"the stack of {home} does not run", "start it with `tenon up --detach`, see `tenon status`"
            )
        if time.monotonic() > deadline:
            raise NotUp(
                f"the stack of {home} runs and does not answer",
                f"see `tenon status` and the logs in {home / 'logs'}",
            )
        time.sleep(0.25)
