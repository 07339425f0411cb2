"""Rows become tokens and labels: only the completion's tokens are supervised."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice, takewhile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, PreTrainedTokenizerBase

from serve.errors import BaseModelError, DataError
from train.methods.rendering import Rendering

IGNORED = -100
SHOWN = 3
AT_ONCE = 256
"""Rows that are given to the tokenizer together, which takes half of the time then."""


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Tokenised rows. ``too_long`` names those that were left out, as (row number from 1, id, tokens).

    ``first`` is the first row as the file has it.
    """

    ids: list[list[int]]
    labels: list[list[int]]
    too_long: list[tuple[int, str, int]]
    first: Mapping[str, Any] | None = None

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def first_prompt(self) -> list[int]:
        """The tokens of the first row's prompt."""
        asked = sum(1 for _ in takewhile(lambda label: label == IGNORED, self.labels[0]))
        return self.ids[0][:asked]

    @property
    def longest(self) -> int:
        """Tokens of the longest row, 0 without rows."""
        return max(map(len, self.ids), default=0)

    def sample(self, most: int, seed: int) -> "TokenRows":
        """At most so many of the rows, drawn at random by ``seed``, in their order."""
        if len(self) <= most:
            return self
        drawn = sorted(random.Random(seed).sample(range(len(self)), most))
        return replace(
            self, ids=[self.ids[row] for row in drawn], labels=[self.labels[row] for row in drawn], first=None
        )

    def longest_rows(self, number: int) -> list[dict[str, list[int]]]:
        """The ``number`` longest rows, as ``input_ids`` and ``labels``."""
        order = sorted(range(len(self.ids)), key=lambda row: len(self.ids[row]))
        return [{"input_ids": self.ids[row], "labels": self.labels[row]} for row in order[-number:]]


def read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Row number from 1 and row of each line of a prepared split."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            yield number, json.loads(line)


