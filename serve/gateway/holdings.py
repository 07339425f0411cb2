"""What the engines hold, version by version, where several hold the same."""

from collections.abc import Iterable, Mapping
from typing import Any

from serve.gateway.routes import EngineView
from serve.registry import LoadState
from serve.registry.records import RANKS


class Holdings:
    """The load states of the registry (``rows``) beside the engines that the gateway knows.

    Versions are known by their public names.
    """

    def __init__(self, rows: Iterable[LoadState], engines: Mapping[str, EngineView]) -> None:
        self._engines = engines
        self._rows: dict[str, list[LoadState]] = {}
        for row in rows:
            self._rows.setdefault(str(row.ref), []).append(row)
        for found in self._rows.values():
            found.sort(key=lambda row: (row.engine not in engines, RANKS.index(row.state), row.engine))

    @property
    def names(self) -> set[str]:
        """The versions that any engine was asked to hold."""
        return set(self._rows)

    def state(self, name: str) -> str:
        """The best state that a version is in: ``ready`` if one engine has it so; ``absent`` if none has it."""
        rows = self._rows.get(name)
        return rows[0].state if rows else "absent"

    def reason(self, name: str, desired: bool) -> str:
        """Why a version that is not ready cannot answer; ``desired``: somebody wants it."""
        state = self.state(name)
        if state == "absent":
            return "is not loaded yet" if desired else "is registered, but not deployed"
        return "could not be loaded; see tenon status" if state == "failed" else f"is {state}"

    def load_seconds(self, name: str) -> float | None:
        """The longest time that one of the engines that hold a version took to load it."""
        times = [row.load_seconds for row in self._ready(name) if row.load_seconds is not None]
        return max(times, default=None)

    def base(self, name: str, usual: str) -> str:
        """The base by whose engines a ready version is answered: ``usual`` if one of those holds it."""
        views = [self._engines[row.engine] for row in self._ready(name) if row.engine in self._engines]
        views.sort(key=lambda view: (not view.usable, view.base_name != usual, view.base_name))
        return views[0].base_name if views else usual

    def held(self, engine_names: Mapping[str, str]) -> dict[str, frozenset[str]]:
        """What each engine has ready, of versions whose names there are given."""
        held: dict[str, set[str]] = {}
        for name, engine_name in engine_names.items():
            for row in self._ready(name):
                held.setdefault(row.engine, set()).add(engine_name)
        return {engine: frozenset(names) for engine, names in held.items()}

    @property
    def draining(self) -> dict[str, frozenset[str]]:
        """The engine names that each engine keeps only for requests that were routed to them before."""
        found: dict[str, set[str]] = {}
        for rows in self._rows.values():
            for row in rows:
                if row.state == "draining":
                    found.setdefault(row.engine, set()).add(row.engine_name)
        return {engine: frozenset(names) for engine, names in found.items()}

    def to_json(self, name: str) -> dict[str, Any]:
        """What ``/api/status`` tells of a version: its state, and that on each engine."""
        rows = self._rows.get(name, [])
        return {
            "state": self.state(name),
            "reason": rows[0].reason if rows else None,
            "load_seconds": rows[0].load_seconds if rows else None,
            "engines": {
                row.engine: {"state": row.state, "reason": row.reason, "load_seconds": row.load_seconds}
                for row in rows
            },
        }

    def _ready(self, name: str) -> list[LoadState]:
        return [row for row in self._rows.get(name, ()) if row.state == "ready"]
