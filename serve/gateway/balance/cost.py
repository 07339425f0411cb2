"""How many tokens a request may take, as far as one can tell before any tokenizer saw it."""

from collections.abc import Mapping
from typing import Any

BYTES_PER_TOKEN = 4
"""The usual rule of thumb for English; a fair share needs the right order, not the right number."""
USUAL_ANSWER = 256
"""Tokens that an answer is taken to have when the request sets no limit."""


def estimate_tokens(body: Mapping[str, Any], length: int) -> int:
    """Tokens of prompt and answers together, 1 at least.

    ``body`` is a request that was checked, ``length`` its size in bytes. A request that allows many tokens is
    charged for all of them: whoever wants little and says so is served sooner. O(1).
    """
    limits = (body.get(name) for name in ("max_completion_tokens", "max_tokens", "max_output_tokens"))
    limit = next((limit for limit in limits if limit), USUAL_ANSWER)
    answers = body.get("n") or 1
    return max(1, length // BYTES_PER_TOKEN + int(answers) * int(limit))
