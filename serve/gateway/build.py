"""Builds the route table from what the registry and the engines' records say."""

import logging
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from serve.errors import InputError
from serve.gateway.fine_tuned import FineTunedNames, fine_tuned_name
from serve.gateway.holdings import Holdings
from serve.gateway.metrics import AdapterState, Metrics
from serve.gateway.policy import NO_POLICY, PARTS, SamplingPolicy
from serve.gateway.routes import EngineView, Route, RouteTable
from serve.gateway.sides import Sides, weights_of
from serve.names import VERSION
from serve.registry import Alias, Registry, Version

logger = logging.getLogger(__name__)

Engines = Mapping[str, EngineView]
UNREADABLE = "the sampling policy of its alias cannot be read; set it again with tenon deploy"


def build_table(registry: Registry, engines: Engines, metrics: Metrics) -> RouteTable:
    """Read the registry and say what every public name means; raises StorageError.

    The series of versions that are neither wanted nor loaded any more are dropped from ``metrics``. The
    base's name wins over an alias of the same name, so that nobody who asks for the base gets an adapter.
    """
    revision = registry.revision()  # first, as the table is then at least as new as it says
    aliases = registry.aliases()
    versions = {str(version.ref): version for version in registry.versions()}
    loaded = Holdings(registry.loaded(), engines)
    desired = {str(version.ref) for version in registry.desired()}

    _keep_series(metrics, engines, [versions[name] for name in (desired | loaded.names) & versions.keys()])
    ready = [version for name, version in versions.items() if loaded.state(name) == "ready"]
    routes = {str(version.ref): _route(version, loaded, metrics) for version in ready}
    waiting = {name: loaded.reason(name, name in desired) for name in versions.keys() - routes.keys()}
    sides: dict[str, Sides] = {}
    for alias in aliases:
        _add_alias(alias, routes, waiting, sides)
    for alias in aliases:
        _bind_versions(alias, routes, waiting)
    bases = {engine.base_name: None for engine in engines.values()}
    answered_by = {name: route.base for name, route in routes.items()}
    for base in bases:
        waiting.pop(base, None)
        sides.pop(base, None)
        routes[base] = Route(base, base, metrics.meters(base, base), base=base)
    taken = routes.keys() | waiting.keys() | {alias.name for alias in aliases}
    served = [route for view in engines.values() for route in _served(view, taken, metrics)]
    routes |= {route.public_name: route for route in served}
    metrics.show(_adapter_state(version, loaded) for version in ready)
    models, status = (
        _cards(engines, aliases, ready, loaded, served),
        _status(engines, aliases, versions, loaded),
    )
    status |= {"revision": revision, "routes": {name: route.public_name for name, route in routes.items()}}
    return RouteTable(
        revision,
        engines,
        routes,
        waiting,
        models,
        status,
        sides=sides,
        held={
            **loaded.held({str(version.ref): version.engine_name for version in ready}),
            **{name: frozenset(view.served.values()) for name, view in engines.items() if view.served},
        },
        draining=loaded.draining,
        pinned=_kept(aliases, versions),
        fine_tuned=FineTunedNames(
            {alias.name: alias for alias in aliases if alias.name not in bases}, versions, answered_by
        ),
    )


def _keep_series(metrics: Metrics, engines: Engines, versions: Sequence[Version]) -> None:
    kept = {(version.ref.name, str(version.ref)) for version in versions}
    kept |= {(name, name) for engine in engines.values() for name in (engine.base_name, *engine.served)}
    metrics.keep(kept)


def _add_alias(
    alias: Alias, routes: dict[str, Route], waiting: dict[str, str], sides: dict[str, Sides]
) -> None:
    """Say where an alias leads: while one of its versions is ready, it answers with those that are."""
    weights = weights_of(alias)
    ready = {name: routes[name] for name, weight in weights.items() if weight and name in routes}
    target = str(alias.target.ref)
    policy = _policy(alias)
    if not ready:
        waiting[alias.name] = f"{target} {waiting.get(target, 'is not registered')}"
    elif policy is None:
        waiting[alias.name] = UNREADABLE
    else:
        ready = {name: replace(route, policy=policy) for name, route in ready.items()}
        lead = target if target in ready else max(ready, key=weights.__getitem__)
        routes[alias.name] = ready[lead]
        if sum(weight > 0 for weight in weights.values()) > 1:
            sides[alias.name] = Sides(alias.name, weights, ready)


def _bind_versions(alias: Alias, routes: dict[str, Route], waiting: dict[str, str]) -> None:
    """Let the limits of an adapter's own alias hold for its versions: asking for one must not be a way around them."""
    policy = _policy(alias)
    for name, route in list(routes.items()):
        match = VERSION.fullmatch(name)
        if match is None or match["name"] != alias.name:
            continue
        if policy is None:
            waiting[name] = UNREADABLE
            del routes[name]
        elif policy.bounds:
            routes[name] = replace(route, policy=policy.bounds, lenient=True)


