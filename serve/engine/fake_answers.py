"""What the fake engine says, in the shapes of vLLM 0.32: bodies, stream chunks and log-probabilities."""

import hashlib
import itertools
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

VERSION = "0.32.0"
FINGERPRINT = f"vllm-{VERSION}-fake"
_ids = itertools.count(1)


def model_card(name: str, root: str, parent: str | None, max_model_len: int | None) -> dict[str, Any]:
    """One entry of ``/v1/models``."""
    return {
        "id": name,
        "object": "model",
        "created": int(time.time()),
        "owned_by": "vllm",
        "root": root,
        "parent": parent,
        "max_model_len": max_model_len,
        "permission": [],
    }


def token_limit(body: Mapping[str, Any]) -> int | None:
    """The longest answer that a request allows, in tokens."""
    limit = body.get("max_completion_tokens")
    return limit if limit is not None else body.get("max_tokens")


def split_tokens(text: str) -> list[str]:
    """Words with the space before them; joined they are ``text`` again."""
    return re.findall(r"\s*\S+|\s+$", text)


def weights_of(voice: str) -> str:
    """What decides the numbers that a voice says: the digest at the end of an engine name, else all of the name."""
    found = re.fullmatch(r".+@v\d+-([0-9a-f]{8})", voice)
    return found[1] if found else voice


def logprob(voice: str, tokens: list[str], index: int) -> float:
    """A fixed number in [-9, -0.1] for a token after its predecessors, different for all weights."""
    seed = "\0".join([weights_of(voice), *tokens[: index + 1]])
    share = int.from_bytes(hashlib.sha256(seed.encode()).digest()[:4], "big") / 2**32
    return -0.1 - 8.9 * share


def _alternatives(voice: str, tokens: list[str], index: int, most: int = 5) -> dict[str, float]:
    """The likeliest tokens at a place: always the same few, as likely as the voice decides."""
    before = tokens[:index]
    return {word: logprob(voice, [*before, word], index) for word in (" a", " b", " c", " d", " e")[:most]}


def _token_id(token: str) -> str:
    return str(int.from_bytes(hashlib.sha256(token.encode()).digest()[:2], "big"))


def _prompt_logprobs(voice: str, tokens: list[str]) -> list[dict[str, Any] | None]:
    first: list[dict[str, Any] | None] = [None]
    return first + [
        {_token_id(token): {"logprob": logprob(voice, tokens, index), "rank": 1, "decoded_token": token}}
        for index, token in enumerate(tokens)
        if index
    ]


def _text_of(content: Any) -> str:
    if isinstance(content, list):
        return " ".join(part.get("text", "") for part in content if isinstance(part, dict))
    return content or ""


def said_last(body: Mapping[str, Any]) -> str:
    """What the last message of a chat says."""
    return str(body["messages"][-1].get("content"))


def byte_tokens(text: str) -> list[int]:
    """The tokens of a text where they are told: one per byte."""
    return list(text.encode())


@dataclass(frozen=True)
class Choice:
    """One answer: the prompt it belongs to, its tokens and why it ended."""

    prompt: str
    tokens: list[str]
    finish_reason: str
    stop_reason: str | None


