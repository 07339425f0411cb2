"""One example to learn from: a prompt, its completion, and the keys by which examples are compared."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date, time
from decimal import Decimal
from typing import Any

from train.data.text import SPECIAL_TOKEN, fold, is_binary, normalise

Message = dict[str, Any]

# Reasons to drop a row; each is read after a count, as in "3 with an empty text".
EMPTY_TEXT = "with an empty text"
EMPTY_ANSWER = "with an empty answer"
BINARY = "with binary data in place of text"
NOT_TEXT = "with a field that is neither text nor a number"
SPECIAL = "with a special token of a chat template, such as <|im_end|>"


class Unusable(Exception):
    """A row cannot become an example and is dropped; the argument is the reason."""


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt with its completion, both in clean text.

    ``number`` is the row's place in its file. ``exact`` stands for the whole prompt with its tools, letter by
    letter. ``key`` stands for what is asked: the messages without those of the system, folded (case, spacing,
    compatibility characters), so that the same question under another instruction is the same text.
    ``answer`` is the text of the completion.
    """

    number: int
    prompt: list[Message]
    completion: Message
    tools: list[Any] | None = None
    exact: str = field(init=False)
    key: str = field(init=False)
    answer: str = field(init=False)

    def __post_init__(self) -> None:
        exact = canonical([self.prompt, self.tools] if self.tools else self.prompt)
        object.__setattr__(self, "exact", exact)
        object.__setattr__(self, "key", _key(self.prompt))
        object.__setattr__(self, "answer", self.completion["content"])

    @property
    def chars(self) -> int:
        """Length of all messages in characters; tools count as JSON."""
        tools = canonical(self.tools) if self.tools else ""
        return len(tools) + len(self.answer) + sum(len(message["content"]) for message in self.prompt)


def canonical(value: Any) -> str:
    """``value`` as JSON: the same text for the same value."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True)


def _key(prompt: list[Message]) -> str:
    parts = []
    for message in [message for message in prompt if message["role"] != "system"] or prompt:
        more = {name: value for name, value in message.items() if name not in ("role", "content")}
        parts += [message["role"], fold(message["content"]), canonical(more) if more else ""]
    return "\x1f".join(parts)


def too_long(max_chars: int) -> str:
    """The reason to drop a row that is longer than ``max_chars``."""
    return f"longer than {max_chars:,} characters"


@dataclass(frozen=True, slots=True)
class Cleaner:
    """Turns the values of a file into clean text, or raises :class:`Unusable`."""

    max_chars: int

    def text(self, value: object) -> str:
        """``value`` as clean text, empty where it is missing (null, blank, a number that is not finite)."""
        match value:
            case None:
                return ""
            case str():
                return self._clean(value)
            case bool():
                return "true" if value else "false"
            case float():
                # A column of integers with gaps comes as floats.
                if not math.isfinite(value):
                    return ""
                return str(int(value)) if value.is_integer() else str(value)
            case int() | date() | time():
                return str(value)
            case Decimal():
                return format(value, "f") if value.is_finite() else ""
            case bytes():
                raise Unusable(BINARY)
            case _:
                raise Unusable(NOT_TEXT)

    def answer(self, value: object) -> str:
        """As :meth:`text`, but an object or a list becomes JSON; raises where nothing is left."""
        if isinstance(value, Mapping | list):
            value = json.dumps(self.value(value), ensure_ascii=False)
        return self.text(value) or _fail(EMPTY_ANSWER)

    def label(self, value: object) -> str:
        """As :meth:`text`, on one line with single spaces; raises where nothing is left.

        Several labels of one row are one answer, with commas between.
        """
        if isinstance(value, list):
            return ", ".join(self.label(item) for item in value) or _fail(EMPTY_ANSWER)
        return " ".join(self.text(value).split()) or _fail(EMPTY_ANSWER)

    def value(self, value: Any) -> Any:
        """A JSON value without its nulls (parquet fills structs with them), else unchanged but checked.

        Numbers that are not finite are no JSON and count as nulls.
        """
        match value:
            case Mapping():
                items = ((self.value(str(key)), self.value(item)) for key, item in value.items())
                return {key: item for key, item in items if item is not None}
            case list():
                return [self.value(item) for item in value]
            case str():
                self._check(value)
                return value
            case float() if not math.isfinite(value):
                return None
            case None | bool() | int() | float():
                return value
            case Decimal() | date() | time():
                return self.text(value)
            case _:
                raise Unusable(NOT_TEXT)

    def _clean(self, text: str) -> str:
        self._check(text)
        text = normalise(text)
        # What is left may show nothing, such as a joiner between no letters.
        return text if text.isascii() or fold(text) else ""

    def _check(self, text: str) -> None:
        if len(text) > self.max_chars:
            raise Unusable(too_long(self.max_chars))
        if is_binary(text):
            raise Unusable(BINARY)
        if "<|" in text and SPECIAL_TOKEN.search(text):
            raise Unusable(SPECIAL)


def _fail(reason: str) -> str:
    raise Unusable(reason)
