"""Nothing that an alias, its rollback, its recent history, a want or an engine needs is ever removed."""

import itertools
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from registry_places import Place
from registry_samples import write_adapter

from serve.errors import VersionInUse
from serve.names import VersionRef
from serve.registry import Registry
from serve.registry.base import BaseIdentity

V1, V2, V3, V4, V5 = (VersionRef("support", number) for number in range(1, 6))
NOW = timedelta(0)
SEEDS = 3
FRESH = itertools.count(1)


@pytest.fixture
def filled(registry: Registry, base: BaseIdentity, tmp_path: Path) -> Registry:
    for number in range(5):
        registry.register(write_adapter(tmp_path / str(number), seed=number), "support", base, max_rank=64)
    return registry


def refs(registry: Registry) -> list[VersionRef]:
    return [version.ref for version in registry.versions()]


def test_what_is_needed_stays_and_why(filled: Registry) -> None:
    for ref in (V1, V2, V3):
        filled.set_alias("support", ref)
    filled.want(V4, "eval", 60)
    found = filled.collect(keep=0, rollbacks=0, young=NOW)
    assert [version.ref for version in found.versions] == [V1, V5]
    assert found.kept == {
        V2: "the alias support would roll back to it",
        V3: "the alias support means it",
        V4: "eval wants it",
    }
    assert refs(filled) == [V2, V3, V4]
    assert len(found.files) == 2
    assert found.bytes > 2000
    assert filled._store.digests() == sorted(version.digest for version in filled.versions())
    assert filled.collect(keep=0, rollbacks=0, young=NOW).versions == ()


def test_what_a_split_alias_goes_back_to_stays_and_stays_loaded(filled: Registry) -> None:
    """However often the split has changed since one version had the alias alone."""
    filled.set_alias("support", V1)
    for targets in ({V2: 2, V3: 1}, {V3: 2, V4: 1}, {V4: 2, V5: 1}):
        filled.set_alias("support", targets=targets)
    alias = filled.alias("support")
    assert alias is not None
    assert (alias.previous, alias.way_back) == (V3, V1)
    assert V1 in [version.ref for version in filled.desired()]
    found = filled.collect(keep=0, rollbacks=0, young=NOW)
    assert [version.ref for version in found.versions] == [V2]
    assert found.kept[V1] == "the alias support would roll back to it"
    with pytest.raises(VersionInUse, match="support would roll back to it"):
        filled.remove(V1)
    filled.set_alias("support", V5)
    back = filled.alias("support")
    assert back is not None
    assert back.way_back == V4
    filled.remove(V1)


def test_a_dry_run_says_the_same_and_does_nothing(filled: Registry) -> None:
    before, revision = filled.versions(), filled.revision()
    told = filled.collect(keep=2, young=NOW, dry_run=True)
    assert (filled.versions(), filled.revision()) == (before, revision)
    assert len(filled._store.digests()) == 5
    assert filled.collect(keep=2, young=NOW) == told
    assert refs(filled) == [V4, V5]
    assert filled.revision() == revision + 1


def test_history_keeps_the_last_few_that_an_alias_meant(filled: Registry) -> None:
    for ref in (V1, V2, V3, V4, V5):
        filled.set_alias("support", ref)
    for seed in range(5):
        filled.set_alias("support", V5, sampling={"seed": seed})
    filled.collect(keep=0, rollbacks=2, young=NOW)
    assert refs(filled) == [V3, V4, V5]
    assert (
        filled.collect(keep=0, rollbacks=1, young=NOW).kept[V4] == "the alias support would roll back to it"
    )


def test_the_young_the_loaded_and_the_weighted_stay(filled: Registry) -> None:
    assert filled.collect(keep=0).versions == (), "all are young"
    filled.set_loaded("e", {"support@v1": ("draining", ""), "support@v2": ("failed", "x")})
    filled.set_alias("helpdesk", targets={V3: 9, V4: 1})
    filled.collect(keep=0, young=NOW)
    assert refs(filled) == [V1, V3, V4]


def test_wants_that_ended_keep_nothing(filled: Registry) -> None:
    filled.want(V1, "killed", 0.1)
    time.sleep(0.15)
    filled.collect(keep=1, young=NOW)
    assert refs(filled) == [V5]


