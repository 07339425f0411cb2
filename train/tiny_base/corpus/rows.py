"""Shapes of rows: chat rows with the instruction as a system turn or in front of the text, and plain text."""

from __future__ import annotations

import json
import random
from typing import Any

from train.tiny_base.corpus.entities import pick

Row = dict[str, Any]
_FRAMES = (
    "{task}\n\n{text}",
    "{task}\n{text}",
    "{task}\nText: {text}",
    "{task}\n\nMessage: {text}",
    '{task}\n"{text}"',
    "{text}\n\n{task}",
    "Message: {text}\n{task}",
    "{task}\n###\n{text}",
    "{task}\nInput: {text}\nOutput:",
)


def chat(user: str, answer: str, system: str | None = None) -> Row:
    """Return a chat row of one exchange."""
    turns = [{"role": "user", "content": user}]
    if system:
        turns.insert(0, {"role": "system", "content": system})
    return {"prompt": turns, "completion": [{"role": "assistant", "content": answer}]}


def asked(rng: random.Random, task: str, text: str, answer: str, *, system: float = 0.6) -> Row:
    """Return a chat row whose instruction is the system turn (with chance `system`) or framed with the text."""
    if rng.random() < system:
        return chat(text, answer, task)
    return chat(pick(rng, _FRAMES).format(task=task, text=text), answer)


def plain(text: str) -> Row:
    """Return a row of running text."""
    return {"text": text}


def to_json(rng: random.Random, value: dict[str, Any]) -> str:
    """Write an answer as JSON on one line, mostly with the usual spaces."""
    if rng.random() < 0.85:
        return json.dumps(value, ensure_ascii=False)
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))
