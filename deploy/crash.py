"""An error that nobody foresaw: one line for the terminal, the traceback for a file among the logs."""

import os
import time
import traceback
from pathlib import Path

from serve.errors import TenonError

home: Path | None = None
"""The state folder that the command line was given, if it was."""


def report(error: Exception) -> TenonError:
    """Write the traceback of ``error`` into the logs, and say in one line what failed and where to read on."""
    frame = traceback.extract_tb(error.__traceback__)[-1:]
    where = "".join(f" in {Path(last.filename).name}, line {last.lineno}" for last in frame)
    words = " ".join(str(error).split())
    message = f"something unexpected failed{where}: {type(error).__name__}{f': {words}' if words else ''}"
    logs = (home or Path(os.environ.get("TENON_HOME") or ".tenon")) / "logs"
    path = logs / f"crash-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}.log"
    try:
        logs.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(traceback.format_exception(error)), encoding="utf-8", errors="replace")
    except OSError as refused:
        return TenonError(
            message, f"its traceback could not be written to {logs}: {refused.strerror or refused}"
        )
    return TenonError(message, f"this is a fault of Tenon's: report it with the traceback in {path}")
