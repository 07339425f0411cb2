"""``python -m evalsuite.load.slots``: how long requests wait for a slot, by simulation.

Many adapters share few slots, some are asked far more often than others (Zipf), and three policies admit the same
requests: ours; vLLM's own, which passes over whoever does not fit and has no guard against starvation; and strict
order of arrival, where whoever does not fit blocks all behind. No engine runs: an answer takes a time that is
drawn beforehand, as long as no more requests run than the engine can batch. So the numbers compare policies
and promise no latency.
"""

import argparse
import heapq
import itertools
import json
import math
import random
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from rich.console import Console
from rich.table import Table

from evalsuite.load.verdict import quantile
from serve.gateway.balance.slots import Limits, Request, Slots, State

TICK = 0.1


@dataclass(frozen=True)
class Arrival:
    """A request that comes at ``at`` (s) and, once admitted, runs for ``seconds`` on ``tokens``."""

    number: int
    at: float
    adapter: str
    tokens: int
    seconds: float


@dataclass(frozen=True)
class Load:
    """Poisson arrivals at ``rate`` per second; adapter k of ``adapters`` has a share of 1/k**``skew``.

    Prompts and answers have log-normal lengths, here with medians of 200 and 150 tokens; a token of the answer
    takes ``token_seconds``.
    """

    adapters: int = 16
    rate: float = 12.0
    skew: float = 1.0
    seconds: float = 600.0
    token_seconds: float = 0.012
    seed: int = 1

    def arrivals(self) -> list[Arrival]:
        """The requests, in order of time."""
        draw = random.Random(self.seed)
        names = [f"a{number:02}" for number in range(1, self.adapters + 1)]
        shares = [1 / number**self.skew for number in range(1, self.adapters + 1)]
        found: list[Arrival] = []
        at = draw.expovariate(self.rate)
        while at < self.seconds:
            prompt = int(draw.lognormvariate(math.log(200), 0.8)) + 1
            answer = int(draw.lognormvariate(math.log(150), 0.6)) + 1
            seconds = 0.05 + answer * self.token_seconds
            [adapter] = draw.choices(names, shares)
            found.append(Arrival(len(found), at, adapter, prompt + answer, seconds))
            at += draw.expovariate(self.rate)
        return found


class Policy(Protocol):
    """Admits requests; ``admitted`` is called with each, at the time when it may run."""

    admitted: Callable[[Arrival], None]

    def arrive(self, arrival: Arrival) -> None: ...  # noqa: D102

    def finish(self, arrival: Arrival) -> None: ...  # noqa: D102

    def tick(self) -> None: ...  # noqa: D102


class Ordered:
    """Order of arrival; ``skips``: whoever does not fit is passed over, as vLLM does, or blocks, if not."""

    def __init__(self, limits: Limits, *, skips: bool) -> None:
        self.admitted: Callable[[Arrival], None] = lambda arrival: None
        self._limits = limits
        self._skips = skips
        self._waiting: list[Arrival] = []
        self._running: Counter[str] = Counter()

    def arrive(self, arrival: Arrival) -> None:
        """Queue a request, and admit what fits."""
        self._waiting.append(arrival)
        self.tick()

    def finish(self, arrival: Arrival) -> None:
        """A request has ended; admit what fits now."""
        self._running[arrival.adapter] -= 1
        self._running += Counter()  # drops what has come to zero
        self.tick()

    def tick(self) -> None:
        """Admit what fits."""
        left: list[Arrival] = []
        for place, arrival in enumerate(self._waiting):
            known = arrival.adapter in self._running or len(self._running) < self._limits.slots
            if known and self._running.total() < self._limits.running:
                self._running[arrival.adapter] += 1
                self.admitted(arrival)
                continue
            left.append(arrival)
            if not self._skips:
                left += self._waiting[place + 1 :]
                break
        self._waiting = left


class Guarded:
    """Our scheduler."""

    def __init__(self, limits: Limits, clock: Callable[[], float]) -> None:
        self.admitted: Callable[[Arrival], None] = lambda arrival: None
        self._slots = Slots(limits, clock)
        self._requests: dict[int, Request] = {}

    def arrive(self, arrival: Arrival) -> None:
        """Submit a request."""

        def wake() -> None:
            self.admitted(arrival)

        request = self._slots.submit(arrival.adapter, arrival.tokens, wake)
        self._requests[arrival.number] = request

    def finish(self, arrival: Arrival) -> None:
        """A request has ended."""
        request = self._requests.pop(arrival.number)
        assert request.state is State.RUNNING
        self._slots.end(request)

    def tick(self) -> None:
        """Let time pass."""
        self._slots.tick()


