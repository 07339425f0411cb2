"""What the simulation of slots promises: the same requests for all, all served, and the guard pays under load."""

import json
import math
import sys

import pytest

from evalsuite.load import slots as module
from evalsuite.load.slots import Arrival, Clock, Guarded, Load, Ordered, compare, simulate
from serve.gateway.balance.slots import Limits

MANY = 10**9
LIMITS = Limits(4, 128, MANY, MANY, patience=3.0, timeout=math.inf)


def test_arrivals_are_zipf_and_the_same_each_time() -> None:
    arrivals = Load(rate=50, seconds=60).arrivals()
    assert arrivals == Load(rate=50, seconds=60).arrivals()
    counts = [sum(a.adapter == f"a{k:02}" for a in arrivals) for k in (1, 2, 16)]
    assert counts[0] > 1.5 * counts[1] > 4 * counts[2]
    assert len({a.adapter for a in arrivals}) == 16


@pytest.mark.parametrize("skips", [True, False])
def test_order_of_arrival_with_and_without_skipping(skips: bool) -> None:
    arrivals = [Arrival(n, n / 10, name, 1, 1.0) for n, name in enumerate("aba")]
    waited = simulate(arrivals, Ordered(Limits(1), skips=skips), Clock())
    if skips:
        assert waited == {0: 0.0, 1: pytest.approx(1.1), 2: 0.0}
    else:
        assert waited == {0: 0.0, 1: pytest.approx(0.9), 2: pytest.approx(1.8)}


def test_nobody_waits_when_there_is_a_slot_for_each() -> None:
    arrivals = Load(rate=5, seconds=30).arrivals()
    clock = Clock()
    assert set(simulate(arrivals, Guarded(Limits(16), clock), clock).values()) == {0.0}


def test_sixteen_adapters_on_four_slots() -> None:
    ours, unguarded, strict = compare(Load(rate=16, seconds=200), LIMITS)
    assert ours.p99 < 0.6 * unguarded.p99 < strict.p99
    assert ours.worst < 0.6 * unguarded.worst


def test_command_prints_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["slots", "--rate", "4", "--seconds", "20", "--json"])
    module.main()
    rows = json.loads(capsys.readouterr().out)
    assert [row["policy"] for row in rows] == ["ours", "vLLM's, no guard", "strict order"]
