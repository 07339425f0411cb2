"""The reconciler under everything that can go wrong: Hypothesis drops, repeats, delays and cuts.

The engine is in memory and has the interface that the reconciler uses; the registry is a real one. Whatever happened
before, two passes without faults bring the engine to what is desired, and a third writes nothing.
"""

import asyncio
import os
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from engine_base import BASE
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from evalsuite.load.adapters import write_adapter
from serve.engine import reconcile as module
from serve.engine.interface import AdapterEngine, ModelCard, Sample
from serve.engine.reconcile import Memory, reconcile
from serve.engine.wishes import Room, Wishes
from serve.errors import AdapterLoadFailed, EngineUnavailable, StorageError
from serve.names import VersionRef
from serve.registry.registry import Registry

NAMES = ("aaa", "bbb", "support")
VERSIONS = tuple(VersionRef(name, number) for name in NAMES for number in (1, 2))
FOREIGN = "somebody-elses"
STRANGER = "old@v9-00000000"

FAULTS = ("none", "dropped", "unheard", "delayed", "repeated", "crash before", "crash after")
"""What becomes of a command: nothing else, it never arrives, its answer is lost, it arrives later, it arrives again
later; or the controller ends before or after it."""


class Crash(Exception):
    """The controller is killed here."""


class Memorized:
    """An :class:`AdapterEngine` in memory: what it holds, and commands that are on their way to it.

    ``ready`` is what the gateway was told to be ready when time last passed: what it may still send requests to.
    """

    url = "http://nowhere"

    def __init__(self, registry: Registry) -> None:
        self.adapters: set[str] = {FOREIGN}
        self.refused: set[str] = set()
        self.silent: set[str] = set()
        self.late: list[tuple[str, str]] = []
        self.faults: list[str] = []
        self.commands = 0
        self.ready: set[str] | None = None
        self.wrongly_unloaded: list[str] = []
        self._registry = registry

    def _do(self, kind: str, name: str) -> None:
        if kind == "unload":
            rows = self._registry.loaded("engine")
            ready = {row.engine_name for row in rows if row.state == "ready"}
            answers = name in self.adapters and name not in self.silent
            if answers and (self.ready is None or name in self.ready | ready):
                self.wrongly_unloaded.append(name)
            self.adapters.discard(name)
        elif name in self.adapters or name in self.refused:
            raise AdapterLoadFailed(f"refused {name}")
        else:
            self.adapters.add(name)

    def arrive(self, index: int) -> None:
        """A command that was on its way arrives."""
        kind, name = self.late.pop(index % len(self.late))
        try:
            if kind == "unload":
                self.adapters.discard(name)
            else:
                self._do(kind, name)
        except AdapterLoadFailed:
            pass

    def _command(self, kind: str, name: str) -> None:
        self.commands += 1
        fault = self.faults.pop() if self.faults else "none"
        if fault == "crash before":
            raise Crash
        if fault in ("delayed", "repeated"):
            self.late.append((kind, name))
        if fault not in ("dropped", "delayed"):
            self._do(kind, name)
        if fault == "crash after":
            raise Crash
        if fault in ("dropped", "delayed", "unheard"):
            raise EngineUnavailable("no answer")

    async def list(self) -> Sequence[ModelCard]:
        return [ModelCard(name, "", None, None) for name in ("base", *sorted(self.adapters))]

    async def health(self) -> bool:
        return True

    async def metrics(self) -> Sequence[Sample]:
        return []

    async def load(self, engine_name: str, path: Path) -> float:
        self._command("load", engine_name)
        return 0.5

    async def unload(self, engine_name: str) -> None:
        self._command("unload", engine_name)

    async def next_logprobs(
        self, model: str, prompts: Sequence[str], most: int = 20
    ) -> Sequence[dict[str, float]]:
        if model != "base" and model not in self.adapters:
            raise AdapterLoadFailed(f"{model} does not exist")
        plain = model == "base" or model in self.silent
        return [{"yes": -1.0 if plain else -2.0 - int(model[-8:], 16) / 2**30} for _ in prompts]


def as_engine(engine: Memorized) -> AdapterEngine:
    """Have the type checker compare it with the interface."""
    return engine


class Shaky:
    """A registry whose writes fail or end the controller, as ``faults`` say."""

    def __init__(self, registry: Registry) -> None:
        self.faults: list[str] = []
        self.writes = 0
        self._registry = registry

    def __getattr__(self, name: str) -> object:
        return getattr(self._registry, name)

    def set_loaded(self, *given: object, **named: object) -> None:
        self.writes += 1
        fault = self.faults.pop() if self.faults else "none"
        if fault == "crash before":
            raise Crash
        if fault == "dropped":
            raise StorageError("the disk is full")
        self._registry.set_loaded(*given, **named)
        if fault == "crash after":
            raise Crash


