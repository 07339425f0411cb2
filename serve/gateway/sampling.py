"""Sampling fields: their ranges, for requests and defaults alike, and the defaults that an alias carries."""

import difflib
from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PlainValidator, ValidationError
from pydantic_core import ErrorDetails

from serve.errors import InputError

MAX_STOPS = 16
MAX_STOP_CHARS = 1024


def _check_stop(value: Any) -> list[str] | None:
    if value is None:
        return None
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise ValueError(f"must be a string or a list of up to {MAX_STOPS} strings")
    if not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"must hold strings of 1 to {MAX_STOP_CHARS} characters")
    return stops


class SamplingFields(BaseModel):
    """The sampling fields of a request; ``None`` means that the field is not set."""

    model_config = ConfigDict(strict=True, extra="ignore", frozen=True)

    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    top_k: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = None
    min_p: Annotated[float, Field(ge=0, le=1)] | None = None
    max_tokens: Annotated[int, Field(ge=1, le=2**31 - 1)] | None = None
    stop: Annotated[list[str] | None, PlainValidator(_check_stop)] = None
    presence_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    frequency_penalty: Annotated[float, Field(ge=-2, le=2)] | None = None
    repetition_penalty: Annotated[float, Field(gt=0, le=10)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None = None


class SamplingDefaults(SamplingFields):
    """What an alias fills in where a request says nothing; a request's own fields always win."""

    model_config = ConfigDict(extra="forbid")

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> "SamplingDefaults":
        """Check ``values``, else raise InputError that lists every problem."""
        try:
            return cls.model_validate(dict(values))
        except ValidationError as error:
            problems = [_describe(item) for item in error.errors()]
        known = ", ".join(cls.model_fields)
        raise InputError("sampling defaults: " + "; ".join(problems), f"known fields: {known}")

    def values(self) -> dict[str, Any]:
        """The fields that are set, as plain JSON."""
        return self.model_dump(exclude_none=True)


def _describe(problem: ErrorDetails) -> str:
    name = str(problem["loc"][0])
    if problem["type"] != "extra_forbidden":
        return f"{name}: {problem['msg'].removeprefix('Value error, ')} (got {problem['input']!r})"
    near = difflib.get_close_matches(name, SamplingDefaults.model_fields, 1)
    return f"{name}: no such field" + (f" (did you mean {near[0]}?)" if near else "")


def apply_defaults(body: dict[str, Any], defaults: Mapping[str, Any]) -> None:
    """Set in ``body`` the defaults for those fields that it does not set; null counts as not set."""
    for name, value in defaults.items():
        limited = name == "max_tokens" and body.get("max_completion_tokens") is not None
        if body.get(name) is None and not limited:
            body[name] = value
