import dataclasses

import pytest
from engine_base import BASE, unwritable

from serve.engine import reconcile as module
from serve.engine.fake import Fault
from serve.engine.reconcile import Memory, reconcile
from serve.engine.wishes import Room
from serve.errors import EngineUnavailable


@pytest.fixture
def converge(registry, client):
    memory = Memory()

    async def one_pass(memory=memory):
        return await reconcile(registry, client, "engine", BASE, memory)

    one_pass.memory = memory
    return one_pass


def states(registry):
    return {str(row.ref): row.state for row in registry.loaded("engine")}


def expire(memory):
    """As if the time until the next try and the time to drain had passed."""
    for failure in memory.failures.values():
        failure.retry_at = 0.0
    memory.draining = dict.fromkeys(memory.draining, float("-inf"))


async def test_what_an_alias_means_is_loaded_probed_and_ready(registry, add, engine, converge):
    version = add()
    registry.set_alias("support", version.ref)
    result = await converge()
    assert result.loaded == [version.engine_name]
    assert engine.adapters == {version.engine_name: str(version.path)}
    assert states(registry) == {"support@v1": "ready"}
    assert engine.stats.by_model[version.engine_name] > 0


async def test_a_second_pass_does_and_writes_nothing(registry, add, engine, converge):
    registry.set_alias("support", add().ref)
    await converge()
    revision, requests = registry.revision(), engine.stats.requests
    result = await converge()
    assert not result.changed
    assert registry.revision() == revision
    assert engine.stats.requests == requests


async def test_aliases_come_before_candidates(registry, add, engine, converge):
    first, second = add("aaa"), add("support")
    registry.want(first.ref)
    registry.set_alias("support", second.ref)
    result = await converge()
    assert result.loaded == [second.engine_name, first.engine_name]


async def test_the_version_before_stays_loaded_for_a_rollback(registry, add, engine, converge):
    for _ in range(2):
        registry.set_alias("support", add().ref)
    await converge()
    assert states(registry) == {"support@v1": "ready", "support@v2": "ready"}


async def test_an_engine_that_forgot_everything_gets_it_back(registry, add, engine, converge):
    version = add()
    registry.set_alias("support", version.ref)
    await converge()
    engine.adapters.clear()
    result = await converge()
    assert result.loaded == [version.engine_name]
    assert states(registry) == {"support@v1": "ready"}


async def test_files_swapped_after_approval_are_not_loaded(registry, add, engine, converge):
    version, other = add(), add("other")
    registry.set_alias("support", version.ref)
    weights = version.path / "adapter_model.safetensors"
    version.path.chmod(0o755)
    whole = weights.read_bytes()
    weights.unlink()
    weights.write_bytes((other.path / weights.name).read_bytes())
    result = await converge()
    assert engine.adapters == {}
    assert "were changed" in result.failed[version.engine_name]
    assert states(registry) == {"support@v1": "failed"}
    weights.write_bytes(whole)
    expire(converge.memory)
    await converge()
    assert states(registry) == {"support@v1": "ready"}


async def test_files_that_are_gone_are_not_loaded(registry, add, engine, converge):
    version = add()
    registry.set_alias("support", version.ref)
    version.path.rename(version.path.with_name("elsewhere"))
    assert "cannot be read" in (await converge()).failed[version.engine_name]
    assert engine.adapters == {}


async def test_what_nobody_wants_drains_before_it_goes(registry, add, engine, converge):
    version = add()
    registry.want(version.ref)
    await converge()
    registry.unwant(version.ref)
    await converge()
    assert states(registry) == {"support@v1": "draining"}
    assert version.engine_name in engine.adapters
    expire(converge.memory)
    result = await converge()
    assert result.unloaded == [version.engine_name]
    assert engine.adapters == {}
    assert states(registry) == {}


async def drained(registry, client, version, memory, engaged, seconds):
    """What a pass unloads that finds the version draining for so long, with this in use."""
    registry.want(version.ref)
    await reconcile(registry, client, "engine", BASE, memory)
    registry.unwant(version.ref)
    await reconcile(registry, client, "engine", BASE, memory, engaged=engaged)
    memory.draining = {name: since - seconds for name, since in memory.draining.items()}
    result = await reconcile(registry, client, "engine", BASE, memory, engaged=engaged)
    return result.unloaded


async def test_what_requests_are_on_stays_until_they_have_ended(registry, add, engine, client):
    version, memory = add(), Memory()
    name = version.engine_name
    assert await drained(registry, client, version, memory, [name], module.LONGEST_DRAIN - 1) == []
    assert states(registry) == {"support@v1": "draining"}
    assert memory.due(), "it is looked at again and again"
    assert (await reconcile(registry, client, "engine", BASE, memory, engaged=["other"])).unloaded == [name]


async def test_what_is_said_to_be_in_use_for_ever_goes_all_the_same(registry, add, engine, client):
    version = add()
    name = version.engine_name
    assert await drained(registry, client, version, Memory(), [name], module.LONGEST_DRAIN) == [name]


