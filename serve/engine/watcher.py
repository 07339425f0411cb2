"""Watching a server that is only asked: whether it is well and what it serves, told in its record."""

import asyncio
import contextlib
import logging
from collections.abc import Mapping
from pathlib import Path

from serve.engine.kinds import OPENAI
from serve.engine.openai import OpenAIClient, served_names
from serve.engine.state import EngineState, StateFile
from serve.engine.trouble import Troubles
from serve.errors import EngineUnavailable
from serve.net import bare

log = logging.getLogger(__name__)

PAUSE = 2.0
"""Seconds between two looks."""

PATIENCE = 3
"""A server that answered is given up after this many failed looks in a row."""

TIMEOUT = 10.0


class Watcher:
    """Tells in ``state_file`` how the server at ``url`` does, which serves ``base``; see :func:`served_names`."""

    def __init__(
        self,
        base: str,
        url: str,
        names: Mapping[str, str],
        *,
        state_file: Path,
        engine_id: str,
        max_num_seqs: int | None = None,
    ) -> None:
        self.url = url
        self._base = base
        self._names = names
        state = EngineState(
            kind=OPENAI,
            attached=True,
            url=url,
            engine_id=engine_id,
            base_name=base,
            max_num_seqs=max_num_seqs,
        )
        self._file = StateFile(state_file, state, Troubles())
        self._failures = 0

    @property
    def state(self) -> EngineState:
        """What is known of the server now."""
        return self._file.state

    async def run(self, stop: asyncio.Event) -> None:
        """Look again and again until ``stop`` is set; nothing is asked of the server then."""
        self._file.tell("starting")
        async with OpenAIClient(self.url, timeout=TIMEOUT, health_timeout=TIMEOUT) as client:
            while not stop.is_set():
                await self._look(client)
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), PAUSE)
        self._file.tell("down")

    async def _look(self, client: OpenAIClient) -> None:
        self._file.catch_up()
        try:
            if not await client.health():
                raise EngineUnavailable(f"the server at {bare(self.url)} is not well or cannot be reached")
            served = served_names(self._base, self._names, [card.name for card in await client.list()])
        except EngineUnavailable as error:
            self._failures += 1
            if self.state.state == "ready" and self._failures < PATIENCE:
                return
            if (self.state.state, self.state.error) != ("down", error.message):
                log.error("%s (%s)", error.message, error.hint or "is it running?")
                self._file.tell("down", error=error.message, hint=error.hint or "is it running?")
            return
        except Exception:  # the edge of a background task: it must outlive what nobody foresaw
            log.exception("looking at the server at %s failed", bare(self.url))
            return
        self._failures = 0
        missing = [name for name in self._names if name not in served]
        warning = f"the server does not list what is named {', '.join(missing)}" if missing else ""
        if (self.state.state, self.state.served, self.state.warning) != ("ready", served, warning):
            # Each name is a model of its own to us; how many it computes at once is the server's affair.
            facts = {"served": served, "max_loras": len(served), "warning": warning}
            self._file.tell("ready", **facts, error="", hint="")