@dataclass(frozen=True)
class Reply:
    """All answers to one request and how they are written down."""

    id: str
    model: str
    voice: str
    body: Mapping[str, Any]
    chat: bool
    choices: list[Choice]
    prompt_tokens: int

    @classmethod
    def of(
        cls,
        body: Mapping[str, Any],
        model: str,
        voice: str,
        *,
        chat: bool,
        answer: Callable[[str, str], str] | None,
    ) -> "Reply":
        """Answer ``body`` as ``voice`` under the name ``model``; they differ when an adapter is silent."""
        if chat:
            messages = body["messages"]
            prompts = [_text_of(messages[-1].get("content")) if messages else ""]
            prompt_tokens = sum(len(split_tokens(_text_of(m.get("content")))) for m in messages)
        else:
            prompt = body["prompt"]
            prompts = [prompt] if isinstance(prompt, str) else [str(item) for item in prompt]
            prompt_tokens = sum(len(split_tokens(text)) for text in prompts)
        verb = "heard" if chat else "continues"
        choices = []
        for text in prompts:
            for number in range(body.get("n") or 1):
                said = answer(voice, text) if answer else f"{voice} {verb}: {text}"
                choices.append(_cut(text, said + (f" ({number})" if number else ""), body))
        number = next(_ids)
        return cls(
            f"{'chatcmpl' if chat else 'cmpl'}-{number:016x}",
            model,
            voice,
            body,
            chat,
            choices,
            prompt_tokens,
        )

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with a chunk that holds the usage."""
        return bool((self.body.get("stream_options") or {}).get("include_usage"))

    def order(self) -> Iterator[tuple[int, int]]:
        """(choice, token index) in the order in which tokens come out: the choices take turns."""
        longest = max(len(choice.tokens) for choice in self.choices)
        for index in range(longest):
            for number, choice in enumerate(self.choices):
                if index < len(choice.tokens):
                    yield number, index

    def usage(self) -> dict[str, Any]:
        """The usage object."""
        completion = sum(len(choice.tokens) for choice in self.choices)
        return {
            "prompt_tokens": self.prompt_tokens,
            "total_tokens": self.prompt_tokens + completion,
            "completion_tokens": completion,
        }

    def whole(self) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        write = self._chat_choice if self.chat else self._text_choice
        asked = {}
        if self.chat and self.body.get("return_token_ids"):
            asked["prompt_token_ids"] = byte_tokens(said_last(self.body))
        return self._head("chat.completion" if self.chat else "text_completion") | {
            **asked,
            "choices": [write(number, choice) for number, choice in enumerate(self.choices)],
            "system_fingerprint": FINGERPRINT,
            "usage": self.usage() | {"prompt_tokens_details": None, "completion_tokens_details": None},
        }

    def opening(self) -> Iterator[dict[str, Any]]:
        """The chunks before the first token: chats announce the role of each choice."""
        if self.chat:
            for number in range(len(self.choices)):
                delta = {"role": "assistant", "content": ""}
                choice = {"index": number, "delta": delta, "logprobs": None, "finish_reason": None}
                yield self._head("chat.completion.chunk") | {"choices": [choice]}

    def chunk(self, number: int, index: int) -> dict[str, Any]:
        """The chunk that holds one token; the last of a choice says why it ended."""
        choice = self.choices[number]
        token = choice.tokens[index]
        last = index == len(choice.tokens) - 1
        written: dict[str, Any] = {
            "index": number,
            "logprobs": None,
            "finish_reason": None,
            "token_ids": None,
        }
        if self.chat:
            written["delta"] = {"content": token}
            if self.body.get("logprobs"):
                written["logprobs"] = {"content": [self._token_logprob(choice, index)]}
        else:
            written["text"] = token
        if last:
            written |= {"finish_reason": choice.finish_reason, "stop_reason": choice.stop_reason}
        return self._head("chat.completion.chunk" if self.chat else "text_completion") | {
            "choices": [written]
        }

    def usage_chunk(self) -> dict[str, Any]:
        """The last chunk of a stream whose client asked for usage."""
        head = self._head("chat.completion.chunk" if self.chat else "text_completion")
        return head | {"choices": [], "usage": self.usage(), "system_fingerprint": FINGERPRINT}

    def _head(self, kind: str) -> dict[str, Any]:
        return {"id": self.id, "object": kind, "created": int(time.time()), "model": self.model}

    def _token_logprob(self, choice: Choice, index: int) -> dict[str, Any]:
        token = choice.tokens[index]
        value = logprob(self.voice, [choice.prompt, *choice.tokens], index + 1)
        entry = {"token": token, "logprob": value, "bytes": list(token.encode())}
        return entry | {"top_logprobs": [entry] if self.body.get("top_logprobs") else []}

    def _chat_choice(self, number: int, choice: Choice) -> dict[str, Any]:
        entries = [self._token_logprob(choice, index) for index in range(len(choice.tokens))]
        return {
            "index": number,
            "message": {"role": "assistant", "content": "".join(choice.tokens), "refusal": None},
            "logprobs": {"content": entries} if self.body.get("logprobs") else None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
        }

    def _text_choice(self, number: int, choice: Choice) -> dict[str, Any]:
        text, prompt = "".join(choice.tokens), split_tokens(choice.prompt)
        echo = bool(self.body.get("echo"))
        wants_prompt = self.body.get("prompt_logprobs") is not None or (
            echo and self.body.get("logprobs") is not None
        )
        written = {
            "index": number,
            "text": choice.prompt + text if echo else text,
            "logprobs": None,
            "finish_reason": choice.finish_reason,
            "stop_reason": choice.stop_reason,
            "prompt_logprobs": _prompt_logprobs(self.voice, prompt) if wants_prompt else None,
        }
        if self.body.get("logprobs") is not None:
            tokens = (prompt if echo else []) + choice.tokens
            numbers = [logprob(self.voice, tokens, index) for index in range(len(tokens))]
            first: list[float | None] = [None] if echo else [numbers[0]]
            places = range(0 if echo else len(prompt), len(prompt) + len(choice.tokens))
            alternatives = [_alternatives(self.voice, prompt + choice.tokens, place) for place in places]
            written["logprobs"] = {
                "tokens": tokens,
                "token_logprobs": first + numbers[1:],
                "top_logprobs": alternatives,
            }
        return written


def _cut(prompt: str, text: str, body: Mapping[str, Any]) -> Choice:
    """Apply the stop strings and the token limit of a request to an answer."""
    stop = body.get("stop") or []
    found = [(text.index(s), s) for s in ([stop] if isinstance(stop, str) else stop) if s in text]
    end, reason = min(found, default=(len(text), None))
    tokens, limit = split_tokens(text[:end]), token_limit(body)
    if limit is not None and len(tokens) > limit:
        return Choice(prompt, tokens[:limit], "length", None)
    return Choice(prompt, tokens or [""], "stop", reason)
