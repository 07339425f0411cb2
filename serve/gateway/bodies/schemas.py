"""What constrains an answer: JSON schemas, regexes, grammars. An engine compiles each into an automaton, so
their size, depth and repetition are capped before one sees them.
"""

import re
from collections.abc import Iterator
from typing import Annotated, Any, Literal, Required

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
"""Highest count in a schema (``maxItems`` and its like), and places that a regex expands to."""
MAX_REGEX = 1024
MAX_GRAMMAR = 64 * 1024
MAX_TOOLS = 128
COUNTS = frozenset({"minItems", "maxItems", "minLength", "maxLength", "minProperties", "maxProperties"})
QUANTIFIER = re.compile(r"\{(\d{0,9})(,?)(\d{0,9})\}")


def check_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """A JSON schema that is small, flat enough, and refers to nothing outside itself."""
    check_size(schema)
    for level in _levels(schema):
        for item in level:
            if isinstance(item, dict):
                _check_keywords(item)
    return schema


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


def _check_keywords(schema: dict[str, Any]) -> None:
    """Check an object as a schema; one that holds properties of such names has no plain values there."""
    for name in COUNTS & schema.keys():
        count = schema[name]
        if isinstance(count, int | float) and not 0 <= count <= MAX_REPEATS:
            raise ValueError(f"has {name} {count}; the highest is {MAX_REPEATS:,}")
    for name in ("$ref", "$dynamicRef"):
        target = schema.get(name)
        if isinstance(target, str) and not target.startswith("#"):
            raise ValueError(f"refers to {target[:100]!r}; only references within it (#…) are followed")
    if isinstance(pattern := schema.get("pattern"), str):
        check_regex(pattern)
    if isinstance(patterns := schema.get("patternProperties"), dict):
        for pattern in patterns:
            check_regex(pattern)


def check_regex(pattern: str) -> str:
    """A regex that is short and whose counted repetitions, those within each other multiplied, stay small."""
    if len(pattern) > MAX_REGEX:
        raise ValueError(f"has a regex longer than {MAX_REGEX:,} characters")
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
            low, _, high = found.groups()
            groups[-1] += last * (max(int(low or 0), int(high or 0), 1) - 1)
            last *= max(int(low or 0), int(high or 0), 1)
            step = found.end() - place
        elif pattern[place] not in "*+?|":
            step = _token(pattern, place)
            last = 1
            groups[-1] += 1
        if max(groups) > MAX_REPEATS:
            raise ValueError(f"has a regex that expands to more than {MAX_REPEATS:,} places")
        if len(groups) > MAX_DEPTH:
            raise ValueError(f"has a regex nested more than {MAX_DEPTH} levels deep")
        place += step
    return pattern


def _token(pattern: str, place: int) -> int:
    """Length of the escape, class or character at a place of a regex."""
    if pattern[place] == "\\":
        return 2
    if pattern[place] == "[":
        end = place + 2
        while end < len(pattern) and pattern[end] != "]":
            end += 2 if pattern[end] == "\\" else 1
        return end + 1 - place
    return 1


def _allowed(value: Any, info: ValidationInfo) -> Any:
    if not rules_of(info).grammars:
        raise ValueError("regexes, grammars and structural tags are off on this server (TENON_GRAMMARS)")
    return value


Schema = Annotated[dict[str, Any], AfterValidator(check_schema)]
Regex = Annotated[str, AfterValidator(_allowed), AfterValidator(check_regex)]
Grammar = Annotated[str, Field(max_length=MAX_GRAMMAR), AfterValidator(_allowed)]
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
    format: Annotated[dict[str, Any], AfterValidator(check_schema)]
    structures: Annotated[list[dict[str, Any]], AfterValidator(check_size)]
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
    structural_tag: Grammar | None
    whitespace_pattern: Regex | None
    disable_any_whitespace: bool
    disable_additional_properties: bool


Tools = Annotated[list[Tool], Field(max_length=MAX_TOOLS)] | None
ToolChoice = Literal["none", "auto", "required"] | ChosenTool | None
ResponseFormat = (
    Annotated[TextFormat | JsonFormat | SchemaFormat | TagFormat, Field(discriminator="type")] | None
)
StructuredOutputs = Annotated[Constraints, AfterValidator(_one_constraint)] | None