def load_tokenizer(folder: Path) -> PreTrainedTokenizerBase:
    """The tokenizer of a base, with a token to pad with; raises BaseModelError."""
    try:
        # Not Mistral's own program, which knows no template: the engine takes it as little (serve.engine.spec).
        tokenizer = AutoTokenizer.from_pretrained(folder, mistral_format=False)
    except Exception as error:  # the files are the user's, and each library below has errors of its own
        raise BaseModelError(
            f"the tokenizer in {folder} cannot be loaded: {_words(error)}",
            "save it again with save_pretrained, or fetch the base anew",
        ) from error
    if not tokenizer.chat_template:
        raise BaseModelError("the base has no chat template", "add chat_template.jinja to its folder")
    if tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise BaseModelError(
                f"the tokenizer in {folder} names no token that ends a text, and none to pad with",
                "set eos_token in tokenizer_config.json",
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def stop_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> set[int]:
    """Ids that end a generation, as vLLM has them: the tokenizer's, and of generation_config.json, else config.json."""
    names = ("generation_config.json", "config.json")
    file = next((folder / name for name in names if (folder / name).exists()), None)
    value = None
    if file is not None:
        try:
            value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        except (OSError, ValueError, AttributeError) as error:
            raise BaseModelError(f"{file} cannot be read: {_words(error)}", "fetch the base anew") from error
    stops = {tokenizer.eos_token_id, *(value if isinstance(value, list) else [value])}
    return stops - {None}


def _words(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"


def tokenize(path: Path, tokenizer: PreTrainedTokenizerBase, stops: set[int], max_length: int) -> TokenRows:
    """Tokenise a split of conversational prompt–completion rows by the base's own chat template.

    A row begins with the tokens of its prompt, exactly as a request would have them; those after it are supervised, and
    hold a stop token, so that the adapter learns to end its answer: the template's own, or the one with which it begins
    the next question. Rows with more than ``max_length`` tokens are left out, never cut. Raises DataError where a row
    has nothing to learn from or is none that the template takes, and BaseModelError where the template is not one to
    learn by.
    """
    name = path.name
    rows = TokenRows([], [], [])
    first: Mapping[str, Any] | None = None
    silent: list[tuple[int, str]] = []
    unending: list[tuple[int, str]] = []
    for number, row, start, whole in _encoded(name, read_rows(path), tokenizer, stops):
        shared = len(start)
        labels = [IGNORED] * shared + whole[shared:]
        says_something = any(
            str(m.get("content") or "").strip() or m.get("tool_calls") for m in row["completion"]
        )
        if shared == len(whole) or not says_something:
            silent.append((number, str(row.get("id", "?"))))
        elif stops.isdisjoint(labels):
            unending.append((number, str(row.get("id", "?"))))
        elif len(whole) > max_length:
            rows.too_long.append((number, str(row.get("id", "?")), len(whole)))
        else:
            first = first or row
            rows.ids.append(whole)
            rows.labels.append(labels)
    _refuse(name, silent, unending)
    return replace(rows, first=first)


def _refuse(name: str, silent: Sequence[tuple[int, str]], unending: Sequence[tuple[int, str]]) -> None:
    if silent:
        raise DataError(
            f"{name}: {_some(silent)} no supervised tokens: the completion is empty once the chat template is applied",
            "give the row an answer, remove it, or check that the base's chat template renders assistant messages",
        )
    if unending:
        raise BaseModelError(
            f"{name}: {_some(unending)} no stop token in the completion, so the adapter would never end an answer",
            "the base's chat template must close an assistant message with the eos token of generation_config.json",
        )


def _some(rows: Sequence[tuple[int, str]]) -> str:
    shown = ", ".join(f"{number} (id {name})" for number, name in rows[:SHOWN])
    if len(rows) == 1:
        return f"row {shown} has"
    return f"rows {shown}{f' and {len(rows) - SHOWN:,} more' if len(rows) > SHOWN else ''} have"


def _encoded(
    name: str,
    rows: Iterator[tuple[int, Mapping[str, Any]]],
    tokenizer: PreTrainedTokenizerBase,
    stops: set[int],
) -> Iterator[tuple[int, Mapping[str, Any], list[int], list[int]]]:
    """Number and row, the tokens of its prompt, and those of prompt and completion, which begin with them."""
    rendering = Rendering(tokenizer)
    endings = _Endings(tokenizer, stops, rendering.between)
    while some := list(islice(rows, AT_ONCE)):
        texts = [_texts(name, number, row, rendering) for number, row in some]
        flat = [text for pair in texts for text in pair]
        ids = tokenizer(flat, add_special_tokens=False)["input_ids"]
        for place, (number, row) in enumerate(some):
            start, whole = ids[2 * place], ids[2 * place + 1]
            if whole[: len(start)] != start:
                # Together, the last letters of the prompt and the first of the answer make one token. They never meet
                # when a request is answered.
                prompt, text = texts[place]
                rest = text[len(prompt) :]
                whole = start + tokenizer(rest, add_special_tokens=False)["input_ids"]
            answer = whole[len(start) :]
            yield number, row, start, start + endings.of(answer) if answer else start


class _Endings:
    """Has answers end where a generation does, whatever their template writes there.

    ``between`` is what it writes before the next question: where it does not close an answer, the stop token in that
    ends it.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase, stops: set[int], between: str) -> None:
        ids = tokenizer(between, add_special_tokens=False)["input_ids"]
        self._closing: list[int] = next(
            (ids[: place + 1] for place, token in enumerate(ids) if token in stops), []
        )
        self._tokenizer, self._stops = tokenizer, stops
        self._blank: dict[tuple[int, ...], bool] = {(): True}

    def of(self, answer: list[int]) -> list[int]:
        """The answer up to its last stop token, with blanks after it; one without is closed, if it can be."""
        last = next((place for place in reversed(range(len(answer))) if answer[place] in self._stops), None)
        if last is None:
            return answer + self._closing
        rest = tuple(answer[last + 1 :])
        if rest not in self._blank:
            self._blank[rest] = not self._tokenizer.decode(rest).strip()
        return answer if self._blank[rest] else answer[: last + 1]


def _texts(name: str, number: int, row: Mapping[str, Any], rendering: Rendering) -> tuple[str, str]:
    """The prompt as a request has it, and the same with the answer after it; an error names the row."""
    try:
        return rendering.texts(row)
    except (DataError, BaseModelError) as error:
        raise type(error)(
            f"{name}: row {number} (id {row.get('id', '?')}): {error.message}", error.hint
        ) from error
