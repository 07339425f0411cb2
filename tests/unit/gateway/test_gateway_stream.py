"""The event filter, byte by byte."""

import itertools

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.gateway.metrics import Metrics
from serve.gateway.routes import Route
from serve.gateway.stream import MAX_EVENT, TOO_LONG, EventFilter

ENGINE_NAME = "support@v1-0123abcd"
ROUTE = Route("support@v1", ENGINE_NAME, Metrics(lambda: True).other)


def event(**content: object) -> bytes:
    return b"data: " + orjson.dumps({"id": "x", "model": ENGINE_NAME, **content}) + b"\n\n"


def token(text: str) -> bytes:
    return event(choices=[{"index": 0, "delta": {"content": text}}])


ROLE = event(choices=[{"index": 0, "delta": {"role": "assistant", "content": ""}}])
USAGE = event(choices=[], usage={"prompt_tokens": 1, "completion_tokens": 2})
DONE = b"data: [DONE]\n\n"
STREAM = ROLE + token(" a") + token('"model":"support@v1-0123abcd"') + token("é\r\n\n") + USAGE + DONE


@given(st.lists(st.integers(0, len(STREAM))), st.booleans(), st.booleans())
def test_the_cuts_between_chunks_do_not_matter(cuts: list[int], keep_usage: bool, crlf: bool) -> None:
    events = EventFilter(ROUTE, keep_usage=keep_usage)
    stream = STREAM.replace(b"\n", b"\r\n") if crlf else STREAM
    chunks = [stream[a:b] for a, b in itertools.pairwise([0, *sorted(cuts), len(stream)])]
    out = b"".join(events.feed(chunk) for chunk in chunks)
    expected = STREAM if keep_usage else STREAM.replace(USAGE, b"")
    expected = expected.replace(b'"model":"support@v1-0123abcd"', b'"model":"support@v1"')
    assert out == expected
    assert (events.tokens, events.done, events.error) == (3, True, None)
    assert events.usage == {"prompt_tokens": 1, "completion_tokens": 2}


def test_text_that_looks_like_a_model_field_is_left_alone() -> None:
    out = EventFilter(ROUTE, keep_usage=False).feed(token('"model":"support@v1-0123abcd"'))
    content = orjson.loads(out.removeprefix(b"data: "))
    assert content["model"] == "support@v1"
    assert content["choices"][0]["delta"]["content"] == '"model":"support@v1-0123abcd"'


@pytest.mark.parametrize("space", ["", " "])
def test_an_error_event_ends_the_stream_without_done(space: str) -> None:
    events = EventFilter(ROUTE, keep_usage=True)
    error = f'data:{space}{{"error": {{"message": "x", "code": 500}}}}'.encode()
    assert events.feed(error + b"\n\n" + DONE) == b""
    assert events.error == error
    assert not events.done


def test_an_unfinished_event_is_held_back() -> None:
    events = EventFilter(ROUTE, keep_usage=True)
    assert events.feed(token("a")[:-1]) == b""
    assert events.feed(b"\n") != b""


def test_comments_pass_and_spaced_json_is_renamed() -> None:
    events = EventFilter(ROUTE, keep_usage=True)
    assert events.feed(b": ping\n\n") == b": ping\n\n"
    assert b'"model":"support@v1"' in events.feed(
        b'data: {"model": "support@v1-0123abcd", "choices": [{}]}\n\n'
    )


@pytest.mark.parametrize("end", [b"\n\n", b"\r\n\r\n", b"\n\r\n"])
def test_an_event_may_come_byte_by_byte(end: bytes) -> None:
    events = EventFilter(ROUTE, keep_usage=True)
    text = token("a").removesuffix(b"\n\n") + end
    outs = [events.feed(text[at : at + 1]) for at in range(len(text))]
    assert outs[:-1] == [b""] * (len(text) - 1)
    assert outs[-1].endswith(b"\n\n")


def test_an_event_without_an_end_is_given_up() -> None:
    """In time that grows with its length, and not with the square of it."""
    events = EventFilter(ROUTE, keep_usage=True)
    assert events.feed(token("a")) != b""
    part = b"x" * 4096
    for _ in range(MAX_EVENT // len(part)):
        assert events.feed(part) == b""
        assert events.error is None
    assert events.feed(part) == b""
    assert events.error == TOO_LONG
    assert not events.done
    assert sum(map(len, events._held)) == 0
