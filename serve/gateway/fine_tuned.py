"""Names as OpenAI writes those of adapted models, and the plain names that they stand for.

``ft:BASE:NAME`` is an alias or a version. ``ft:BASE:ORG:SUFFIX:ID`` is one version for good: SUFFIX is the name of its
adapter, or of an alias that means this adapter, or empty; ID are the first digits of its digest, eight or more.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from serve.names import NAME, VERSION, VersionRef
from serve.registry import Alias, Version

ID_DIGITS = 8
LONGEST_BASE = 200
FORM = re.compile(
    rf"ft:(?P<base>[^:]{{1,{LONGEST_BASE}}}):"
    rf"(?:(?P<plain>{NAME.pattern}|{VERSION.pattern})"
    # The organisation says nothing here, but stands in logs: no more than OpenAI's letters are taken.
    rf"|[A-Za-z0-9._-]{{0,64}}:(?P<suffix>(?:{NAME.pattern})?):(?P<id>[0-9a-f]{{{ID_DIGITS},64}}))"
)


def fine_tuned_name(name: str, version: Version, base: str) -> str:
    """How OpenAI would write a public name that leads to ``version``: pinned, if ``name`` is the version's own."""
    if VERSION.fullmatch(name):
        return f"ft:{base}::{version.ref.name}:{version.digest[:ID_DIGITS]}"
    return f"ft:{base}:{name}"


@dataclass(frozen=True)
class FineTunedNames:
    """What such names mean at one moment.

    ``aliases`` and ``versions`` are all there are, by public name; ``served`` are the bases by whose engines names
    are answered, where they are, as an attached engine may call its base otherwise than the registry does.
    """

    aliases: Mapping[str, Alias] = field(default_factory=dict)
    versions: Mapping[str, Version] = field(default_factory=dict)
    served: Mapping[str, str] = field(default_factory=dict)

    def plain(self, name: str) -> str:
        """The plain form of a name; one that means nothing stays as it is.

        Of several versions with the same files the first that is loaded is meant.
        """
        match = FORM.fullmatch(name)
        if match is None:
            return name
        base, plain = match["base"], match["plain"]
        if plain is not None:
            version = self.aliases[plain].target if plain in self.aliases else self.versions.get(plain)
            return plain if version is not None and self._is_of(plain, version, base) else name
        found = [
            version
            for version in self._by_id.get(match["id"][:ID_DIGITS], ())
            if version.digest.startswith(match["id"])
            and self._is_of(str(version.ref), version, base)
            and self._is_called(version.ref, match["suffix"])
        ]
        if len({version.digest for version in found}) != 1:
            return name
        return str(
            min((version.ref for version in found), key=lambda ref: (str(ref) not in self.served, ref))
        )

    @cached_property
    def _by_id(self) -> Mapping[str, list[Version]]:
        found: dict[str, list[Version]] = {}
        for version in self.versions.values():
            found.setdefault(version.digest[:ID_DIGITS], []).append(version)
        return found

    def _is_of(self, name: str, version: Version, base: str) -> bool:
        return base in (version.base_name, self.served.get(name))

    def _is_called(self, ref: VersionRef, suffix: str) -> bool:
        """Whether a version's adapter has this name, or an alias of this name means it, or did just before."""
        alias = self.aliases.get(suffix)
        if not suffix or suffix == ref.name or alias is None:
            return suffix in ("", ref.name)
        return any(each is not None and each.name == ref.name for each in (*alias.refs, alias.previous))
