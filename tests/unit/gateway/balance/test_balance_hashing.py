"""Conversations keep their engine, few move when engines change, and none gets more than its bound."""

import subprocess
import sys
from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.balance.hashing import LOAD_FACTOR, Ring, hash64, load_bound, pick

ENGINES = [f"engine-{number}" for number in range(5)]
KEYS = [("support", f"conversation {number}") for number in range(4000)]


def first(ring: Ring) -> list[str]:
    return [next(ring.walk(*key)) for key in KEYS]


def test_hash_is_the_same_in_every_process() -> None:
    code = "from serve.gateway.balance.hashing import hash64; print(hash64('a', 'ü'))"
    other = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(other.stdout) == hash64("a", "ü")


def test_hash_knows_where_a_part_ends() -> None:
    assert hash64("ab", "c") != hash64("a", "bc")
    assert hash64("\ud800") != hash64("\ud801")  # what JSON can hold


def test_walk_passes_every_engine_once() -> None:
    for key in KEYS[:50]:
        assert sorted(Ring(ENGINES).walk(*key)) == ENGINES
    assert list(Ring([]).walk("a")) == []


def test_engines_get_about_equal_shares() -> None:
    counts = Counter(first(Ring(ENGINES)))
    assert max(counts.values()) < 1.4 * len(KEYS) / len(ENGINES)
    assert min(counts.values()) > 0.6 * len(KEYS) / len(ENGINES)


def test_a_new_engine_takes_its_share_and_nothing_else_moves() -> None:
    before, after = first(Ring(ENGINES)), first(Ring([*ENGINES, "new"]))
    moved = [new for old, new in zip(before, after, strict=True) if old != new]
    assert set(moved) == {"new"}
    assert len(moved) < 1.5 * len(KEYS) / (len(ENGINES) + 1)


def test_adapters_of_one_conversation_may_lie_on_different_engines() -> None:
    ring = Ring(ENGINES)
    assert len({next(ring.walk(f"adapter {number}", "x")) for number in range(40)}) > 1


@given(st.dictionaries(st.sampled_from(ENGINES), st.integers(0, 50), min_size=1), st.text())
def test_some_engine_is_always_within_the_bound(loads: dict[str, int], key: str) -> None:
    chosen = pick(Ring(ENGINES).walk(key), loads, lambda engine: True)
    assert loads[chosen] + 1 <= load_bound(loads.values())
    assert load_bound(loads.values()) < LOAD_FACTOR * (sum(loads.values()) + 1) / len(loads) + 1


def test_load_stays_bounded_when_one_conversation_is_everything() -> None:
    ring, loads = Ring(ENGINES), dict.fromkeys(ENGINES, 0)
    for _ in range(500):
        loads[pick(ring.walk("hot"), loads, lambda engine: True)] += 1
    assert max(loads.values()) <= 125


def test_an_engine_that_starts_at_once_comes_before_one_that_is_near() -> None:
    ring = Ring(ENGINES)
    order = list(ring.walk("x"))
    even = dict.fromkeys(ENGINES, 10)
    assert pick(ring.walk("x"), even, lambda engine: engine == order[2]) == order[2]
    assert pick(ring.walk("x"), even, lambda engine: False) == order[0]


def test_of_those_beyond_the_bound_the_least_loaded_that_starts_is_taken() -> None:
    ring = Ring(ENGINES)
    loads = dict(zip(ENGINES, [100, 90, 95, 0, 0], strict=True))
    starting = set(ENGINES[:3])
    assert pick(ring.walk("x"), loads, starting.__contains__) == ENGINES[1]
    loads[ENGINES[1]] = 100
    assert pick(ring.walk("x"), loads, starting.__contains__) == ENGINES[2]


def test_only_engines_with_a_load_are_chosen() -> None:
    ring = Ring(ENGINES)
    for key in KEYS[:50]:
        assert pick(ring.walk(*key), {ENGINES[3]: 7}, lambda engine: False) == ENGINES[3]
