"""Asks an OpenAI chat endpoint questions, many at a time, and keeps what came back with its time and tokens.

Arms are interleaved question by question and take turns at being first, so that whatever else happens on the
machine happens to all of them alike.
"""

import asyncio
import json
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import orjson

from evalsuite.tasks import Question, chat_fields
from serve.errors import BadRequest, ConfigError, EngineUnavailable, ModelNotFound

BUSY = frozenset({429, 502, 503, 504})
REFUSED = frozenset({401, 403})
FIRST_PAUSE, LONGEST_PAUSE = 0.25, 8.0
TOO_LONG = ("your prompt contains", "max_tokens must be at least 1, got 0")
"""What vLLM says of a prompt that is longer than its context, and of one that fills it: we ask for a token at least."""


@dataclass(frozen=True)
class Answer:
    """One answer, or why there is none. ``seconds`` is the time of the last try alone.

    ``too_long``: the model cannot be asked this, as the question leaves no room for an answer in its context.
    """

    text: str
    seconds: float = 0.0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    cut_short: bool = False
    tries: int = 1
    error: str | None = None
    too_long: bool = False


@dataclass(frozen=True)
class Asking:
    """How questions are asked.

    An answer is given up as missing after ``patience`` seconds in which the server was busy or absent, or had
    nothing of that model: longer than an engine takes to restart. A question that begins when nothing of any model was
    answered for as long ends the asking.
    ``timeout`` bounds one try, in seconds.
    """

    concurrency: int = 32
    max_tokens: int = 256
    timeout: float = 120.0
    patience: float = 180.0
    api_key: str | None = None


OnAnswer = Callable[[int, int, Answer], None]
"""Called with the question's index, the arm's index and the answer."""


async def ask_all(
    url: str, models: Sequence[str], questions: Sequence[Question], asking: Asking, on_answer: OnAnswer
) -> list[list[Answer]]:
    """Ask every model every question at temperature 0; ``result[arm][question]`` is in the order given.

    An answer that cannot be had carries its ``error`` and the rest go on. Raises :class:`ModelNotFound`,
    :class:`ConfigError` (key refused) or :class:`EngineUnavailable` (nobody answered for ``patience``
    seconds) at once, as no question would fare better. Cancelling ends every request.
    """
    answers: list[list[Answer | None]] = [[None] * len(questions) for _ in models]
    work = iter(_turns(len(questions), len(models)))
    headers = {"Authorization": f"Bearer {asking.api_key}"} if asking.api_key else {}
    timeout = aiohttp.ClientTimeout(total=asking.timeout)
    connector = aiohttp.TCPConnector(limit=0)
    async with aiohttp.ClientSession(timeout=timeout, headers=headers, connector=connector) as session:
        asker = _Asker(session, url.rstrip("/") + "/v1/chat/completions", len(set(models)), asking)

        async def worker() -> None:
            for question, arm in work:
                answer = await asker.ask(models[arm], questions[question])
                answers[arm][question] = answer
                on_answer(question, arm, answer)

        try:
            async with asyncio.TaskGroup() as group:
                for _ in range(min(asking.concurrency, len(questions) * len(models))):
                    group.create_task(worker())
        except* (ModelNotFound, ConfigError, EngineUnavailable) as failures:
            # Workers fail alike and together; one of them says it all.
            raise failures.exceptions[0] from None
    return [[answer for answer in row if answer is not None] for row in answers]


def _turns(questions: int, arms: int) -> Iterator[tuple[int, int]]:
    for question in range(questions):
        for turn in range(arms):
            yield question, (question + turn) % arms


class _BusyError(Exception):
    """The server may answer later; ``pause`` is how long it asks us to wait, in seconds."""

    def __init__(self, reason: str, pause: float = 0.0) -> None:
        super().__init__(reason)
        self.pause = pause


class _TooLongError(BadRequest):
    """The question and one token of an answer are more than the model can read."""


