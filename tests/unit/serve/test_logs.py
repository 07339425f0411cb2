"""Log lines: always one each, complete, never waited for, and silent about what a request said."""

import io
import logging
import os
import socket
import subprocess
import sys
import threading
import time
from types import SimpleNamespace
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve.log_lines import Fields, JsonLines, TextLines, message_of, named, one_line, told
from serve.logs import MOST_WAITING, SUBJECT, logging_to

log = logging.getLogger("tenon.test")


def record(message: str, **extra: Any) -> logging.LogRecord:
    made = logging.LogRecord("a.logger", logging.WARNING, __file__, 1, message, None, None)
    made.__dict__.update(extra)
    return made


def written(form: Any, *messages: str) -> list[str]:
    stream = io.BytesIO()
    with logging_to(stream, form, "info"):
        for message in messages:
            log.info("%s", message)
    return stream.getvalue().decode().split("\n")


@given(st.text(alphabet=st.characters(), max_size=60), st.text(max_size=20))
def test_any_text_is_one_line_in_both_forms(message: str, value: str) -> None:
    made = record(message, fields=Fields(path=value, nothing=None, count=3))
    assert len((TextLines().format(made) + "|").splitlines()) == 1
    line = JsonLines().format(made)
    assert len((line + "|").splitlines()) == 1
    content = orjson.loads(line.encode("utf-8", "backslashreplace"))
    if not any("\ud800" <= letter <= "\udfff" for letter in message + value):
        assert (content["message"], content["path"], content["count"]) == (message, value, 3)


@given(st.text())
def test_what_prints_is_left_as_it_is(text: str) -> None:
    assert one_line(text).isprintable()
    assert (one_line(text) == text) == text.isprintable()


def test_json_has_time_level_logger_request_and_trace() -> None:
    made = record("hello", subject=SimpleNamespace(id="abc", trace_id="f" * 32), created=1_700_000_000.25)
    assert orjson.loads(JsonLines().format(made)) == {
        "time": "2023-11-14T22:13:20.250Z",
        "level": "warning",
        "logger": "a.logger",
        "message": "hello",
        "request_id": "abc",
        "trace_id": "f" * 32,
    }


def test_text_quotes_what_would_look_like_two_fields() -> None:
    fields = Fields(key='my "shop" status=200', seconds=0.123456, nothing=None)
    line = TextLines().format(
        record("request", fields=fields, subject=SimpleNamespace(id="abc", trace_id=None))
    )
    assert line.endswith(r'WARNING a.logger [abc] request key="my \"shop\" status=200" seconds=0.1235')


def failing(error: Exception) -> Exception:
    try:
        try:
            raise error
        except type(error) as first:
            raise RuntimeError("the second\nsecret") from first
    except RuntimeError as caught:
        return caught


def test_an_exception_is_told_in_one_line_with_its_places() -> None:
    line = told(failing(ValueError("a secret")))
    assert line.startswith(r"RuntimeError: the second\nsecret at ")
    assert "; caused by ValueError: a secret at unit/serve/test_logs.py:" in line
    assert " failing" in line


def test_the_text_of_a_requests_exception_is_left_out() -> None:
    line = told(failing(ValueError("a secret")), private=True)
    assert "secret" not in line
    assert "RuntimeError at " in line
    assert "ValueError at " in line
    assert told(OSError(28, "No space left on device"), private=True) == "OSError: No space left on device"
    assert named(ValueError("a secret")) == "ValueError"


def test_an_exception_within_a_request_is_private_and_outside_is_not() -> None:
    stream = io.BytesIO()
    with logging_to(stream, "text", "info"):
        for subject in (None, SimpleNamespace(id="abc", trace_id=None)):
            token = SUBJECT.set(subject)
            try:
                raise ValueError("a secret")
            except ValueError:
                log.exception("failed")
            finally:
                SUBJECT.reset(token)
    outside, inside, _ = stream.getvalue().decode().split("\n")
    assert "ValueError: a secret" in outside
    assert "[abc] failed: ValueError at " in inside
    assert "secret" not in inside


@pytest.mark.parametrize("form", ["text", "json"])
def test_all_is_written_at_the_end_in_order(form: Any) -> None:
    lines = written(form, *(f"line {number}" for number in range(500)))
    assert lines.pop() == ""
    assert [f"line {number}" in line for number, line in enumerate(lines)] == [True] * 500


def test_a_line_that_cannot_be_made_is_told_without_its_arguments() -> None:
    stream = io.BytesIO()
    with logging_to(stream, "text", "info"):
        made = logging.LogRecord("a", logging.INFO, __file__, 1, "%d", ("a secret",), None)
        logging.getLogger().handlers[-1].handle(made)  # pytest's own handlers would fail the test
        log.info("after")
    text = stream.getvalue().decode()
    assert "a log line at test_logs.py:" in text
    assert "secret" not in text
    assert text.endswith("after\n")


class Stuck(io.BytesIO):
    """A disk that hangs until it is told otherwise."""

    def __init__(self) -> None:
        super().__init__()
        self.free = threading.Event()

    def write(self, data: Any) -> int:
        self.free.wait()
        return super().write(data)


def test_a_disk_that_hangs_holds_nobody_up_and_costs_lines_that_are_counted() -> None:
    stream = Stuck()
    with logging_to(stream, "text", "info"):
        began = time.monotonic()
        for number in range(MOST_WAITING + 1000):
            log.info("line %d", number)
        assert time.monotonic() - began < 30
        stream.free.set()
        while b"line %d\n" % (MOST_WAITING - 1) not in stream.getvalue():
            time.sleep(0.01)
        log.info("the last")
    lines = stream.getvalue().decode().splitlines()
    assert lines[-1].endswith("the last")
    assert "log lines were dropped" in lines[-2]
    assert len(lines) <= MOST_WAITING + 3


class Full(io.BytesIO):
    """A disk without room."""

    def write(self, data: Any) -> int:
        raise OSError(28, "No space left on device")


def test_a_full_disk_loses_lines_and_nothing_else(capfd: pytest.CaptureFixture[str]) -> None:
    with logging_to(Full(), "json", "info"):
        log.info("nobody reads this")
    assert capfd.readouterr() == ("", "")


MANY = """
import logging
from serve.logs import logging_to_stderr

with logging_to_stderr("text", "info"):
    for number in range(1000):
        logging.getLogger("many").info("line %d", number)
"""


def test_many_lines_are_written_together_whatever_python_buffers() -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)  # keeps writes apart
    with ours, theirs:
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        process = subprocess.Popen([sys.executable, "-c", MANY], stderr=theirs, env=environment)
        theirs.close()
        writes = list(iter(lambda: ours.recv(2**20), b""))
        assert process.wait() == 0
    lines = b"".join(writes).decode().splitlines()
    assert [line.rpartition(" ")[2] for line in lines] == [str(number) for number in range(1000)]
    assert len(writes) < 100


def test_levels_and_handlers_are_as_before_afterwards() -> None:
    root = logging.getLogger()
    before = (root.level, list(root.handlers))
    assert written("text", "seen")[0].endswith("INFO tenon.test seen")
    assert (root.level, root.handlers) == before


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("2026 INFO x", "2026 INFO x"),
        ('{"message":"x","level":"info"}', "x"),
        ('{"x":1}', '{"x":1}'),
        ("3", "3"),
    ],
)
def test_what_a_line_says_is_found_in_both_forms(line: str, said: str) -> None:
    assert message_of(line) == said
