"""What the fake engine answers where nothing is written: embeddings, classes, scores, tokens, and ``/v1/responses``.

Numbers come from a hash of weights and text, so that adapters differ and the same request gets the same answer.
"""

import hashlib
import itertools
import time
from collections.abc import Iterator, Mapping
from typing import Any

from serve.engine.fake_answers import Reply, byte_tokens, said_last, split_tokens, weights_of

DIMENSIONS = 4
_ids = itertools.count(1)


def numbers(voice: str, text: str, count: int) -> list[float]:
    """``count`` numbers in [0, 1) for a text as a voice reads it."""
    digest = hashlib.shake_128(f"{weights_of(voice)}\0{text}".encode()).digest(2 * count)
    return [int.from_bytes(digest[place : place + 2], "big") / 2**16 for place in range(0, 2 * count, 2)]


def texts_of(value: Any) -> list[str]:
    """The texts of an input: itself, a list of them, or token ids as text."""
    if isinstance(value, str):
        return [value]
    if value and isinstance(value[0], int):
        return [" ".join(map(str, value))]
    return [text if isinstance(text, str) else " ".join(map(str, text)) for text in value]


def _read(body: Mapping[str, Any]) -> list[str]:
    if "messages" in body:
        return [said_last(body)]
    return texts_of(body["input"])


def _vectors(kind: str, key: str, texts: list[str], voice: str, size: int) -> list[dict[str, Any]]:
    return [
        {"index": index, "object": kind, key: numbers(voice, text, size)} for index, text in enumerate(texts)
    ]


def _listed(prefix: str, model: str, data: list[dict[str, Any]], texts: list[str]) -> dict[str, Any]:
    count = sum(len(split_tokens(text)) for text in texts)
    return {
        "id": f"{prefix}-{next(_ids):016x}",
        "object": "list",
        "created": int(time.time()),
        "model": model,
        "data": data,
        "usage": {"prompt_tokens": count, "total_tokens": count, "completion_tokens": 0},
    }


def embeddings(body: Mapping[str, Any], model: str, voice: str) -> dict[str, Any]:
    """``/v1/embeddings``."""
    texts, size = _read(body), body.get("dimensions") or DIMENSIONS
    return _listed("embd", model, _vectors("embedding", "embedding", texts, voice, size), texts)


def pooling(body: Mapping[str, Any], model: str, voice: str) -> dict[str, Any]:
    """``/pooling``."""
    texts = _read(body)
    return _listed("pool", model, _vectors("pooling", "data", texts, voice, DIMENSIONS), texts)


def classes(body: Mapping[str, Any], model: str, voice: str) -> dict[str, Any]:
    """``/classify``: two classes."""
    texts = _read(body)
    data = []
    for index, text in enumerate(texts):
        (yes,) = numbers(voice, text, 1)
        label = "LABEL_1" if yes > 0.5 else "LABEL_0"
        data.append({"index": index, "label": label, "probs": [1 - yes, yes], "num_classes": 2})
    return _listed("classify", model, data, texts)


def scores(body: Mapping[str, Any], model: str, voice: str) -> dict[str, Any]:
    """``/score``: one query against each document, or pair by pair."""
    left = texts_of(next(body[name] for name in ("queries", "text_1", "data_1") if name in body))
    right = texts_of(next(body[name] for name in ("documents", "items", "text_2", "data_2") if name in body))
    pairs = list(zip(left * len(right) if len(left) == 1 else left, right, strict=False))
    data = [
        {"index": index, "object": "score", "score": numbers(voice, "\0".join(pair), 1)[0]}
        for index, pair in enumerate(pairs)
    ]
    return _listed("score", model, data, [*left, *right])


