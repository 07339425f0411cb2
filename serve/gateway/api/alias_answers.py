"""What the routes of aliases answer."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field

from serve.names import VersionRef
from serve.registry import Alias, AliasChange


class AliasView(BaseModel):
    """A name and the versions that answer under it, with the weights by which conversations are split among them."""

    name: str
    target: str = Field(description="The version of the largest weight.")
    targets: dict[str, int]
    previous: str | None = Field(description="The version that led before.")
    way_back: str | None = Field(
        description="What a rollback returns to: `previous`, or for an alias that is split the last that it meant "
        "alone. It stays loaded."
    )
    sampling: dict[str, Any]
    verdict: str | None
    forced: bool = Field(description="The gate was overruled.")
    changed_at: datetime


class Change(BaseModel):
    """One entry of an alias's history."""

    target: str
    targets: dict[str, int]
    previous: str | None
    sampling: dict[str, Any]
    verdict: str | None
    forced: bool
    removed: bool = Field(description="The alias was removed; its weights are those of nothing, 0.")
    by: str = Field(description="Name of the API key that changed it, `operator` without keys, or `cli`.")
    changed_at: datetime


class AliasDetails(AliasView):
    """An alias with its history, oldest first."""

    history: list[Change]


class AliasList(BaseModel):
    """Aliases by name."""

    aliases: list[AliasView]


class Pending(BaseModel):
    """What is not loaded yet, so that the alias was left as it was; send the same again, or look there."""

    alias: str
    waiting: dict[str, str] = Field(description="NAME@vN → its state.")
    look: list[str] = Field(description="Paths that tell how far they are.")

    @classmethod
    def of(cls, alias: str, missing: Mapping[VersionRef, str]) -> "Pending":
        """The answer for versions in these states."""
        states = {str(ref): state for ref, state in missing.items()}
        return cls(alias=alias, waiting=states, look=[f"/api/adapters/{ref}" for ref in states])


def view(alias: Alias) -> AliasView:
    """What is told of an alias."""
    return AliasView(
        name=alias.name,
        target=str(alias.target.ref),
        targets={str(version.ref): weight for version, weight in alias.targets},
        previous=str(alias.previous) if alias.previous else None,
        way_back=str(alias.way_back) if alias.way_back else None,
        sampling=dict(alias.sampling),
        verdict=alias.verdict,
        forced=alias.forced,
        changed_at=alias.changed_at,
    )


def details(alias: Alias, history: Sequence[AliasChange]) -> AliasDetails:
    """What is told of an alias, with its history."""
    changes = [
        Change(
            target=str(change.target),
            targets={str(ref): weight for ref, weight in change.targets},
            previous=str(change.previous) if change.previous else None,
            sampling=dict(change.sampling),
            verdict=change.verdict,
            forced=change.forced,
            removed=change.removed,
            by=change.by,
            changed_at=change.changed_at,
        )
        for change in history
    ]
    return AliasDetails(**view(alias).model_dump(), history=changes)
