"""Whether a failed attempt may be made again: seldom, early, and never twice at the same time.

The budget follows Finagle's ``RetryBudget``: retries are a share of the requests, so that an outage does not
multiply the load that caused it. There is no hedging, as a second attempt beside a slow one doubles the work of
the GPU.
"""

import time
from collections.abc import Callable
from enum import Enum


class Outcome(Enum):
    """How an attempt ended, for the health of the engine and for trying again."""

    OK = "ok"
    REJECTED = "rejected"  # the client's mistake: the engine answered 4xx
    LOST = "lost"  # the engine is well, but does not hold the adapter
    REFUSED = "refused"  # no connection
    CUT = "cut"  # the connection broke after the request was sent, before anything of the answer came
    UNAVAILABLE = "unavailable"  # the engine answered 503
    FAILED = "failed"  # another 5xx, silence, or an answer that broke off
    UNKNOWN = "unknown"  # the client left, or nobody said

    @classmethod
    def of_status(cls, status: int) -> "Outcome":
        """The outcome for the HTTP status of an engine's answer."""
        if status < 400:
            return cls.OK
        if status < 500 or status == 501:
            return cls.REJECTED
        return cls.UNAVAILABLE if status == 503 else cls.FAILED

    @property
    def well(self) -> bool | None:
        """What it says of the engine: True, False, or None for nothing."""
        if self is Outcome.UNKNOWN:
            return None
        return self in (Outcome.OK, Outcome.REJECTED, Outcome.LOST)

    @property
    def retryable(self) -> bool:
        """Whether the engine did not do the work, as far as one can know."""
        return self in (Outcome.REFUSED, Outcome.UNAVAILABLE, Outcome.LOST, Outcome.CUT)


class RetryBudget:
    """A bucket of tokens, one per retry; each request puts in ``share``, or ``per_second`` × the time since the last.

    The larger of both counts, so that few requests can still be retried: over any time, retries are at most
    ``burst + Σ max(share, per_second × gap)``, which for steady traffic of r requests/s is
    ``burst + seconds × max(share × r, per_second)``. ``burst`` is what the bucket holds, and holds at first.
    With ``per_second`` 0, attempts are at most ``burst + (1 + share) × requests``. ``burst`` is 1 at least. O(1).
    """

    def __init__(
        self,
        share: float = 0.2,
        per_second: float = 3.0,
        burst: float = 10.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._share = share
        self._per_second = per_second
        self._burst = max(1.0, burst)
        self._clock = clock
        self._balance = self._burst
        self._request = clock()  # when the last request came
        self._given = 0.0  # what time alone has put in since then

    def deposit(self) -> None:
        """A request came, not a retry."""
        now = self._clock()
        due = max(self._share, self._per_second * (now - self._request))
        self._add(max(0.0, due - self._given))
        self._request, self._given = now, 0.0

    def withdraw(self) -> bool:
        """Whether one retry may be made now; if so, it is paid."""
        grown = self._per_second * (self._clock() - self._request)
        self._add(max(0.0, grown - self._given))
        self._given = max(grown, self._given)
        if self._balance < 1.0:
            return False
        self._balance -= 1.0
        return True

    def _add(self, tokens: float) -> None:
        self._balance = min(self._burst, self._balance + tokens)


class Attempts:
    """The attempts of one request: ``tried`` are engines that failed it.

    After two engines that broke off there is no third: the request may be what ended them.
    """

    MOST = 3
    """Attempts in all: two dead engines that nobody has ejected yet do not fail a request."""

    def __init__(self, budget: RetryBudget) -> None:
        self.tried: frozenset[str] = frozenset()
        self._budget = budget
        self._made = 0
        self._cut = 0
        budget.deposit()

    def again(self, engine: str, outcome: Outcome, *, begun: bool) -> bool:
        """Whether to try again after ``engine`` gave ``outcome``; ``begun``: the client has got a byte already."""
        self._made += 1
        self.tried |= {engine}
        self._cut += outcome is Outcome.CUT
        if begun or not outcome.retryable or self._made >= self.MOST or self._cut > 1:
            return False
        return self._budget.withdraw()
