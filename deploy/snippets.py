"""Lines to paste that ask the running gateway something, from a shell and from Python."""

import json
import shlex
from collections.abc import Sequence

Messages = Sequence[dict[str, str]]


def curl_snippet(url: str, model: str, messages: Messages, *, keys: bool = False) -> str:
    """A shell command that asks ``model`` at the gateway ``url``; with ``keys``, by the one in the environment."""
    body = json.dumps({"model": model, "messages": list(messages), "temperature": 0}, ensure_ascii=False)
    headers = "-H 'content-type: application/json'"
    if keys:
        headers += ' -H "authorization: Bearer $OPENAI_API_KEY"'
    return f"curl {url}/v1/chat/completions {headers} -d {shlex.quote(body)}"


def python_snippet(url: str, model: str, messages: Messages, *, keys: bool = False) -> str:
    """Five lines for the unmodified ``openai`` client; with ``keys`` it takes OPENAI_API_KEY."""
    key = "" if keys else ', api_key="none"'
    return "\n".join(
        (
            "from openai import OpenAI",
            f'client = OpenAI(base_url="{url}/v1"{key})',
            f"messages = {json.dumps(list(messages), ensure_ascii=False)}",
            f'answer = client.chat.completions.create(model="{model}", messages=messages, temperature=0)',
            "print(answer.choices[0].message.content)",
        )
    )
