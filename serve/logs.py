"""Logs of our processes: one line per record, as text or JSON, written by a thread of its own.

What logs never waits for a disk: records go into a queue, and a thread makes and writes their lines. While
the disk hangs, up to ``MOST_WAITING`` records wait; those that come then are dropped and counted.
"""

import contextlib
import copy
import io
import logging
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from logging.handlers import QueueHandler, QueueListener
from pathlib import PurePath
from queue import SimpleQueue
from typing import BinaryIO, Literal

from serve.log_lines import JsonLines, Subject, TextLines, named, told

Format = Literal["text", "json"]

MOST_WAITING = 10_000
"""Records that wait to be written, at most: some 25 MiB."""
PAUSE = 0.02
"""Seconds in which lines gather before they are written."""
SUBJECT: ContextVar[Subject | None] = ContextVar("subject", default=None)
"""The request that the running task answers; every line that is logged there has its id."""


class Queued(QueueHandler):
    """Puts records into the writer's queue, with the request that they are about."""

    queue: "SimpleQueue[logging.LogRecord | None]"

    def __init__(self, queue: "SimpleQueue[logging.LogRecord | None]") -> None:
        super().__init__(queue)
        self.dropped = 0

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Note what the record is about; the line is made in the writer's thread.

        Arguments may change and a traceback holds whole bodies, so these are made to text at once.
        """
        subject = SUBJECT.get()
        if record.args or record.exc_info:
            record = copy.copy(record)
            record.msg, record.args = record.getMessage(), None
            error = record.exc_info[1] if record.exc_info else None
            record.error = told(error, private=subject is not None) if error is not None else ""
            record.exc_info = None
        record.subject = subject
        return record

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - the library's name
        """Say that a line could not be made, and not what of: the library would print its arguments."""
        where = f"{PurePath(record.pathname).name}:{record.lineno}"
        self.enqueue(
            logging.LogRecord(
                __name__, logging.ERROR, __file__, 0, "a log line at %s cannot be made", (where,), None
            )
        )

    def enqueue(self, record: logging.LogRecord) -> None:
        """Never waits: what the disk is too slow for is dropped, and told once there is room again."""
        if self.queue.qsize() >= MOST_WAITING:
            self.dropped += 1
            return
        if self.dropped:
            lost, self.dropped = self.dropped, 0
            text = "%d log lines were dropped, as the disk was too slow"
            self.queue.put(
                logging.LogRecord(__name__, logging.WARNING, __file__, 0, text, (lost,), exc_info=None)
            )
        self.queue.put(record)


class Lines(logging.Handler):
    """Writes lines to a binary stream; a full disk loses lines, and nothing else."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__()
        self._stream = stream

    def emit(self, record: logging.LogRecord) -> None:
        """Write one line."""
        try:
            line = self.format(record)
        except Exception as error:  # noqa: BLE001 - one line that cannot be made must not end the thread
            line = f"{record.levelname} {record.name} a log line cannot be formatted: {named(error)}"
        try:
            self._stream.write(line.encode("utf-8", "backslashreplace") + b"\n")
        except (OSError, ValueError):  # ValueError: closed
            return

    def flush(self) -> None:
        """Hand what was written to the system."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.flush()


class Writer(QueueListener):
    """The thread that writes: the first line at once, those that come soon after it together.

    Waking a thread for each line would cost a request more than all the rest of its line.
    """

    def __init__(self, queue: "SimpleQueue[logging.LogRecord | None]", lines: Lines) -> None:
        super().__init__(queue, lines)
        self._waiting = queue
        self._lines = lines

    def dequeue(self, block: bool) -> logging.LogRecord:
        """The next record; the queue is looked at again only after a pause once it was empty."""
        if self._waiting.empty():
            self._lines.flush()
            time.sleep(PAUSE)
        return super().dequeue(block)


@contextmanager
def logging_to(stream: BinaryIO, form: Format, level: str) -> Iterator[None]:
    """Send everything that is logged while the block runs to ``stream``; all of it is written at the end."""
    # What no line of ours tells: looking it up is most of what a record costs.
    for name in ("logThreads", "logProcesses", "logMultiprocessing", "logAsyncioTasks"):
        setattr(logging, name, False)
    queue: SimpleQueue[logging.LogRecord | None] = SimpleQueue()
    handler, lines = Queued(queue), Lines(stream)
    lines.setFormatter(JsonLines() if form == "json" else TextLines())
    writer = Writer(queue, lines)
    root = logging.getLogger()
    before = root.level
    root.addHandler(handler)
    root.setLevel(level.upper())
    logging.captureWarnings(True)
    writer.start()
    try:
        yield
    finally:
        root.removeHandler(handler)
        root.setLevel(before)
        logging.captureWarnings(False)
        writer.stop()
        lines.flush()


@contextmanager
def logging_to_stderr(form: Format, level: str) -> Iterator[None]:
    """The same to this process's standard error output, which the controller appends to a file.

    Lines are written together even where ``PYTHONUNBUFFERED`` is set, as in many containers.
    """
    stream = sys.stderr.buffer
    if isinstance(stream, io.FileIO):
        stream = open(stream.fileno(), "wb", closefd=False)  # noqa: SIM115 - its end may fail, on a full disk
    with logging_to(stream, form, level):
        yield
