"""Versions and their weights as a person writes and reads them: ``support@v2 support@v3=10``."""

from collections.abc import Mapping, Sequence

from serve.errors import InputError
from serve.names import VersionRef, parse_version
from serve.registry import Alias

WHOLE = 100
"""What the weights make together when one version gets what is left."""


def parse_weights(texts: Sequence[str]) -> dict[VersionRef, int]:
    """Read ``NAME@vN`` or ``NAME@vN=WEIGHT``, in any order; one alone without a weight gets all that is left of 100.

    Raises InputError.
    """
    weights: dict[VersionRef, int] = {}
    rest: list[VersionRef] = []
    for text in texts:
        name, equals, number = text.partition("=")
        ref = parse_version(name)
        if ref in weights:
            raise InputError(f"{ref} is named twice", "name each version once, with its weight")
        if equals and not number.isdecimal():
            raise InputError(f"{text!r}: {number!r} is no weight", "write it as NAME@vN=10, a whole number")
        weights[ref] = int(number) if equals else 0
        rest += [] if equals else [ref]
    if len(rest) > 1:
        named = " and ".join(map(str, rest))
        raise InputError(f"{named} have no weight", "give all of them one but for one, such as support@v3=10")
    if rest:
        left = WHOLE - sum(weights.values())
        if left < 1:
            raise InputError(
                f"nothing is left of {WHOLE} for {rest[0]}", "give it a weight of its own, or the others less"
            )
        weights[rest[0]] = left
    if not any(weights.values()):
        raise InputError("all weights are 0", "one version at least must answer")
    return weights


def name_of(weights: Mapping[VersionRef, int]) -> str:
    """The name that versions have in common, for an alias that was not named; else InputError."""
    names = {ref.name for ref in weights}
    if len(names) > 1:
        raise InputError(
            f"these are versions of {' and '.join(sorted(names))}", "name the alias with --alias"
        )
    return names.pop()


def shares_of(alias: Alias) -> dict[VersionRef, str]:
    """The share of conversations that each version of a weighted alias gets, in percent; empty for one of one."""
    if len(alias.targets) < 2:
        return {}
    total = sum(weight for _, weight in alias.targets)
    return {version.ref: f"{100 * weight / total:.3g} %" for version, weight in alias.targets}