class _Asker:
    def __init__(self, session: aiohttp.ClientSession, url: str, models: int, asking: Asking) -> None:
        self._session = session
        self._url = url
        self._models = models
        self._asking = asking
        self._last_success = time.monotonic()
        self._silent_since: dict[str, float] = {}
        """When each model that answers nothing at the moment began to."""

    async def ask(self, model: str, question: Question) -> Answer:
        request: dict[str, Any] = {
            "model": model,
            **chat_fields(question.messages, question.tools),
            "temperature": 0,
            "max_tokens": self._asking.max_tokens,
        }
        # Not orjson, which refuses integers over 64 bits; a tool's schema may have some.
        body = json.dumps(request, ensure_ascii=False).encode()
        began = time.monotonic()
        tries = 0
        while True:
            tries += 1
            try:
                answer = await self._try(body, tries)
            except _TooLongError as error:
                return Answer("", tries=tries, error=error.message, too_long=True)
            except BadRequest as error:
                return Answer("", tries=tries, error=error.message)
            except (_BusyError, aiohttp.ClientError, TimeoutError) as error:
                reason = str(error) or type(error).__name__
                silent_since = self._silent_since.setdefault(model, began)
                all_silent = len(self._silent_since) == self._models
                if all_silent and began - self._last_success >= self._asking.patience:
                    raise EngineUnavailable(
                        f"{self._url} answered nothing for {self._asking.patience:.0f} s: {reason}",
                        "see `tenon status`",
                    ) from error
                left = min(began, silent_since) + self._asking.patience - time.monotonic()
                if left <= 0:
                    return Answer("", tries=tries, error=reason)
                asked = error.pause if isinstance(error, _BusyError) else 0.0
                await asyncio.sleep(min(left, _pause(tries, asked)))
            else:
                self._last_success = time.monotonic()
                self._silent_since.pop(model, None)
                return answer

    async def _try(self, body: bytes, tries: int) -> Answer:
        began = time.perf_counter()
        headers = {"Content-Type": "application/json"}
        async with self._session.post(self._url, data=body, headers=headers) as response:
            content = await response.read()
            if response.status in BUSY:
                raise _BusyError(
                    _reason(response.status, content), _retry_after(response.headers.get("Retry-After"))
                )
            if response.status == ModelNotFound.status:
                raise ModelNotFound(
                    _reason(response.status, content), "see `tenon status` for what is served"
                )
            if response.status in REFUSED:
                raise ConfigError(
                    f"{self._url} refuses the key: {_reason(response.status, content)}",
                    "is it the gateway of this home? See `tenon status`",
                )
            if response.status != 200:
                words = _reason(response.status, content)
                raise (_TooLongError if any(each in words for each in TOO_LONG) else BadRequest)(words)
        return _answer(content, time.perf_counter() - began, tries)


def _answer(content: bytes, seconds: float, tries: int) -> Answer:
    try:
        reply = orjson.loads(content)
        choice = reply["choices"][0]
        usage = reply.get("usage") or {}
        return Answer(
            choice["message"].get("content") or "",
            seconds,
            int(usage.get("prompt_tokens") or 0),
            int(usage.get("completion_tokens") or 0),
            choice.get("finish_reason") == "length",
            tries,
        )
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise BadRequest(
            f"the reply is no chat completion: {content[:200].decode(errors='replace')!r}"
        ) from error


def _reason(status: int, content: bytes) -> str:
    """The server's own words, in OpenAI's error shape or not."""
    words = _error(content).get("message") or content[:300].decode(errors="replace").strip()
    return f"HTTP {status}: {words}"


def _error(content: bytes) -> dict[str, Any]:
    """The error in OpenAI's shape, empty where the server does not use it."""
    try:
        error: Any = orjson.loads(content)["error"]
    except (ValueError, LookupError, TypeError):
        return {}
    return error if isinstance(error, dict) else {"message": str(error)}


def _pause(tries: int, asked: float) -> float:
    """Full jitter, so that workers that failed together do not return together (Brooker, AWS 2015)."""
    ceiling = min(LONGEST_PAUSE, FIRST_PAUSE * 2 ** min(tries, 10))
    return max(min(asked, LONGEST_PAUSE), random.uniform(ceiling / 2, ceiling))


def _retry_after(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:  # an HTTP date: our own pause will do
        return 0.0
