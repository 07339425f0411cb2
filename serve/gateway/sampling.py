"""Sampling fields: their types and ranges, for requests, presets and the policies of aliases alike."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator, ConfigDict, Field, PlainValidator, TypeAdapter, with_config
from typing_extensions import TypedDict

MAX_STOPS = 16
MAX_STOP_CHARS = 1024
MAX_INT = 2**31 - 1

NOTHING: Mapping[str, Any] = {}
STRICT = ConfigDict(strict=True, extra="ignore")


def _check_stop(value: Any) -> str | list[str] | None:
    if value is None:
        return None
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list) or len(stops) > MAX_STOPS:
        raise ValueError(f"must be a string or a list of up to {MAX_STOPS} strings")
    if not all(isinstance(stop, str) and 0 < len(stop) <= MAX_STOP_CHARS for stop in stops):
        raise ValueError(f"must hold strings of 1 to {MAX_STOP_CHARS} characters")
    return value  # type: ignore[no-any-return]  # a string or a list of them, as was just seen


Temperature = Annotated[float, Field(ge=0, le=2)] | None
TopP = Annotated[float, Field(gt=0, le=1)] | None
TopK = Annotated[int, Field(ge=-1, le=MAX_INT)] | None
MinP = Annotated[float, Field(ge=0, le=1)] | None
TokenLimit = Annotated[int, Field(ge=1, le=MAX_INT)] | None
Stop = Annotated[str | list[str] | None, PlainValidator(_check_stop)]
Penalty = Annotated[float, Field(ge=-2, le=2)] | None
RepetitionPenalty = Annotated[float, Field(gt=0, le=10)] | None
Seed = Annotated[int, Field(ge=-(2**63), le=2**63 - 1)] | None


@with_config(STRICT)
class CommonSampling(TypedDict, total=False):
    """The sampling fields that every generating endpoint has; null means that a field is not set."""

    temperature: Temperature
    top_p: TopP
    top_k: TopK
    min_p: MinP
    stop: Stop
    presence_penalty: Penalty
    frequency_penalty: Penalty
    repetition_penalty: RepetitionPenalty
    seed: Seed


@with_config(ConfigDict(strict=True, extra="forbid"))
class SamplingValues(CommonSampling, total=False):
    """What a preset or a policy may set; ``max_tokens`` stands for whatever an endpoint calls it."""

    max_tokens: TokenLimit


def _check_limits(values: dict[str, float | None]) -> dict[str, float | None]:
    for name, value in values.items():
        if isinstance(value, bool) or value is None:
            raise ValueError(f"{name} must be a number")
    return values


@with_config(ConfigDict(strict=True, extra="forbid"))
class LimitValues(TypedDict, total=False):
    """The fields that can have a lowest and a highest value: those that are numbers with an order."""

    temperature: Temperature
    top_p: TopP
    top_k: TopK
    min_p: MinP
    max_tokens: TokenLimit
    presence_penalty: Penalty
    frequency_penalty: Penalty
    repetition_penalty: RepetitionPenalty


SAMPLING = tuple(SamplingValues.__annotations__)
LIMITED = tuple(LimitValues.__annotations__)
VALUES: TypeAdapter[SamplingValues] = TypeAdapter(SamplingValues)
LIMITS: TypeAdapter[Any] = TypeAdapter(Annotated[LimitValues, AfterValidator(_check_limits)])