def test_files_that_no_version_has_go_and_shared_ones_stay(
    filled: Registry, base: BaseIdentity, tmp_path: Path
) -> None:
    twin = filled.register(write_adapter(tmp_path / "twin", seed=0), "twin", base, max_rank=64)
    orphan = filled.home / "adapters" / ("0" * 64)
    orphan.mkdir()
    (orphan / "adapter_config.json").write_text("{}" * 50)
    stale = filled.home / "adapters/.staging-x"
    stale.mkdir()
    os.utime(stale, (0, 0))
    (filled.home / "adapters/not-ours").mkdir()
    found = filled.collect(keep=1, young=NOW)
    assert found.files["0" * 64] == 100
    assert twin.digest not in found.files
    assert refs(filled) == [V5, twin.ref]
    assert filled.verify(twin.ref) == twin.facts
    assert not orphan.exists()
    assert not stale.exists()
    assert (filled.home / "adapters/not-ours").exists()


def test_files_of_another_registry_in_the_same_home_stay(
    filled: Registry, place: Place, base: BaseIdentity, tmp_path: Path
) -> None:
    mark = filled.home / "adapters/.registry-other"
    mark.touch()
    found = filled.collect(keep=1, young=NOW)
    assert (len(found.versions), found.files, found.foreign) == (4, {}, (str(mark),))
    assert len(filled._store.digests()) == 5
    mark.unlink()
    assert len(filled.collect(keep=1, young=NOW).files) == 4


