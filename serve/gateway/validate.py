"""From a request's bytes to what the engine may see of it; whatever is not understood ends here."""

from collections.abc import Mapping
from typing import Any, Literal

import orjson
from pydantic import TypeAdapter, ValidationError
from pydantic_core import ErrorDetails

from serve.errors import BadRequest, InputError, RequestTooLarge, UnknownField
from serve.gateway.bodies.fields import MAX_SEQUENCES
from serve.gateway.bodies.generation import ChatBody, CompletionBody
from serve.gateway.bodies.pooling import (
    PAIRS,
    ClassifyBody,
    DetokenizeBody,
    EmbeddingBody,
    PoolingBody,
    RerankBody,
    ScoreBody,
    TokenizeBody,
)
from serve.gateway.bodies.refused import IGNORED, INTERNAL, UNSERVED
from serve.gateway.bodies.responses import ResponsesBody
from serve.gateway.policy import nearest
from serve.gateway.presets import find_preset
from serve.gateway.rules import Rules

Kind = Literal[
    "chat",
    "completion",
    "responses",
    "embedding",
    "classify",
    "score",
    "rerank",
    "pooling",
    "tokenize",
    "detokenize",
]

MAX_DEPTH = 64
"""Levels of objects and lists in a body."""
MAX_CONTAINERS = 250_000
"""Objects and lists in a body; brackets within texts count too, as counting must cost nothing."""
MAX_COMMAS = 1_000_000
BODIES: Mapping[Kind, Any] = {
    "chat": ChatBody,
    "completion": CompletionBody,
    "responses": ResponsesBody,
    "embedding": EmbeddingBody,
    "classify": ClassifyBody,
    "score": ScoreBody,
    "rerank": RerankBody,
    "pooling": PoolingBody,
    "tokenize": TokenizeBody,
    "detokenize": DetokenizeBody,
}
FIELDS = {kind: frozenset(body.__annotations__) for kind, body in BODIES.items()}
_VALIDATORS = {kind: TypeAdapter(body).validator for kind, body in BODIES.items()}
_CHOICES: Mapping[Kind, tuple[tuple[str, ...], ...]] = {
    "embedding": (("input",), ("messages",)),
    "classify": (("input",), ("messages",)),
    "pooling": (("input",), ("messages",)),
    "tokenize": (("prompt",), ("messages",)),
    "score": PAIRS,
}
CHECKED_ONLY: Mapping[Kind, tuple[str, ...]] = {"chat": ("metadata", "modalities", "service_tier")}
"""Fields that mean nothing to an engine."""
DEFAULT_RULES = Rules()


def parse_body(raw: bytes | bytearray, *, needs_model: bool = True) -> dict[str, Any]:
    """Read a JSON object that names a model, else raise BadRequest or RequestTooLarge.

    NaN, infinite numbers, lone surrogates and nesting beyond MAX_DEPTH levels are no JSON here. Of a key that
    stands twice the last is taken, and it alone is what the engine gets too.
    """
    containers = raw.count(b"{") + raw.count(b"[")
    if containers > MAX_CONTAINERS or raw.count(b",") > MAX_COMMAS:
        # A value takes up to twenty times the memory of its text.
        raise RequestTooLarge("the body holds too many values", "send less in one request")
    try:
        body = orjson.loads(raw)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not JSON: {error}", "send one JSON object") from None
    if not isinstance(body, dict):
        raise BadRequest("the body is JSON, but not an object", "send one JSON object")
    if containers > MAX_DEPTH:
        _check_depth(body)
    model = body.get("model")
    if (not isinstance(model, str) or not model) and (needs_model or model is not None):
        raise BadRequest("the request names no model", "set model; GET /v1/models lists them", param="model")
    return body


def _check_depth(body: dict[str, Any]) -> None:
    level: list[Any] = [body]
    for _ in range(MAX_DEPTH):
        level = [
            child
            for item in level
            for child in (item.values() if type(item) is dict else item)
            if type(child) is dict or type(child) is list
        ]
        if not level:
            return
    raise BadRequest("the body is nested too deeply", f"{MAX_DEPTH} levels are the limit")


