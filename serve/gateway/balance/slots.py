"""When an engine takes a request: never more adapters at once than it has slots for, and no adapter starves.

vLLM computes at most ``max_loras`` distinct adapters in one step and passes over waiting requests of others for
as long as those that run keep coming. So the requests wait here, one queue per adapter, first in first out, and
three rules say who goes next:

*Slots.* An adapter holds a slot while it has requests running. A free slot goes to the adapter that has waited
longest (``line``). Requests to the base need none.

*Capacity.* Among the adapters that hold slots, and the base, requests are taken by deficit round robin (Shreedhar
and Varghese, SIGCOMM 1995): each visit gives ``quantum`` tokens of credit, of which estimated tokens are paid;
what a backlogged queue leaves stays. At most ``running`` requests run, or else they would queue in the engine,
where nobody is fair to them.

*Turns.* When an adapter without a slot has waited for ``patience`` seconds, one that has held its slot for twice as
long, and has admitted all that waited when it got it, must drain: what runs ends, and nothing more is admitted. It is
the one with the most tokens in its turn, an alias's live version only if there is no other. This is SGLang's
``lora_drainer``, but for the victim: there it is the one with the least left to do, which a gateway cannot know.
No more drain than starve, and when fewer wait, those that drain go on: no slot is kept idle.

Turns are not limited in tokens, as what is scarce is slots: requests that run side by side take no longer than
the longest of them, and a limit would only make a busy adapter need more turns than there are
(``evalsuite.load.slots`` measures it). In the words of queueing theory this is gated polling.

How long anybody waits at most says :func:`longest_wait`. Each call takes O(slots) amortised, with O(log n) for
time limits; a tick takes O(slots) and O(log n) per request that has waited too long.
"""

import heapq
import itertools
import math
import time
from collections import OrderedDict
from collections.abc import Callable, Collection

from serve.errors import Overloaded
from serve.gateway.balance.flow import Flow, Limits, Request, State, longest_wait

__all__ = ["Limits", "Request", "Slots", "State", "longest_wait"]

LONGEST_RETRY_AFTER = 30
"""Seconds; a client that is told to stay away longer does not come back."""


