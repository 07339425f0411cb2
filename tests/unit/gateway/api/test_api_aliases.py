"""Aliases over HTTP: the gate, weights, waiting for engines, and the way back."""

import asyncio
from datetime import timedelta

import pytest
from api_harness import Api
from gateway_harness import MESSAGES

from serve.registry import Version


def evaluated(api: Api, version: Version, live: Version | None = None, *, allowed: bool = True) -> Version:
    """Record an evaluation of a version, in which it was compared with what was live."""
    gate = {"allowed": allowed, "reason": "it is worse", "live": live and str(live.ref), "evidence": True}
    verdict = "better" if allowed else "worse"
    api.registry.record_evaluation(
        version.ref, base_digest=version.base_digest, result={"gate": gate}, verdict=verdict, report="r.html"
    )
    return version


def ready(api: Api, name: str = "support") -> Version:
    version = api.bench.register(name)
    api.bench.set_state(version, "ready")
    return version


async def test_the_gate_is_that_of_the_command(api: Api) -> None:
    first = ready(api)
    refused = await api.ask("PUT", "/api/aliases/support", {"target": "support@v1"})
    assert (refused.status, refused.code) == (409, "gate_refused")
    assert "not been evaluated" in refused.message
    assert api.registry.alias("support") is None
    evaluated(api, first)
    done = await api.ask("PUT", "/api/aliases/support", {"target": "support@v1"})
    assert (done.status, done.content["target"], done.content["verdict"]) == (200, "support@v1", "better")
    assert (done.content["forced"], done.content["previous"]) == (False, None)
    status, answer, _ = await api.bench.post({"model": "support", "messages": MESSAGES})
    assert (status, answer["model"]) == (200, "support@v1")
    second = evaluated(api, ready(api))
    refused = await api.ask("PUT", "/api/aliases/support", {"target": "support@v2"})
    assert "not compared with support@v1" in refused.message
    evaluated(api, second, first, allowed=False)
    assert "it is worse" in (await api.ask("PUT", "/api/aliases/support", {"target": "support@v2"})).message


async def test_force_needs_the_scope_admin_and_is_recorded(api: Api) -> None:
    ready(api)
    admin, team = api.key("boss", "admin"), api.key("team", "adapters")
    body = {"target": "support@v1", "force": True}
    refused = await api.ask("PUT", "/api/aliases/support", body, team)
    assert (refused.status, api.registry.alias("support")) == (403, None)
    done = await api.ask("PUT", "/api/aliases/support", body, admin)
    assert (done.status, done.content["forced"]) == (200, True)
    history = (await api.ask("GET", "/api/aliases/support", secret=team)).content["history"]
    assert [(change["target"], change["by"], change["forced"]) for change in history] == [
        ("support@v1", "boss", True)
    ]


async def test_weights_split_and_each_target_is_judged(api: Api) -> None:
    first = evaluated(api, ready(api))
    await api.ask("PUT", "/api/aliases/support", {"target": "support@v1"})
    second = ready(api)
    split = {"targets": {"support@v1": 9, "support@v2": 1}}
    assert (await api.ask("PUT", "/api/aliases/support", split)).code == "gate_refused"
    # Of no weight it answers nobody, so nothing needs to be proven.
    warm = await api.ask("PUT", "/api/aliases/support", {"targets": {"support@v1": 1, "support@v2": 0}})
    assert (warm.status, warm.content["targets"]) == (200, {"support@v1": 1, "support@v2": 0})
    evaluated(api, second, first)
    done = await api.ask("PUT", "/api/aliases/support", split)
    assert (done.status, done.content["targets"]) == (200, split["targets"])
    back = await api.ask("POST", "/api/aliases/support/rollback")
    assert (back.status, back.content["targets"]) == (200, {"support@v1": 1})


