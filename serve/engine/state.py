"""``run/engine.json`` and ``run/engines/NAME.json``: how the engines do, for the gateway and ``tenon status``.

The address of an attached engine may hold a user name and a password. The record does not: they are in a file beside
it, ``run/engine.access``, that only its owner may read and that nothing shows.
"""

import contextlib
import dataclasses
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from serve.engine.trouble import Troubles
from serve.errors import StorageError
from serve.net import bare
from serve.records import read_json, write_json
from serve.registry.serving import Serving

FIRST = "engine"
"""The name of the engine whose record is ``run/engine.json``."""
DIGITS = 16
"""Of digests, in names of files and folders below ``run/answers/``."""


def record_file(folder: Path, engine: str) -> Path:
    """Where in ``run/`` an engine's record is."""
    return folder / f"{FIRST}.json" if engine == FIRST else folder / "engines" / f"{engine}.json"


def used_file(folder: Path) -> Path:
    """Where in ``run/`` the gateway says which adapters it uses; see :class:`~serve.engine.use.Use`."""
    return folder / "used.json"


def answers_folder(folder: Path) -> Path:
    """Where in ``run/`` is what adapters answered when they were proven; see :mod:`serve.engine.reference`."""
    return folder / "answers"


def forget_answers(folder: Path, digests: Iterable[str]) -> None:
    """Remove from ``run/`` what adapters answered whose files are gone, as well as the disk allows."""
    for digest in digests:
        for path in answers_folder(folder).glob(f"*/{digest[:DIGITS]}-*.json"):
            with contextlib.suppress(OSError):
                path.unlink()


def record_files(folder: Path) -> dict[str, Path]:
    """The records of all engines that there are in ``run/``, by name; the first engine comes first."""
    first = record_file(folder, FIRST)
    files = {FIRST: first} if first.exists() else {}
    others = sorted((folder / "engines").glob("*.json"))
    return files | {path.stem: path for path in others if not path.name.startswith(".")}


def read_records(folder: Path) -> dict[str, dict[str, Any]]:
    """What the records in ``run/`` say of all engines, by name."""
    return {name: read_json(path) for name, path in record_files(folder).items()}


def registered_name(name: str, record: Mapping[str, Any]) -> str:
    """The name in the registry of the engine that has a record under ``name``."""
    return str(record.get("engine_id") or name)


def records_by_engine(folder: Path) -> dict[str, dict[str, Any]]:
    """What the records in ``run/`` say of all engines, by their names in the registry."""
    return {registered_name(name, record): record for name, record in read_records(folder).items()}


def access_file(record: Path) -> Path:
    """Where the address with its password is, of the engine that a record tells of."""
    return record.with_suffix(".access")


def address_in(record: Path, content: Mapping[str, Any]) -> str:
    """Where requests are sent to the engine of a record, password included; empty as long as it has no address."""
    url = str(content.get("url") or "")
    known = read_json(access_file(record)).get("url")
    return known if isinstance(known, str) and bare(known) == url else url


def forget(record: Path) -> None:
    """Remove a record, and the password beside it."""
    access_file(record).unlink(missing_ok=True)
    record.unlink(missing_ok=True)


@dataclass(frozen=True)
class EngineState:
    """What is known of the engine.

    ``state``: ``starting`` (``stage`` says how far), ``ready``, ``down`` (it ended or, attached, cannot be used;
    ``error`` and ``hint`` say why) or ``backoff`` (waiting to start it again).
    ``url`` is where requests are sent to it, password included, which no record shows.
    ``engine_id`` is its name in the registry, if that is another than its file's;
    ``base_digest`` is that of the base that adapters must be made for, which lies in ``base_path``
    and is served for what ``serving`` says.
    ``since`` is when that state began, in seconds since 1970. ``pid``, ``started`` and ``boot`` (see
    :class:`~serve.records.ProcessIdentity`), ``port``, ``fingerprint``, ``log`` and ``scratch`` are set for an
    engine of our own. ``max_loras``, ``max_cpu_loras`` and ``max_num_seqs`` are its limits. ``warning`` says what is
    wrong with an engine that answers all the same. ``kind`` is ``vllm`` or ``openai`` (see
    :mod:`serve.engine.openai`); of the latter ``served`` are the public names with what it calls them.
    ``restarts`` counts its starts after the first since the controller started; an attached
    engine has none.
    """

    state: str = "down"
    since: float = 0.0
    attached: bool = False
    url: str | None = field(default=None, repr=False)
    engine_id: str | None = None
    base_name: str | None = None
    base_digest: str | None = None
    base_path: str | None = None
    serving: Serving | None = None
    max_model_len: int | None = None
    max_loras: int | None = None
    max_cpu_loras: int | None = None
    max_num_seqs: int | None = None
    pid: int | None = None
    started: int | None = None
    boot: str | None = None
    port: int | None = None
    fingerprint: str | None = None
    log: str | None = None
    scratch: str | None = None
    restarts: int = 0
    last_exit: int | None = None
    stage: str = ""
    error: str = ""
    hint: str = ""
    warning: str = ""
    served: Mapping[str, str] | None = None
    kind: str = "vllm"

    def but(self, *, state: str, **changes: Any) -> "EngineState":
        """A copy with ``changes``; ``since`` is now if the state is another one."""
        since = self.since if state == self.state and self.since else time.time()
        return dataclasses.replace(self, state=state, since=since, **changes)

    def to_json(self) -> dict[str, Any]:
        """The fields, as ``run/engine.json`` holds them."""
        return dataclasses.asdict(self) | {"url": bare(self.url) if self.url is not None else None}


class StateFile:
    """The state of one engine, told in a file as well as the disk allows.

    No engine is to end because a disk is full: what could not be written is logged once and written by the
    next :meth:`catch_up` that works.
    """

    TOPIC = "telling how the engine does"

    def __init__(self, path: Path, state: EngineState, troubles: Troubles) -> None:
        self.path = path
        self.state = state
        self._troubles = troubles

    def tell(self, state: str, **changes: object) -> None:
        """Change the state and write it."""
        self.state = self.state.but(state=state, **changes)
        self._write()

    def catch_up(self) -> None:
        """Write the state if the last writing failed."""
        if self.TOPIC in self._troubles:
            self._write()

    def _write(self) -> None:
        try:
            self._write_access()  # first, so that whoever reads the record finds it
            write_json(self.path, self.state.to_json())
        except StorageError as error:
            self._troubles.note(self.TOPIC, error)
        else:
            self._troubles.over(self.TOPIC)

    def _write_access(self) -> None:
        path, url = access_file(self.path), self.state.url
        if url is not None and url != bare(url):
            write_json(path, {"url": url}, private=True)
        else:
            with contextlib.suppress(OSError):  # it says no more than what was sent before
                path.unlink(missing_ok=True)
