"""Moves of an alias: to versions that the gate lets answer users, or back to what it meant before."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serve.errors import Conflict, VersionNotFound
from serve.registry import Alias, Registry, Version
from serve.registry.aliases import check_targets
from serve.registry.evidence import check_gate, verdict_of


@dataclass(frozen=True)
class Move:
    """What an alias is to mean from now on; ``sampling`` None keeps what it has, ``back`` is a rollback."""

    alias: str
    targets: Sequence[tuple[Version, int]]
    sampling: Mapping[str, Any] | None
    by: str
    force: bool = False
    back: bool = False


def planned(registry: Registry, move: Move) -> bool:
    """Check a move and return whether something speaks against it, which ``force`` or a rollback overrule.

    Raises InputError, Conflict for the name of the base, and GateRefused.
    """
    check_targets([(version.ref, weight) for version, weight in move.targets])
    if any(move.alias == version.base_name for version, _ in move.targets):
        raise Conflict(f"{move.alias} is the name of the base itself", "choose another name for the alias")
    # What has no weight answers nobody.
    answering = [version for version, weight in move.targets if weight > 0]
    return check_gate(registry, move.alias, answering, overruled=move.force or move.back, force="force")


def put(registry: Registry, move: Move) -> Alias:
    """Make a move, unless something speaks against it by now; raises as :func:`planned` does."""
    forced = planned(registry, move)
    leading = max(move.targets, key=lambda pair: pair[1])[0]
    return registry.set_alias(
        move.alias,
        targets={version.ref: weight for version, weight in move.targets},
        sampling=move.sampling,
        verdict=verdict_of(registry, leading),
        forced=forced,
        by=move.by,
    )


def way_back(registry: Registry, alias: Alias) -> Version:
    """The version that a rollback of an alias leads to, its ``way_back``; raises Conflict where there is none."""
    if alias.way_back is not None:
        with contextlib.suppress(VersionNotFound):  # removed in this moment
            return registry.version(alias.way_back)
    raise Conflict(
        f"{alias.name} has no version to go back to", "set it to another with PUT /api/aliases/{name}"
    )
