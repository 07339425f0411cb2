"""How much of an engine's time each request had: while n requests run there, each has 1/n of every second.

The shares of all requests so add up to the time in which the engine had anything to do. One integral of 1/n per
engine is enough: a request's share is how far it got between the request's beginning and its end, O(1) for each.
"""

import time
from collections.abc import Callable
from types import TracebackType
from typing import Self


class EngineClock:
    """One engine: ``running`` requests, and the integral of 1/running over time, in seconds."""

    __slots__ = ("_integral", "_seen", "running")

    def __init__(self) -> None:
        self.running = 0
        self._integral = 0.0
        self._seen = 0.0

    def move(self, now: float, change: int) -> float:
        """Let time pass until ``now``, then let ``change`` more requests run; returns the integral."""
        if self.running:
            self._integral += (now - self._seen) / self.running
        self._seen = now
        self.running += change
        return self._integral


class Meter:
    """The clocks of all engines, by their names; an engine without requests has none."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self.now = clock
        self.clocks: dict[str, EngineClock] = {}

    def share(self, engine: str) -> "Share":
        """One request to an engine, which runs there while the block runs; to be entered with ``with``."""
        return Share(self, engine)


class Share:
    """One request's share of its engine's time: ``seconds``, once it has ended."""

    __slots__ = ("_began", "_clock", "_engine", "_meter", "seconds")

    def __init__(self, meter: Meter, engine: str) -> None:
        self._meter = meter
        self._engine = engine
        self.seconds = 0.0

    def __enter__(self) -> Self:
        clocks = self._meter.clocks
        self._clock = clocks.get(self._engine) or clocks.setdefault(self._engine, EngineClock())
        self._began = self._clock.move(self._meter.now(), 1)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.seconds += self._clock.move(self._meter.now(), -1) - self._began
        if not self._clock.running:
            self._meter.clocks.pop(self._engine, None)
