"""Fetches base models from the Hugging Face hub, by a process that can be ended at any time."""

import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

from serve.errors import BaseModelError
from serve.interrupts import interrupts_wait

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")

Say = Callable[[str], None]
"""Tells a person how far something is."""


fetched: dict[str, Path] = {}
"""Snapshots that this process has asked for, by their hub ids."""


def download(model: str, say: Say | None = None) -> Path:
    """The local snapshot of a hub id, downloaded where it is not cached; raises BaseModelError.

    ``say`` is told how much of it is there; without it nothing is shown. A process asks the hub once.
    """
    known = fetched.get(model)
    if known is None or not known.is_dir():
        known = fetched[model] = _download(model, say)
    return known


def _download(model: str, say: Say | None) -> Path:
    """Fetch by ``python -m serve.registry.snapshot``.

    The hub's library hears an interrupt only once every file that is on its way has come.
    """
    child: subprocess.Popen[bytes] | None = None
    told: dict[str, str] = {}
    try:
        with interrupts_wait():
            child = subprocess.Popen(
                [sys.executable, "-P", "-m", "serve.registry.snapshot", model],
                stdin=subprocess.PIPE,  # its end tells it that this process is gone
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,  # warnings of the library, which would run into what we show
                start_new_session=True,
            )
        for line in child.stdout or ():
            told = orjson.loads(line)
            if say is not None and "say" in told:
                say(told["say"])
        child.wait()
    finally:
        if child is not None:
            child.kill()
            child.wait()
            for pipe in filter(None, (child.stdin, child.stdout)):
                pipe.close()
    if "path" in told:
        return Path(told["path"])
    if "error" in told:
        raise BaseModelError(told["error"], told["hint"])
    raise BaseModelError(
        f"the download of {model} was ended (code {child.returncode})", "run the same command again"
    )


def silent_bar(seen: Callable[[str, int, int], None]) -> type[Any]:
    """A progress bar for the hub's library that draws nothing, as that would run into ours.

    ``seen`` is told at each step what the bar is called, what is done and of how much, as far as that is known.
    """
    from huggingface_hub.utils.tqdm import tqdm

    class Bar(tqdm):
        done = 0

        def __init__(self, *arguments: Any, **options: Any) -> None:
            self.called = str(options.get("desc"))
            super().__init__(*arguments, **{**options, "disable": True})  # type: ignore[no-untyped-call]

        def update(self, n: float | None = 1) -> bool | None:
            self.done += int(n or 0)
            seen(self.called, self.done, int(self.total or 0))
            return None

    return Bar