async def test_where_gateways_may_be_that_say_nothing_each_drain_takes_as_long_as_one_can(
    registry, add, engine, client
):
    version, memory = add(), Memory(crowded=True)
    assert await drained(registry, client, version, memory, [], module.LONGEST_DRAIN - 1) == []
    assert not memory.due()
    memory.draining[version.engine_name] -= 1
    result = await reconcile(registry, client, "engine", BASE, memory)
    assert result.unloaded == [version.engine_name]


async def test_one_that_is_wanted_again_stops_draining(registry, add, engine, converge):
    version = add()
    registry.want(version.ref)
    await converge()
    registry.unwant(version.ref)
    await converge()
    registry.want(version.ref)
    expire(converge.memory)
    await converge()
    assert states(registry) == {"support@v1": "ready"}
    assert version.engine_name in engine.adapters


async def test_one_that_does_not_go_holds_up_nobody_and_is_told_again(registry, add, engine, converge):
    stuck, other = add("aaa"), add("bbb")
    for version in (stuck, other):
        registry.want(version.ref)
    await converge()
    for version in (stuck, other):
        registry.unwant(version.ref)
    engine.faults = [Fault("refuse_unload", model=stuck.engine_name, message="busy")]
    await converge()
    expire(converge.memory)
    result = await converge()
    assert list(result.failed) == [stuck.engine_name]
    assert "busy" in result.failed[stuck.engine_name]
    assert states(registry) == {"aaa@v1": "draining"}
    assert not (await converge()).changed, "it is not told at every pass"
    assert not converge.memory.due()
    expire(converge.memory)
    assert (await converge()).unloaded == [stuck.engine_name]
    assert states(registry) == {}


async def test_what_cannot_be_written_stops_no_load_but_every_unload(registry, add, engine, converge):
    first, second = add("aaa"), add("bbb")
    registry.want(first.ref)
    await converge()
    registry.unwant(first.ref)
    registry.want(second.ref)
    with unwritable(registry):
        for _ in range(3):
            result = await converge()
            assert "disk is full" in result.unwritten.message
            expire_drains = dict.fromkeys(converge.memory.draining, float("-inf"))
            converge.memory.draining = expire_drains
    assert set(engine.adapters) == {first.engine_name, second.engine_name}
    assert states(registry) == {"aaa@v1": "ready"}
    result = await converge()
    assert result.unwritten is None
    assert states(registry)["bbb@v1"] == "ready"


async def test_strangers_on_our_engine_go_and_foreign_names_stay(registry, engine, converge):
    engine.adapters |= {"old@v1-00000000": "/x", "somebody-elses": "/y"}
    await converge()
    expire(converge.memory)
    await converge()
    assert list(engine.adapters) == ["somebody-elses"]


async def test_on_a_shared_engine_only_what_we_loaded_goes(registry, add, engine, converge):
    shared = Memory(exclusive=False)
    version = add()
    engine.adapters["other@v1-00000000"] = "/x"
    registry.want(version.ref)
    await converge(shared)
    registry.unwant(version.ref)
    await converge(shared)
    expire(shared)
    await converge(shared)
    assert list(engine.adapters) == ["other@v1-00000000"]


async def test_a_refused_load_is_failed_with_the_engines_words(registry, add, engine, converge):
    registry.want(add().ref)
    engine.faults = [Fault("refuse_load", times=-1, message="Call to add_lora method failed: bad module")]
    await converge()
    (row,) = registry.loaded("engine")
    assert row.state == "failed"
    assert "Call to add_lora method failed: bad module" in row.reason


async def test_a_failure_is_not_tried_at_every_pass_but_again_later(registry, add, engine, converge):
    registry.want(add().ref)
    engine.faults = [Fault("refuse_load")]
    for _ in range(3):
        await converge()
    assert len(engine.stats.loads) == 1
    expire(converge.memory)
    await converge()
    assert len(engine.stats.loads) == 2
    assert states(registry) == {"support@v1": "ready"}
    assert converge.memory.failures == {}


def test_each_failure_waits_twice_as_long(monkeypatch):
    memory = Memory()
    waits = []
    for _ in range(9):
        before = module.time.monotonic()
        memory.fail("a", "no")
        waits.append(round(memory.failures["a"].retry_at - before))
    assert waits == [5, 10, 20, 40, 80, 160, 300, 300, 300]


async def test_a_failure_does_not_hold_up_the_others(registry, add, engine, converge):
    bad, good = add("aaa"), add("bbb")
    for version in (bad, good):
        registry.want(version.ref)
    engine.faults = [Fault("refuse_load", model=bad.engine_name, times=-1)]
    result = await converge()
    assert list(result.failed) == [bad.engine_name]
    assert states(registry) == {"aaa@v1": "failed", "bbb@v1": "ready"}


