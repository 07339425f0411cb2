"""Whether the engine writes prompts as they were in training; an adapter that is asked otherwise answers worse."""

import json
from collections.abc import Sequence
from datetime import date
from itertools import zip_longest
from pathlib import Path
from typing import Any

from deploy.net import post_json
from evalsuite.tasks import Message, chat_fields

BEFORE, AFTER = 6, 16
"""Tokens that are shown before and after the first that differs."""


def written_otherwise(url: str, key: str | None, model: str, asked: Path) -> tuple[str, str] | None:
    """How a training row's prompt went on where the engine goes on otherwise, and what the engine has there.

    ``asked`` is what the training kept; the engine is asked for an answer of one token, as some write the prompts of
    chats by other means than what their ``/tokenize`` tells. None where both are alike, and where nobody can tell.
    """
    try:
        kept = json.loads(asked.read_text(encoding="utf-8"))
        messages = [Message.model_validate(message) for message in kept["messages"]]
        chat = chat_fields(messages, kept["tools"] or ())
        trained, day = list(kept["tokens"]), kept["day"]
    except (OSError, ValueError, LookupError, TypeError):
        return None  # of an adapter that was trained elsewhere, or before this was kept
    if day not in (None, date.today().isoformat()):
        return None  # the template may write the date
    body = {"model": model, **chat, "max_tokens": 1, "return_token_ids": True}
    now = post_json(f"{url}/v1/chat/completions", body, key).get("prompt_token_ids")
    if not isinstance(now, list) or now == trained:
        return None
    at = next(place for place, (one, other) in enumerate(zip_longest(trained, now)) if one != other)
    parts = [tokens[max(0, at - BEFORE) : at + AFTER] for tokens in (trained, now)]
    first, second = (_text(url, key, model, part) for part in parts)
    return (first, second) if first != second else (f"tokens {parts[0]}", f"tokens {parts[1]}")


def _text(url: str, key: str | None, model: str, tokens: Sequence[Any]) -> str:
    """What tokens say; empty where the engine does not tell."""
    return str(post_json(f"{url}/detokenize", {"model": model, "tokens": tokens}, key).get("prompt", ""))
