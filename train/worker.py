"""The training process: ``python -m train.worker --run DIR``.

Its standard output carries events and nothing else; what libraries print goes to standard error, the run's log.
It ends when its standard input does: whoever launched it is gone then. SIGTERM and SIGINT let it finish its
step and write a checkpoint; during a validation it ends without one, and before the first step and at another
signal some seconds later it ends at once.
"""

import argparse
import contextlib
import errno
import json
import logging
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import TextIO

from serve.errors import TenonError, TrainingFailed
from serve.interrupts import INTERRUPTED
from train.events import TrainEvent
from train.imports import importing_less
from train.interruption import Interrupted, Interruption
from train.memory import ENGINE_HOLDS
from train.runs import Run, storage_error

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)
OUT_OF_MEMORY = ("can't allocate memory", "out of memory", "not enough memory", "Cannot allocate memory")
CANNOT_WRITE = (
    "PytorchStreamWriter",
    "No space left",
    "unexpected pos",
    "iostream error",
    "Disk quota",
    "I/O error",
)


class EventStream:
    """Where events are written, one line each; the launcher reads the other end."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def emit(self, event: TrainEvent) -> None:
        """Write one event; a launcher that is gone is found out by its other pipe."""
        try:
            self._stream.write(event.to_json() + "\n")
            self._stream.flush()
        except BrokenPipeError:
            logging.getLogger(__name__).warning("nobody reads the events")


def claim_stdout() -> TextIO:
    """Keep standard output for events and send whatever else is printed there to standard error."""
    events = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    return events


def name_error(error: BaseException, run: Run) -> TenonError:
    """What to tell the user about ``error``."""
    if isinstance(error, TenonError):
        return error
    text = str(error)
    if isinstance(error, OSError) and error.errno in FULL:
        return storage_error(Path(error.filename) if error.filename else run.folder, error)
    if any(words in text for words in CANNOT_WRITE):
        return storage_error(run.checkpoints, error if isinstance(error, Exception) else Exception(text))
    if isinstance(error, MemoryError) or any(words in text for words in OUT_OF_MEMORY):
        lower = "halve train.batch_size and double train.gradient_accumulation, or lower train.max_length"
        if "CUDA" in text or "HIP" in text:
            return TrainingFailed("the GPU ran out of memory while training", f"{lower}; {ENGINE_HOLDS}")
        return TrainingFailed("the machine ran out of memory while training", lower)
    return TrainingFailed(f"{type(error).__name__}: {' '.join(text.split())[:500]}", f"its log: {run.log}")


def main(arguments: list[str] | None = None) -> int:
    """Run the job of a run's folder; the exit code is 0, 130 when interrupted, else 1."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="the run's folder")
    run = Run(parser.parse_args(arguments).run)
    events = EventStream(claim_stdout())
    interruption = Interruption()
    signal.signal(signal.SIGTERM, interruption.ask)
    signal.signal(signal.SIGINT, interruption.ask)
    interruption.watch(0)
    try:
        events.emit(TrainEvent(event="phase", message="loading libraries"))
        # Imported here: torch takes seconds, in which the launcher already hears from us.
        with importing_less():
            from train.methods.sft import train

        train(run, json.loads(run.job.read_text(encoding="utf-8")), events.emit, interruption)
    except Interrupted:
        return INTERRUPTED
    except Exception as error:  # noqa: BLE001  the edge of the process: whatever it is, the launcher must hear of it
        named = name_error(error, run)
        events.emit(TrainEvent(event="error", message=named.message, hint=named.hint, code=named.code))
        # After the event: on a full disk the log cannot be written.
        with contextlib.suppress(OSError):
            traceback.print_exc()
        return 1
    return 0


if __name__ == "__main__":
    code = main()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError):  # the disk is full
            stream.flush()
    # Not sys.exit: Python takes apart what the libraries made, which takes seconds.
    os._exit(code)
