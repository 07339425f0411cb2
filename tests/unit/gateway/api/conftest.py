from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from api_harness import Api, running_api


@pytest.fixture
async def api(tmp_path: Path) -> AsyncIterator[Api]:
    """A management API that takes folders below ``tmp_path / "allowed"`` and asks this machine's servers."""
    (tmp_path / "allowed").mkdir()
    settings = {"api_adapter_folder": tmp_path / "allowed", "allow_private_sources": True}
    async with running_api(tmp_path / "home", "tenon-tiny", **settings) as running:
        yield running
