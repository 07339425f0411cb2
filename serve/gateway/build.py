"""Builds the route table from what the registry and the engine's record say."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve.errors import InputError
from serve.gateway.metrics import AdapterState, Metrics
from serve.gateway.policy import NO_POLICY, PARTS, SamplingPolicy
from serve.gateway.routes import EngineView, Route, RouteTable
from serve.registry import Alias, LoadState, Registry, Version

logger = logging.getLogger(__name__)


def build_table(registry: Registry, engine: EngineView | None, metrics: Metrics) -> RouteTable:
    """Read the registry and say what every public name means; raises StorageError.

    The series of versions that are neither wanted nor loaded any more are dropped from ``metrics``. The
    base's name wins over an alias of the same name, so that nobody who asks for the base gets an adapter.
    """
    revision = registry.revision()  # first, as the table is then at least as new as it says
    aliases = registry.aliases()
    versions = {str(version.ref): version for version in registry.versions()}
    loaded = {str(state.ref): state for state in registry.loaded()}
    desired = {str(version.ref) for version in registry.desired()}

    _keep_series(metrics, engine, [versions[name] for name in (desired | loaded.keys()) & versions.keys()])
    ready = [
        version for name, version in versions.items() if name in loaded and loaded[name].state == "ready"
    ]
    routes = {str(version.ref): _route(version, metrics) for version in ready}
    waiting = {name: _reason(loaded.get(name), name in desired) for name in versions.keys() - routes.keys()}
    for alias in aliases:
        target = str(alias.target.ref)
        if target in routes:
            policy = _policy(alias)
            if policy is None:
                waiting[alias.name] = "its sampling policy cannot be read; set it again with tenon deploy"
            else:
                routes[alias.name] = replace(routes[target], policy=policy)
        else:
            waiting[alias.name] = f"{target} {waiting.get(target, 'is not registered')}"
    if engine is not None:
        base = engine.base_name
        waiting.pop(base, None)
        routes[base] = Route(base, base, metrics.meters(base, base))
    metrics.show(_adapter_state(version, loaded[str(version.ref)]) for version in ready)
    models, status = _cards(engine, aliases, ready), _status(engine, aliases, versions, loaded)
    status |= {"revision": revision, "routes": {name: route.public_name for name, route in routes.items()}}
    return RouteTable(revision, engine, routes, waiting, models, status)


def _keep_series(metrics: Metrics, engine: EngineView | None, versions: Sequence[Version]) -> None:
    kept = {(version.ref.name, str(version.ref)) for version in versions}
    if engine is not None:
        kept.add((engine.base_name, engine.base_name))
    metrics.keep(kept)


def _route(version: Version, metrics: Metrics) -> Route:
    name = str(version.ref)
    return Route(name, version.engine_name, metrics.meters(version.ref.name, name))


def _adapter_state(version: Version, state: LoadState) -> AdapterState:
    return AdapterState(version.ref.name, str(version.ref), version.digest, state.load_seconds)


def _reason(state: LoadState | None, desired: bool) -> str:
    if state is None:
        return "is not loaded yet" if desired else "is registered, but not deployed"
    return "could not be loaded; see tenon status" if state.state == "failed" else f"is {state.state}"


def _policy(alias: Alias) -> SamplingPolicy | None:
    """The policy of an alias; None if its limits cannot be read, as it must not answer without them."""
    try:
        return SamplingPolicy.parse(alias.sampling)
    except InputError as error:
        logger.error("alias %s: its sampling policy cannot be read: %s", alias.name, error.message)
        return None if any(part in alias.sampling for part in PARTS) else NO_POLICY


def _cards(
    engine: EngineView | None, aliases: Sequence[Alias], ready: Sequence[Version]
) -> dict[str, dict[str, Any]]:
    """The entries of ``/v1/models``: the base, then aliases, then pinned versions, each by name."""

    def card(name: str, created: float, version: Version | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int(created),
            "owned_by": "tenon",
            "parent": version.base_name if version else None,
            "version": str(version.ref) if version else None,
            "digest": version.digest if version else None,
        }

    cards = {}
    if engine is not None:
        cards[engine.base_name] = card(engine.base_name, engine.record.get("since") or 0, None)
    for alias in sorted(aliases, key=lambda alias: alias.name):
        cards.setdefault(alias.name, card(alias.name, alias.changed_at.timestamp(), alias.target))
    for version in sorted(ready, key=lambda version: version.ref):
        cards.setdefault(str(version.ref), card(str(version.ref), version.created_at.timestamp(), version))
    return cards


def _status(
    engine: EngineView | None,
    aliases: Sequence[Alias],
    versions: Mapping[str, Version],
    loaded: Mapping[str, LoadState],
) -> dict[str, Any]:
    """What ``/api/status`` tells of routes, versions and the engine."""

    def version_row(name: str, version: Version) -> dict[str, Any]:
        state = loaded.get(name)
        return {
            "name": name,
            "digest": version.digest,
            "base": version.base_name,
            "engine_name": version.engine_name,
            "state": state.state if state else "absent",
            "reason": state.reason if state else None,
            "load_seconds": state.load_seconds if state else None,
        }

    return {
        "engine": dict(engine.record) if engine else None,
        "aliases": [
            {
                "name": alias.name,
                "target": str(alias.target.ref),
                "previous": str(alias.previous) if alias.previous else None,
                "sampling": dict(alias.sampling),
                "verdict": alias.verdict,
                "forced": alias.forced,
                "changed_at": alias.changed_at,
            }
            for alias in aliases
        ],
        "versions": [version_row(name, version) for name, version in versions.items()],
    }
