"""Weighted aliases: a conversation stays on one side, and a side that is not ready breaks nothing."""

from collections import Counter

import pytest
from gateway_harness import Bench

from serve.registry import Version


@pytest.fixture
async def canary(bench: Bench) -> tuple[Version, Version]:
    """Two ready versions of ``support``, the second with a quarter of the conversations."""
    stable, new = await bench.deploy(), await bench.deploy()
    bench.registry.set_alias("support", targets={stable.ref: 3, new.ref: 1})
    await bench.follow()
    return stable, new


async def answered(bench: Bench, conversation: str, **body: object) -> str:
    body = {"model": "support", "messages": [{"role": "user", "content": conversation}], **body}
    status, answer, headers = await bench.post(body)
    assert (status, answer["model"]) == (200, headers["x-tenon-version"])
    return str(answer["model"])


async def answers(bench: Bench, count: int = 60) -> dict[str, str]:
    return {name: await answered(bench, name) for name in (f"talk {number}" for number in range(count))}


async def test_conversations_are_split_by_weight_and_stay(
    bench: Bench, canary: tuple[Version, Version]
) -> None:
    first = await answers(bench)
    shares = Counter(first.values())
    assert shares.keys() == {"support@v1", "support@v2"}
    assert 5 <= shares["support@v2"] <= 27
    assert await answers(bench) == first
    samples = await bench.metrics()
    counted = samples['tenon_requests_total{adapter="support",outcome="ok",version="support@v2"}']
    assert counted == 2 * shares["support@v2"]


async def test_who_names_a_conversation_stays_whatever_is_said(
    bench: Bench, canary: tuple[Version, Version]
) -> None:
    by_user = {await answered(bench, f"turn {number}", user="ann") for number in range(20)}
    assert len(by_user) == 1
    seen = set()
    for number in range(20):
        body = {"model": "support", "messages": [{"role": "user", "content": f"turn {number}"}]}
        headers = {"x-tenon-conversation": "ticket 7"}
        async with bench.http.post("/v1/chat/completions", json=body, headers=headers) as reply:
            seen.add(reply.headers["x-tenon-version"])
    assert len(seen) == 1


async def test_a_side_that_is_not_ready_moves_its_own_conversations_only(
    bench: Bench, canary: tuple[Version, Version]
) -> None:
    before = await answers(bench)
    for gone, left in (canary, canary[::-1]):
        bench.set_state(gone, "pending")
        await bench.follow()
        assert set((await answers(bench)).values()) == {str(left.ref)}
        bench.set_state(gone, "ready")
        await bench.follow()
        assert await answers(bench) == before
    for version in canary:
        bench.set_state(version, "pending")
    await bench.follow()
    status, answer, _ = await bench.post({"model": "support", "messages": [{"role": "user", "content": "x"}]})
    assert (status, answer["error"]["code"]) == (503, "adapter_not_ready")


async def test_of_three_sides_only_the_conversations_of_the_lost_one_move(bench: Bench) -> None:
    versions = [await bench.deploy() for _ in range(3)]
    bench.registry.set_alias("support", targets={version.ref: 1 for version in versions})
    await bench.follow()
    before = await answers(bench)
    bench.set_state(versions[1], "loading")
    await bench.follow()
    after = await answers(bench)
    moved = {name for name in before if before[name] != after[name]}
    assert moved == {name for name, version in before.items() if version == "support@v2"}
    assert len({after[name] for name in moved}) == 2


async def test_a_version_of_weight_zero_gets_nothing(bench: Bench, canary: tuple[Version, Version]) -> None:
    stable, new = canary
    bench.registry.set_alias("support", targets={stable.ref: 1, new.ref: 0})
    await bench.follow()
    assert set((await answers(bench, 20)).values()) == {"support@v1"}
    bench.set_state(stable, "pending")
    await bench.follow()
    status, _, _ = await bench.post({"model": "support", "messages": [{"role": "user", "content": "x"}]})
    assert status == 503, "what is to get no conversations gets none, whatever happens"


async def test_the_policy_of_the_alias_holds_on_both_sides(
    bench: Bench, canary: tuple[Version, Version]
) -> None:
    targets = {version.ref: 1 for version in canary}
    bench.registry.set_alias("support", targets=targets, sampling={"temperature": 0.25})
    await bench.follow()
    assert len(set((await answers(bench, 30)).values())) == 2
    assert {body["temperature"] for body in bench.engine.bodies[-30:]} == {0.25}


async def test_lists_say_which_versions_share_an_alias(bench: Bench, canary: tuple[Version, Version]) -> None:
    async with bench.http.get("/v1/models/support") as reply:
        card = await reply.json()
    assert card["version"] == "support@v1"
    assert card["versions"] == [
        {"version": "support@v1", "weight": 3},
        {"version": "support@v2", "weight": 1},
    ]
    async with bench.http.get("/v1/models/support@v1") as reply:
        assert "versions" not in await reply.json()
    async with bench.http.get("/api/status") as reply:
        (alias,) = (await reply.json())["aliases"]
    assert alias["weights"] == {"support@v1": 3, "support@v2": 1}
