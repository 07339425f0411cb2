"""The engines behind the gateway: a pool for each base, and what requests have shown of each engine.

Everything here belongs to the event loop; what other threads ask (``ready``) only reads.
"""

import contextlib
import time
from collections.abc import AsyncIterator

from yarl import URL

from serve.engine.openai import client_of
from serve.errors import EngineUnavailable
from serve.gateway.balance.member import EngineInfo
from serve.gateway.balance.pool import EnginePool, time_passes
from serve.gateway.metrics import Metrics
from serve.gateway.routes import EMPTY, EngineView, RouteTable

UNREACHABLE_SECONDS = 5.0
"""How long an engine counts as down after a request could not reach it."""
PROBE_SECONDS = 5.0


class Engines:
    """The pools by base; ``update`` takes a new route table over."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics
        self._table: RouteTable = EMPTY
        self._pools: dict[str, EnginePool] = {}
        self._unreachable: dict[str, float] = {}

    def update(self, table: RouteTable) -> None:
        """Take over which engines there are, and what they hold."""
        for name, view in table.engines.items():
            if self._table.engines.get(name) is not view:
                self._unreachable.pop(name, None)  # somebody has looked since
        self._table = table
        for base in self._pools.keys() | table.bases.keys():
            if base not in self._pools:
                self._pools[base] = EnginePool(self._probe, ejected=self._ejected)
            views = [view for view in table.bases.get(base, ()) if view.usable]
            self._pools[base].update([self._info(view) for view in views], table.pinned)
        for base in self._pools.keys() - table.bases.keys():
            del self._pools[base]
        self._metrics.keep_engines(table.engines)

    def _info(self, view: EngineView) -> EngineInfo:
        held, draining = (
            names.get(view.name, frozenset()) for names in (self._table.held, self._table.draining)
        )
        return EngineInfo(view.name, held, view.limits, draining)

    def _ejected(self, engine: str) -> None:
        self._metrics.engine(engine).ejections.inc()

    async def _probe(self, engine: str) -> bool:
        view = self._table.engines.get(engine)
        if view is None:
            return False
        async with client_of(view.kind, view.url, health_timeout=PROBE_SECONDS) as client:
            return await client.health()

    def pool(self, base: str) -> EnginePool:
        """The pool of a base; raises EngineUnavailable for one that has gone in this moment."""
        try:
            return self._pools[base]
        except KeyError:
            raise EngineUnavailable("the engine has gone", "try again shortly") from None

    def address(self, engine: str, path: str) -> URL | None:
        """Where an engine answers ``path``; None for one that has gone in this moment."""
        view = self._table.engines.get(engine)
        return view.address(path) if view is not None and view.url else None

    def note_unreachable(self, engine: str) -> None:
        """Remember that a request could not reach an engine, before anybody else found out."""
        self._unreachable[engine] = time.monotonic() + UNREACHABLE_SECONDS

    def note_reached(self, engine: str) -> None:
        """Remember that a request reached an engine."""
        if self._unreachable:
            self._unreachable.pop(engine, None)

    @property
    def lacking(self) -> list[str]:
        """The bases that no engine answers for now: none is said to be ready that requests reach."""
        now = time.monotonic()
        return [
            base
            for base, views in self._table.bases.items()
            if not any(view.usable and now >= self._unreachable.get(view.name, 0.0) for view in views)
        ]

    @property
    def ready(self) -> bool:
        """Whether there are engines, and one at least of each base answers."""
        return bool(self._table.engines) and not self.lacking

    def used(self) -> dict[str, list[str]]:
        """The adapters of each engine that requests are or may be sent to, the least recently used first."""
        return {name: names for pool in self._pools.values() for name, names in pool.used().items()}

    def status(self) -> dict[str, dict[str, object]]:
        """The load and health of each engine that can be asked, by base, for ``/api/status``."""
        return {base: dict(pool.status()) for base, pool in self._pools.items()}

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Let time pass in all pools while the block runs."""
        async with time_passes(lambda: self._pools.values()):
            yield
