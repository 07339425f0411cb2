"""What :mod:`~serve.gateway.balance.slots` keeps in order: requests, one flow of them per adapter, and
the limits, with the longest wait that follows from them.
"""

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum, auto

TURN = 2
"""How many times ``patience`` an adapter keeps its slot at least: with shorter turns the slots drain too often."""
TURN_IN_TIME = 1 / 4
"""The part of the time limit that a turn may take where answers take so long that it would be more."""


@dataclass(frozen=True)
class Limits:
    """What one engine can do at once, and how patient we are.

    ``slots`` is vLLM's ``--max-loras``, ``running`` its ``--max-num-seqs`` (requests that run at once),
    ``waiting`` and ``waiting_per_adapter`` count requests, ``timeout`` is how long one may wait in seconds.
    ``quantum`` is in tokens: what an adapter may admit in one visit. A request is charged for one quantum at
    most, so shares are exact when the quantum is no less than the longest request. ``patience`` is in seconds:
    how long an adapter waits for a slot before another must give one up, and half of the least turn. About the
    time of a usual answer is best: much shorter turns spend the slots on draining, much longer ones make others wait.
    An engine begins with it; in a pool it then follows the time of the answers.
    """

    slots: int
    running: int = 256
    waiting: int = 1024
    waiting_per_adapter: int = 256
    quantum: int = 8192
    patience: float = 3.0
    timeout: float = 60.0

    def __post_init__(self) -> None:
        for name in ("slots", "running", "waiting", "waiting_per_adapter", "quantum"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be 1 at least, not {getattr(self, name)}")
        if self.patience < 0 or self.timeout <= 0:
            raise ValueError("patience must not be negative, and timeout must be above 0")

    def least_turn(self, patience: float) -> float:
        """Seconds for which an adapter keeps its slot at least."""
        return max(patience, min(TURN * patience, TURN_IN_TIME * self.timeout))


class State(Enum):
    """Where a request stands; the last three are final."""

    WAITING = auto()
    RUNNING = auto()
    EXPIRED = auto()  # waited too long
    DISPLACED = auto()  # must look for another engine
    ENDED = auto()


@dataclass(eq=False, slots=True)
class Request:
    """One request of ``adapter`` (None: the base) for ``cost`` tokens, which has waited since ``since``.

    ``wake`` is called when it stops waiting, but not by whoever ends it; it must not call back.
    """

    adapter: str | None
    cost: int
    since: float
    deadline: float
    wake: Callable[[], None] | None = None
    state: State = State.WAITING

    def move(self, state: State) -> None:
        """Stop waiting, and tell whoever waits for that."""
        self.state = state
        if self.wake is not None:
            self.wake()


@dataclass(eq=False, slots=True)
class Flow:
    """The requests of one adapter, or of the base.

    ``queue`` are those that wait, oldest first; any of them can leave in O(1). ``credit`` are tokens that it may
    still admit, always less than two quanta. ``turn`` is when it got its slot, ``service`` the tokens admitted
    since, ``owed`` how many of those that waited then still do; ``since`` is when it began to wait for a slot.
    """

    adapter: str | None
    queue: "OrderedDict[Request, None]" = field(default_factory=OrderedDict)
    running: int = 0
    credit: int = 0
    turn: float = 0.0
    service: int = 0
    owed: int = 0
    since: float = 0.0

    @property
    def head(self) -> Request:
        """The request that is next; there must be one."""
        return next(iter(self.queue))


def longest_wait(
    limits: Limits,
    *,
    adapters: int,
    request_seconds: float,
    tick_seconds: float,
    cheapest: int = 1,
    dearest: int | None = None,
) -> float:
    """Seconds after which a request is admitted at the latest, if nothing runs for longer than ``request_seconds``.

    ``adapters`` is how many compete, ``cheapest`` and ``dearest`` the least and the most tokens of a request (at
    most a quantum), ``tick_seconds`` the time between ticks.

    A queue of a holder or of the base is admitted within ``use``: deficit round robin meanwhile gives each of
    the others as many tokens and two quanta at most, and while ``running`` requests run, as many end in every
    ``request_seconds``. A slot so changes hands in each ``cycle``: a turn or ``use``, then draining. The line is
    first in first out, and with ``slots`` changes in each cycle its last one gets a slot after
    ``ceil(adapters / slots)`` of them, and is then admitted within ``use``. Who came too late for the turn that
    its adapter has now waits a ``cycle`` before that.
    """
    queue = limits.waiting_per_adapter
    tokens = queue * min(dearest or limits.quantum, limits.quantum) + 2 * limits.quantum
    requests = queue + limits.slots * tokens / cheapest
    use = request_seconds * math.ceil(requests / limits.running)
    cycle = max(limits.least_turn(limits.patience), use) + request_seconds + 2 * tick_seconds
    return cycle + math.ceil(adapters / limits.slots) * cycle + use