def check_request(body: dict[str, Any], kind: Kind, rules: Rules = DEFAULT_RULES) -> dict[str, Any]:
    """The fields of ``body`` that the engine may see, each checked, in an object of its own, without nulls.

    Raises BadRequest or UnknownField, which name the field.
    """
    if strangers := body.keys() - FIELDS[kind]:
        _check_strangers(body, strangers, kind, rules)
    try:
        checked: dict[str, Any] = _VALIDATORS[kind].validate_python(body, context=rules)
    except ValidationError as error:
        raise _bad_field(error, body) from None
    if kind == "completion":
        _check_sequences(checked)
    elif kind in _CHOICES:
        _check_choice(body, _CHOICES[kind])
    unseen = CHECKED_ONLY.get(kind, ())
    return {name: value for name, value in checked.items() if value is not None and name not in unseen}


def _check_strangers(body: dict[str, Any], names: set[str], kind: Kind, rules: Rules) -> None:
    """Refuse the first field that the endpoint does not know; null counts as not set."""
    for name in sorted(name for name in names if body[name] is not None and name not in IGNORED):
        shown = name[:100]
        if name in INTERNAL:
            raise BadRequest(
                f"{name}: this field is internal and cannot be set by a request", "leave it out", param=name
            )
        if name in UNSERVED:
            raise BadRequest(f"{name}: not offered here, as {UNSERVED[name]}", "leave it out", param=name)
        if rules.unknown_fields == "refuse":
            raise UnknownField(
                f"{shown}: this endpoint has no such field{nearest(name, sorted(FIELDS[kind]))}",
                "leave it out; docs/serving.md lists the fields",
                param=shown,
            )


def _check_sequences(body: dict[str, Any]) -> None:
    prompt, count = body["prompt"], body.get("n") or 1
    prompts = len(prompt) if isinstance(prompt, list) and not isinstance(prompt[0], int) else 1
    if prompts * count > MAX_SEQUENCES:
        raise BadRequest(
            f"n: {prompts} prompts with {count} answers each are more than {MAX_SEQUENCES:,} answers",
            "send fewer in one request",
            param="n",
        )
    best_of = body.pop("best_of", None)
    if best_of not in (None, count):
        raise BadRequest(f"best_of: must be as n ({count}), as engines choose none", "use n", param="best_of")


def _check_choice(body: dict[str, Any], choices: tuple[tuple[str, ...], ...]) -> None:
    named = {name for choice in choices for name in choice}
    given = {name for name in named if name in body}
    if not any(given == set(choice) for choice in choices):
        ways = ", or ".join(" and ".join(choice) for choice in choices)
        known = sorted(given) or [choices[0][0]]
        raise BadRequest(f"{known[0]}: the request must have either {ways}", param=known[0])


def _bad_field(error: ValidationError, body: dict[str, Any]) -> BadRequest:
    """The failure that went deepest: of the forms that a field may have, the one that was meant."""
    errors = error.errors(include_url=False, include_context=False)
    item = max(errors, key=lambda item: len(item["loc"]))
    param = _path(item, body)
    if item["type"] == "missing":
        return BadRequest(f"{param}: this field is required", param=param)
    value = "" if isinstance(item["input"], list | dict) else f" (got {str(item['input'])[:100]!r})"
    return BadRequest(f"{param}: {item['msg'].removeprefix('Value error, ')}{value}", param=param)


def _path(item: ErrorDetails, body: dict[str, Any]) -> str:
    """Where in the body, as ``messages[1].role``; the forms that pydantic tried are no places."""
    path, value = "", body
    for part in item["loc"]:
        if isinstance(value, list) and isinstance(part, int):
            path, value = f"{path}[{part}]", value[part]
        elif isinstance(value, dict) and part in value:
            path, value = f"{path}.{str(part)[:100]}", value[part]
    if item["type"] == "missing":
        path = f"{path}.{item['loc'][-1]}"
    return path.removeprefix(".") or str(item["loc"][0])


def preset_of(body: dict[str, Any], rules: Rules) -> tuple[str, Mapping[str, Any]]:
    """Take the field ``preset`` out of a checked body: its name and values; raises BadRequest."""
    name = body.pop("preset", None)
    if name is None:
        return "", {}
    try:
        return name, find_preset(rules.presets, name)
    except InputError as error:
        raise BadRequest(f"preset: {error.message}", error.hint, param="preset") from None