async def test_a_silent_adapter_is_failed_and_unloaded(registry, add, engine, converge):
    registry.want(add().ref)
    engine.faults = [Fault("silent", times=-1)]
    await converge()
    (row,) = registry.loaded("engine")
    assert row.state == "failed"
    assert "answers as the base does" in row.reason
    assert engine.adapters == {}


async def test_an_all_zero_adapter_is_reported_as_such(registry, add, engine, converge):
    registry.want(add(zero=True).ref)
    engine.faults = [Fault("silent", times=-1)]
    await converge()
    assert "its weights are all zero" in registry.loaded("engine")[0].reason


async def test_an_adapter_of_another_base_is_never_loaded(registry, add, engine, converge):
    other = dataclasses.replace(BASE, name="other", digest="c" * 64)
    registry.want(add(base=other).ref)
    await converge()
    (row,) = registry.loaded("engine")
    assert row.state == "failed"
    assert "another base (other)" in row.reason
    assert engine.stats.loads == []


async def test_a_new_controller_keeps_what_is_ready_and_probes_it(registry, add, engine, converge):
    version = add()
    registry.set_alias("support", version.ref)
    await converge()
    revision, asked = registry.revision(), engine.stats.by_model[version.engine_name]
    await converge(Memory())
    assert registry.revision() == revision
    assert engine.stats.by_model[version.engine_name] > asked
    assert len(engine.stats.loads) == 1


async def test_a_new_controller_finds_an_adapter_that_went_silent(registry, add, engine, converge):
    version = add()
    registry.set_alias("support", version.ref)
    await converge()
    engine.silent.add(version.engine_name)
    await converge(Memory())
    assert states(registry) == {"support@v1": "failed"}


async def test_an_engine_that_is_gone_stops_the_pass(registry, add, engine, converge):
    registry.set_alias("support", add().ref)
    await engine.stop()
    with pytest.raises(EngineUnavailable):
        await converge()


def test_an_adapter_whose_loading_ended_the_engine_waits_in_its_next_life():
    memory = Memory(loading="bad@v1-00000000", proven={"good@v1-00000000"})
    memory.fail("other@v1-00000000", "no")
    reborn = memory.reborn()
    assert list(reborn.failures) == ["bad@v1-00000000"]
    assert reborn.waits("bad@v1-00000000")
    assert not reborn.proven
    assert reborn.reborn().failures == {}


async def test_what_a_rollback_needs_goes_first_when_there_is_no_room(registry, add, engine, client):
    """Three aliases moved once: the version before that was used least recently is left out."""
    names = ("aaa", "bbb", "ccc")
    before = {name: add(name) for name in names}
    for name in names:
        registry.set_alias(name, before[name].ref)
        registry.set_alias(name, add(name).ref)
    memory = Memory()
    used = [before[name].engine_name for name in ("bbb", "aaa")]

    async def one_pass(*used):
        return await reconcile(registry, client, "engine", BASE, memory, room=Room(5, used))

    await one_pass()
    assert states(registry)["aaa@v1"] == "pending", "the longest ago, as nobody says what was used"
    await one_pass(*used)
    expire(memory)
    result = await one_pass(*used)
    assert result.unloaded == [before["ccc"].engine_name]
    assert states(registry) == {"ccc@v1": "pending"} | {
        ref: "ready" for ref in ("aaa@v1", "aaa@v2", "bbb@v1", "bbb@v2", "ccc@v2")
    }
    (row,) = [row for row in registry.loaded("engine") if row.state == "pending"]
    assert "TENON_MAX_CPU_LORAS" in row.reason
    revision = registry.revision()
    assert not (await one_pass(*used)).changed
    assert registry.revision() == revision


async def test_what_is_live_about_to_be_or_wanted_is_loaded_whatever_the_room(registry, add, engine, client):
    live, soon, wanted, old = add("aaa"), add("aaa"), add("bbb"), add("ccc")
    registry.set_alias("ccc", old.ref)
    registry.set_alias("ccc", add("ccc").ref)
    registry.set_alias("aaa", targets={live.ref: 1, soon.ref: 0})
    registry.want(wanted.ref)
    result = await reconcile(registry, client, "engine", BASE, Memory(), room=Room(2))
    assert result.excess == 2
    assert result.loaded[2:] == [soon.engine_name, wanted.engine_name]
    assert old.engine_name not in engine.adapters
    registry.want(old.ref)
    result = await reconcile(registry, client, "engine", BASE, Memory(), room=Room(2))
    assert result.loaded == [old.engine_name], "somebody wants what was before"


async def test_a_version_of_a_base_that_another_engine_serves_is_none_of_our_business(
    registry, add, engine, client
):
    other = dataclasses.replace(BASE, name="other", digest="c" * 64)
    registry.want(add(base=other).ref)
    await reconcile(registry, client, "engine", BASE, Memory(), elsewhere={other.digest})
    assert states(registry) == {}
