"""What constrains an answer: JSON schemas, regexes, grammars. An engine compiles each into an automaton, so
their size, depth and repetition are capped before one sees them.
"""

import re
from collections.abc import Iterable, Iterator
from typing import Annotated, Any, Literal, Required

import orjson
from pydantic import AfterValidator, Field, ValidationInfo, with_config
from typing_extensions import TypedDict

from serve.gateway.bodies.fields import Label, rules_of
from serve.gateway.sampling import STRICT

MAX_DEPTH = 32
"""Levels of objects and lists in one schema."""
MAX_VALUES = 5_000
MAX_TEXT = 128 * 1024
"""Characters of all keys and texts in one schema."""
MAX_REPEATS = 10_000
"""Highest count in a schema (``maxItems`` and its like), which engines keep as a number."""
MAX_REGEX = 1024
MAX_PLACES, MAX_ALL_PLACES = 1_000, 2_000
"""Places that a regex expands to, and all of one schema, or of all tools, together: an engine takes time with their
square, and answers nobody meanwhile (docs/decisions/009-request-bodies.md)."""
MAX_GRAMMAR = 64 * 1024
MAX_TOOLS = 128
COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
LITERAL = re.compile(r'"(?:[^"\\]|\\.)*"')
"""A text in a grammar."""
QUANTIFIER = re.compile(r"\{\s*+(\d*+)\s*+(,?+)\s*+(\d*+)\s*+\}", re.ASCII)
"""However it is written: with zeros before its counts, or blanks around them, as some engines take it."""


def check_schema(schema: Any) -> Any:
    """A JSON schema, or several, small, flat enough, with few regexes and without references outside."""
    check_size(schema)
    _bound_places(_check_keywords(item) for item in _objects(schema))
    return schema


def check_tools(tools: list[Any]) -> list[Any]:
    """Tools whose schemas, each checked by itself, have few enough regexes together."""
    _bound_places(sum(map(places_of, _patterns(item))) for item in _objects(tools))
    return tools


def _bound_places(places: Iterable[int]) -> None:
    if sum(places) > MAX_ALL_PLACES:
        raise ValueError(f"has regexes that expand to more than {MAX_ALL_PLACES:,} places together")


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    return (item for level in _levels(value) for item in level if isinstance(item, dict))


def check_size(value: Any) -> Any:
    """JSON of at most MAX_DEPTH levels, MAX_VALUES values and MAX_TEXT characters."""
    values = text = 0
    for depth, level in enumerate(_levels(value)):
        if depth >= MAX_DEPTH:
            raise ValueError(f"is nested more than {MAX_DEPTH} levels deep")
        for item in level:
            children = item.values() if isinstance(item, dict) else item
            values += len(item)
            text += sum(map(len, item)) if isinstance(item, dict) else 0
            text += sum(len(child) for child in children if isinstance(child, str))
        if values > MAX_VALUES or text > MAX_TEXT:
            raise ValueError(f"holds more than {MAX_VALUES:,} values or {MAX_TEXT:,} characters")
    return value


def _levels(value: Any) -> Iterator[list[Any]]:
    """The objects and lists of a JSON value, level by level; no recursion."""
    level = [value] if isinstance(value, dict | list) else []
    while level:
        yield level
        level = [
            child
            for item in level
            for child in (item.values() if isinstance(item, dict) else item)
            if isinstance(child, dict | list)
        ]


def _check_keywords(schema: dict[str, Any]) -> int:
    """Check an object as a schema and return the places of its own regexes.

    One that holds properties of such names has no plain values there.
    """
    for name in COUNTS & schema.keys():
        count = schema[name]
        if isinstance(count, int | float) and not 0 <= count <= MAX_REPEATS:
            raise ValueError(f"has {name} {count}; the highest is {MAX_REPEATS:,}")
    for name in ("$ref", "$dynamicRef"):
        target = schema.get(name)
        if isinstance(target, str) and not target.startswith("#"):
            raise ValueError(f"refers to {target[:100]!r}; only references within it (#…) are followed")
    return sum(map(places_of, _patterns(schema)))


def _patterns(schema: dict[str, Any]) -> Iterator[str]:
    if isinstance(pattern := schema.get("pattern"), str):
        yield pattern
    if isinstance(patterns := schema.get("patternProperties"), dict):
        yield from patterns


def check_regex(pattern: str) -> str:
    """A regex that is short and expands to few places."""
    places_of(pattern)
    return pattern


def check_grammar(grammar: str) -> str:
    """A grammar that is nested a few levels deep, and expands to no more than the longest one."""
    places_of(LITERAL.sub("x", grammar), MAX_GRAMMAR, MAX_GRAMMAR)
    return grammar


def places_of(pattern: str, longest: int = MAX_REGEX, most: int = MAX_PLACES) -> int:
    """How many places a regex expands to: counted repetitions that stand within each other multiply.

    Raises ValueError for one of more than ``longest`` characters, ``most`` places or MAX_DEPTH levels.
    """
    if len(pattern) > longest:
        raise ValueError(f"has a regex longer than {longest:,} characters")
    groups, last, place = [0], 0, 0
    while place < len(pattern):
        step = 1
        if pattern[place] == "(":
            groups.append(0)
            last = 0
        elif pattern[place] == ")" and len(groups) > 1:
            last = groups.pop()
            groups[-1] += last
        elif found := QUANTIFIER.match(pattern, place):
            count = max(_count(found[1], most), _count(found[3], most), 1)
            groups[-1] += last * (count - 1)
            last *= count
            step = found.end() - place
        elif pattern[place] not in "*+?|":
            step = _token(pattern, place)
            last = 1
            groups[-1] += 1
        if max(groups) > most:
            raise ValueError(f"has a regex that expands to more than {most:,} places")
        if len(groups) > MAX_DEPTH:
            raise ValueError(f"has a regex nested more than {MAX_DEPTH} levels deep")
        place += step
    return sum(groups)


