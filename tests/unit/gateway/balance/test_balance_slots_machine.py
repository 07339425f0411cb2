"""Whatever comes in whatever order: the promises of the scheduler hold after every step."""

from collections import defaultdict

from balance_clock import FakeClock
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from serve.errors import Overloaded
from serve.gateway.balance.slots import Limits, Request, Slots, State

ADAPTERS = [None, "a", "b", "c", "d", "e"]


class SlotsMachine(RuleBasedStateMachine):
    @initialize(
        slots=st.integers(1, 3),
        running=st.sampled_from([1, 3, 100]),
        waiting=st.sampled_from([2, 100]),
        quantum=st.sampled_from([10, 1000]),
    )
    def start(self, slots: int, running: int, waiting: int, quantum: int) -> None:
        self.clock = FakeClock()
        self.limits = Limits(slots, running, waiting, 8, quantum, patience=2.0, timeout=20.0)
        self.slots = Slots(self.limits, self.clock)
        self.live: list[Request] = []
        self.queues: dict[str | None, list[Request]] = defaultdict(list)
        self.woken: list[Request] = []

    @rule(adapter=st.sampled_from(ADAPTERS), cost=st.integers(1, 30))
    def submit(self, adapter: str | None, cost: int) -> None:
        expected, full = self.slots.starts(adapter), self.slots.full(adapter)
        before = {request: request.state for request in self.live}
        try:
            request = self.slots.submit(adapter, cost)
        except Overloaded:
            assert full
            assert not expected
            assert before == {request: request.state for request in self.live}
            return
        assert (request.state is State.RUNNING) == expected
        assert expected or not full
        if request.state is State.WAITING:
            request.wake = lambda: self.woken.append(request)
            self.queues[adapter].append(request)
        self.live.append(request)

    def _end_one(self, state: State, data: st.DataObject) -> None:
        requests = [request for request in self.live if request.state is state]
        if requests:
            request = data.draw(st.sampled_from(requests))
            if state is State.WAITING:
                self.queues[request.adapter].remove(request)
            self.live.remove(request)
            self.slots.end(request)
            assert request.state is State.ENDED
            assert request not in self.woken or state is State.RUNNING

    @precondition(lambda self: self.slots.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self._end_one(State.RUNNING, data)

    @precondition(lambda self: self.slots.waiting)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        waiting = self.slots.waiting
        started = len(self.woken)
        self._end_one(State.WAITING, data)
        assert self.slots.waiting == waiting - 1 - (len(self.woken) - started)

    @rule(seconds=st.sampled_from([0.0, 0.5, 2.0, 7.0]))
    def time_passes(self, seconds: float) -> None:
        self.clock.advance(seconds)
        self.slots.tick()
        for request in self.live:
            if request.state is State.WAITING:
                assert request.deadline > self.clock()

    @rule(pinned=st.frozensets(st.sampled_from("abcde")))
    def pin(self, pinned: frozenset[str]) -> None:
        self.slots.pinned = pinned

    @rule(adapters=st.none() | st.sets(st.sampled_from(ADAPTERS)))
    def displace(self, adapters: set[str | None] | None) -> None:
        self.slots.displace(adapters)
        for request in self.live:
            hit = adapters is None or request.adapter in adapters
            assert request.state is not State.WAITING or not hit

    @invariant()
    def promises(self) -> None:
        self.first_in_first_out()
        self.counts_are_right()
        self.no_more_adapters_than_slots()
        self.no_slot_is_idle_while_somebody_waits()

    def first_in_first_out(self) -> None:
        for adapter, queue in self.queues.items():
            left = [request for request in queue if request.state is State.WAITING]
            begun = [request for request in queue if request.state is State.RUNNING]
            if left and begun:
                assert queue.index(begun[-1]) < queue.index(left[0])
            for request in queue:
                assert (request in self.woken) == (request.state is not State.WAITING)
            self.queues[adapter] = left
        self.live = [r for r in self.live if r.state in (State.WAITING, State.RUNNING)]
        self.woken.clear()

    def counts_are_right(self) -> None:
        states = [request.state for request in self.live]
        assert self.slots.running == states.count(State.RUNNING) <= self.limits.running
        assert self.slots.waiting == states.count(State.WAITING) <= self.limits.waiting
        assert self.slots.adapters == {request.adapter for request in self.live} - {None}

    def no_more_adapters_than_slots(self) -> None:
        running = {r.adapter for r in self.live if r.state is State.RUNNING} - {None}
        assert running <= self.slots.holders
        assert len(self.slots.holders) <= self.limits.slots
        assert self.slots.draining <= running

    def no_slot_is_idle_while_somebody_waits(self) -> None:
        waiting = {adapter for adapter, queue in self.queues.items() if queue}
        slotless = waiting - self.slots.holders - {None}
        if slotless:
            assert len(self.slots.holders) == self.limits.slots
        assert len(self.slots.draining) <= len(slotless)
        if self.slots.running < self.limits.running:
            assert waiting <= slotless | self.slots.draining

    def teardown(self) -> None:
        """All that waits is served in the end."""
        if not hasattr(self, "slots"):
            return
        for _ in range(1000):
            waiting = [request for request in self.live if request.state is State.WAITING]
            if not waiting:
                break
            self.slots.end(next(request for request in self.live if request.state is State.RUNNING))
            self.live = [r for r in self.live if r.state is not State.ENDED]
        assert not self.slots.waiting
        for request in self.live:
            self.slots.end(request)
        assert self.slots.load == 0
        assert not self.slots.adapters | self.slots.holders | self.slots.draining


TestSlotsMachine = SlotsMachine.TestCase
TestSlotsMachine.settings = settings(max_examples=80, stateful_step_count=40, deadline=None)
