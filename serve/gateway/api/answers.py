"""What every route of the management API answers with, beside its own content: errors in OpenAI's shape."""

import re
from datetime import date, datetime
from typing import Annotated, Any, Literal

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict


class Strict(BaseModel):
    """A body; a field that it does not know is an error."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def _day(value: object) -> Any:
    # Nobody means 1970 by 0, which pydantic would take for a day.
    if value is None or type(value) is date:
        return value
    if not isinstance(value, str) or not re.fullmatch(r"\d{4}-\d{2}-\d{2}", value):
        raise ValueError("must be a day, such as 2026-11-01")
    return date.fromisoformat(value)


def _moment(value: object) -> Any:
    if not isinstance(value, str):
        raise ValueError("must be a time with its zone, such as 2027-01-01T00:00:00Z")
    return datetime.fromisoformat(value)


Day = Annotated[date, BeforeValidator(_day)]
Moment = Annotated[AwareDatetime, BeforeValidator(_moment)]


class ErrorContent(BaseModel):
    """What went wrong and what to do; ``code`` is stable and listed in docs/errors.md."""

    message: str
    type: str
    param: str | None
    code: str


class ErrorAnswer(BaseModel):
    """The body of every answer with a status from 400 on."""

    error: ErrorContent


class Alive(BaseModel):
    """The gateway serves; ``revision`` is the registry's that its routes were built from."""

    status: Literal["ok"]
    revision: int


class Ready(BaseModel):
    """Requests can be answered."""

    status: Literal["ready"]
    revision: int


WHY = {
    400: "The request is malformed, or what it asks for cannot be.",
    401: "A key is needed, and none that is valid was sent.",
    403: "The key may not do this.",
    404: "What was named does not exist, or is not for this key.",
    408: "The body took too long to arrive.",
    409: "The present state does not allow it.",
    413: "The body is too long.",
    415: "The body is not declared as JSON.",
    429: "The key's limits are used up; try again after `retry-after` seconds.",
    503: "Something that must run does not answer; try again after `retry-after` seconds.",
}
RETRY = {"retry-after": {"description": "Seconds to wait.", "schema": {"type": "integer"}}}
ALWAYS = (400, 401, 403, 429, 503)
WITH_BODY = (408, 413, 415)

Responses = dict[int | str, dict[str, Any]]


def errors(*statuses: int) -> Responses:
    """The descriptions of answers with these statuses, for a route's ``responses``."""
    found: Responses = {}
    for status in statuses:
        found[status] = {"model": ErrorAnswer, "description": WHY[status]}
        if status in (429, 503):
            found[status]["headers"] = RETRY
    return found


def reading(*statuses: int) -> Responses:
    """As :func:`errors`, with what any route may answer."""
    return errors(*sorted({*ALWAYS, *statuses}))


def writing(*statuses: int) -> Responses:
    """As :func:`errors`, with what any route that takes a body may answer."""
    return errors(*sorted({*ALWAYS, *WITH_BODY, *statuses}))
