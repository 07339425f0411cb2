"""Types of single fields and the caps on them; every body is made of these."""

import unicodedata
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, PlainValidator, ValidationInfo
from typing_extensions import TypedDict

from serve.gateway.rules import Rules
from serve.gateway.sampling import MAX_INT

MAX_N = 128
"""Answers to one prompt."""
MAX_SEQUENCES = 1024
"""Answers to one request: its prompts times ``n``."""
MAX_INPUTS = 2048
"""Texts in one request for embeddings, classes or scores."""
MAX_LOGPROBS = 20
MAX_BIASES = 300
MAX_TOKEN_IDS = 1024
MAX_BAD_WORDS = 128
MAX_DOCUMENTS = 128
TEMPLATE_KEYS = frozenset(
    {
        "clear_thinking",
        "enable_thinking",
        "instruction",
        "preserve_thinking",
        "reasoning_effort",
        "thinking",
        "thinking_budget",
    }
)
"""What ``chat_template_kwargs`` may hold: switches of the template itself."""


def rules_of(info: ValidationInfo) -> Rules:
    """The rules that a body is checked by."""
    assert isinstance(info.context, Rules), "bodies are checked with the rules as context"
    return info.context


def check_label(value: str) -> str:
    """A name that ends up in prompts and answers: no control characters, NUL and line breaks included."""
    if not value.isascii() or not value.isprintable():
        for character in value:
            if unicodedata.category(character) in ("Cc", "Cf", "Zl", "Zp"):
                raise ValueError("must not hold control characters")
    return value


def check_inputs(value: Any, most: int = MAX_INPUTS) -> str | list[Any]:
    """A text, texts, token ids, or lists of token ids; plain Python, as a prompt may be long."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("must be a text, or a list that is not empty")
    kinds = set(map(type, value))
    if kinds == {int}:
        _check_tokens(value)
    elif kinds not in ({str}, {list}):
        raise ValueError("must hold texts, token ids, or lists of token ids")
    elif len(value) > most:
        raise ValueError(f"must hold up to {most:,} entries")
    elif kinds == {list}:
        for tokens in value:
            if set(map(type, tokens)) != {int}:
                raise ValueError("must hold lists of token ids that are not empty")
            _check_tokens(tokens)
    return value


def _check_tokens(tokens: list[int]) -> None:
    if min(tokens) < 0 or max(tokens) > MAX_INT:
        raise ValueError(f"must hold token ids from 0 to {MAX_INT}")


def _check_prompt(value: Any) -> str | list[Any]:
    return check_inputs(value, MAX_SEQUENCES)


def _check_template_keys(value: dict[str, Any]) -> dict[str, Any]:
    if bad := sorted(value.keys() - TEMPLATE_KEYS):
        raise ValueError(
            f"must not set {', '.join(bad)[:200]}; it may set {', '.join(sorted(TEMPLATE_KEYS))}"
        )
    return value


Flag = bool | None
Count = Annotated[int, Field(ge=1, le=MAX_N)] | None
TopCount = Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None
Tokens = Annotated[int, Field(ge=0, le=MAX_INT)]
TokenIds = Annotated[list[Tokens], Field(max_length=MAX_TOKEN_IDS)] | None
Truncation = Annotated[int, Field(ge=-1, le=MAX_INT)] | None
Side = Literal["left", "right"] | None
Label = Annotated[str, Field(min_length=1, max_length=128), AfterValidator(check_label)]
User = Annotated[str, Field(max_length=512), AfterValidator(check_label)] | None
LogitBias = (
    Annotated[
        dict[Annotated[str, Field(pattern="^[0-9]{1,7}$")], Annotated[float, Field(ge=-100, le=100)]],
        Field(max_length=MAX_BIASES),
    ]
    | None
)
BadWords = (
    Annotated[list[Annotated[str, Field(min_length=1, max_length=256)]], Field(max_length=MAX_BAD_WORDS)]
    | None
)
TemplateValue = (
    bool | Annotated[int, Field(ge=-MAX_INT, le=MAX_INT)] | Annotated[str, Field(max_length=256)] | None
)
TemplateKwargs = Annotated[dict[str, TemplateValue], AfterValidator(_check_template_keys)] | None
Metadata = (
    Annotated[
        dict[Annotated[str, Field(max_length=64)], Annotated[str, Field(max_length=512)]],
        Field(max_length=16),
    ]
    | None
)
Document = dict[Annotated[str, Field(max_length=64)], str]
Documents = Annotated[list[Document], Field(max_length=MAX_DOCUMENTS)] | None
Effort = Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None
Prompt = Annotated[str | list[Any], PlainValidator(_check_prompt)]
Inputs = Annotated[str | list[Any], PlainValidator(check_inputs)]
ServiceTier = Literal["auto", "default", "flex", "scale", "priority"] | None


class Named(TypedDict, total=False):
    """What every body has besides what is its endpoint's own; ``preset`` is the gateway's."""

    model: str
    user: User
