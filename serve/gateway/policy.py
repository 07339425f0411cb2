"""What an alias makes of a request's sampling: defaults, limits, forced values.

    a forced value  >  the request's own field  >  the preset that it names  >  the alias's defaults

A value outside the limits is refused and not bent, as a client that gets another temperature than it asked
for, and is not told, looks for the fault elsewhere. A limited field that nobody sets is sent nevertheless: at
the engine's usual value, or at the limit next to that.
"""

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from pydantic import TypeAdapter, ValidationError

from serve.errors import InputError, OutsideLimits
from serve.gateway.sampling import LIMITED, LIMITS, NOTHING, SAMPLING, VALUES

USUAL: Mapping[str, float] = {
    "temperature": 1.0,
    "top_p": 1.0,
    "top_k": -1,
    "min_p": 0.0,
    "presence_penalty": 0.0,
    "frequency_penalty": 0.0,
    "repetition_penalty": 1.0,
}
"""What an engine takes for a field that nobody sets."""
PARTS = ("defaults", "min", "max", "force", "preset")


class Length(NamedTuple):
    """What an endpoint calls ``max_tokens`` (its own name first) and how much it takes when nobody says."""

    names: tuple[str, ...]
    usual: float = float("inf")


@dataclass(frozen=True)
class SamplingPolicy:
    """The policy of one alias; ``preset`` is the name of the preset that its defaults began with."""

    defaults: Mapping[str, Any] = field(default_factory=dict)
    minimum: Mapping[str, float] = field(default_factory=dict)
    maximum: Mapping[str, float] = field(default_factory=dict)
    forced: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None

    @classmethod
    def parse(cls, stored: Mapping[str, Any]) -> "SamplingPolicy":
        """Read the JSON that an alias carries, else raise InputError that lists every problem.

        It is ``{"defaults": …, "min": …, "max": …, "force": …, "preset": …}``, or the defaults alone, which
        is how they were stored before there was anything else.
        """
        parts = stored if any(part in stored for part in PARTS) else {"defaults": stored}
        problems = [f"{name}: no such part" for name in parts if name not in PARTS]
        defaults = _parse(VALUES, "default", parts.get("defaults"), problems)
        minimum = _parse(LIMITS, "minimum", parts.get("min"), problems)
        maximum = _parse(LIMITS, "maximum", parts.get("max"), problems)
        forced = _parse(VALUES, "forced value", parts.get("force"), problems)
        preset = parts.get("preset")
        if not isinstance(preset, str | None):
            problems.append("preset: must be a name")
        policy = cls(defaults, minimum, maximum, forced, str(preset) if preset else None)
        if not problems:
            problems = policy._contradictions()
        if problems:
            raise InputError("sampling: " + "; ".join(problems), f"known fields: {', '.join(SAMPLING)}")
        return policy

    def stored(self) -> dict[str, Any]:
        """The JSON for an alias; the defaults alone where there is nothing else."""
        parts = {
            "defaults": dict(self.defaults),
            "min": dict(self.minimum),
            "max": dict(self.maximum),
            "force": dict(self.forced),
            "preset": self.preset,
        }
        rest = {name: part for name, part in parts.items() if part and name != "defaults"}
        return {"defaults": parts["defaults"], **rest} if rest else dict(self.defaults)

    @property
    def bounds(self) -> "SamplingPolicy":
        """Its limits and forced values alone."""
        return SamplingPolicy(minimum=self.minimum, maximum=self.maximum, forced=self.forced)

    def allows(self, name: str, value: float) -> bool:
        """Whether a request may give a field this value; a forced one makes no difference to what is given."""
        return name in self.forced or self._outside(name, value) is None

    def __bool__(self) -> bool:
        return bool(self.defaults or self.minimum or self.maximum or self.forced)

    def apply(
        self, body: dict[str, Any], length: Length, preset: Mapping[str, Any] = NOTHING, called: str = ""
    ) -> None:
        """Complete the sampling of a request; ``preset`` are the values of the one that it calls ``called``.

        Raises OutsideLimits, which names field and limit. Null counts as not set.
        """
        filled = {name for name, value in preset.items() if _fill(body, name, value, length)}
        for name, value in self.defaults.items():
            _fill(body, name, value, length)
        for name in self.minimum.keys() | self.maximum.keys():
            if name not in self.forced:
                self._limit(body, name, length, f" (from the preset {called})" if name in filled else "")
        for name, value in self.forced.items():
            if name == "max_tokens":
                for other in length.names:
                    body.pop(other, None)
                body[length.names[0]] = value
            else:
                body[name] = value

    def _limit(self, body: dict[str, Any], name: str, length: Length, source: str) -> None:
        names = length.names if name == "max_tokens" else (name,)
        given = [known for known in names if body.get(known) is not None]
        for known in given:
            problem = self._outside(name, body[known])
            if problem is not None:
                raise OutsideLimits(
                    f"{known}: {body[known]}{source} is {problem} this model allows", param=known
                )
        if not given:
            usual = length.usual if name == "max_tokens" else _amount(name, USUAL[name])
            low, high = self.minimum.get(name), self.maximum.get(name)
            if high is not None and usual > _amount(name, high):
                body[names[0]] = high
            elif low is not None and usual < _amount(name, low):
                body[names[0]] = low
            elif name != "max_tokens":
                body[name] = USUAL[name]

    def _outside(self, name: str, value: float) -> str | None:
        amount = _amount(name, value)
        if (high := self.maximum.get(name)) is not None and amount > _amount(name, high):
            return f"above {high}, the highest that"
        if (low := self.minimum.get(name)) is not None and amount < _amount(name, low):
            return f"below {low}, the lowest that"
        return None

    def _contradictions(self) -> list[str]:
        problems = [
            f"{name}: the minimum ({self.minimum[name]}) is above the maximum ({self.maximum[name]})"
            for name in self.minimum.keys() & self.maximum.keys()
            if _amount(name, self.minimum[name]) > _amount(name, self.maximum[name])
        ]
        for kind, values in (("default", self.defaults), ("forced value", self.forced)):
            for name in LIMITED:
                if name in values and (problem := self._outside(name, values[name])) is not None:
                    problems.append(f"{name}: the {kind} ({values[name]}) is {problem} this policy allows")
        return problems