def _count(digits: str, most: int) -> int:
    """The count that is written so, or ``most`` + 1 for one of many digits."""
    digits = digits.lstrip("0")
    return int(digits or 0) if len(digits) <= len(str(most)) else most + 1


def _token(pattern: str, place: int) -> int:
    """Length of the escape, class or character at a place of a regex."""
    if pattern[place] == "\\":
        return 2
    if pattern[place] == "[":
        if pattern.startswith(("[]", "[^]"), place):
            # To some engines it ends there, to others at the next bracket.
            raise ValueError(r"has a regex with an empty class; write \] for a bracket in a class")
        end = place + 1
        while end < len(pattern) and pattern[end] != "]":
            end += 2 if pattern[end] == "\\" else 1
        return end + 1 - place
    return 1


def _allowed(value: Any, info: ValidationInfo) -> Any:
    if not rules_of(info).grammars:
        raise ValueError("regexes, grammars and structural tags are off on this server (TENON_GRAMMARS)")
    return value


def check_tag(tag: Any) -> Any:
    """A structural tag: schemas, regexes and grammars between fixed texts."""
    check_schema(tag)
    for item in _objects(tag):
        if isinstance(grammar := item.get("grammar"), str):
            check_grammar(grammar)
    return tag


def _check_written_tag(text: str) -> str:
    try:
        check_tag(orjson.loads(text))
    except orjson.JSONDecodeError as error:
        raise ValueError(f"is not JSON: {error}") from None
    return text


Schema = Annotated[dict[str, Any], AfterValidator(check_schema)]
Regex = Annotated[str, AfterValidator(_allowed), AfterValidator(check_regex)]
Grammar = Annotated[
    str, Field(max_length=MAX_GRAMMAR), AfterValidator(_allowed), AfterValidator(check_grammar)
]
WrittenTag = Annotated[
    str, Field(max_length=MAX_GRAMMAR), AfterValidator(_allowed), AfterValidator(_check_written_tag)
]
Choices = Annotated[
    list[Annotated[str, Field(min_length=1, max_length=1024)]], Field(min_length=1, max_length=256)
]
Description = Annotated[str, Field(max_length=MAX_TEXT)] | None


@with_config(STRICT)
class Function(TypedDict, total=False):
    """A function that a model may call."""

    name: Required[Label]
    description: Description
    parameters: Schema | None
    strict: bool | None


@with_config(STRICT)
class Tool(TypedDict):
    """A tool of a chat."""

    type: Literal["function"]
    function: Function


@with_config(STRICT)
class ChosenFunction(TypedDict):
    """The name of the function that must be called."""

    name: Label


@with_config(STRICT)
class ChosenTool(TypedDict):
    """The tool that must be called."""

    type: Literal["function"]
    function: ChosenFunction


@with_config(STRICT)
class NamedSchema(TypedDict, total=False):
    """The schema of a ``response_format``."""

    name: Required[Label]
    description: Description
    schema: Required[Schema]
    strict: bool | None


@with_config(STRICT)
class TextFormat(TypedDict):
    """Free text."""

    type: Literal["text"]


@with_config(STRICT)
class JsonFormat(TypedDict):
    """Any JSON object."""

    type: Literal["json_object"]


@with_config(STRICT)
class SchemaFormat(TypedDict):
    """JSON by a schema."""

    type: Literal["json_schema"]
    json_schema: NamedSchema


@with_config(STRICT)
class TagFormat(TypedDict, total=False):
    """vLLM's structural tags: grammars by another name."""

    type: Required[Annotated[Literal["structural_tag"], AfterValidator(_allowed)]]
    format: Annotated[dict[str, Any], AfterValidator(check_tag)]
    structures: Annotated[list[dict[str, Any]], AfterValidator(check_tag)]
    triggers: Choices


def _one_constraint(value: dict[str, Any]) -> dict[str, Any]:
    if sum(value.get(name) is not None for name in CONSTRAINTS) != 1:
        raise ValueError(f"must have exactly one of {', '.join(CONSTRAINTS)}")
    return value


CONSTRAINTS = ("json", "json_object", "choice", "regex", "grammar", "structural_tag")


@with_config(STRICT)
class Constraints(TypedDict, total=False):
    """vLLM's own ``structured_outputs``."""

    json: Schema | None
    json_object: bool | None
    choice: Choices | None
    regex: Regex | None
    grammar: Grammar | None
    structural_tag: WrittenTag | None
    whitespace_pattern: Regex | None
    disable_any_whitespace: bool
    disable_additional_properties: bool


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS), AfterValidator(check_tools)] | None
ToolChoice = Literal["none", "auto", "required"] | ChosenTool | None
ResponseFormat = (
    Annotated[TextFormat | JsonFormat | SchemaFormat | TagFormat, Field(discriminator="type")] | None
)
StructuredOutputs = Annotated[Constraints, AfterValidator(_one_constraint)] | None