def ranks(body: Mapping[str, Any], model: str, voice: str) -> dict[str, Any]:
    """``/rerank``: the documents, best first."""
    documents = texts_of(body["documents"])
    results: list[dict[str, Any]] = [
        {
            "index": index,
            "document": {"text": text, "multi_modal": None},
            "relevance_score": numbers(voice, f"{body['query']}\0{text}", 1)[0],
        }
        for index, text in enumerate(documents)
    ]
    results.sort(key=lambda result: -result["relevance_score"])
    count = sum(len(split_tokens(text)) for text in [body["query"], *documents])
    return {
        "id": f"rerank-{next(_ids):016x}",
        "model": model,
        "usage": {"prompt_tokens": count, "total_tokens": count},
        "results": results[: body.get("top_n") or None],
    }


def tokens(body: Mapping[str, Any], max_model_len: int) -> dict[str, Any]:
    """``/tokenize``: one token per byte."""
    ids = byte_tokens(body["prompt"] if "prompt" in body else said_last(body))
    strings = [chr(token) for token in ids] if body.get("return_token_strs") else None
    return {"count": len(ids), "max_model_len": max_model_len, "tokens": ids, "token_strs": strings}


def text(body: Mapping[str, Any]) -> dict[str, Any]:
    """``/detokenize``."""
    return {"prompt": bytes(token % 256 for token in body["tokens"]).decode(errors="replace")}


TOKENIZER = {"tokenizer_class": "FakeTokenizer", "eos_token": "<|end|>", "chat_template": "{{ messages }}"}


def as_chat(body: Mapping[str, Any]) -> dict[str, Any]:
    """The chat that a request to ``/v1/responses`` amounts to."""
    asked = body["input"]
    items = [{"role": "user", "content": asked}] if isinstance(asked, str) else asked
    messages = [
        {"role": item["role"], "content": item["content"]} for item in items if item.get("role") is not None
    ]
    if body.get("instructions"):
        messages.insert(0, {"role": "system", "content": body["instructions"]})
    return {"messages": messages, "max_tokens": body.get("max_output_tokens"), "stop": body.get("stop")}


def response(body: Mapping[str, Any], reply: Reply, status: str = "completed") -> dict[str, Any]:
    """The answer of ``/v1/responses``; empty and without usage while ``in_progress``."""
    usage = reply.usage()
    content = {"type": "output_text", "text": "".join(reply.choices[0].tokens), "annotations": []}
    message = {"id": f"msg_{reply.id}", "type": "message", "role": "assistant", "status": "completed"}
    done = status == "completed"
    return {
        "id": f"resp_{reply.id}",
        "created_at": int(time.time()),
        "instructions": body.get("instructions"),
        "metadata": body.get("metadata"),
        "model": reply.model,
        "object": "response",
        "output": [{**message, "content": [content]}] if done else [],
        "parallel_tool_calls": True,
        "temperature": body.get("temperature") or 1.0,
        "tool_choice": body.get("tool_choice") or "auto",
        "tools": body.get("tools") or [],
        "top_p": body.get("top_p") or 1.0,
        "status": status,
        "usage": {
            "input_tokens": usage["prompt_tokens"],
            "output_tokens": usage["completion_tokens"],
            "total_tokens": usage["total_tokens"],
        }
        if done
        else None,
    }


def response_events(body: Mapping[str, Any], reply: Reply) -> Iterator[dict[str, Any]]:
    """The events of a streamed answer, in order; each text delta is one token."""
    began = response(body, reply, "in_progress")
    where = {"item_id": f"msg_{reply.id}", "output_index": 0, "content_index": 0}
    words = reply.choices[0].tokens
    events: list[dict[str, Any]] = [
        {"type": "response.created", "response": began},
        {"type": "response.in_progress", "response": began},
        *({"type": "response.output_text.delta", **where, "delta": word, "logprobs": []} for word in words),
        {"type": "response.output_text.done", **where, "text": "".join(words), "logprobs": []},
        {"type": "response.completed", "response": response(body, reply)},
    ]
    for number, event in enumerate(events):
        yield {**event, "sequence_number": number}
