"""What an engine holds, by its last use."""

from serve.gateway.balance.residency import Residency


def test_what_was_used_last_comes_last() -> None:
    residency = Residency()
    residency.observe(["a", "b", "c"])
    residency.touch("a")
    assert residency.order == ("b", "c", "a")


def test_observing_the_same_again_changes_nothing() -> None:
    residency = Residency()
    residency.observe(["a", "b"])
    residency.touch("a")
    residency.observe(["a", "b"])
    residency.touch("unknown")
    assert residency.order == ("b", "a")


def test_what_is_new_counts_as_used_now_and_what_is_gone_is_forgotten() -> None:
    residency = Residency()
    residency.observe(["a", "b"])
    residency.observe(["b", "c"])
    assert residency.order == ("b", "c")
    residency.observe(["a", "b", "c"])
    assert residency.order == ("b", "c", "a")