class Slots:
    """Admission to one engine. ``pinned`` are adapters that drain last, the live versions of aliases.

    ``patience`` begins as that of the limits and may be changed at any time.

    Not to be called from several threads, nor from a request's ``wake``.
    """

    def __init__(self, limits: Limits, clock: Callable[[], float] = time.monotonic) -> None:
        self.limits = limits
        self.patience = limits.patience
        self.pinned: frozenset[str] = frozenset()
        self.running = 0
        self.waiting = 0
        self._clock = clock
        self._flows: dict[str | None, Flow] = {}
        self._holders: dict[Flow, None] = {}
        self._draining: dict[Flow, None] = {}
        self._line: OrderedDict[Flow, None] = OrderedDict()  # with requests, without a slot; oldest first
        self._round: OrderedDict[Flow, None] = OrderedDict()  # with requests that may be admitted
        self._deadlines: list[tuple[float, int, Request]] = []
        self._numbers = itertools.count()

    @property
    def load(self) -> int:
        """Requests that run or wait here."""
        return self.running + self.waiting

    @property
    def adapters(self) -> set[str]:
        """Adapters with requests that run or wait here: these must stay loaded."""
        return {adapter for adapter in self._flows if adapter is not None}

    @property
    def queued(self) -> list[str | None]:
        """Adapters with requests that wait here; None is the base."""
        return [flow.adapter for flow in self._flows.values() if flow.queue] if self.waiting else []

    @property
    def holders(self) -> set[str]:
        """Adapters that hold a slot."""
        return {flow.adapter for flow in self._holders if flow.adapter is not None}

    @property
    def draining(self) -> set[str]:
        """Adapters that give up their slot as soon as what runs has ended."""
        return {flow.adapter for flow in self._draining if flow.adapter is not None}

    def full(self, adapter: str | None) -> bool:
        """Whether no more requests may wait, or no more of this adapter."""
        flow = self._flows.get(adapter)
        most = self.limits.waiting_per_adapter
        return self.waiting >= self.limits.waiting or (flow is not None and len(flow.queue) >= most)

    def starts(self, adapter: str | None) -> bool:
        """Whether :meth:`submit` would admit a request of the adapter, or of the base (None), at once."""
        if self.running >= self.limits.running:
            return False
        flow = self._flows.get(adapter)
        if adapter is None:
            return flow is None or not flow.queue
        if flow is None or flow not in self._holders:
            return len(self._holders) < self.limits.slots
        return flow not in self._draining and not flow.queue

    def submit(
        self,
        adapter: str | None,
        cost: int,
        wake: Callable[[], None] | None = None,
        deadline: float | None = None,
    ) -> Request:
        """Take a request of an adapter, or of the base (None), for ``cost`` tokens.

        It runs already when this returns, or waits, until ``deadline`` by the clock at most; in both cases
        :meth:`end` must be called. Raises :class:`Overloaded` when too many wait.
        """
        if self.full(adapter) and not self.starts(adapter):
            raise self.overloaded("too many requests wait already")
        now = self._clock()
        cost = max(1, min(cost, self.limits.quantum))
        request = Request(
            adapter, cost, now, now + self.limits.timeout if deadline is None else deadline, wake
        )
        flow = self._flows.get(adapter) or self._flows.setdefault(adapter, Flow(adapter))
        flow.queue[request] = None
        self.waiting += 1
        if adapter is None or (flow in self._holders and flow not in self._draining):
            self._round[flow] = None
        elif flow not in self._holders and flow not in self._line:
            flow.since = now
            self._line[flow] = None
        self._pump()
        if request.state is State.WAITING:
            heapq.heappush(self._deadlines, (request.deadline, next(self._numbers), request))
        return request

    def end(self, request: Request) -> None:
        """The request is over, whatever became of it; one that waited makes room at once."""
        flow = self._flows.get(request.adapter)
        if request.state is State.RUNNING and flow is not None:
            request.state = State.ENDED
            self.running -= 1
            flow.running -= 1
            self._tidy(flow)
            self._pump()
        elif request.state is State.WAITING:
            request.state = State.ENDED
            self._leave(request)
            self._pump()

    def tick(self) -> None:
        """Let time pass: to be called several times a second, as patience and time limits depend on it."""
        now = self._clock()
        while self._deadlines and (self._deadlines[0][0] <= now or self._stale()):
            request = heapq.heappop(self._deadlines)[2]
            if request.state is State.WAITING:
                self._leave(request)
                request.move(State.EXPIRED)
        self._pump()

    def displace(self, adapters: Collection[str | None] | None = None, most: int | None = None) -> None:
        """Send away who waits, of these adapters or of all, the ``most`` oldest of each: others can serve them."""
        names = list(self._flows) if adapters is None else [name for name in adapters if name in self._flows]
        for name in names:
            for request in list(itertools.islice(self._flows[name].queue, most)):
                self._leave(request)
                request.move(State.DISPLACED)
        self._pump()

    def overloaded(self, reason: str) -> Overloaded:
        """The error for who cannot be taken; who waits longest now tells how long it may take."""
        while self._deadlines and self._stale():
            heapq.heappop(self._deadlines)
        waited = self._clock() - self._deadlines[0][2].since if self._deadlines else 0.0
        seconds = max(1, min(math.ceil(waited), LONGEST_RETRY_AFTER))
        return Overloaded(reason, f"try again in {seconds} s", retry_after=seconds)

    def _stale(self) -> bool:
        return self._deadlines[0][2].state is not State.WAITING

    def _leave(self, request: Request) -> None:
        """Take a request that waits out of its queue."""
        flow = self._flows[request.adapter]
        del flow.queue[request]
        self.waiting -= 1
        if not flow.queue:
            self._round.pop(flow, None)
            self._line.pop(flow, None)
        self._tidy(flow)

    def _tidy(self, flow: Flow) -> None:
        """Take the slot of a flow that has nothing running and may admit nothing; forget one without requests."""
        if flow.running == 0 and (not flow.queue or flow in self._draining):
            self._give_up(flow)

    def _give_up(self, flow: Flow) -> None:
        held = flow in self._holders
        self._holders.pop(flow, None)
        self._draining.pop(flow, None)
        if not flow.queue:
            del self._flows[flow.adapter]
        elif held:
            flow.since = self._clock()
            self._line[flow] = None

    def _pump(self) -> None:
        """Admit all that may be admitted now."""
        if not self.waiting and not self._draining:
            return
        now = self._clock()
        self._share_slots(now)
        while self._round and self.running < self.limits.running:
            flow = next(iter(self._round))
            if flow.head.cost > flow.credit:
                flow.credit += self.limits.quantum
                self._round.move_to_end(flow)
            else:
                self._admit(flow)

    def _admit(self, flow: Flow) -> None:
        request, _ = flow.queue.popitem(last=False)
        flow.credit -= request.cost
        if not flow.queue:
            del self._round[flow]
            flow.credit = 0
        flow.service += request.cost
        flow.owed = max(0, flow.owed - 1)
        flow.running += 1
        self.running += 1
        self.waiting -= 1
        request.move(State.RUNNING)

    def _share_slots(self, now: float) -> None:
        self._grant(now)
        while len(self._draining) > len(self._line):
            self._resume(min(self._draining, key=lambda flow: flow.service))
        while len(self._draining) < self._starving(now):
            victims = [flow for flow in self._holders if self._may_drain(flow, now)]
            if not victims:
                return
            self._drain(min(victims, key=lambda flow: (flow.adapter in self.pinned, -flow.service)))
            self._grant(now)

    def _grant(self, now: float) -> None:
        while self._line and len(self._holders) < self.limits.slots:
            flow, _ = self._line.popitem(last=False)
            flow.turn, flow.service, flow.owed = now, 0, len(flow.queue)
            self._holders[flow] = None
            self._round[flow] = None

    def _starving(self, now: float) -> int:
        """How many wait for a slot longer than they should; no more than there are slots count."""
        if not self._line:
            return 0
        first = itertools.islice(self._line, self.limits.slots)
        return sum(now - flow.since >= self.patience for flow in first)

    def _may_drain(self, flow: Flow, now: float) -> bool:
        served = not flow.owed or not flow.queue
        return (
            served and flow not in self._draining and now - flow.turn >= self.limits.least_turn(self.patience)
        )

    def _drain(self, flow: Flow) -> None:
        self._round.pop(flow, None)
        self._draining[flow] = None
        self._tidy(flow)

    def _resume(self, flow: Flow) -> None:
        del self._draining[flow]
        if flow.queue:
            self._round[flow] = None
