"""Asks the running stack to hold a version, waits until it answers as itself, and moves aliases."""

import time
from collections.abc import Callable, Mapping
from typing import Any

from serve.registry import Alias, EvaluationRecord, Registry, Version

from deploy.stack import get_json, require_up
from serve.config import Settings
from serve.errors import AdapterLoadFailed, EngineUnavailable, GateRefused
from serve.names import VersionRef, check_name

LOAD_TIMEOUT = 300.0  # seconds, an engine that restarts meanwhile included
ROUTE_TIMEOUT = 10.0  # seconds for the gateway to route by a change of the registry
POLL = 0.05


def load(registry: Registry, settings: Settings, ref: VersionRef, say: Callable[[str], None]) -> float:
    """Have the engine load a version and wait until a probe saw it answer as itself; returns seconds.

    Raises :class:`NotUp`, :class:`AdapterLoadFailed` with the engine's own words, or
    :class:`EngineUnavailable` when it takes too long.
    """
    require_up(settings.home)
    started = time.monotonic()
    registry.want(ref)
    while time.monotonic() - started < LOAD_TIMEOUT:
        states = [row for row in registry.loaded() if row.ref == ref]
        if states and all(row.state == "ready" for row in states):
            wait_for_routes(registry, settings)
            return time.monotonic() - started
        for row in states:
            if row.state == "failed":
                registry.unwant(ref)
                raise AdapterLoadFailed(
                    f"the engine does not serve {ref}: {row.reason}",
                    "see `tenon status` and the engine's log",
                )
        say(f"{ref} is {states[0].state}" if states else f"{ref} is pending")
        time.sleep(POLL)
    raise EngineUnavailable(
        f"{ref} was not loaded after {LOAD_TIMEOUT:.0f} s", "see `tenon status` and the engine's log"
    )


def wait_for_routes(registry: Registry, settings: Settings) -> None:
    """Wait until the gateway routes by what the registry says now."""
    revision = registry.revision()
    url = require_up(settings.home).url
    deadline = time.monotonic() + ROUTE_TIMEOUT
    while int(get_json(f"{url}/healthz").get("revision", -1)) < revision:
        if time.monotonic() > deadline:
            raise EngineUnavailable(
                f"the gateway at {url} does not follow the registry",
                "see `tenon status` and the gateway's log",
            )
        time.sleep(POLL)


def move_alias(
    registry: Registry,
    settings: Settings,
    name: str,
    version: Version,
    *,
    sampling: Mapping[str, Any] | None = None,
    force: bool = False,
    say: Callable[[str], None],
) -> Alias:
    """Point the alias ``name`` at a version that is loaded and was proven better; returns the alias.

    Unless its last evaluation passed the gate, raises :class:`GateRefused`, unless ``force``, which is recorded.
    """
    check_name(name)
    record = latest_evaluation(registry, version)
    allowed = record is not None and bool(record.result.get("gate", {}).get("allowed"))
    if not allowed and not force:
        raise GateRefused(
            f"{version.ref} may not answer users: {why_not(record)}",
            f"run `tenon eval {version.ref}`, or overrule the gate with --force (this is recorded)",
        )
    load(registry, settings, version.ref, say)
    verdict = record.verdict if record is not None else None
    alias = registry.set_alias(name, version.ref, sampling=sampling, verdict=verdict, forced=not allowed)
    registry.unwant(version.ref)
    wait_for_routes(registry, settings)
    return alias


def latest_evaluation(registry: Registry, version: Version) -> EvaluationRecord | None:
    """The latest evaluation of a version against its own base, or None where there is none."""
    records = [
        record for record in registry.evaluations(version.ref) if record.base_digest == version.base_digest
    ]
    return max(records, key=lambda record: record.created_at, default=None)


def why_not(record: EvaluationRecord | None) -> str:
    """What the gate said last."""
    if record is None:
        return "it has not been evaluated"
    return str(record.result.get("gate", {}).get("reason") or f"its verdict is {record.verdict}")
