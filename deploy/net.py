"""Servers that answer."""

import json
import urllib.request
from http.client import HTTPException
from typing import Any

from serve.net import access_in

PROBE_TIMEOUT = 2.0  # seconds that a part is given to answer a health check
POST_TIMEOUT = 10.0  # seconds for a small question
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))
"""Asks without a proxy, as all other parts do: those that are asked are ours, and what is sent is theirs alone."""
UNANSWERED = (OSError, ValueError, HTTPException)


def answers(url: str) -> bool:
    """Whether a GET of ``url``, which may hold a user name and a password, is answered with success in time."""
    try:
        where, access = access_in(url)
        request = urllib.request.Request(where)
        for name, value in access.items():
            request.add_unredirected_header(name, value)
        with DIRECT.open(request, timeout=PROBE_TIMEOUT) as response:
            return bool(response.status == 200)
    except UNANSWERED:
        return False


def get_json(url: str) -> dict[str, Any]:
    """The JSON that ``url`` answers, or an empty mapping where it does not."""
    return _json_of(urllib.request.Request(url), PROBE_TIMEOUT)


def post_json(url: str, body: dict[str, Any], key: str | None = None) -> dict[str, Any]:
    """The JSON that ``url`` answers to ``body``, or an empty mapping where it does not; ``key`` is a bearer token."""
    request = urllib.request.Request(
        url, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    if key is not None:
        request.add_unredirected_header("Authorization", f"Bearer {key}")
    return _json_of(request, POST_TIMEOUT)


def _json_of(request: urllib.request.Request, timeout: float) -> dict[str, Any]:
    try:
        with DIRECT.open(request, timeout=timeout) as response:
            content = json.loads(response.read())
            return content if isinstance(content, dict) else {}
    except UNANSWERED:
        return {}