NO_POLICY = SamplingPolicy()


def sampling_values(values: Any, what: str, problems: list[str]) -> dict[str, Any]:
    """Check the values of a preset; adds to ``problems`` what is wrong with them."""
    return _parse(VALUES, what, values, problems)


def nearest(name: str, known: tuple[str, ...] | list[str]) -> str:
    """`` (did you mean …?)`` for a name that nobody knows; empty if none is near."""
    near = difflib.get_close_matches(name[:100], known, 1)
    return f" (did you mean {near[0]}?)" if near else ""


def _parse(adapter: TypeAdapter[Any], what: str, values: Any, problems: list[str]) -> dict[str, Any]:
    if values is None:
        return {}
    try:
        return {key: value for key, value in adapter.validate_python(values).items() if value is not None}
    except ValidationError as error:
        for item in error.errors(include_url=False):
            name = str(item["loc"][0]) if item["loc"] else what
            if item["type"] == "extra_forbidden":
                known = SAMPLING if adapter is VALUES else LIMITED
                unlimited = " has no limits" if name in SAMPLING else ": no such field"
                problems.append(f"{name}{unlimited}{nearest(name, known)}")
            else:
                reason = item["msg"].removeprefix("Value error, ")
                problems.append(f"{name}: {reason} (got {item['input']!r} as {what})")
        return {}


def _amount(name: str, value: float) -> float:
    """A value as one that can be compared: ``top_k`` is off, and so without bound, at 0 and -1."""
    return float("inf") if name == "top_k" and value <= 0 else value


def _fill(body: dict[str, Any], name: str, value: Any, length: Length) -> bool:
    """Set a field that nothing set so far; returns whether that was so."""
    if name != "max_tokens":
        if body.get(name) is not None:
            return False
        body[name] = value
        return True
    if any(body.get(other) is not None for other in length.names):
        return False
    body[length.names[0]] = value
    return True
