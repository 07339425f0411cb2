"""One engine in the pool: what the route table says of it, and what is kept about it here."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from serve.gateway.balance.residency import Residency
from serve.gateway.balance.slots import Limits, Slots

LEAST_PATIENCE = 1.0
MOST_PATIENCE = 30.0
"""Seconds: shorter turns would spend the slots on draining, longer ones make clients give up."""
WEIGHT = 0.05
"""What one answer counts for in the usual time of an answer: some twenty answers are remembered."""


@dataclass(frozen=True)
class EngineInfo:
    """One engine as the route table knows it: ``adapters`` are the engine names that are ready on it.

    ``draining`` are those that it holds for requests that were routed while they were ready, and for no others.
    """

    name: str
    adapters: frozenset[str]
    limits: Limits
    draining: frozenset[str] = frozenset()

    def holds(self, adapter: str | None) -> bool:
        """Whether an adapter, or the base (None), is ready on it."""
        return adapter is None or adapter in self.adapters


class Member:
    """An engine in the pool, with what is kept about it here."""

    def __init__(self, info: EngineInfo, clock: Callable[[], float]) -> None:
        self.info = info
        self.slots = Slots(info.limits, clock)
        self.residency = Residency()
        self._usual = info.limits.patience  # seconds

    def learn(self, seconds: float) -> None:
        """An answer took so long: the patience follows the exponentially weighted mean of all answers."""
        self._usual += WEIGHT * (seconds - self._usual)
        self.slots.patience = min(max(self._usual, LEAST_PATIENCE), MOST_PATIENCE)

    @property
    def engaged(self) -> list[str]:
        """The adapters that requests are or may be sent to, the least recently used first."""
        busy = self.slots.adapters
        return [name for name in self.residency.order if name in self.info.adapters or name in busy]

    def status(self) -> dict[str, Any]:
        """How it does, for ``/api/status``."""
        return {
            "running": self.slots.running,
            "waiting": self.slots.waiting,
            "adapters_running": sorted(self.slots.holders),
            "adapters_draining": sorted(self.slots.draining),
            "patience": round(self.slots.patience, 3),
        }
