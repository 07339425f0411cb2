"""What an engine should hold, the most urgent first, and what has no room on it.

vLLM keeps ``--max-cpu-loras`` adapters in memory and drops the least recently used of more by itself; the next
request for one of those then reads a disk inside the engine's loop, where everybody waits for it. So we load no
more than that, and choose ourselves: versions that answer now, or are about to, or that somebody asked for are
always loaded; those that only a rollback would return to are left out, the least recently used first.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from serve.names import VersionRef
from serve.registry.records import Alias, Version

NO_ROOM = "the engine keeps no more adapters in memory; raise TENON_MAX_CPU_LORAS for faster rollbacks"


@dataclass(frozen=True)
class Room:
    """How many adapters an engine keeps, and the engine names that it holds, least recently used first."""

    capacity: int
    used: Sequence[str] = ()


@dataclass(frozen=True)
class Wishes:
    """``loaded`` are the versions to hold, the most urgent first, ``left_out`` those without room.

    ``excess`` is how many more are needed at once than there is room for.
    """

    loaded: list[Version]
    left_out: list[Version]
    excess: int

    @classmethod
    def of(
        cls,
        versions: Iterable[Version],
        aliases: Iterable[Alias],
        wanted: Collection[VersionRef] = (),
        room: Room | None = None,
    ) -> "Wishes":
        """Order the versions that are desired of one engine; without ``room`` all of them fit.

        First come those that an alias sends conversations to; then those that it names with a weight of 0, as a
        rollout is about to use them; then what somebody has ``wanted``; then those before them, for a rollback.
        """
        newest_first = sorted(aliases, key=lambda alias: alias.changed_at, reverse=True)
        targets = [pair for alias in newest_first for pair in alias.targets]
        live = {version.ref for version, weight in targets if weight}
        soon = {version.ref for version, weight in targets if not weight}
        before = [alias.way_back for alias in newest_first if alias.way_back is not None]
        recent = {name: place for place, name in enumerate(room.used if room is not None else ())}

        def urgency(version: Version) -> tuple[int, int, int]:
            for rank, refs in enumerate((live, soon, wanted)):
                if version.ref in refs:
                    return rank, 0, 0
            age = before.index(version.ref) if version.ref in before else len(before)
            return 3, -recent.get(version.engine_name, -1), age

        ordered = sorted(versions, key=urgency)
        if room is None:
            return cls(ordered, [], 0)
        needed = sum(urgency(version)[0] < 3 for version in ordered)
        most = max(needed, room.capacity)
        return cls(ordered[:most], ordered[most:], needed - min(needed, room.capacity))