class Reconciler(RuleBasedStateMachine):
    """Commands and changes in any order; ``settle`` may come at any moment."""

    template: Path

    @initialize(capacity=st.sampled_from((None, 1, 3)))
    def start(self, capacity: int | None) -> None:
        self.room = Room(capacity) if capacity is not None else None
        self.home = Path(tempfile.mkdtemp(prefix="machine-"))
        shutil.copytree(self.template, self.home, dirs_exist_ok=True, symlinks=True)
        self.registry = Registry.open(self.home)
        self.shaky = Shaky(self.registry)
        self.engine = Memorized(self.registry)
        self.memory = Memory()
        self.runner = asyncio.Runner()

    def teardown(self) -> None:
        if hasattr(self, "home"):
            self.runner.close()
            self.registry.close()
            for folder, _, _ in os.walk(self.home):
                Path(folder).chmod(0o755)
            shutil.rmtree(self.home)

    def one_pass(self) -> object:
        work = reconcile(self.shaky, as_engine(self.engine), "engine", BASE, self.memory, room=self.room)
        return self.runner.run(work)

    def expire(self) -> None:
        """As if the time until the next try and the time to drain had passed."""
        rows = self.registry.loaded("engine")
        self.engine.ready = {row.engine_name for row in rows if row.state == "ready"}
        for failure in self.memory.failures.values():
            failure.retry_at = 0.0
        self.memory.draining = dict.fromkeys(self.memory.draining, float("-inf"))

    @rule(ref=st.sampled_from(VERSIONS), wanted=st.booleans())
    def somebody_wants_or_does_not(self, ref: VersionRef, wanted: bool) -> None:
        (self.registry.want if wanted else self.registry.unwant)(ref)

    @rule(
        alias=st.sampled_from(NAMES),
        weights=st.dictionaries(st.sampled_from(VERSIONS), st.integers(0, 3), min_size=1, max_size=3),
    )
    def an_alias_moves(self, alias: str, weights: dict[VersionRef, int]) -> None:
        if any(weights.values()):
            self.registry.set_alias(alias, targets=dict(weights))

    @rule(
        commands=st.lists(st.sampled_from(FAULTS), max_size=6),
        writes=st.lists(st.sampled_from(("none", "dropped", "crash before", "crash after")), max_size=6),
    )
    def a_pass_with_faults(self, commands: list[str], writes: list[str]) -> None:
        self.engine.faults, self.shaky.faults = commands, writes
        try:
            self.one_pass()
        except EngineUnavailable:
            pass
        except Crash:
            self.memory = Memory()
        self.engine.faults, self.shaky.faults = [], []

    @rule()
    def time_passes(self) -> None:
        self.expire()

    @rule()
    def the_controller_is_killed(self) -> None:
        self.memory = Memory()

    @rule()
    def the_engine_is_killed(self) -> None:
        self.engine.adapters = {FOREIGN}
        self.engine.late = []
        self.memory = self.memory.reborn()

    @rule()
    def a_stranger_is_on_the_engine(self) -> None:
        self.engine.adapters.add(STRANGER)

    @precondition(lambda self: self.engine.late)
    @rule(index=st.integers(0, 9))
    def a_late_command_arrives(self, index: int) -> None:
        self.engine.arrive(index)

    @rule(ref=st.sampled_from(VERSIONS), what=st.sampled_from(("refused", "silent", "well")))
    def an_adapter_behaves(self, ref: VersionRef, what: str) -> None:
        """What the engine does with an adapter from its next loading on."""
        name = self.registry.version(ref).engine_name
        self.engine.adapters.discard(name)
        for kind, names in (("refused", self.engine.refused), ("silent", self.engine.silent)):
            (names.add if kind == what else names.discard)(name)

    @rule()
    def settle(self) -> None:
        """Without faults two passes are enough, and the next writes nothing."""
        while self.engine.late:
            self.engine.arrive(0)
        for _ in range(2):
            self.expire()
            self.one_pass()
        registry = self.registry
        wishes = Wishes.of(registry.desired(), registry.aliases(), registry.wanted(), self.room)
        desired = {version.engine_name for version in wishes.loaded}
        bad = self.engine.refused | self.engine.silent
        assert self.engine.adapters == (desired - bad) | {FOREIGN}
        states = {row.engine_name: row.state for row in self.registry.loaded("engine")}
        assert states == {
            **{name: "failed" if name in bad else "ready" for name in desired},
            **{version.engine_name: "pending" for version in wishes.left_out},
        }
        revision, commands = self.registry.revision(), self.engine.commands
        self.one_pass()
        assert (self.registry.revision(), self.engine.commands) == (revision, commands)

    @invariant()
    def nothing_is_unloaded_that_requests_may_be_sent_to(self) -> None:
        if hasattr(self, "engine"):
            assert self.engine.wrongly_unloaded == []


@pytest.fixture(autouse=True)
def no_time_passes_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "DRAIN", 1e9)


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home with two versions of each name, copied for each example."""
    folder = tmp_path_factory.mktemp("template")
    with Registry.open(folder / "home") as registry:
        for seed, ref in enumerate(VERSIONS):
            made = write_adapter(folder / str(seed), BASE, seed=seed)
            assert registry.register(made, ref.name, BASE, max_rank=64).ref == ref
    return folder / "home"


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_two_passes_bring_any_engine_to_what_is_desired(template: Path) -> None:
    machine = type("Machine", (Reconciler,), {"template": template})
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=int(os.environ.get("TENON_TEST_EXAMPLES", "60")),
            stateful_step_count=25,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
