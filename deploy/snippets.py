"""Lines to paste that ask the running gateway something, from a shell and from Python."""

import json
import shlex
from collections.abc import Mapping
from typing import Any

Sample = Mapping[str, Any]
"""Fields of a chat request, such as its messages."""


def curl_snippet(url: str, model: str, sample: Sample, *, keys: bool = False, greedy: bool = True) -> str:
    """A shell command that asks ``model`` at the gateway ``url``; with ``keys``, by the one in the environment.

    ``greedy``: at temperature 0, where the model may be asked so.
    """
    body = json.dumps(
        {"model": model, **sample, **({"temperature": 0} if greedy else {})}, ensure_ascii=False
    )
    headers = "-H 'content-type: application/json'"
    if keys:
        headers += ' -H "authorization: Bearer $OPENAI_API_KEY"'
    return f"curl {url}/v1/chat/completions {headers} -d {shlex.quote(body)}"


def python_snippet(url: str, model: str, sample: Sample, *, keys: bool = False, greedy: bool = True) -> str:
    """Lines for the unmodified ``openai`` client, five without tools; with ``keys`` it takes OPENAI_API_KEY."""
    key = "" if keys else ', api_key="none"'
    names = "".join(f", {name}={name}" for name in sample) + (", temperature=0" if greedy else "")
    return "\n".join(
        (
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{url}/v1"{key})',
            *(f"{name} = {value!r}" for name, value in sample.items()),
            f'answer = client.chat.completions.create(model="{model}"{names})',
            "print(answer.choices[0].message.content)",
        )
    )
