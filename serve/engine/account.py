"""What the registry is told of one engine beside its adapters' progress: that it is up, or that nothing is loaded."""

import asyncio

from serve.engine.state import EngineState
from serve.engine.trouble import Troubles
from serve.errors import StorageError
from serve.registry.registry import Registry

REGISTRY = "reading and writing the registry"
"""What its troubles are called."""


class Account:
    """Speaks of the engine ``engine_id``; ``announced``: gateways of other machines may ask it."""

    def __init__(self, registry: Registry, engine_id: str, troubles: Troubles, *, announced: bool) -> None:
        self._registry = registry
        self._engine_id = engine_id
        self._troubles = troubles
        self._announced = announced

    async def announce(self, state: EngineState) -> None:
        """Tell gateways of other machines where the engine is and how; raises StorageError."""
        if self._announced:
            said = (state.url or "", state.base_name or "", state.state, state.error)
            await asyncio.to_thread(self._registry.see_engine, self._engine_id, *said)

    async def mark_pending(self, state: EngineState) -> None:
        """Say that nothing is loaded and that the engine is down, as far as the registry can be written."""
        try:
            await asyncio.to_thread(self._write_pending)
            await self.announce(state.but(state="down"))
        except StorageError as error:
            self._troubles.note(REGISTRY, error)

    def _write_pending(self) -> None:
        rows = {str(row.ref): row for row in self._registry.loaded(self._engine_id)}
        states = {
            ref: ("failed", row.reason) if row.state == "failed" else ("pending", "")
            for ref, row in rows.items()
        }
        self._registry.set_loaded(self._engine_id, states)
