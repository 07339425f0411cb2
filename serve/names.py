"""Names of things: ``support`` (an alias), ``support@v3`` (a version), ``support@v3-1a2b3c4d`` (engine name)."""

import re
from collections.abc import Sequence
from typing import NamedTuple

from serve.errors import InputError

NAME = re.compile(r"[a-z0-9]([a-z0-9._-]{0,62}[a-z0-9])?")
VERSION = re.compile(rf"(?P<name>{NAME.pattern})@v(?P<number>[1-9][0-9]{{0,8}})")


class VersionRef(NamedTuple):
    """The public name of an immutable version."""

    name: str
    number: int

    def __str__(self) -> str:
        return f"{self.name}@v{self.number}"

    def engine_name(self, digest: str) -> str:
        """The name that the engine is told: never reused for other files, as ``digest`` is part of it."""
        return f"{self}-{digest[:8]}"


def check_name(name: str) -> str:
    """Return ``name`` if an adapter or alias may be called so, else raise :class:`InputError`."""
    if not NAME.fullmatch(name):
        raise InputError(
            f"{name!r} is not a name for an adapter",
            "use 1 to 64 of a-z, 0-9, '.', '_' and '-', with a letter or digit at both ends",
        )
    return name


def check_adapter_name(name: str, base: str) -> str:
    """Return ``name`` if an adapter of the base of that name may be called so, else raise :class:`InputError`."""
    if check_name(name) == base:
        raise InputError(f"{name} is the name of the base itself", "choose another name for the adapter")
    return name


def parse_version(text: str) -> VersionRef:
    """Parse ``name@vN``, else raise :class:`InputError`."""
    match = VERSION.fullmatch(text)
    if match is None:
        raise InputError(f"{text!r} names no version", "write it as NAME@vN, such as support@v3")
    return VersionRef(match["name"], int(match["number"]))


def targets_text(targets: Sequence[tuple[VersionRef, int]]) -> str:
    """What an alias means, in words: a version, or several with their weights."""
    if len(targets) == 1:
        return str(targets[0][0])
    return ", ".join(f"{ref}={weight}" for ref, weight in targets)
