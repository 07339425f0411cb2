"""What to load and unload, so that no engine drops what is needed."""

from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.balance.residency import Residency

NAMES = [f"a{number}" for number in range(8)]


def test_least_recently_used_goes_first() -> None:
    residency = Residency(2)
    residency.observe(["a", "b", "c", "d"])
    residency.touch("a")
    assert residency.evictable() == ["b", "c"]
    assert residency.excess() == 0


def test_within_capacity_nothing_goes() -> None:
    residency = Residency(4)
    residency.observe(["a", "b", "c", "d"])
    assert residency.evictable() == []


def test_live_versions_and_those_in_use_stay() -> None:
    residency = Residency(2)
    residency.pinned = ("a",)
    residency.observe(["a", "b", "c", "d"])
    assert residency.evictable(busy={"b"}) == ["c", "d"]
    assert residency.evictable(busy={"b", "c"}) == ["d"]
    assert residency.excess(busy={"b", "c"}) == 1


def test_a_rollout_makes_room_before_it_starts() -> None:
    residency = Residency(2)
    residency.pinned, residency.prefetched = ("a",), ("new", "a")
    residency.observe(["a", "b"])
    assert residency.missing() == ["new"]
    assert residency.evictable() == ["b"]
    residency.observe(["a"])
    assert residency.evictable() == []
    residency.observe(["a", "new"])
    assert residency.missing() == []


def test_observing_again_keeps_the_order_of_use() -> None:
    residency = Residency(1)
    residency.observe(["a", "b"])
    residency.touch("a")
    residency.observe(["a", "b"])
    residency.touch("unknown")
    assert residency.evictable() == ["b"]
    assert residency.loaded == {"a", "b"}


NAME_SETS = st.sets(st.sampled_from(NAMES))


@given(st.integers(1, 8), NAME_SETS, NAME_SETS, NAME_SETS, NAME_SETS)
def test_no_more_than_needed_and_nothing_that_is_needed_goes(
    capacity: int, loaded: set[str], pinned: set[str], prefetched: set[str], busy: set[str]
) -> None:
    residency = Residency(capacity)
    residency.pinned, residency.prefetched = tuple(sorted(pinned)), tuple(sorted(prefetched))
    residency.observe(sorted(loaded))
    out = residency.evictable(busy)
    assert not set(out) & (pinned | prefetched | busy)
    after = (loaded - set(out)) | pinned | prefetched
    assert len(after) <= capacity + residency.excess(busy)
    assert not out or len(after) >= capacity