def _kept(aliases: Sequence[Alias], versions: Mapping[str, Version]) -> tuple[str, ...]:
    """Engine names of what answers now and of what a rollback returns to."""
    live = [version for alias in aliases for version, weight in alias.targets if weight]
    before = [versions[str(alias.way_back)] for alias in aliases if str(alias.way_back) in versions]
    return tuple(dict.fromkeys(version.engine_name for version in [*live, *before]))


def _route(version: Version, loaded: Holdings, metrics: Metrics) -> Route:
    name = str(version.ref)
    base = loaded.base(name, version.base_name)
    return Route(name, version.engine_name, metrics.meters(version.ref.name, name), base=base)


def _served(view: EngineView, taken: Collection[str], metrics: Metrics) -> Iterator[Route]:
    """The routes to what a server has that is only asked; of names that mean something already its base's alone."""
    for name, theirs in view.served.items():
        if name == view.base_name or name not in taken:
            yield Route(name, theirs, metrics.meters(name, name), base=view.base_name, salted=False)


def _adapter_state(version: Version, loaded: Holdings) -> AdapterState:
    name = str(version.ref)
    return AdapterState(version.ref.name, name, version.digest, loaded.load_seconds(name))


def _policy(alias: Alias) -> SamplingPolicy | None:
    """The policy of an alias; None if its limits cannot be read, as it must not answer without them."""
    try:
        return SamplingPolicy.parse(alias.sampling)
    except InputError as error:
        logger.error("alias %s: its sampling policy cannot be read: %s", alias.name, error.message)
        return None if any(part in alias.sampling for part in PARTS) else NO_POLICY


def _cards(
    engines: Engines,
    aliases: Sequence[Alias],
    ready: Sequence[Version],
    loaded: Holdings,
    served: Sequence[Route],
) -> dict[str, dict[str, Any]]:
    """The entries of ``/v1/models``: the bases, then aliases, pinned versions and what servers have besides, by name.

    A version's parent is its base under the name that engines serve it by, which is the id of the base's own entry.
    """
    bases = {view.record.get("base_digest"): view.base_name for view in engines.values()}

    def card(name: str, created: float, version: Version | None) -> dict[str, Any]:
        return {
            "id": name,
            "object": "model",
            "created": int(created),
            "owned_by": "tenon",
            "parent": parent(version) if version else None,
            "version": str(version.ref) if version else None,
            "digest": version.digest if version else None,
            "fine_tuned_model": fine_tuned_name(name, version, parent(version)) if version else None,
        }

    def parent(version: Version) -> str:
        return loaded.base(str(version.ref), bases.get(version.base_digest, version.base_name))

    cards: dict[str, dict[str, Any]] = {}
    for engine in engines.values():
        cards.setdefault(engine.base_name, card(engine.base_name, engine.record.get("since") or 0, None))
    for alias in sorted(aliases, key=lambda alias: alias.name):
        entry = card(alias.name, alias.changed_at.timestamp(), alias.target)
        if len(alias.targets) > 1:
            entry["versions"] = [
                {"version": version, "weight": weight} for version, weight in weights_of(alias).items()
            ]
        cards.setdefault(alias.name, entry)
    for version in sorted(ready, key=lambda version: version.ref):
        cards.setdefault(str(version.ref), card(str(version.ref), version.created_at.timestamp(), version))
    for route in sorted(served, key=lambda route: route.public_name):
        cards.setdefault(route.public_name, card(route.public_name, 0, None) | {"parent": route.base})
    return cards


def _status(
    engines: Engines,
    aliases: Sequence[Alias],
    versions: Mapping[str, Version],
    loaded: Holdings,
) -> dict[str, Any]:
    """What ``/api/status`` tells of routes, versions and the engines; ``engine`` is the first of them."""
    records = {name: dict(engine.record) for name, engine in engines.items()}
    return {
        "engine": next(iter(records.values()), None),
        "engines": records,
        "aliases": [
            {
                "name": alias.name,
                "target": str(alias.target.ref),
                "weights": weights_of(alias),
                "previous": str(alias.previous) if alias.previous else None,
                "sampling": dict(alias.sampling),
                "verdict": alias.verdict,
                "forced": alias.forced,
                "changed_at": alias.changed_at,
            }
            for alias in aliases
        ],
        "versions": [
            {
                "name": name,
                "digest": version.digest,
                "base": version.base_name,
                "engine_name": version.engine_name,
                **loaded.to_json(name),
            }
            for name, version in versions.items()
        ],
    }
