"""Shares of engine time: they add up to the time in which each engine was busy."""

from contextlib import ExitStack

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.meter import Meter, Share


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


STEPS = st.lists(
    st.tuples(st.floats(0, 1000), st.sampled_from(["a", "b"]), st.integers(-3, 3)), min_size=1, max_size=60
)


@given(STEPS)
def test_shares_add_up_to_the_busy_time(steps: list[tuple[float, str, int]]) -> None:
    clock = Clock()
    meter = Meter(clock)
    running: dict[str, list[Share]] = {"a": [], "b": []}
    ended: dict[str, list[Share]] = {"a": [], "b": []}
    busy = {"a": 0.0, "b": 0.0}
    for seconds, engine, change in [*steps, (1.0, "a", -100), (1.0, "b", -100)]:
        clock.now += seconds
        for name in busy:
            busy[name] += seconds if running[name] else 0.0
        for _ in range(max(change, 0)):
            running[engine].append(meter.share(engine).__enter__())
        for _ in range(min(-change, len(running[engine]))):
            share = running[engine].pop(0)
            share.__exit__(None, None, None)
            ended[engine].append(share)
    for name in busy:
        assert sum(share.seconds for share in ended[name]) == pytest.approx(busy[name], abs=1e-6)
        assert all(share.seconds >= 0 for share in ended[name])
    assert meter.clocks == {}


def test_two_requests_halve_the_time_that_they_share() -> None:
    clock = Clock()
    meter = Meter(clock)
    with ExitStack() as stack:
        first = stack.enter_context(meter.share("a"))
        clock.now += 1
        with meter.share("a") as second, meter.share("b") as elsewhere:
            clock.now += 2
        clock.now += 3
    assert (first.seconds, second.seconds, elsewhere.seconds) == (5, 1, 2)
