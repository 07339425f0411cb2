"""What a log line looks like: text or JSON, always one line, and nothing in it that a request said.

Whatever a client sent cannot begin a line of its own, as what does not print is escaped. Of an exception
that a request ran into only the types and the places are told, because its text may hold the prompt.
"""

import json
import logging
import re
from datetime import UTC, datetime
from pathlib import PurePath
from types import TracebackType
from typing import Any, Protocol

import orjson

FRAMES = 8
"""Places that are told of an exception, the innermost ones."""
AMBIGUOUS = re.compile('[ "=]')
"""What a value in a text line is quoted for."""


class Subject(Protocol):
    """What a log line is about: a request, by its id, and by its trace where there is one."""

    @property
    def id(self) -> str: ...  # noqa: D102

    @property
    def trace_id(self) -> str | None: ...  # noqa: D102


def one_line(text: str) -> str:
    """``text`` with everything that does not print escaped: line ends, terminal codes, lone surrogates."""
    if text.isprintable():
        return text
    return "".join(
        letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text
    )


def told(error: BaseException, *, private: bool = False) -> str:
    """An exception in one line: type, text and innermost places, then what caused it.

    ``private`` leaves the text out, but for what the operating system says of a failed call.
    """
    parts: list[str] = []
    seen: BaseException | None = error
    while seen is not None and len(parts) < FRAMES:
        text = str(seen) if not private else reason_of(seen)
        places = _places(seen.__traceback__)
        parts.append(
            type(seen).__name__ + (f": {text}" if text else "") + (f" at {places}" if places else "")
        )
        seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
    return one_line("; caused by ".join(parts))


def reason_of(error: BaseException) -> str:
    """What the operating system says of a failed call; never anything that a request or an engine said."""
    strerror = error.strerror if isinstance(error, OSError) else None
    return strerror if isinstance(strerror, str) else ""


def named(error: BaseException) -> str:
    """Type and reason of an exception, without its text."""
    reason = reason_of(error)
    return one_line(f"{type(error).__name__} ({reason})" if reason else type(error).__name__)


def _places(traceback: TracebackType | None) -> str:
    places = []
    while traceback is not None:
        code = traceback.tb_frame.f_code
        where = "/".join(PurePath(code.co_filename).parts[-3:])
        places.append(f"{where}:{traceback.tb_lineno} {code.co_name}")
        traceback = traceback.tb_next
    return " < ".join(reversed(places[-FRAMES:]))


class Fields(dict[str, Any]):
    """Facts for a log line: JSON has each under its own name, text has ``name=value`` for what is not None."""

    def __str__(self) -> str:
        # One search for all values, as hardly a line has one that must be quoted.
        words = "".join([value for value in self.values() if isinstance(value, str)])
        text = _short if AMBIGUOUS.search(words) is None else _quoted
        return " ".join([f"{name}={text(value)}" for name, value in self.items() if value is not None])


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _quoted(value: Any) -> str:
    if isinstance(value, str) and AMBIGUOUS.search(value):
        return orjson.dumps(one_line(value)).decode()
    return _short(value)


def message_of(line: str) -> str:
    """What a line of a log says to a person, whichever form it has."""
    try:
        content = orjson.loads(line)
    except orjson.JSONDecodeError:
        return line
    return str(content["message"]) if isinstance(content, dict) and "message" in content else line


class Clock:
    """Writes times; most lines share their second with the line before."""

    def __init__(self, form: str, *, utc: bool) -> None:
        self._form = form
        self._zone = UTC if utc else None
        self._second = 0
        self._text = ""

    def read(self, created: float) -> tuple[str, int]:
        """The second as text, and the milliseconds."""
        second = int(created)
        if second != self._second:
            self._second = second
            self._text = datetime.fromtimestamp(second, self._zone).strftime(self._form)
        return self._text, int((created - second) * 1000)


class TextLines(logging.Formatter):
    """``2026-11-21 08:13:12,345 INFO name [request id] message``, in local time."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock("%Y-%m-%d %H:%M:%S", utc=False)

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        subject: Subject | None = getattr(record, "subject", None)
        about = f" [{subject.id}]" if subject is not None else ""
        text = record.getMessage()
        if isinstance(fields := getattr(record, "fields", None), Fields):
            text = f"{text} {fields}"
        if error := getattr(record, "error", ""):
            text = f"{text}: {error}"
        second, milliseconds = self._clock.read(record.created)
        head = f"{second},{milliseconds:03d} {record.levelname} {record.name}{about}"
        return f"{head} {one_line(text)}"


class JsonLines(logging.Formatter):
    """One JSON object: ``time``, ``level``, ``logger``, ``message``, and what else there is."""

    def __init__(self) -> None:
        super().__init__()
        self._clock = Clock("%Y-%m-%dT%H:%M:%S", utc=True)

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        second, milliseconds = self._clock.read(record.created)
        line: dict[str, Any] = {
            "time": f"{second}.{milliseconds:03d}Z",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        subject: Subject | None = getattr(record, "subject", None)
        if subject is not None:
            line["request_id"] = subject.id
            if subject.trace_id is not None:
                line["trace_id"] = subject.trace_id
        if isinstance(fields := getattr(record, "fields", None), Fields):
            line |= fields
        if error := getattr(record, "error", ""):
            line["error"] = error
        try:
            text = orjson.dumps(line, default=str).decode()
        except TypeError:  # half a surrogate pair somewhere, which is no letter, and which JSON cannot hold
            text = json.dumps(line, default=str, ensure_ascii=False).encode("utf-8", "replace").decode()
        return text if text.isascii() else "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    """A letter of a JSON text; what does not print beyond ASCII stands in strings only."""
    return letter if letter.isascii() or letter.isprintable() else json.dumps(letter)[1:-1]
