"""What Tenon asks of vLLM: health, what is loaded, load, unload, log-probabilities, vectors, metrics."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Self

import aiohttp
import orjson
from prometheus_client.parser import text_string_to_metric_families

from serve.engine.interface import POOLED, ModelCard, RouteMissing, Sample
from serve.errors import AdapterLoadFailed, EngineUnavailable
from serve.net import access_in

COMPLETIONS = "/v1/completions"

MALFORMED = (ValueError, LookupError, TypeError, AttributeError)
"""What taking apart an answer raises that is no JSON or not of the shape that was expected."""


class EngineClient:
    """The control side of one vLLM engine, over HTTP; an :class:`~serve.engine.interface.AdapterEngine`.

    It closes its connections at the end of its ``async with``.

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

    async def list(self) -> Sequence[ModelCard]:
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

    async def models(self) -> Sequence[str]:
        """The names of the base and of all loaded adapters."""
        return [card.name for card in await self.list()]

    async def metrics(self) -> Sequence[Sample]:
        """What ``/metrics`` says; nothing where that is missing or not in Prometheus' form."""
        status, answer = await self._ask("GET", "/metrics")
        if status != 200:
            return []
        try:
            families = text_string_to_metric_families(answer.decode(errors="replace"))
            return [
                Sample(sample.name, sample.labels, sample.value) for f in families for sample in f.samples
            ]
        except MALFORMED:
            return []

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
    ) -> Sequence[dict[str, float]]:
        """The log-probabilities (natural, ≤ 0) of the ``most`` likeliest next tokens after each prompt.

        The prompts are asked one after the other: beside each other the numbers would differ in bfloat16.
        Raises :class:`AdapterLoadFailed` with the engine's own words when it cannot answer as ``model``, and of it
        :class:`RouteMissing` when it writes nothing at all.
        """
        found = []
        for prompt in prompts:
            body = {"model": model, "prompt": prompt, "max_tokens": 1, "temperature": 0, "logprobs": most}
            answer = await self._answer(COMPLETIONS, body)
            try:
                likeliest = orjson.loads(answer)["choices"][0]["logprobs"]["top_logprobs"][0]
                found.append({token: float(number) for token, number in likeliest.items()})
            except MALFORMED as error:
                text = f"the engine answers as {model} without log-probabilities: {error_text(answer)}"
                raise AdapterLoadFailed(text, "is it a vLLM server of version 0.32 or later?") from error
        return found

    async def vectors(self, model: str, path: str, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """What ``path``, one of :data:`POOLED`, answers to each text as a flat vector, raw where it classifies.

        Asked one after the other, and raises, as :meth:`next_logprobs`.
        """
        found = []
        for text in texts:
            body: dict[str, object] = {"model": model, "input": text}
            if path == "/classify":
                body["use_activation"] = (
                    False  # after a softmax, a single label is 1 whatever the weights say
                )
            answer = await self._answer(path, body)
            try:
                found.append(_flat(orjson.loads(answer)["data"][0][POOLED[path]]))
            except MALFORMED as error:
                reason = f"the engine answers as {model} without numbers: {error_text(answer)}"
                raise AdapterLoadFailed(reason, "is it a vLLM server of version 0.32 or later?") from error
        return found

    async def _answer(self, path: str, body: Mapping[str, object]) -> bytes:
        status, answer = await self._ask("POST", path, body)
        if status == 200:
            return answer
        text = f"the engine does not answer as {body['model']}: {error_text(answer)}"
        raise RouteMissing(text) if _lacks_route(status, answer) else AdapterLoadFailed(text)

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


def _flat(numbers: Any) -> list[float]:
    """Numbers, or lists of them (a vector for each token), one behind the other."""
    if isinstance(numbers, list):
        return [
            number
            for part in numbers
            for number in (_flat(part) if isinstance(part, list) else [float(part)])
        ]
    raise TypeError(f"{type(numbers).__name__} is no vector")


def _lacks_route(status: int, answer: bytes) -> bool:
    """Whether it is the route that is missing, and not the model: that has an error of vLLM's own shape."""
    if status in (405, 501):
        return True
    try:
        body = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return status == 404
    return status == 404 and not (isinstance(body, dict) and "error" in body)


def error_text(answer: bytes) -> str:
    """The message in an OpenAI-shaped error body, or the body itself."""
    try:
        body = orjson.loads(answer)
    except orjson.JSONDecodeError:
        return answer.decode(errors="replace").strip()[:500] or "no reason given"
    error = body.get("error", body) if isinstance(body, dict) else body
    text = error.get("message") if isinstance(error, dict) else None
    return str(text or error)
