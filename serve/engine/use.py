"""``run/used.json``: which adapters the gateway of this home sends requests to, for the controller."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

from serve.records import ProcessIdentity, read_json, write_json


@dataclass(frozen=True)
class Use:
    """By engine the adapters that requests are or may be sent to, the least recently used first.

    ``alive``: the gateway that said so still runs. One that ended has no requests any more.
    """

    engines: Mapping[str, list[str]] = field(default_factory=dict)
    alive: bool = False

    @classmethod
    def read(cls, path: Path) -> Self:
        """What was last told; nothing of anybody where the file is missing or is not one."""
        told = read_json(path)
        engines, gateway = told.get("engines"), told.get("gateway")
        who = ProcessIdentity.read(gateway) if isinstance(gateway, dict) else None
        found = {
            str(engine): [name for name in names if isinstance(name, str)]
            for engine, names in (engines.items() if isinstance(engines, dict) else ())
            if isinstance(names, list)
        }
        return cls(found, who is not None and who.alive)

    def order(self, engine: str) -> list[str]:
        """What an engine was used for, the least recently used first, also by a gateway that has ended."""
        return self.engines.get(engine, [])

    def engaged(self, engine: str) -> list[str]:
        """What an engine must keep, as requests may be on it."""
        return self.order(engine) if self.alive else []


def tell_use(path: Path, engines: Mapping[str, list[str]]) -> None:
    """Say as this process, a gateway, what it uses; raises StorageError."""
    write_json(path, {"gateway": ProcessIdentity.of(os.getpid()).to_json(), "engines": dict(engines)})
