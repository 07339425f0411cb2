"""The bytes of one adapter on their way to disk: counted, bounded, against a deadline."""

import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from serve.errors import AdapterRejected, SourceUnavailable
from serve.registry.sources.limits import MIB, Limits
from serve.registry.store import CONFIG, WEIGHTS
from serve.registry.store import disk_errors as store_errors

Progress = Callable[[int, int | None], None]
"""Told how many bytes of the weight file are here, and of how many, where the source says."""

disk_errors = partial(store_errors, what="the download cannot be written to")

SMALLER = f"raise TENON_MAX_ADAPTER_MIB if the adapter is meant to be so large; LoRA's {WEIGHTS} seldom is"


class Transfer:
    """The download of the two files of one source into ``folder``."""

    def __init__(self, shown: str, folder: Path, limits: Limits, progress: Progress | None = None) -> None:
        self.shown = shown
        self.folder = folder
        self.limits = limits
        self._progress = progress
        self._deadline = time.monotonic() + limits.seconds

    def announce(self, name: str, size: int | None) -> None:
        """Check the size that a source announces for a file, if it does; raises AdapterRejected."""
        if size is not None and size > self.limits.most(name):
            raise self._too_large(name, f"{size / MIB:,.1f} MiB")

    def count(self, name: str, done: int, size: int | None) -> None:
        """Note that ``done`` bytes of a file are here; raises AdapterRejected and SourceUnavailable."""
        if done > self.limits.most(name):
            raise self._too_large(name, f"more than {self.limits.most(name) / MIB:,.1f} MiB")
        self.check_time()
        if self._progress is not None and name == WEIGHTS:
            self._progress(done, size)

    def check_time(self) -> None:
        """Raise SourceUnavailable where the whole download has taken too long."""
        if time.monotonic() > self._deadline:
            raise SourceUnavailable(
                f"{self.shown} did not deliver the adapter in {self.limits.seconds:g} seconds",
                "try again, or raise TENON_ADAPTER_TIMEOUT",
            )

    @contextmanager
    def file(self, name: str, size: int | None) -> Iterator[Callable[[bytes], None]]:
        """Open a file and yield what writes a piece of it; ``size`` is what the source announces.

        Raises AdapterRejected where it is too large, SourceUnavailable where it ends early or late, StorageError.
        """
        self.announce(name, size)
        done = 0

        def write(piece: bytes) -> None:
            nonlocal done
            done += len(piece)
            self.count(name, done, size)
            with disk_errors(self.folder):
                file.write(piece)

        with disk_errors(self.folder):
            file = (self.folder / name).open("xb")
        with file:
            yield write
            if size is not None and done != size:
                raise SourceUnavailable(
                    f"{self.shown} sent {done:,} bytes of {name}, where it had announced {size:,}",
                    "try again; if it stays so, the source is damaged",
                )
            with disk_errors(self.folder):
                file.flush()
                os.fsync(file.fileno())

    def missing(self, name: str, *, pickled: bool = False) -> AdapterRejected:
        """The error for a source without one of the files; ``pickled``: it has adapter_model.bin instead."""
        if pickled:
            return AdapterRejected(
                f"{self.shown} has only adapter_model.bin, a pickle, which can run code when it is read",
                "save the adapter again with save_pretrained(…, safe_serialization=True)",
            )
        return AdapterRejected(
            f"{self.shown} has no {name}", f"give the folder that holds both {CONFIG} and {WEIGHTS}"
        )

    def _too_large(self, name: str, size: str) -> AdapterRejected:
        limit = f"{self.limits.most(name) / MIB:,.1f} MiB"
        hint = SMALLER if name == WEIGHTS else f"give the {CONFIG} that PEFT wrote"
        return AdapterRejected(f"{name} of {self.shown} is {size}, where at most {limit} are taken", hint)