async def test_a_version_that_is_not_loaded_is_wanted_and_the_alias_stays(api: Api) -> None:
    version = evaluated(api, api.bench.register())
    pending = await api.ask("PUT", "/api/aliases/support", {"target": "support@v1", "wait": 0})
    assert pending.status == 202
    assert pending.content == {
        "alias": "support",
        "waiting": {"support@v1": "pending"},
        "look": ["/api/adapters/support@v1"],
    }
    assert api.registry.alias("support") is None
    assert [found.ref for found in api.registry.desired()] == [version.ref]
    waiting = asyncio.create_task(
        api.ask("PUT", "/api/aliases/support", {"target": "support@v1", "wait": 20})
    )
    await asyncio.sleep(0.3)
    assert not waiting.done()
    api.bench.set_state(version, "ready")
    assert (await waiting).content["target"] == "support@v1"


async def test_what_the_engine_refuses_is_said_in_its_words(api: Api) -> None:
    version = evaluated(api, api.bench.register())
    api.bench.set_state(version, "failed", f"rank 8 in {version.path} is odd")
    refused = await api.ask("PUT", "/api/aliases/support", {"target": "support@v1"})
    assert (refused.status, refused.code) == (503, "adapter_load_failed")
    assert "rank 8 in support@v1 is odd" in refused.message
    assert api.registry.alias("support") is None


async def test_the_way_back(api: Api) -> None:
    first, second = (await api.bench.deploy(), await api.bench.deploy())
    back = await api.ask("POST", "/api/aliases/support/rollback", secret=api.key("night", "adapters"))
    assert (back.status, back.content["target"], back.content["previous"]) == (
        200,
        str(first.ref),
        str(second.ref),
    )
    assert api.registry.history("support")[-1].by == "night"
    # What the alias went back to had not been evaluated: it answered before, and that it may again.
    assert back.content["forced"] is True
    ready(api, "lone")
    api.registry.set_alias("lone", "lone@v1")
    admin = api.key("boss", "admin")
    assert (await api.ask("POST", "/api/aliases/lone/rollback", secret=admin)).code == "conflict"
    assert (await api.ask("POST", "/api/aliases/none/rollback", {}, admin)).code == "not_found"


