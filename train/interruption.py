"""How a worker is told to end, by a signal or by its launcher's death."""

import os
import signal
import threading
from types import FrameType

from serve.interrupts import INTERRUPTED, Heard

PATIENCE = 10.0


class Interrupted(Exception):
    """The worker was told to end, and what is worth keeping is on disk."""


class Interruption:
    """Whether the worker was told to end."""

    def __init__(self) -> None:
        self.asked = False
        self._heard = Heard()
        # Set while the trainer looks at ``asked`` after each step and can still write a checkpoint.
        self.training = False

    def ask(self, number: int = 0, frame: FrameType | None = None) -> None:
        """Signal handler: end after this step; at once if asked again later, or not training."""
        new = self._heard.is_new()
        if not self.training or (self.asked and new):
            os._exit(INTERRUPTED)
        self.asked = True

    def watch(self, descriptor: int) -> None:
        """Ask for the end once the pipe at ``descriptor`` ends, and force it if that takes too long."""

        def wait() -> None:
            # Not through sys.stdin: a thread that holds its lock breaks the interpreter's own ending.
            while os.read(descriptor, 4096):
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            threading.Event().wait(PATIENCE)
            os._exit(INTERRUPTED)

        threading.Thread(target=wait, daemon=True, name="launcher-watch").start()
