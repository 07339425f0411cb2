from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from registry_places import Place
from registry_samples import write_adapter
from sqlalchemy import Connection

from serve.errors import InputError, NotFound, VersionInUse, VersionNotFound
from serve.names import VersionRef
from serve.registry import Registry, fleet, wants
from serve.registry.base import BaseIdentity
from serve.registry.database import clock
from serve.registry.wants import holder_for

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


def test_another_process_view_sees_changes_at_once(place: Place, filled: Registry) -> None:
    other = place.open()
    before = other.revision()
    filled.set_alias("support", V1)
    assert other.revision() == before + 1
    assert other.alias("support") == filled.alias("support")


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


def test_a_want_belongs_to_its_holder(filled: Registry) -> None:
    filled.want(V1, "eval-1", 60)
    filled.want(V1, "eval-2", 60)
    filled.unwant(V1, "eval-1")
    assert desired(filled) == [V1]
    filled.unwant(V1)
    assert desired(filled) == [V1], "an unnamed holder speaks for nobody else"
    filled.unwant(V1, "eval-2")
    assert desired(filled) == []
    for bad in ("", "x" * 129):
        with pytest.raises(InputError, match="holder"):
            filled.want(V1, bad)


def test_what_is_wanted_is_told_apart_from_what_an_alias_means(filled: Registry) -> None:
    filled.set_alias("support", V1)
    filled.want(V1, "a")
    filled.want(V2, "a")
    filled.want(V2, "b")
    assert sorted(filled.wanted()) == [V1, V2]
    filled.unwant(V2, "a")
    filled.unwant(V1, "a")
    assert filled.wanted() == [V2]


