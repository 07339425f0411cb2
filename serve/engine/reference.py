"""What an adapter answered when it was first proven on this machine: ``run/answers/BASE/DIGEST-CONDITIONS.json``.

One small file for each adapter, base and way of computing, so that engines of one base share them and none is
replaced by what another device answers. They are evidence and no state: without them an adapter is only not
compared with what it was, and what it answers next is kept.
"""

import hashlib
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from serve.engine.probe import PROMPTS, Answers
from serve.engine.state import DIGITS
from serve.errors import StorageError
from serve.records import read_json, write_json

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Reference:
    """What base and adapter answered beside each other."""

    base: Answers
    adapter: Answers


class References:
    """Those in ``folder`` (None: none are kept) of engines that compute under ``conditions``.

    Conditions are whatever decides how an engine computes, as far as one knows: device, type of numbers, version.
    """

    def __init__(self, folder: Path | None, conditions: Sequence[str] = ()) -> None:
        self._folder = folder
        self._conditions = list(conditions)

    def path(self, base_digest: str, digest: str, route: str) -> Path | None:
        """Where an adapter's reference is, or would be; other prompts and routes have others."""
        if self._folder is None:
            return None
        words = "\0".join([*self._conditions, route, *PROMPTS])
        name = f"{digest[:DIGITS]}-{hashlib.sha256(words.encode()).hexdigest()[:8]}.json"
        return self._folder / base_digest[:DIGITS] / name

    def read(self, base_digest: str, digest: str, route: str) -> Reference | None:
        """An adapter's reference, if there is one that can be read."""
        path = self.path(base_digest, digest, route)
        told = read_json(path) if path is not None else {}
        if told.get("digest") != digest:
            return None
        base, adapter = (_answers(told.get(key), route) for key in ("base", "adapter"))
        return Reference(base, adapter) if base is not None and adapter is not None else None

    def keep(self, base_digest: str, digest: str, engine_name: str, reference: Reference) -> None:
        """Write it down, as well as the disk allows."""
        path = self.path(base_digest, digest, reference.adapter.route)
        if path is None:
            return
        facts = {"engine_name": engine_name, "digest": digest, "conditions": self._conditions}
        try:
            write_json(path, {**facts, **asdict(reference)})
        except StorageError as error:
            log.warning("what %s answered is not kept for later: %s", engine_name, error.message)


def _answers(told: Any, route: str) -> Answers | None:
    """Answers as a file holds them; None where that is of another shape."""
    try:
        logprobs = [_numbers(answer) for answer in told["logprobs"]]
        vectors = [[float(number) for number in vector] for vector in told["vectors"]]
    except (LookupError, TypeError, ValueError, AttributeError):
        return None
    whole = told.get("route") == route and len(PROMPTS) in (len(logprobs), len(vectors))
    return Answers(route, logprobs, vectors) if whole else None


def _numbers(answer: Mapping[str, Any]) -> dict[str, float]:
    return {token: float(number) for token, number in answer.items()}
