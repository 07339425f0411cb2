"""When `tenon up` gives up on an engine that does not come."""

from pathlib import Path
from typing import Any

import pytest

from deploy.status import processes
from deploy.waiting import Since, failures, raise_failure
from serve.config import Settings
from serve.engine.state import record_file
from serve.errors import EngineStartFailed
from serve.records import write_json

STARTING = {
    "state": "starting",
    "attached": True,
    "url": "http://127.0.0.1:1",
    "since": 2.0,
    "base_digest": "abc",
}
DOWN = STARTING | {"state": "down", "error": "nobody answers"}


@pytest.mark.parametrize(
    ("others", "given_up"),
    [
        ({"engine": STARTING}, False),
        ({}, False),  # the other one has not told anything yet
        ({"engine": STARTING | {"base_digest": "def"}}, True),
        ({"engine": DOWN}, True),
    ],
)
def test_an_engine_is_not_missed_where_another_may_have_its_base(
    tmp_path: Path, others: dict[str, dict[str, Any]], given_up: bool
) -> None:
    settings = Settings(home=tmp_path)
    for name, record in {"engine-2": DOWN, **others}.items():
        write_json(record_file(settings.state, name), record)
    failed = failures(settings, 1.0, {})
    assert "engine-2" in failed
    names = ["engine", "engine-2"]
    if given_up:
        with pytest.raises(EngineStartFailed, match="nobody answers"):
            raise_failure(settings, processes(tmp_path), Since(1.0, {}), failed, names)
    else:
        raise_failure(settings, processes(tmp_path), Since(1.0, {}), failed, names)