def test_a_registry_that_was_sqlite_before_keeps_its_files(
    cluster: Any, base: BaseIdentity, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    with Registry.open(home) as before:
        version = before.register(write_adapter(tmp_path / "a"), "support", base, max_rank=64)
        next((home / "adapters").glob(".registry-*")).unlink()  # as code before the marks left it
    with Registry.open(home, cluster.create()) as after:
        same = after.register(write_adapter(tmp_path / "b"), "support", base, max_rank=64)
        after.remove(same.ref)
        assert after.collect(keep=0, young=NOW).files == {}
    with Registry.open(home) as before:
        assert before.verify(version.ref) == version.facts
        assert before.collect(young=NOW).files == {}
        before.remove(version.ref)
        assert before._store.digests() == [version.digest], "the other one may have it"


# What may happen to a registry: the numbers choose among the versions that exist at that moment.
CHOICE = st.integers(0, 11)
NAMES = st.sampled_from(["a", "b"])
WEIGHTED = st.lists(st.tuples(CHOICE, st.integers(0, 3)), min_size=1, max_size=3)
STEP = st.one_of(
    st.tuples(st.just("alias"), NAMES, CHOICE),
    st.tuples(st.just("alias"), NAMES, CHOICE),
    st.tuples(st.just("split"), NAMES, WEIGHTED),
    st.tuples(st.just("want"), st.sampled_from(["x", "y"]), CHOICE),
    st.tuples(st.just("unwant"), st.sampled_from(["x", "y"]), CHOICE),
    st.tuples(st.just("loaded"), st.sampled_from(["ready", "failed", "draining"]), CHOICE),
)
# Each round ends with a collection that keeps so many newest, and so many that each alias meant before.
ROUND = st.tuples(
    st.lists(STEP, max_size=12), st.sampled_from([0, 0, 0, 1, 2]), st.sampled_from([0, 1, 2, 2])
)
VERSIONS = 6
"""How many there are when a round begins."""


class Story:
    """A registry to which things happen, and what is needed of it, told by other means than its own."""

    def __init__(self, registry: Registry, adapters: list[Path], base: BaseIdentity) -> None:
        self.registry, self.adapters, self.base = registry, adapters, base
        self.wanted: set[tuple[str, VersionRef]] = set()
        self.meant: dict[str, list[list[VersionRef]]] = {}
        self.held: set[VersionRef] = set()

    def fill(self) -> None:
        """Register until there are enough to choose from."""
        for number in range(len(refs(self.registry)), VERSIONS):
            self.registry.register(self.adapters[number % SEEDS], "ab"[number % 2], self.base, max_rank=64)

    def happen(self, kind: str, which: Any, choice: Any) -> None:
        existing = refs(self.registry)
        if kind == "split":
            choice = {existing[place % len(existing)]: weight for place, weight in choice}
        else:
            choice = existing[choice % len(existing)]
        getattr(self, kind)(which, choice)

    def alias(self, name: str, ref: VersionRef) -> None:
        self.registry.set_alias(name, ref)
        self.meant.setdefault(name, []).append([ref])

    def split(self, name: str, targets: dict[VersionRef, int]) -> None:
        if any(targets.values()):
            self.registry.set_alias(name, targets=targets)
            self.meant.setdefault(name, []).append(list(targets))

    def want(self, holder: str, ref: VersionRef) -> None:
        self.registry.want(ref, holder, 600)
        self.wanted.add((holder, ref))

    def unwant(self, holder: str, ref: VersionRef) -> None:
        self.registry.unwant(ref, holder)
        self.wanted.discard((holder, ref))

    def loaded(self, state: str, ref: VersionRef) -> None:
        self.registry.set_loaded("engine", {str(ref): (state, "")})
        self.held = {ref} if state != "failed" else set()

    def needed(self, existing: set[VersionRef], keep: int, rollbacks: int) -> set[VersionRef]:
        needed = {ref for _, ref in self.wanted} | self.held
        for past in self.meant.values():
            needed |= set(past[-1])
            earlier = [
                ref for entry in reversed(past[:-1]) for ref in entry if ref in existing - set(past[-1])
            ]
            needed |= set(list(dict.fromkeys(earlier))[:rollbacks])
            alone = [entry[0] for entry in past if len(entry) == 1]
            if len(past[-1]) > 1 and alone:
                needed.add(alone[-1])
        needed |= {alias.previous for alias in self.registry.aliases() if alias.previous is not None}
        for name in {ref.name for ref in existing}:
            same = sorted(ref for ref in existing if ref.name == name)
            needed |= set(same[len(same) - keep :]) if keep else set()
        return needed

    def collect(self, keep: int, rollbacks: int) -> None:
        existing = set(refs(self.registry))
        needed = self.needed(existing, keep, rollbacks)
        found = self.registry.collect(keep=keep, rollbacks=rollbacks, young=NOW)
        left = self.registry.versions()
        assert needed <= {version.ref for version in left}
        assert (
            {version.ref for version in left} == set(found.kept) == existing - {v.ref for v in found.versions}
        )
        assert self.registry._store.digests() == sorted({version.digest for version in left})
        for version in left:
            self.registry.verify(version.ref)
        loaded = {version.ref for version in self.registry.desired()}
        for alias in self.registry.aliases():
            assert loaded.issuperset(alias.refs)
            assert alias.way_back is None or alias.way_back in loaded
        again = self.registry.collect(keep=keep, rollbacks=rollbacks, young=NOW)
        assert (again.versions, again.files) == ((), {})


@contextmanager
def fresh(place: Place) -> Iterator[Registry]:
    """An empty registry in the same place; a PostgreSQL database is emptied for it."""
    with Registry.open(place.home.parent / f"story-{next(FRESH)}", place.url) as registry:
        with registry._database.write() as connection:
            for table in ("alias_changes", "aliases", "versions", "names"):
                connection.exec_driver_sql(f"DELETE FROM {table}")
        yield registry


@settings(
    max_examples=30,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@example(rounds=[([("alias", "a", 0), *(("split", "a", [(n, 2), (n + 1, 1)]) for n in (1, 2, 3))], 0, 0)])
@given(rounds=st.lists(ROUND, min_size=1, max_size=2))
def test_nothing_needed_ever_goes(place: Place, base: BaseIdentity, rounds: list[Any]) -> None:
    adapters = [place.home.parent / f"adapter-{seed}" for seed in range(SEEDS)]
    for seed, folder in enumerate(adapters):
        if not folder.exists():
            write_adapter(folder, seed=seed)
    with fresh(place) as registry:
        story = Story(registry, adapters, base)
        for steps, keep, rollbacks in rounds:
            story.fill()
            for step in steps:
                story.happen(*step)
            story.collect(keep, rollbacks)
