"""Caps on what constrains an answer."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import BadRequest
from serve.gateway.bodies.schemas import MAX_DEPTH, check_regex, check_schema
from serve.gateway.rules import Rules
from serve.gateway.validate import check_request

CHAT: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "hi"}]}


def nested(levels: int) -> dict[str, Any]:
    schema: dict[str, Any] = {}
    for _ in range(levels - 1):
        schema = {"items": schema}
    return schema


BAD = {
    "deep": nested(MAX_DEPTH + 1),
    "very deep": nested(900),
    "many values": {"enum": list(range(5_001))},
    "long text": {"description": "x" * (128 * 1024 + 1)},
    "many keys": {"properties": {str(number): {} for number in range(5_001)}},
    "remote reference": {"$ref": "http://169.254.169.254/schema"},
    "file reference": {"properties": {"a": {"$ref": "file:///etc/passwd"}}},
    "count": {"type": "array", "maxItems": 10**9},
    "negative count": {"minLength": -1},
    "pattern": {"pattern": "(a{1,999}){1,999}"},
    "pattern property": {"patternProperties": {"(a{9}){9999}": {}}},
}
GOOD = [
    {},
    nested(MAX_DEPTH),
    {"type": "object", "properties": {"pattern": {"type": "string"}, "maxItems": {"type": "integer"}}},
    {"$defs": {"node": {"properties": {"next": {"$ref": "#/$defs/node"}}}}, "$ref": "#/$defs/node"},
    {"type": "string", "pattern": "^[0-9]{3}-[a-z]+$", "maxLength": 100},
    {"enum": ["a", 1, None, [1, 2]]},
]


def asks(schema: Any) -> list[dict[str, Any]]:
    """The requests that carry a schema, each to its endpoint."""
    tool = {"name": "f", "parameters": schema}
    named = {"name": "s", "schema": schema}
    responses = {"model": "m", "input": "hi"}
    return [
        {**CHAT, "tools": [{"type": "function", "function": tool}]},
        {**CHAT, "response_format": {"type": "json_schema", "json_schema": named}},
        {**CHAT, "structured_outputs": {"json": schema}},
        {**responses, "tools": [{"type": "function", **tool}]},
        {**responses, "text": {"format": {"type": "json_schema", **named}}},
        {**responses, "structured_outputs": {"json": schema}},
    ]


def check(body: dict[str, Any], rules: Rules | None = None) -> dict[str, Any]:
    return check_request(body, "chat" if "messages" in body else "responses", rules or Rules())


@pytest.mark.parametrize("name", BAD)
def test_hostile_schemas(name: str) -> None:
    for body in asks(BAD[name]):
        with pytest.raises(BadRequest):
            check(body)


@pytest.mark.parametrize("schema", GOOD)
def test_good_schemas_pass_unchanged(schema: dict[str, Any]) -> None:
    for body in asks(schema):
        assert check(body) == body


def test_tools_are_counted_and_named() -> None:
    tool = {"type": "function", "function": {"name": "f"}}
    check({**CHAT, "tools": [tool] * 128})
    for tools in ([tool] * 129, [{"type": "function"}], [{"type": "mcp", "server_url": "http://a"}]):
        with pytest.raises(BadRequest):
            check({**CHAT, "tools": tools})
    for kind in ("mcp", "web_search", "code_interpreter", "file_search", "computer_use_preview", "custom"):
        with pytest.raises(BadRequest):
            check({"model": "m", "input": "hi", "tools": [{"type": kind, "server_url": "http://a"}]})


@pytest.mark.parametrize(
    "constraint",
    [
        {"regex": "[a-z]+"},
        {"grammar": 'root ::= "a"'},
        {"structural_tag": "{}"},
        {"json": {}, "whitespace_pattern": " *"},
    ],
)
def test_regexes_and_grammars_are_off_until_the_operator_wants_them(constraint: dict[str, Any]) -> None:
    with pytest.raises(BadRequest, match="TENON_GRAMMARS"):
        check({**CHAT, "structured_outputs": constraint})
    check({**CHAT, "structured_outputs": constraint}, Rules(grammars=True))


def test_structural_tags_of_a_response_format_too() -> None:
    body = {**CHAT, "response_format": {"type": "structural_tag", "format": {"type": "any_text"}}}
    with pytest.raises(BadRequest, match="TENON_GRAMMARS"):
        check(body)
    check(body, Rules(grammars=True))


@pytest.mark.parametrize(
    "regex",
    ["x" * 1025, "(((a{100}){100}){100})", "a{1000000}", "a{2,99999999}", "(" * 40 + "a" + ")" * 40],
)
def test_hostile_regexes(regex: str) -> None:
    with pytest.raises(BadRequest):
        check({**CHAT, "structured_outputs": {"regex": regex}}, Rules(grammars=True))


@pytest.mark.parametrize(
    "regex", ["", "a{3}", r"\d{3}-\d{4}", "(ab|cd){2,5}", "[{}()]{3}", r"\{9999999\}", "a{b"]
)
def test_good_regexes(regex: str) -> None:
    assert check_regex(regex) == regex


@given(st.text("ab(){}[]\\,0123456789*+?|", max_size=60))
def test_any_text_is_a_regex_or_refused(text: str) -> None:
    try:
        check_regex(text)
    except ValueError:
        return


scalars = st.none() | st.booleans() | st.integers() | st.text("ab{(", max_size=5)
objects = st.dictionaries(st.text("ab{(", max_size=3), scalars, max_size=2)
json_values = scalars | st.lists(scalars, max_size=2) | objects
keys = st.sampled_from(["pattern", "$ref", "maxItems", "patternProperties", "items", "minLength"])


@given(st.dictionaries(keys, json_values))
def test_any_object_is_a_schema_or_refused(schema: dict[str, Any]) -> None:
    try:
        assert check_schema(schema) is schema
    except ValueError:
        return
