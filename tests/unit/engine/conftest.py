"""A real registry with small adapters, and a fake engine that can load them."""

import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path

import pytest
from engine_base import BASE

from evalsuite.load.adapters import write_adapter
from serve.engine.client import EngineClient
from serve.engine.fake import FakeEngine
from serve.registry.base import BaseIdentity
from serve.registry.records import Version
from serve.registry.registry import Registry


@pytest.fixture(autouse=True)
def scratch(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Temporary files of each test, and of the processes that it starts, in a folder of its own.

    No engine's scratch folder may be left there.
    """
    folder = tmp_path_factory.mktemp("scratch")
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    yield
    assert list(folder.glob("tenon-*")) == []


@pytest.fixture
def registry(tmp_path: Path) -> Iterator[Registry]:
    opened = Registry.open(tmp_path / "home")
    yield opened
    opened.close()


@pytest.fixture
def add(registry: Registry, tmp_path: Path) -> Callable[..., Version]:
    """Registers a new version of ``name`` with weights of its own."""
    count = 0

    def register(name: str = "support", *, zero: bool = False, base: BaseIdentity = BASE) -> Version:
        nonlocal count
        count += 1
        folder = write_adapter(tmp_path / f"adapter-{count}", base, seed=count, zero=zero)
        return registry.register(folder, name, base, max_rank=64)

    return register


@pytest.fixture
async def engine() -> AsyncIterator[FakeEngine]:
    async with FakeEngine() as running:
        yield running


@pytest.fixture
async def client(engine: FakeEngine) -> AsyncIterator[EngineClient]:
    async with EngineClient(engine.url) as running:
        yield running
