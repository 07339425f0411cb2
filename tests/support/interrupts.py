"""Interrupts that come at the worst moment."""

import contextlib
import signal
import subprocess
from collections.abc import Iterator
from typing import Any, ClassVar


@contextlib.contextmanager
def ctrl_c_works() -> Iterator[None]:
    """Have SIGINT raise KeyboardInterrupt within the block, whatever runs the tests does with it."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


class InterruptedPopen(subprocess.Popen[Any]):
    """A child in a session of its own whose start is interrupted while it lives and nobody has its number yet."""

    started: ClassVar[list[subprocess.Popen[Any]]] = []

    def __init__(self, *arguments: Any, start_new_session: bool = False, **more: Any) -> None:
        self._alone = start_new_session
        super().__init__(*arguments, start_new_session=start_new_session, **more)

    def _execute_child(self, *arguments: Any, **more: Any) -> None:
        super()._execute_child(*arguments, **more)  # type: ignore[misc]
        if self._alone:
            self.started.append(self)
            signal.raise_signal(signal.SIGINT)
