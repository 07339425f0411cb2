"""Names as OpenAI writes those of adapted models lead where the plain ones do, and open nothing else."""

from typing import Any

import openai
import pytest
from gateway_harness import MESSAGES, Bench, until

from serve.registry import Rights, Version


async def answered_by(bench: Bench, name: str) -> str:
    answer = await bench.client.chat.completions.create(model=name, messages=MESSAGES)
    assert (await bench.client.models.retrieve(name)).id in (answer.model, name.rpartition(":")[2])
    return answer.model


async def answer(bench: Bench, name: str, secret: str = "none") -> tuple[int, Any]:
    body = {"model": name, "messages": MESSAGES}
    headers = {"authorization": f"Bearer {secret}"}
    async with bench.http.post("/v1/chat/completions", json=body, headers=headers) as reply:
        return reply.status, await reply.json()


async def cards(bench: Bench) -> dict[str, Any]:
    return {card.id: card.fine_tuned_model for card in (await bench.client.models.list()).data}


def pinned(version: Version, org: str = "", suffix: str | None = None, digits: int = 8) -> str:
    suffix = suffix if suffix is not None else version.ref.name
    return f"ft:{version.base_name}:{org}:{suffix}:{version.digest[:digits]}"


async def test_an_alias_and_a_version_with_their_base(bench: Bench) -> None:
    await bench.deploy()
    assert await answered_by(bench, "ft:base:support") == "support@v1"
    assert await answered_by(bench, "ft:base:support@v1") == "support@v1"


async def test_an_id_pins_a_version_whatever_the_alias_means_by_then(bench: Bench) -> None:
    first = await bench.deploy()
    names = [
        pinned(first),
        pinned(first, "acme", digits=12),
        pinned(first, "My_Org.2", "", 64),
        pinned(first, "acme", ""),
    ]
    bench.registry.set_alias("helpdesk", first.ref)
    second = await bench.deploy()
    bench.registry.set_alias("helpdesk", second.ref)
    await bench.follow()
    names.append(pinned(first, suffix="helpdesk"))
    for name in names:
        assert await answered_by(bench, name) == "support@v1"
    assert await answered_by(bench, pinned(second, suffix="helpdesk")) == "support@v2"


async def test_the_list_of_models_tells_such_names(bench: Bench) -> None:
    version = await bench.deploy()
    found = await cards(bench)
    assert found == {
        "base": None,
        "support": "ft:base:support",
        "support@v1": f"ft:base::support:{version.digest[:8]}",
    }
    for name in (found["support"], found["support@v1"]):
        assert await answered_by(bench, name) == "support@v1"


async def test_names_that_mean_nothing(bench: Bench) -> None:
    version = await bench.deploy()
    other = await bench.deploy("other")
    known = version.digest[:8]
    for wrong in (
        "ft:other:support",
        "ft::support",
        "ft:support",
        "ft:base:",
        "ft:base:none",
        "ft:base:base",
        f"ft:other::support:{known}",
        f"ft:base::none:{known}",
        f"ft:base::other:{known}",
        f"ft:base::support:{other.digest[:8]}",
        f"ft:base::support:{known[:7]}",
        f"ft:base::support:{known.upper()}" if known.upper() != known else "ft:base::support:",
        f"ft:base::support:{known}{'0' * 56}",
        f"ft:base::support@v1:{known}",
        f"ft:base:a b:support:{known}",
        f"ft:base:{'x' * 65}:support:{known}",
        f"ft:base:support:{known}",
        f"ft:base:::support:{known}",
        f"ft:base::support:{known}:ckpt-step-9",
        f"ft:base::support:{known}\n",
        f"FT:base::support:{known}",
    ):
        status, content = await answer(bench, wrong)
        assert (status, content["error"]["code"]) == (404, "model_not_found"), wrong
        with pytest.raises(openai.NotFoundError):
            await bench.client.models.retrieve(wrong)


async def test_a_base_may_be_called_by_an_organisation(bench: Bench) -> None:
    version = await bench.deploy()
    bench.engine.base_name = "acme/base"  # an attached engine may call its base so
    bench.tell_engine()
    await until(lambda: "acme/base" in bench.source.table.models)
    for base in ("acme/base", "base"):
        for name in (f"ft:{base}:support", f"ft:{base}::support:{version.digest[:8]}"):
            assert await answered_by(bench, name) == "support@v1"


async def test_a_version_that_is_not_loaded_is_told_as_by_its_plain_name(bench: Bench) -> None:
    await bench.deploy()
    version = bench.register()
    await bench.follow()
    told = {(await answer(bench, name))[1]["error"]["code"] for name in (str(version.ref), pinned(version))}
    assert told == {"adapter_not_ready"}


async def test_of_versions_with_the_same_files_the_first_that_is_loaded_answers(bench: Bench) -> None:
    first = await bench.deploy()
    again = bench.registry.register(first.path, "support", bench.base, max_rank=64)
    bench.registry.want(again.ref)
    bench.set_state(again, "ready")
    await bench.follow()
    assert again.digest == first.digest
    assert await answered_by(bench, pinned(again)) == "support@v1"
    bench.set_state(first, "pending")
    await bench.follow()
    assert await answered_by(bench, pinned(again)) == "support@v2"


async def test_such_a_name_opens_nothing_to_a_key(bench: Bench) -> None:
    first, second = await bench.deploy(), await bench.deploy()
    bench.registry.set_alias("helpdesk", first.ref)
    other = bench.registry.create_key("other", Rights(adapters=("ticket", "helpdesk"))).secret
    pinning = bench.registry.create_key("pinning", Rights(adapters=("support@v2",))).secret
    await bench.follow()

    async def told(name: str, secret: str) -> tuple[int, str]:
        status, content = await answer(bench, name, secret)
        return status, str(content).replace(name, "X")

    absent = await told("ft:base:nobody1", other)
    assert absent[0] == 404
    for name in (
        "ft:base:support",
        pinned(first),
        pinned(first, suffix=""),
        pinned(first, suffix="helpdesk"),
    ):
        assert await told(name, other) == absent
    assert (await told("ft:base:helpdesk", other))[0] == 200
    assert (await told(pinned(second, "acme"), pinning))[0] == 200
    assert await told(pinned(first, "acme"), pinning) == absent
    headers = {"authorization": f"Bearer {pinning}"}
    async with bench.http.get("/v1/models", headers=headers) as reply:
        assert [card["fine_tuned_model"] for card in (await reply.json())["data"]] == [pinned(second)]
