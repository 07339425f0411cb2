"""Puts off what interrupts a command while it must not be cut in two."""

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType


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
    came: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        came.append(number)

    def take_effect() -> None:
        for number in came:
            signal.raise_signal(number)

    with contextlib.ExitStack() as afterwards:
        afterwards.callback(take_effect)
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            handler = signal.getsignal(number)
            if callable(handler):
                afterwards.callback(signal.signal, number, handler)
                signal.signal(number, note)
        yield
