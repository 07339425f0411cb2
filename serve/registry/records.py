"""What the registry hands out: plain, immutable records."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, get_args

from serve.names import VersionRef, targets_text

LoadStateName = Literal["pending", "loading", "ready", "failed", "draining"]
LOAD_STATES: tuple[str, ...] = get_args(LoadStateName)
RANKS = ("ready", "loading", "draining", "pending", "failed")
"""A version is in the first of these states that an engine has it in: one that has it ready answers it."""


@dataclass(frozen=True)
class AdapterFacts:
    """What validation learned of an adapter.

    ``rank`` is the largest of any module, ``parameters`` counts its numbers, ``bytes`` is the size of its weight
    file. ``all_zero`` means that it changes nothing: A or B of every module is zero. ``base_digest`` is the
    digest of the base that its config names, where that base is on this machine. ``warnings`` are what could not
    be checked, and what was ignored.
    """

    rank: int
    alpha: float
    target_modules: tuple[str, ...]
    parameters: int
    bytes: int
    all_zero: bool
    base_digest: str | None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lineage:
    """Where a version comes from.

    ``source`` is ``"run"``, the folder that it was added from, or the URL with its revision or etags;
    ``base_digest`` the base that it was trained on (filled in at registration); ``files`` are absolute paths that go
    with it, such as its test split; ``by`` is the name of the API key that registered it, if one did.
    """

    run: str | None = None
    recipe: Mapping[str, Any] | None = None
    data_fingerprint: str | None = None
    code_version: str | None = None
    source: str = "run"
    metrics: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)
    base_digest: str | None = None
    by: str | None = None


@dataclass(frozen=True)
class Version:
    """An immutable adapter: ``digest`` is the SHA-256 of its files, which lie in ``path``."""

    ref: VersionRef
    digest: str
    path: Path
    engine_name: str
    base_name: str
    base_digest: str
    facts: AdapterFacts
    lineage: Lineage
    created_at: datetime


@dataclass(frozen=True)
class Alias:
    """A mutable name, the versions it means and the one it meant before.

    ``targets`` are one or more versions with the weights by which conversations are split among them: integers,
    not all zero. ``target`` is the first in rank: the one of the largest weight. A rollback returns to ``way_back``,
    which stays loaded: ``previous``, or for an alias that is split what last had it alone and still exists.
    """

    name: str
    target: Version
    previous: VersionRef | None
    sampling: Mapping[str, Any]
    verdict: str | None
    forced: bool
    changed_at: datetime
    targets: tuple[tuple[Version, int], ...] = ()
    way_back: VersionRef | None = None

    def __post_init__(self) -> None:
        if not self.targets:
            object.__setattr__(self, "targets", ((self.target, 1),))

    @property
    def refs(self) -> tuple[VersionRef, ...]:
        """The versions that it means."""
        return tuple(version.ref for version, _ in self.targets)

    @property
    def meaning(self) -> str:
        """The versions that it means in words, with their weights where there are several."""
        return targets_text([(version.ref, weight) for version, weight in self.targets])


@dataclass(frozen=True)
class AliasChange:
    """One entry of an alias's history; the versions it names may have been removed since.

    Where the alias itself was removed, the versions are those that it meant until then, with weights of 0.
    """

    alias: str
    target: VersionRef
    digest: str
    previous: VersionRef | None
    sampling: Mapping[str, Any]
    verdict: str | None
    forced: bool
    by: str
    changed_at: datetime
    targets: tuple[tuple[VersionRef, int], ...] = ()

    def __post_init__(self) -> None:
        if not self.targets:
            object.__setattr__(self, "targets", ((self.target, 1),))

    @property
    def refs(self) -> tuple[VersionRef, ...]:
        """The versions that it named."""
        return tuple(ref for ref, _ in self.targets)

    @property
    def removed(self) -> bool:
        """Whether the alias was removed."""
        return not any(weight for _, weight in self.targets)


@dataclass(frozen=True)
class LoadState:
    """What an engine last said of a version; ``reason`` holds its words where the state is ``failed``."""

    engine: str
    ref: VersionRef
    engine_name: str
    state: LoadStateName
    reason: str
    load_seconds: float | None
    changed_at: datetime


@dataclass(frozen=True)
class EvaluationRecord:
    """One evaluation of a version against a base; ``report`` is the path of its HTML report."""

    id: int
    ref: VersionRef
    base_digest: str
    result: Mapping[str, Any]
    verdict: str
    report: str
    created_at: datetime


@dataclass(frozen=True)
class EngineSeen:
    """An engine as its supervisor last told of it; ``seen_at`` is the database's time."""

    name: str
    url: str
    base_name: str
    state: str
    reason: str
    seen_at: datetime