class Clock:
    """The time of a simulation."""

    now = 0.0

    def __call__(self) -> float:
        """Seconds since its start."""
        return self.now


def simulate(arrivals: Sequence[Arrival], policy: Policy, clock: Clock) -> dict[int, float]:
    """Seconds that each request waited, by its number; all are served in the end."""
    waited: dict[int, float] = {}
    numbers = itertools.count()
    events: list[tuple[float, int, Callable[[], None]]] = []

    def at(time: float, act: Callable[[], None]) -> None:
        heapq.heappush(events, (time, next(numbers), act))

    def admitted(arrival: Arrival) -> None:
        waited[arrival.number] = clock.now - arrival.at
        at(clock.now + arrival.seconds, lambda: policy.finish(arrival))

    def tick() -> None:
        policy.tick()
        if len(waited) < len(arrivals):
            at(clock.now + TICK, tick)

    policy.admitted = admitted
    for arrival in arrivals:
        at(arrival.at, lambda arrival=arrival: policy.arrive(arrival))  # type: ignore[misc]
    at(TICK, tick)
    while events:
        clock.now, _, act = heapq.heappop(events)
        act()
    return waited


@dataclass(frozen=True)
class Waits:
    """Seconds of waiting under one policy; ``worst`` is the highest of the adapters' own 99th percentiles."""

    policy: str
    mean: float
    p50: float
    p99: float
    longest: float
    worst: float


def summarise(policy: str, arrivals: Sequence[Arrival], waited: dict[int, float]) -> Waits:
    """Percentiles over all requests, and of the adapter that fares worst."""
    everyone = sorted(waited.values())
    own = defaultdict(list)
    for arrival in arrivals:
        own[arrival.adapter].append(waited[arrival.number])
    worst = max(quantile(sorted(times), 0.99) for times in own.values())
    mean = sum(everyone) / len(everyone)
    return Waits(policy, mean, quantile(everyone, 0.5), quantile(everyone, 0.99), everyone[-1], worst)


def compare(load: Load, limits: Limits) -> list[Waits]:
    """The three policies on the same requests."""
    arrivals = load.arrivals()
    clock = Clock()
    policies: dict[str, Policy] = {
        "ours": Guarded(limits, clock),
        "vLLM's, no guard": Ordered(limits, skips=True),
        "strict order": Ordered(limits, skips=False),
    }
    found = []
    for name, policy in policies.items():
        clock.now = 0.0
        found.append(summarise(name, arrivals, simulate(arrivals, policy, clock)))
    return found


def show(rows: Sequence[Waits]) -> Table:
    """Seconds, one line per policy."""
    table = Table(box=None, pad_edge=False, header_style="dim")
    table.add_column("policy")
    for column in ("mean", "p50", "p99", "longest", "p99 of the worst adapter"):
        table.add_column(column, justify="right")
    for row in rows:
        numbers = (row.mean, row.p50, row.p99, row.longest, row.worst)
        table.add_row(row.policy, *(f"{number:.2f}" for number in numbers))
    return table


def main() -> None:
    """Simulate and print."""
    parser = argparse.ArgumentParser(prog="python -m evalsuite.load.slots", description=__doc__)
    parser.add_argument("--adapters", type=int, default=Load.adapters, help="adapters that are asked")
    parser.add_argument("--slots", type=int, default=4, help="adapters that the engine computes at once")
    parser.add_argument("--running", type=int, default=128, help="requests that it computes at once")
    parser.add_argument("--rate", type=float, default=Load.rate, help="requests per second")
    parser.add_argument("--skew", type=float, default=Load.skew, help="exponent of the Zipf distribution")
    parser.add_argument("--seconds", type=float, default=Load.seconds, help="length of the simulated time")
    parser.add_argument("--patience", type=float, default=Limits.patience, help="see Limits")
    parser.add_argument("--quantum", type=int, default=Limits.quantum, help="see Limits")
    parser.add_argument("--seed", type=int, default=Load.seed, help="of the arrivals")
    parser.add_argument("--json", action="store_true", help="print JSON")
    options = parser.parse_args()
    load = Load(
        options.adapters, options.rate, options.skew, options.seconds, Load.token_seconds, options.seed
    )
    endless = 10**9
    limits = Limits(
        options.slots, options.running, endless, endless, options.quantum, options.patience, math.inf
    )
    rows = compare(load, limits)
    console = Console(highlight=False)
    console.print_json(json.dumps([row.__dict__ for row in rows])) if options.json else console.print(
        show(rows)
    )


if __name__ == "__main__":
    main()
