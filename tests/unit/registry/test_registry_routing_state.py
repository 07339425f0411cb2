from collections.abc import Callable
from pathlib import Path

import pytest
from registry_samples import write_adapter

from serve.errors import InputError, VersionNotFound
from serve.names import VersionRef
from serve.registry import Registry
from serve.registry.base import BaseIdentity

V1, V2, V3 = (VersionRef("support", number) for number in (1, 2, 3))


@pytest.fixture
def filled(registry: Registry, base: BaseIdentity, tmp_path: Path) -> Registry:
    for number in range(3):
        folder = write_adapter(tmp_path / f"adapter{number}", seed=number)
        registry.register(folder, "support", base, max_rank=64)
    return registry


def desired(registry: Registry) -> list[VersionRef]:
    return [version.ref for version in registry.desired()]


def test_an_alias_flips_and_remembers(filled: Registry) -> None:
    assert filled.alias("support") is None
    first = filled.set_alias("support", V1, sampling={"temperature": 0}, verdict="better")
    assert (first.target.ref, first.previous, first.sampling) == (V1, None, {"temperature": 0})
    second = filled.set_alias("support", "support@v2", forced=True, by="test")
    assert (second.target.ref, second.previous, second.forced) == (V2, V1, True)
    assert second.sampling == {"temperature": 0}, "defaults stay unless others are given"
    back = filled.set_alias("support", V1, sampling={})
    assert (back.target.ref, back.previous, back.sampling) == (V1, V2, {})
    assert filled.alias("support") == back
    assert filled.aliases() == [back]
    history = filled.history("support")
    assert [(change.target, change.previous, change.by) for change in history] == [
        (V1, None, "cli"),
        (V2, V1, "test"),
        (V1, V2, "cli"),
    ]
    assert history[0].verdict == "better"
    assert history[0].digest == filled.version(V1).digest
    assert filled.history("other") == []


def test_the_same_target_again_keeps_the_way_back(filled: Registry) -> None:
    filled.set_alias("support", V1)
    filled.set_alias("support", V2)
    again = filled.set_alias("support", V2, sampling={"top_p": 0.5})
    assert again.previous == V1
    assert len(filled.history("support")) == 3


def test_a_failed_flip_changes_nothing(filled: Registry) -> None:
    filled.set_alias("support", V1)
    before = filled.revision()
    with pytest.raises(VersionNotFound):
        filled.set_alias("support", "support@v9")
    with pytest.raises(InputError):
        filled.set_alias("Not a name", V1)
    assert filled.alias("support").target.ref == V1  # type: ignore[union-attr]
    assert filled.revision() == before
    assert len(filled.history("support")) == 1


def test_desired_is_what_is_wanted_meant_or_needed_for_a_rollback(filled: Registry) -> None:
    assert desired(filled) == []
    filled.want(V3)
    assert desired(filled) == [V3]
    filled.set_alias("support", V1)
    filled.set_alias("support", V2)
    assert desired(filled) == [V1, V2, V3]
    filled.unwant(V3)
    assert desired(filled) == [V1, V2]
    filled.want(V1)
    filled.unwant(V1)
    assert desired(filled) == [V1, V2], "an alias still needs it"
    with pytest.raises(VersionNotFound):
        filled.want("support@v9")


def test_load_states_replace_those_of_the_engine(filled: Registry) -> None:
    filled.set_loaded("e1", {"support@v1": ("loading", ""), "support@v2": ("pending", "")})
    filled.set_loaded("e2", {"support@v1": ("ready", "")})
    filled.set_loaded(
        "e1",
        {"support@v1": ("ready", ""), "support@v2": ("failed", "no room")},
        load_seconds={"support@v1": 0.5},
    )
    states = {str(state.ref): state for state in filled.loaded("e1")}
    assert states["support@v1"].state == "ready"
    assert states["support@v1"].load_seconds == 0.5
    assert states["support@v1"].engine_name == filled.version(V1).engine_name
    assert (states["support@v2"].state, states["support@v2"].reason) == ("failed", "no room")
    filled.set_loaded("e1", {"support@v1": ("ready", "")})
    assert [(state.engine, state.ref, state.load_seconds) for state in filled.loaded()] == [
        ("e1", V1, 0.5),
        ("e2", V1, None),
    ]
    filled.set_loaded("e1", {})
    assert filled.loaded("e1") == []


def test_an_unchanged_load_state_writes_nothing(filled: Registry) -> None:
    states = {"support@v1": ("ready", ""), "support@v2": ("failed", "x")}
    filled.set_loaded("e1", states)
    before, rows = filled.revision(), filled.loaded()
    filled.set_loaded("e1", dict(reversed(states.items())))
    assert (filled.revision(), filled.loaded()) == (before, rows)
    filled.set_loaded("e2", {})
    assert filled.revision() == before


def test_load_states_of_removed_or_unknown_versions_go(filled: Registry) -> None:
    filled.set_loaded("e1", {"support@v1": ("ready", ""), "ghost@v1": ("ready", "")})
    assert [state.ref for state in filled.loaded()] == [V1]
    filled.want(V1)
    filled.remove(V1)
    assert filled.loaded() == []
    assert desired(filled) == []
    with pytest.raises(ValueError, match="no load state"):
        filled.set_loaded("e1", {"support@v2": ("running", "")})


def test_every_change_that_routing_depends_on_is_counted(filled: Registry, tmp_path: Path) -> None:
    changes: list[Callable[[], object]] = [
        lambda: filled.set_alias("support", V1),
        lambda: filled.set_alias("support", V1, sampling={"top_k": 1}),
        lambda: filled.set_alias("support", V2),
        lambda: filled.set_loaded("e", {"support@v1": ("loading", "")}),
        lambda: filled.set_loaded("e", {"support@v1": ("ready", "")}),
        lambda: filled.want(V3),
        lambda: filled.unwant(V3),
        lambda: filled.remove(V3),
    ]
    seen = [filled.revision()]
    assert seen == [3]
    for change in changes:
        change()
        seen.append(filled.revision())
    assert seen == list(range(3, 12))
    reads: list[Callable[[], object]] = [
        lambda: filled.versions(),
        lambda: filled.verify(V1),
        lambda: filled.record_evaluation(V1, base_digest="b", result={}, verdict="better", report="r"),
        lambda: filled.unwant(V1),
    ]
    for read in reads:
        read()
    assert filled.revision() == 11


def test_another_process_view_sees_changes_at_once(filled: Registry) -> None:
    other = Registry.open(filled.home)
    try:
        before = other.revision()
        filled.set_alias("support", V1)
        assert other.revision() == before + 1
        assert other.alias("support") == filled.alias("support")
    finally:
        other.close()


def test_evaluations_are_kept_in_order(filled: Registry) -> None:
    first = filled.record_evaluation(
        V1, base_digest="b", result={"accuracy": 0.5}, verdict="worse", report="a"
    )
    second = filled.record_evaluation(V1, base_digest="b", result={}, verdict="better", report="c")
    assert [record.id for record in filled.evaluations(V1)] == [first, second]
    assert filled.evaluations("support@v1")[0].result == {"accuracy": 0.5}
    assert filled.evaluations(V2) == []
    with pytest.raises(VersionNotFound):
        filled.evaluations("support@v9")
