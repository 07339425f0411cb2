"""Whether the engine writes prompts as they were in training; an adapter that is asked otherwise answers worse."""

import json
from collections.abc import Sequence
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import Any

from deploy.net import post_json
from evalsuite.tasks import Message

BEFORE, AFTER = 6, 16
"""Tokens that are shown before and after the first that differs."""


def written_otherwise(url: str, key: str | None, model: str, asked: Path) -> tuple[str, str] | None:
    """How a training row's prompt went on where the engine goes on otherwise, and what the engine has there.

    ``asked`` is what the training kept. None where both are alike, and where nobody can tell.
    """
    try:
        kept = json.loads(asked.read_text(encoding="utf-8"))
        messages = [Message.model_validate(message).to_openai() for message in kept["messages"]]
        trained, tools, day = list(kept["tokens"]), kept["tools"], kept["day"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # of an adapter that was trained elsewhere, or before this was kept
    if day not in (None, date.today().isoformat()):
        return None  # the template writes the date
    body = {"model": model, "messages": messages} | ({"tools": tools} if tools else {})
    now = post_json(f"{url}/tokenize", body, key).get("tokens")
    if not isinstance(now, list) or now == trained:
        return None
    at = next(place for place, (one, other) in enumerate(zip_longest(trained, now)) if one != other)
    return _text(url, key, model, trained, at), _text(url, key, model, now, at)


def _text(url: str, key: str | None, model: str, tokens: Sequence[Any], at: int) -> str:
    """What the tokens around a place say; the tokens themselves where the engine does not tell."""
    some = list(tokens[max(0, at - BEFORE) : at + AFTER])
    said = post_json(f"{url}/detokenize", {"model": model, "tokens": some}, key).get("prompt")
    return said if isinstance(said, str) else f"tokens {some}"
