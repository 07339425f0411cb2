"""A real engine that was given another adapter's weights under a name is found out."""

from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
from support.stack import RunningStack

from deploy.status import status
from evalsuite.load.adapters import write_adapter
from serve.engine.client import EngineClient
from serve.engine.recognition import Recognition
from serve.engine.reconcile import Memory, reconcile
from serve.engine.reference import References
from serve.engine.state import read_records
from serve.registry import Registry


class Mistaken(EngineClient):
    """Has the engine load other files than it was told, as an engine with a fault would."""

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.instead: dict[str, Path] = {}

    async def load(self, engine_name: str, path: Path) -> float:
        return await super().load(engine_name, self.instead.get(engine_name, path))


@pytest.fixture
def engine(stack: RunningStack) -> Iterator[str]:
    """The engine's URL, while its controller looks away: it would unload what it does not know."""
    pid = status(stack.settings.home).controller.pid
    assert pid is not None
    url = str(read_records(stack.settings.state)["engine"]["url"])
    controller = psutil.Process(pid)
    controller.suspend()
    yield url
    controller.resume()


async def test_it_is_refused_by_the_others_answers_and_by_its_own(
    stack: RunningStack, engine: str, tmp_path: Path
) -> None:
    with Registry.open(tmp_path / "home") as registry:
        one, two = (
            registry.register(
                write_adapter(tmp_path / str(seed), stack.base, seed=seed),
                "mistaken",
                stack.base,
                max_rank=64,
            )
            for seed in (71, 72)
        )
        for version in (one, two):
            registry.want(version.ref)

        def life() -> Memory:
            references = References(tmp_path / "answers", ())
            return Memory(exclusive=False, inherited=False, recognition=Recognition(references))

        async with Mistaken(engine) as client:
            held = {card.name for card in await client.list()}
            client.instead = {two.engine_name: one.path}
            first = life()
            found = await reconcile(registry, client, "engine", stack.base, first)
            assert list(found.failed) == [two.engine_name]
            assert f"answers for {two.engine_name} as {one.engine_name} does" in found.failed[two.engine_name]
            assert {card.name for card in await client.list()} == {*held, one.engine_name}

            client.instead = {}
            first.failures[two.engine_name].retry_at = 0.0
            found = await reconcile(registry, client, "engine", stack.base, first)
            assert (found.loaded, found.failed) == ([two.engine_name], {})

            # In its next life the engine takes one for the other, and holds nothing to compare with.
            registry.unwant(two.ref)
            for version in (one, two):
                await client.unload(version.engine_name)
            client.instead = {one.engine_name: two.path}
            found = await reconcile(registry, client, "engine", stack.base, life())
            assert "does not answer for" in found.failed[one.engine_name]
            assert "as it did when that was first proven" in found.failed[one.engine_name]

            client.instead = {}
            found = await reconcile(registry, client, "engine", stack.base, life())
            assert (found.loaded, found.failed) == ([one.engine_name], {})
            await client.unload(one.engine_name)
            assert {card.name for card in await client.list()} == held
