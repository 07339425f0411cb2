"""Which engines may be asked: passive ejection, return by a probe, and never an empty pool.

As Envoy's outlier detection: an engine that fails a number of times in a row is out at once, for a time that
grows with each ejection and shrinks with each sweep in which it did well. Unlike Envoy an engine returns only when
a probe, or a request that was sent to it after its ejection, has succeeded. Shares of ejected engines, as Envoy
caps them, mean little for a handful; instead the one that failed least recently is asked when all are out.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class HealthPolicy:
    """``failures`` in a row eject for ``first_ejection`` seconds, doubled each time up to ``last_ejection``."""

    failures: int = 5
    first_ejection: float = 30.0
    last_ejection: float = 300.0


@dataclass
class _Record:
    """``ejected`` and ``until`` are clock times; ``ejections`` is how often in short order."""

    failures: int = 0
    ejections: int = 0
    ejected: float | None = None
    until: float = 0.0
    last_failure: float = float("-inf")


class Health:
    """What requests and probes have shown of each engine; engines are known by name. Each call takes O(n)."""

    def __init__(
        self, policy: HealthPolicy | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy or HealthPolicy()
        self._clock = clock
        self._records: dict[str, _Record] = {}

    @property
    def ejected(self) -> frozenset[str]:
        """Engines that are out."""
        return frozenset(name for name, record in self._records.items() if record.ejected is not None)

    def keep(self, engines: Sequence[str]) -> None:
        """Forget all engines but these."""
        self._records = {name: self._records.get(name, _Record()) for name in engines}

    def available(self, engines: Sequence[str]) -> list[str]:
        """Those that may be asked, in the order given; of engines that are all out, the one that failed first.

        Empty only if ``engines`` is.
        """
        well = [name for name in engines if self._record(name).ejected is None]
        if well or not engines:
            return well
        return [min(engines, key=lambda name: self._record(name).last_failure)]

    def succeeded(self, engine: str, sent: float) -> bool:
        """A request that was sent at the time ``sent`` was answered; True if that returns the engine.

        A request that was sent before the ejection proves nothing: a long stream may outlive what broke.
        """
        record = self._record(engine)
        if record.ejected is None:
            record.failures = 0
            return False
        if sent < record.ejected:
            return False
        self._return(record)
        return True

    def failed(self, engine: str) -> bool:
        """A request to the engine failed through no fault of the client; True if that ejects it."""
        record = self._record(engine)
        record.failures += 1
        record.last_failure = self._clock()
        if record.ejected is not None or record.failures < self._policy.failures:
            return False
        self._eject(record)
        return True

    def sweep(self) -> list[str]:
        """To be called every ten seconds: the engines whose time is over, to be probed now.

        An engine that is in and has not failed since its last success is forgiven one ejection.
        """
        now = self._clock()
        for record in self._records.values():
            if record.ejected is None and record.failures == 0:
                record.ejections = max(0, record.ejections - 1)
        return [name for name in self.ejected if self._records[name].until <= now]

    def probed(self, engine: str, *, well: bool) -> None:
        """A probe of an ejected engine has shown that it does ``well``, or not, which ejects it for longer."""
        record = self._record(engine)
        if record.ejected is None:
            return
        if well:
            self._return(record)
        else:
            record.last_failure = self._clock()
            self._eject(record)

    def _eject(self, record: _Record) -> None:
        now = self._clock()
        seconds = self._policy.first_ejection * 2.0 ** min(record.ejections, 30)
        record.ejections += 1
        record.ejected = now
        record.until = now + min(seconds, self._policy.last_ejection)

    def _return(self, record: _Record) -> None:
        record.ejected = None
        record.failures = 0

    def _record(self, engine: str) -> _Record:
        return self._records.setdefault(engine, _Record())
