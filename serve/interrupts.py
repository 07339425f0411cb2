"""Puts off what interrupts a command while it must not be cut in two."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator
from types import FrameType

INTERRUPTED = 130
"""The exit code of what was interrupted."""
ECHO_SECONDS = 2.0
"""Within which a second signal is the first one's echo: who ends a group of processes ends one, and also the one that
started it, which passes on what it was told."""


@contextlib.contextmanager
def interrupts_wait() -> Iterator[None]:
    """Have ctrl-C, SIGTERM and a closed terminal take effect at the end of the block, in which none raises.

    A process that is being started is known to nobody until ``Popen`` returns, and would outlive an interrupt there.
    What must be undone after one stands in a ``try`` around the block. Signals that end a process at once, or are
    ignored, do so as before; elsewhere than in the main thread none are seen anyway.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    found = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    handlers = {number: handler for number, handler in found.items() if callable(handler)}
    came: list[int] = []
    over = False

    def note(number: int, frame: FrameType | None) -> None:
        if over:  # between two that are given back
            handlers[signal.Signals(number)](number, frame)
        else:
            came.append(number)

    try:
        for number in handlers:
            signal.signal(number, note)
        yield
    finally:
        over = True
        for number, handler in handlers.items():
            signal.signal(number, handler)
        for held in came:
            signal.raise_signal(held)


class Heard:
    """Tells an interrupt from the echo of the one before."""

    def __init__(self) -> None:
        self._at: float | None = None

    def is_new(self) -> bool:
        """Whether the interrupt that comes now is another one than the last."""
        now = time.monotonic()
        if self._at is not None and now - self._at <= ECHO_SECONDS:
            return False
        self._at = now
        return True