@pytest.fixture
def later(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """Lets so many seconds pass for the database's clock."""
    passed = timedelta()

    def late(connection: Connection) -> datetime:
        return clock(connection) + passed

    def pass_by(seconds: float) -> None:
        nonlocal passed
        passed += timedelta(seconds=seconds)

    for module in (fleet, wants):
        monkeypatch.setattr(module, "clock", late)
    return pass_by


def test_a_want_ends_unless_it_is_renewed(filled: Registry, later: Callable[[float], None]) -> None:
    filled.want(V1, "killed", 60)
    filled.want(V2, "alive", 60)
    before = filled.revision()
    filled.renew(V2, "alive", 600)
    assert filled.revision() == before, "nothing changed for the engines"
    later(61)
    assert desired(filled) == [V2]
    filled.renew(V1, "killed", 60)
    assert desired(filled) == [V1, V2], "it was only stopped"
    assert filled.revision() == before + 1
    filled.want(V3, "shortly", 0)
    assert desired(filled) == [V1, V2]


def test_weights_split_an_alias(filled: Registry) -> None:
    filled.set_alias("support", V1)
    canary = filled.set_alias("support", targets={V1: 90, "support@v3": 10})
    assert (canary.target.ref, canary.refs, canary.previous) == (V1, (V1, V3), None)
    assert [(version.ref, weight) for version, weight in canary.targets] == [(V1, 90), (V3, 10)]
    assert filled.aliases() == [canary]
    assert desired(filled) == [V1, V3]
    with pytest.raises(VersionInUse, match="the alias support means it"):
        filled.remove(V3)
    even = filled.set_alias("support", targets={V3: 50, V1: 50})
    assert (even.target.ref, even.refs) == (V1, (V3, V1)), "a tie leaves the one before in the lead"
    flipped = filled.set_alias("support", targets={V3: 60, V1: 40}, sampling={"top_k": 1})
    assert (flipped.target.ref, flipped.previous) == (V3, V1)
    done = filled.set_alias("support", V3)
    assert (done.targets, done.previous, done.sampling) == (((done.target, 1),), V1, {"top_k": 1})
    assert [change.targets for change in filled.history("support")] == [
        ((V1, 1),),
        ((V1, 90), (V3, 10)),
        ((V3, 50), (V1, 50)),
        ((V3, 60), (V1, 40)),
        ((V3, 1),),
    ]
    zero = filled.set_alias("support", targets={V2: 0, V3: 1})
    assert desired(filled) == [V1, V2, V3]
    assert zero.target.ref == V3


@pytest.mark.parametrize(
    "targets",
    [{}, {V1: 0}, {V1: -1, V2: 2}, {V1: True}, {V1: 0.5}, {V1: 10**9}, {V1: 1, "support@v1": 1}],
    ids=str,
)
def test_weights_that_make_no_sense(filled: Registry, targets: Any) -> None:
    before = filled.revision()
    with pytest.raises(InputError):
        filled.set_alias("support", targets=targets)
    with pytest.raises(InputError, match="either"):
        filled.set_alias("support", V1, targets={V2: 1})
    with pytest.raises(InputError, match="either"):
        filled.set_alias("support")
    assert (filled.revision(), filled.aliases()) == (before, [])


def test_numbers_that_are_none_and_characters_that_are_none(filled: Registry) -> None:
    result = {"loss": float("nan"), "best": [float("inf"), 0.5, None]}
    filled.record_evaluation(V1, base_digest="b", result=result, verdict="worse", report="r")
    assert filled.evaluations(V1)[0].result == {"loss": None, "best": [None, 0.5, None]}
    filled.set_loaded("e", {"support@v1": ("failed", "a\0b")})
    assert filled.loaded()[0].reason == "ab"
    filled.set_alias("support", V1, by="x" * 100, sampling={"stop": ["\0", "\ud800", "é"]})
    assert filled.alias("support").sampling == {"stop": ["\0", "\ud800", "é"]}  # type: ignore[union-attr]


def test_engines_are_seen_and_forgotten(filled: Registry, later: Callable[[float], None]) -> None:
    before = filled.revision()
    filled.see_engine("gpu-0", "http://a:8000", "tiny", "starting")
    filled.see_engine("gpu-1", "http://b:8000", "tiny", "ready")
    first = filled.engines()[0]
    assert (first.name, first.url, first.base_name, first.state) == (
        "gpu-0",
        "http://a:8000",
        "tiny",
        "starting",
    )
    assert filled.revision() == before + 2
    filled.see_engine("gpu-0", "http://a:8000", "tiny", "starting")
    assert filled.revision() == before + 2, "a heartbeat changes nothing for routing"
    assert filled.engines()[0].seen_at > first.seen_at
    later(61)
    filled.see_engine("gpu-1", "http://b:8000", "tiny", "down", "out of\0 memory")
    assert [(engine.name, engine.reason) for engine in filled.engines(within=60)] == [
        ("gpu-1", "out of memory")
    ]
    filled.set_loaded("gpu-1", {"support@v1": ("ready", "")})
    before = filled.revision()
    filled.forget_engine("gpu-1")
    filled.forget_engine("gpu-1")
    assert ([engine.name for engine in filled.engines()], filled.loaded()) == (["gpu-0"], [])
    assert filled.revision() == before + 1


def test_names_are_in_the_order_of_their_bytes(
    registry: Registry, base: BaseIdentity, tmp_path: Path
) -> None:
    names = ["a-c", "ab", "a.d", "a_b", "a1", "b", "a"]
    folder = write_adapter(tmp_path / "a")
    for name in names:
        ref = registry.register(folder, name, base, max_rank=64).ref
        registry.set_alias(name, ref)
    assert [version.ref.name for version in registry.versions()] == sorted(names)
    assert [version.ref.name for version in registry.desired()] == sorted(names)
    assert [alias.name for alias in registry.aliases()] == sorted(names)


def test_an_alias_is_removed_with_all_that_was_wanted_for_it(filled: Registry) -> None:
    filled.set_alias("support", V1)
    filled.set_alias("support", targets={V2: 9, V3: 1}, sampling={"top_k": 1}, verdict="better", forced=True)
    filled.set_alias("helpdesk", V3)
    filled.want(V1, holder_for("support"), 600)
    filled.want(V2, "eval", 600)
    before = filled.revision()
    removed = filled.remove_alias("support", by="boss")
    assert (removed.refs, removed.previous, removed.meaning) == ((V2, V3), V1, "support@v2=9, support@v3=1")
    assert filled.revision() == before + 1
    assert [alias.name for alias in filled.aliases()] == ["helpdesk"]
    assert filled.alias("support") is None
    assert desired(filled) == [V2, V3], "for the evaluation and the other alias"
    assert [version.ref for version in filled.versions()] == [V1, V2, V3]
    last = filled.history("support")[-1]
    assert (last.removed, last.by, last.refs, last.previous) == (True, "boss", (V2, V3), V1)
    assert (last.sampling, last.verdict, last.forced) == ({"top_k": 1}, "better", False)
    assert [change.removed for change in filled.history("support")] == [False, False, True]
    assert [change.alias for change in filled.history()] == ["support", "support", "helpdesk", "support"]
    filled.remove(V1)
    with pytest.raises(VersionInUse, match="the alias helpdesk means it"):
        filled.remove(V3)


def test_what_is_no_alias_cannot_be_removed(filled: Registry) -> None:
    before = filled.revision()
    for name in ("support", "support@v1", "nobody"):
        with pytest.raises(NotFound, match=f"no alias {name}"):
            filled.remove_alias(name)
    assert (filled.revision(), filled.history()) == (before, [])


def test_a_name_that_is_given_again_begins_anew(filled: Registry) -> None:
    filled.set_alias("support", V1, sampling={"top_k": 1})
    filled.set_alias("support", V2)
    filled.remove_alias("support")
    again = filled.set_alias("support", V3)
    assert (again.previous, again.sampling) == (None, {})
    assert [change.removed for change in filled.history("support")] == [False, False, True, False]
    assert desired(filled) == [V3]