async def test_a_removed_alias_is_absent_and_its_versions_stay(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = (await api.bench.deploy(), await api.bench.deploy())
    boss, reader = api.key("boss", "adapters", "admin"), api.key("app", "inference", adapters=("support",))
    await api.ask("PUT", "/api/aliases/support", {"target": str(second.ref), "force": True}, boss)
    assert [version.ref for version in api.registry.desired()] == [first.ref, second.ref]
    for each in (first, second):
        api.registry.unwant(each.ref)
    with caplog.at_level("INFO", "tenon.changes"):
        done = await api.ask("DELETE", "/api/aliases/support", secret=boss)
    assert (done.status, done.content) == (204, None)
    assert "boss removed the alias support, which meant support@v2" in caplog.text
    body = {"model": "support", "messages": MESSAGES}
    gone = await api.ask("POST", "/v1/chat/completions", body, reader)
    assert (gone.status, gone.code) == (404, "model_not_found")
    assert (await api.ask("GET", "/api/aliases/support", secret=boss)).status == 404
    assert (await api.ask("GET", "/api/aliases", secret=boss)).content == {"aliases": []}
    assert api.registry.desired() == [], "nor is the lease kept that the change of the alias took"
    assert len((await api.ask("GET", "/api/adapters", secret=boss)).content["adapters"]) == 2
    assert api.registry.key("app").rights.adapters == ("support",)
    again = await api.ask("DELETE", "/api/aliases/support", secret=boss)
    assert (again.status, again.code) == (404, "not_found")
    await api.ask("PUT", "/api/aliases/support", {"target": "support@v1", "force": True}, boss)
    history = (await api.ask("GET", "/api/aliases/support", secret=boss)).content["history"]
    assert [(change["removed"], change["by"]) for change in history[-2:]] == [(True, "boss"), (False, "boss")]
    assert history[-2]["targets"] == {"support@v2": 0}


async def test_what_a_key_may_not_use_it_cannot_remove(api: Api) -> None:
    await api.bench.deploy()
    other, reader = api.key("other", "adapters", adapters=("ticket",)), api.key("app", "inference")
    told = [
        (answer.status, answer.message.replace(name, "X"))
        for name in ("support", "nobody1")
        for answer in [await api.ask("DELETE", f"/api/aliases/{name}", secret=other)]
    ]
    assert told[0] == told[1]
    assert told[0][0] == 404
    assert (await api.ask("DELETE", "/api/aliases/support", secret=reader)).status == 403
    assert (await api.ask("DELETE", "/api/aliases/Support", secret=other)).status == 400
    assert api.registry.alias("support") is not None


async def test_a_name_that_is_given_again_does_not_go_back_to_what_it_meant_before(api: Api) -> None:
    first, second = (await api.bench.deploy(), await api.bench.deploy())
    assert (await api.ask("DELETE", "/api/aliases/support")).status == 204
    api.registry.set_alias("support", targets={first.ref: 1, second.ref: 1})
    assert (await api.ask("POST", "/api/aliases/support/rollback")).code == "conflict"


async def test_the_way_back_of_a_split_alias_cannot_get_lost(api: Api) -> None:
    for _ in range(5):
        ready(api)
    api.registry.set_alias("support", "support@v1")
    for leads, follows in ((2, 3), (4, 5)):
        api.registry.set_alias("support", targets={f"support@v{leads}": 2, f"support@v{follows}": 1})
    shown = (await api.ask("GET", "/api/aliases/support")).content
    assert (shown["previous"], shown["way_back"]) == ("support@v2", "support@v1")
    assert (await api.ask("DELETE", "/api/adapters/support@v1")).code == "version_in_use"
    for version in api.registry.versions():
        api.bench.set_state(version, "pending")
    api.registry.collect(keep=0, rollbacks=0, young=timedelta(0))
    for version in api.registry.versions():
        api.bench.set_state(version, "ready")
    back = await api.ask("POST", "/api/aliases/support/rollback")
    assert (back.status, back.content["targets"]) == (200, {"support@v1": 1})


async def test_sampling_is_checked_stored_and_kept(api: Api) -> None:
    evaluated(api, ready(api))
    body = {
        "target": "support@v1",
        "sampling": {"defaults": {"max_tokens": 7}, "max": {"temperature": 1}, "preset": "deterministic"},
    }
    done = await api.ask("PUT", "/api/aliases/support", body)
    assert done.content["sampling"]["defaults"].items() >= {"max_tokens": 7, "temperature": 0}.items()
    assert done.content["sampling"]["max"] == {"temperature": 1}
    kept = await api.ask("PUT", "/api/aliases/support", {"target": "support@v1"})
    assert kept.content["sampling"] == done.content["sampling"]
    for sampling in (
        {"defaults": {"temprature": 1}},
        {"min": {"temperature": 2}, "max": {"temperature": 1}},
        {"preset": "x"},
    ):
        wrong = await api.ask("PUT", "/api/aliases/support", {**body, "sampling": sampling})
        assert (wrong.status, wrong.code) == (400, "invalid_input")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"target": "support@v1", "targets": {"support@v1": 1}},
        {"targets": {}},
        {"targets": {"support@v1": 0}},
        {"targets": {"support@v1": -1}},
        {"targets": {"support@v1": 1.5}},
        {"target": "support"},
        {"target": "support@v1", "wait": 1e9},
        {"target": "support@v1", "by": "somebody else"},
    ],
)
async def test_targets_that_cannot_be(api: Api, body: object) -> None:
    ready(api)
    wrong = await api.ask("PUT", "/api/aliases/support", body)
    assert wrong.status == 400
    assert api.registry.aliases() == []


async def test_names_that_cannot_be(api: Api) -> None:
    ready(api)
    body = {"target": "support@v1", "force": True}
    assert (await api.ask("PUT", "/api/aliases/base", body)).code == "conflict"
    assert (await api.ask("PUT", "/api/aliases/Support", body)).status == 400
    assert (await api.ask("PUT", "/api/aliases/support", {"target": "nobody@v1"})).code == "version_not_found"
