"""Caps on what constrains an answer."""

from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.errors import BadRequest
from serve.gateway.bodies.schemas import MAX_ALL_PLACES, MAX_DEPTH, MAX_PLACES, check_regex, check_schema
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
    "long pattern": {"pattern": "^a{1001}$"},
    "patterns together": {"properties": {str(n): {"pattern": "^a{900}$"} for n in range(3)}},
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
    [
        "x" * 1025,
        "(((a{100}){100}){100})",
        "a{1000000}",
        "a{2,99999999}",
        "(" * 40 + "a" + ")" * 40,
        "a{0000000009000}",
        "a{1,0000000009000}",
        "a{ 9000 }",
        "a{9000 , }",
        "a{" + "9" * 1000 + "}",
        "[]a{9000}]",
        "[^]a{9}]",
    ],
)
def test_hostile_regexes(regex: str) -> None:
    with pytest.raises(BadRequest):
        check({**CHAT, "structured_outputs": {"regex": regex}}, Rules(grammars=True))


@pytest.mark.parametrize(
    "regex",
    ["", "a{3}", r"\d{3}-\d{4}", "(ab|cd){2,5}", "[{}()]{3}", r"\{9999999\}", "a{b", "a{007}", r"[\]{9999}]"],
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


def tool(number: int, pattern: str) -> dict[str, Any]:
    schema = {"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}}
    return {"type": "function", "function": {"name": f"f{number}", "parameters": schema}}


def test_the_regexes_of_all_tools_count_together() -> None:
    few, many = ([tool(number, "^a{900}$") for number in range(count)] for count in (2, 3))
    assert check({**CHAT, "tools": few})["tools"] == few
    with pytest.raises(BadRequest, match="together") as caught:
        check({**CHAT, "tools": many})
    assert caught.value.param == "tools"


def test_the_regexes_of_all_tools_of_a_response_count_together() -> None:
    flat = [{"type": "function", **tool(number, "^a{900}$")["function"]} for number in range(3)]
    body = {"model": "m", "input": "hi", "tool_choice": "required"}
    assert check({**body, "tools": flat[:2]})["tools"] == flat[:2]
    with pytest.raises(BadRequest, match="together") as caught:
        check({**body, "tools": flat})
    assert caught.value.param == "tools"


@pytest.mark.parametrize(
    "grammar",
    ["root ::= " + "(" * 33 + "a" + ")" * 33, "root ::= ((a{300}){300}){300}", "x" * (64 * 1024 + 1)],
)
def test_grammars_are_no_deeper_nor_longer_than_the_longest(grammar: str) -> None:
    with pytest.raises(BadRequest):
        check({**CHAT, "structured_outputs": {"grammar": grammar}}, Rules(grammars=True))


MANY = [{"begin": "a", "end": "b", "schema": {"pattern": "^a{900}$"}} for _ in range(3)]


@pytest.mark.parametrize(
    "tag",
    [
        {"structures": MANY, "triggers": ["a"]},
        {"format": {"type": "sequence", "elements": MANY}},
        {"format": {"type": "regex", "pattern": "a{9000}"}},
        {"format": {"type": "grammar", "grammar": "root ::= " + "(" * 33 + "a" + ")" * 33}},
        {"format": {"type": "json_schema", "json_schema": {"$ref": "http://169.254.169.254/"}}},
    ],
)
def test_what_structural_tags_hold_is_bounded_too(tag: dict[str, Any]) -> None:
    rules = Rules(grammars=True)
    with pytest.raises(BadRequest):
        check({**CHAT, "response_format": {"type": "structural_tag", **tag}}, rules)
    with pytest.raises(BadRequest):
        check({**CHAT, "structured_outputs": {"structural_tag": orjson.dumps(tag).decode()}}, rules)


def test_a_structural_tag_is_json() -> None:
    with pytest.raises(BadRequest, match="not JSON"):
        check({**CHAT, "structured_outputs": {"structural_tag": "<tag>"}}, Rules(grammars=True))


def test_brackets_in_the_texts_of_a_grammar_are_no_levels() -> None:
    grammar = "root ::= " + '"(" ' * 100
    assert check({**CHAT, "structured_outputs": {"grammar": grammar}}, Rules(grammars=True))


@pytest.mark.timeout(60)  # unbounded, ten patterns of 9,000 places took two minutes
def test_the_engine_soon_knows_the_dearest_schema_that_may_pass() -> None:
    xgrammar = pytest.importorskip("xgrammar")
    count = MAX_ALL_PLACES // MAX_PLACES
    properties = {f"p{n}": {"type": "string", "pattern": f"^.{{{MAX_PLACES - 2}}}$"} for n in range(count)}
    schema = {"type": "object", "properties": properties, "required": list(properties)}
    assert check_schema(schema) is schema
    xgrammar.Grammar.from_json_schema(orjson.dumps(schema).decode())
