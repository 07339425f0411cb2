"""What Tenon asks of an engine: health, what is loaded, load, unload, log-probabilities."""

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import aiohttp
import orjson

from serve.errors import AdapterLoadFailed, EngineUnavailable
from serve.net import access_in

MALFORMED = (ValueError, LookupError, TypeError, AttributeError)
"""What taking apart an answer raises that is no JSON or not of the shape that was expected."""


@dataclass(frozen=True)
class ModelCard:
    """One entry of the engine's ``/v1/models``; an adapter's ``parent`` is its base, a base has none."""

    name: str
    root: str
    parent: str | None
    max_model_len: int | None


class EngineClient:
    """The control side of one engine, over HTTP; closes its connections at the end of its ``async with``.

    Every call raises :class:`EngineUnavailable` when the engine cannot be reached, takes longer than
    ``timeout`` seconds (a load: ``load_timeout``, health: ``health_timeout``) or answers what no vLLM server
    would, unless its docstring says otherwise. A user name and a password in the URL are sent, and never told.
    """

    def __init__(
        self, url: str, *, timeout: float = 60.0, load_timeout: float = 300.0, health_timeout: float = 10.0
    ) -> None:
        shown, self._access = access_in(url)
        self.url = shown.rstrip("/")
        self._timeout = aiohttp.ClientTimeout(total=timeout)
        self._health_timeout = aiohttp.ClientTimeout(total=health_timeout)
        self._load_timeout = aiohttp.ClientTimeout(total=load_timeout)
        self._open: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close all connections; a later call opens new ones."""
        if self._open is not None:
            await self._open.close()
            self._open = None

    async def health(self) -> bool:
        """Whether the engine says that it is well; False, not an error, when it cannot be reached."""
        try:
            status, _ = await self._ask("GET", "/health", timeout=self._health_timeout)
        except EngineUnavailable:
            return False
        return status == 200

    async def cards(self) -> list[ModelCard]:
        """The base and all adapters that the API server knows, in the engine's order."""
        path = "/v1/models"
        status, answer = await self._ask("GET", path)
        try:
            if status == 200:
                return [
                    ModelCard(
                        str(card["id"]), card.get("root") or "", card.get("parent"), card.get("max_model_len")
                    )
                    for card in orjson.loads(answer)["data"]
                ]
        except MALFORMED:
            pass
        raise EngineUnavailable(
            f"{self.url}{path} answered {status}: {error_text(answer)}", "is it a vLLM server?"
        )

    async def models(self) -> list[str]:
        """The names of the base and of all loaded adapters."""
        return [card.name for card in await self.cards()]

    async def load(self, engine_name: str, path: Path) -> float:
        """Load the adapter in ``path`` under ``engine_name`` and return the seconds that it took.

        Raises :class:`AdapterLoadFailed` with the engine's own words when it refuses.
        """
        begin = time.monotonic()
        body = {"lora_name": engine_name, "lora_path": str(path)}
        status, answer = await self._ask("POST", "/v1/load_lora_adapter", body, timeout=self._load_timeout)
        if status != 200:
            text = f"the engine refused {engine_name}: {error_text(answer)}"
            raise AdapterLoadFailed(
                text, "the adapter must fit the base and the engine's limits (rank, modules)"
            )
        return time.monotonic() - begin

    async def unload(self, engine_name: str) -> None:
        """Make the engine forget an adapter; one that it does not know is fine."""
        status, answer = await self._ask("POST", "/v1/unload_lora_adapter", {"lora_name": engine_name})
        if status not in (200, 404):
            raise AdapterLoadFailed(f"the engine did not unload {engine_name}: {error_text(answer)}")

    async def next_logprobs(
        self, model: str, prompts: Sequence[str], most: int = 20
    ) -> list[dict[str, float]]:
        """The log-probabilities (natural, ≤ 0) of the ``most`` likeliest next tokens after each prompt.

        The prompts are asked one after the other: beside each other the numbers would differ in bfloat16.
        Raises :class:`AdapterLoadFailed` with the engine's own words when it cannot answer as ``model``.
        """
        found = []
        for prompt in prompts:
            body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": most}
            status, answer = await self._ask("POST", "/v1/completions", body)
            if status != 200:
                raise AdapterLoadFailed(f"the engine does not answer as {model}: {error_text(answer)}")
            try:
                likeliest = orjson.loads(answer)["choices"][0]["logprobs"]["top_logprobs"][0]
                found.append({token: float(number) for token, number in likeliest.items()})
            except MALFORMED as error:
                text = f"the engine answers as {model} without log-probabilities: {error_text(answer)}"
                raise AdapterLoadFailed(text, "is it a vLLM server of version 0.32 or later?") from error
        return found

    async def _ask(
        self, method: str, path: str, body: object = None, *, timeout: aiohttp.ClientTimeout | None = None
    ) -> tuple[int, bytes]:
        if self._open is None:
            # A fresh connection per call: an engine that restarts on its port leaves none behind to fail on.
            self._open = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        data = None if body is None else orjson.dumps(body)
        headers = {**self._access, **({"content-type": "application/json"} if data else {})}
        try:
            async with self._open.request(
                method, self.url + path, data=data, headers=headers, timeout=timeout or self._timeout
            ) as response:
                return response.status, await response.read()
        except (aiohttp.ClientError, TimeoutError, ConnectionError) as error:
            reason = str(error) or type(error).__name__
            raise EngineUnavailable(f"the engine at {self.url} does not answer: {reason}") from error


def error_text(answer: bytes) -> str:
    """The message in an OpenAI-shaped error body, or the body itself."""
    try:
        body = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return answer.decode(errors="replace").strip()[:500] or "no reason given"
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message") if isinstance(error, dict) else None
    return str(text or error)
