"""Rows become tokens and labels: only the completion's tokens are supervised."""

import json
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from serve.errors import BaseModelError, DataError

IGNORED = -100
SHOWN = 3
AT_ONCE = 256
"""Rows that are given to the tokenizer together, which takes half of the time then."""


@dataclass(frozen=True, slots=True)
class TokenRows:
    """Tokenised rows. ``too_long`` names those that were left out, as (row number from 1, id, tokens)."""

    ids: list[list[int]]
    labels: list[list[int]]
    too_long: list[tuple[int, str, int]]

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def longest(self) -> int:
        """Tokens of the longest row, 0 without rows."""
        return max(map(len, self.ids), default=0)

    def sample(self, most: int, seed: int) -> "TokenRows":
        """At most so many of the rows, drawn at random by ``seed``, in their order."""
        if len(self) <= most:
            return self
        drawn = sorted(random.Random(seed).sample(range(len(self)), most))
        return TokenRows([self.ids[row] for row in drawn], [self.labels[row] for row in drawn], self.too_long)

    def longest_rows(self, number: int) -> list[dict[str, list[int]]]:
        """The ``number`` longest rows, as ``input_ids`` and ``labels``."""
        order = sorted(range(len(self.ids)), key=lambda row: len(self.ids[row]))
        return [{"input_ids": self.ids[row], "labels": self.labels[row]} for row in order[-number:]]


def read_rows(path: Path) -> Iterator[tuple[int, Mapping[str, Any]]]:
    """Row number from 1 and row of each line of a prepared split."""
    with path.open(encoding="utf-8") as file:
        for number, line in enumerate(file, 1):
            yield number, json.loads(line)


def stop_tokens(tokenizer: PreTrainedTokenizerBase, folder: Path) -> set[int]:
    """Ids that end a generation: the tokenizer's and those of generation_config.json."""
    stops = {tokenizer.eos_token_id}
    file = folder / "generation_config.json"
    if file.exists():
        value = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
        stops |= set(value) if isinstance(value, list) else {value}
    return stops - {None}


def tokenize(path: Path, tokenizer: PreTrainedTokenizerBase, stops: set[int], max_length: int) -> TokenRows:
    """Tokenise a split of conversational prompt–completion rows by the base's own chat template.

    The supervised tokens are those of prompt and completion after the longest start that they share with the
    prompt alone, as in TRL, and hold a stop token, so that the adapter learns to end its answer. Rows with more
    than ``max_length`` tokens are left out, never cut. Raises DataError where a row has nothing to learn from.
    """
    name = path.name
    if not tokenizer.chat_template:
        raise BaseModelError("the base has no chat template", "add chat_template.jinja to its folder")
    rows = TokenRows([], [], [])
    silent: list[tuple[int, str]] = []
    unending: list[tuple[int, str]] = []
    for number, row, start, whole in _encoded(read_rows(path), tokenizer):
        shared = _shared(start, whole)
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
            rows.ids.append(whole)
            rows.labels.append(labels)
    _refuse(name, silent, unending)
    return rows


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
    rows: Iterator[tuple[int, Mapping[str, Any]]], tokenizer: PreTrainedTokenizerBase
) -> Iterator[tuple[int, Mapping[str, Any], list[int], list[int]]]:
    """Number and row, the tokens of its prompt, and those of prompt and completion."""
    while some := list(islice(rows, AT_ONCE)):
        starts = [
            _render(tokenizer, row["prompt"], row.get("tools"), add_generation_prompt=True) for _, row in some
        ]
        wholes = [
            _render(tokenizer, [*row["prompt"], *row["completion"]], row.get("tools")) for _, row in some
        ]
        ids = tokenizer([*starts, *wholes], add_special_tokens=False)["input_ids"]
        for (number, row), start, whole in zip(some, ids[: len(some)], ids[len(some) :], strict=True):
            yield number, row, start, whole


def _render(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Mapping[str, Any]], tools: Any, **options: Any
) -> str:
    # Templates of models that think put an empty thought before an answer. With thinking off it ends the prompt,
    # where the engine is told to put it too (serve.engine.spec); templates that know no such switch ignore it.
    return str(
        tokenizer.apply_chat_template(messages, tools=tools, tokenize=False, enable_thinking=False, **options)
    )


def _shared(start: Sequence[int], whole: Sequence[int]) -> int:
    """Length of the longest common start."""
    for index, (one, other) in enumerate(zip(start, whole, strict=False)):
        if one != other:
            return index
    return min(len(start), len(whole))
