"""An engine that serves another adapter under a name is found out, and nobody is refused for rounding."""

import io
import json
import shutil

import numpy as np
import pytest
from engine_base import BASE
from safetensors.numpy import load_file, save_file

from serve.engine.client import COMPLETIONS
from serve.engine.fake import Fault
from serve.engine.probe import PROMPTS, Answers, EffectProbe
from serve.engine.recognition import Recognition
from serve.engine.reconcile import Memory, reconcile
from serve.engine.reference import Reference, References
from serve.errors import MistakenAdapter
from serve.registry.sketch import _read, apart, sketch
from serve.registry.tensor_file import Header, TensorEntry

WEIGHTS = "adapter_model.safetensors"


def new_life(folder, *conditions):
    """The memory of a new life of an engine whose references are kept in a folder."""
    return Memory(recognition=Recognition(References(folder, conditions)), inherited=False)


def rows(registry):
    return {str(row.ref): (row.state, row.reason) for row in registry.loaded("engine")}


@pytest.fixture
def answers(tmp_path):
    return tmp_path / "answers"


@pytest.fixture
def resaved(registry, tmp_path):
    """Registers a version's files once more after ``change`` of tensors and configuration."""

    def register(version, change, name="support"):
        folder = tmp_path / f"resaved-{name}"
        shutil.copytree(version.path, folder)
        folder.chmod(0o755)
        for file in folder.iterdir():
            file.chmod(0o644)
        tensors, config = (
            load_file(folder / WEIGHTS),
            json.loads((folder / "adapter_config.json").read_text()),
        )
        tensors = change(tensors, config)
        save_file(tensors, folder / WEIGHTS)
        (folder / "adapter_config.json").write_text(json.dumps(config))
        return registry.register(folder, name, BASE, max_rank=64)

    return register


def in_half_precision(tensors, config):
    return {name: tensor.astype(np.float16) for name, tensor in tensors.items()}


def padded(tensors, config):
    """Twice the rank, and alpha as well; the new rows and columns are zero."""
    config |= {"r": 2 * config["r"], "lora_alpha": 2 * config["lora_alpha"]}
    return {name: np.concatenate([t, 0 * t], axis=int("lora_B" in name)) for name, t in tensors.items()}


def with_alpha_in_b(tensors, config):
    config["lora_alpha"] *= 4
    return {name: t / 4 if "lora_B" in name else t for name, t in tensors.items()}


def renamed(tensors, config):
    return {name.removeprefix("base_model.model."): tensor for name, tensor in tensors.items()}


async def test_who_answers_as_another_is_refused_and_tried_again(registry, add, engine, client):
    first, second, third = (add() for _ in range(3))
    for version in (first, second, third):
        registry.want(version.ref)
    engine.faults = [Fault("swapped", model=second.engine_name, voice=first.engine_name)]
    memory = new_life(None)
    result = await reconcile(registry, client, "engine", BASE, memory)
    assert list(result.failed) == [second.engine_name]
    state, reason = rows(registry)["support@v2"]
    assert state == "failed"
    assert f"the engine answers for {second.engine_name} as {first.engine_name} does" in reason
    assert "restart the engine" in reason
    assert set(engine.adapters) == {first.engine_name, third.engine_name}
    memory.failures[second.engine_name].retry_at = 0.0
    await reconcile(registry, client, "engine", BASE, memory)
    assert {state for state, _ in rows(registry).values()} == {"ready"}


async def test_the_answers_of_one_that_is_gone_are_still_another_s(registry, add, engine, client):
    first, second = add(), add()
    registry.want(first.ref)
    memory = new_life(None)
    await reconcile(registry, client, "engine", BASE, memory)
    registry.unwant(first.ref)
    registry.want(second.ref)
    engine.adapters.clear()
    engine.faults = [Fault("swapped", voice=first.engine_name)]
    assert second.engine_name in (await reconcile(registry, client, "engine", BASE, memory)).failed


async def test_engines_that_write_nothing_are_no_exception(registry, add, engine, client, answers):
    engine.lacks = {COMPLETIONS: 404, "/classify": 404}
    first, second = add(), add()
    for version in (first, second):
        registry.want(version.ref)
    engine.faults = [Fault("swapped", model=second.engine_name, voice=first.engine_name)]
    result = await reconcile(registry, client, "engine", BASE, new_life(answers))
    assert "largest difference in what /v1/embeddings answers" in result.failed[second.engine_name]
    engine.adapters.clear()
    engine.swapped.clear()
    registry.unwant(second.ref)
    assert not (await reconcile(registry, client, "engine", BASE, new_life(answers))).failed
    engine.swapped[first.engine_name] = second.engine_name
    result = await reconcile(registry, client, "engine", BASE, new_life(answers))
    assert "not answer for" in result.failed[first.engine_name]


async def test_the_same_files_under_two_names_are_fine(registry, add, engine, client, answers):
    first = add()
    second = registry.register(first.path, "other", BASE, max_rank=64)
    assert (second.digest, second.engine_name) == (first.digest, f"other@v1-{first.digest[:8]}")
    for version in (first, second):
        registry.want(version.ref)
    assert not (await reconcile(registry, client, "engine", BASE, new_life(answers))).failed
    assert {state for state, _ in rows(registry).values()} == {"ready"}


@pytest.mark.parametrize("change", [in_half_precision, padded, with_alpha_in_b, renamed])
async def test_an_adapter_that_was_saved_twice_is_fine_and_told(
    registry, add, engine, client, resaved, caplog, change
):
    first = add()
    second = resaved(first, change)
    assert second.digest != first.digest
    for version in (first, second):
        registry.want(version.ref)
    engine.faults = [Fault("swapped", model=second.engine_name, voice=first.engine_name)]
    assert not (await reconcile(registry, client, "engine", BASE, new_life(None))).failed
    assert f"{second.engine_name} answers as {first.engine_name} does" in caplog.text


async def test_where_files_are_gone_nobody_is_refused(registry, add, engine, client, caplog):
    first, second = add(), add()
    registry.want(first.ref)
    memory = new_life(None)
    await reconcile(registry, client, "engine", BASE, memory)
    registry.want(second.ref)
    first.path.rename(first.path.with_name("gone"))
    engine.faults = [Fault("swapped", voice=first.engine_name)]
    assert not (await reconcile(registry, client, "engine", BASE, memory)).failed
    assert "cannot be compared" in caplog.text


async def test_a_later_life_that_serves_another_is_found_out_and_heals(
    registry, add, engine, client, answers
):
    version, other = add(), add()
    registry.want(version.ref)
    await reconcile(registry, client, "engine", BASE, new_life(answers))
    engine.adapters.clear()
    engine.faults = [Fault("swapped", voice=other.engine_name)]
    memory = new_life(answers)
    await reconcile(registry, client, "engine", BASE, memory)
    state, reason = rows(registry)["support@v1"]
    assert state == "failed"
    assert f"does not answer for {version.engine_name} as it did" in reason
    (kept,) = answers.rglob("*.json")
    assert f"remove {kept}" in reason
    assert engine.adapters == {}
    memory.failures[version.engine_name].retry_at = 0.0
    await reconcile(registry, client, "engine", BASE, memory)
    assert rows(registry)["support@v1"] == ("ready", "")


async def test_an_engine_that_is_adopted_is_compared_too(registry, add, engine, client, answers):
    version, other = add(), add()
    registry.want(version.ref)
    await reconcile(registry, client, "engine", BASE, new_life(answers))
    engine.swapped[version.engine_name] = other.engine_name
    memory = new_life(answers)
    memory.inherited = True
    assert version.engine_name in (await reconcile(registry, client, "engine", BASE, memory)).failed


async def test_in_a_new_life_nothing_is_ready_before_its_probe(registry, add, engine, client):
    """Also not where an old row says so and the engine lists it already."""
    version = add()
    registry.want(version.ref)
    await reconcile(registry, client, "engine", BASE, new_life(None))
    told = []
    heard = client.next_logprobs

    async def next_logprobs(*given):
        told.append(rows(registry)["support@v1"][0])
        return await heard(*given)

    client.next_logprobs = next_logprobs
    await reconcile(registry, client, "engine", BASE, Memory())
    assert set(told) == {"ready"}, "the engine is the one that an earlier controller proved it on"
    told.clear()
    await reconcile(registry, client, "engine", BASE, Memory().reborn())
    assert set(told) == {"loading"}
    assert rows(registry)["support@v1"] == ("ready", "")


async def test_what_cannot_be_kept_or_read_stops_nothing(registry, add, engine, client, answers, caplog):
    registry.want(add().ref)
    answers.write_text("a file where a folder should be")
    assert not (await reconcile(registry, client, "engine", BASE, new_life(answers))).failed
    assert "is not kept for later" in caplog.text
    answers.unlink()
    await reconcile(registry, client, "engine", BASE, new_life(answers))
    (kept,) = answers.rglob("*.json")
    for nonsense in ("", "{}", kept.read_text().replace("logprobs", "x"), kept.read_text().replace("-", '"')):
        kept.write_text(nonsense)
        assert not (await reconcile(registry, client, "engine", BASE, new_life(answers))).failed
        assert json.loads(kept.read_text())["adapter"]["logprobs"], "kept again"


# ---------------------------------------------------------------- how far is far


def heard(*, base=0.0, adapter=2.0, noise=0.0):
    """A probe where every number of the base is -3 + ``base`` and the adapter is ``adapter`` from there."""
    base_says = [{" a": -3.0 + base} for _ in PROMPTS]
    adapter_says = [{" a": -3.0 + base - adapter} for _ in PROMPTS]
    return EffectProbe(
        abs(adapter), noise, Answers(COMPLETIONS, base_says), Answers(COMPLETIONS, adapter_says)
    )


def later(version, folder, probe, *conditions):
    """Check it in a new life."""
    Recognition(References(folder, conditions)).check(version, probe)


@pytest.mark.parametrize(
    ("first", "then", "refused"),
    [
        ({}, {"adapter": 2.2}, False),  # what other code for LoRA makes of bfloat16
        ({}, {"adapter": 2.9}, False),  # far beyond rounding, but it is still more itself than the base
        ({}, {"adapter": 3.1}, True),
        ({"adapter": 0.1}, {"adapter": 0.65}, False),  # rounding of a weak one is many times its effect
        ({"adapter": 0.1}, {"adapter": 0.75}, True),
        ({"adapter": 8.0}, {"adapter": 4.1}, False),
        ({"adapter": 8.0}, {"adapter": 3.9}, True),
        ({}, {"adapter": 3.1, "noise": 0.4}, False),  # the base is as unsteady in this very life
        ({}, {"base": 0.15, "adapter": 3.0}, False),
        ({}, {"base": 0.25, "adapter": 9.0}, False),  # another device: not compared
    ],
)
def test_only_what_is_clearly_another_is_refused(add, answers, first, then, refused):
    version = add()
    later(version, answers, heard(**first))
    if refused:
        with pytest.raises(MistakenAdapter, match="that to the base was"):
            later(version, answers, heard(**then))
    else:
        later(version, answers, heard(**then))


def test_the_first_answers_stay_the_measure(add, answers):
    """Otherwise an adapter could wander off step by step."""
    version = add()
    for adapter in (2.0, 2.9):
        later(version, answers, heard(adapter=adapter))
    with pytest.raises(MistakenAdapter):
        later(version, answers, heard(adapter=3.8))


def test_another_device_has_references_of_its_own(add, answers):
    version = add()
    later(version, answers, heard(), "cpu", "bfloat16")
    later(version, answers, heard(adapter=6.0), "cuda")
    later(version, answers, heard(), "cpu", "bfloat16")
    with pytest.raises(MistakenAdapter):
        later(version, answers, heard(), "cuda")
    kept = sorted(json.loads(path.read_text())["conditions"] for path in answers.rglob("*.json"))
    assert kept == [["cpu", "bfloat16"], ["cuda"]]


def test_where_the_base_has_moved_the_new_answers_are_the_measure_from_then_on(add, answers):
    version = add()
    later(version, answers, heard())
    later(version, answers, heard(base=1.0, adapter=6.0))
    later(version, answers, heard(base=1.0, adapter=6.1))
    with pytest.raises(MistakenAdapter):
        later(version, answers, heard(base=1.0))


def test_a_weak_adapter_is_never_taken_for_another(add):
    """Two whose effects are within what rounding can make: that they answer alike shows nothing."""
    first, second = add(), add()
    recognition = Recognition()
    recognition.check(first, heard(adapter=0.1))
    recognition.check(second, heard(adapter=0.1))
    strong = Recognition()
    strong.check(first, heard())
    with pytest.raises(MistakenAdapter, match="as support@v1-"):
        strong.check(second, heard())


def test_the_noise_of_the_base_counts_as_the_same(add):
    first, second = add(), add()
    recognition = Recognition()
    recognition.check(first, heard())
    with pytest.raises(MistakenAdapter):
        recognition.check(second, heard(adapter=2.02, noise=0.01))
    recognition.check(second, heard(adapter=2.02))


def test_the_next_life_knows_the_references_and_not_who_was_proven(add, answers):
    first, second = add(), add()
    life = Memory(recognition=Recognition(References(answers)))
    life.recognition.check(first, heard())
    next_life = life.reborn()
    assert not next_life.inherited
    next_life.recognition.check(second, heard())
    with pytest.raises(MistakenAdapter, match="first proven"):
        life.reborn().recognition.check(first, heard(adapter=6.0))


def test_references_hold_what_they_were_given(answers):
    references = References(answers, ["cpu"])
    probe = heard()
    references.keep("b" * 64, "a" * 64, "support@v1-aaaaaaaa", Reference(probe.base, probe.adapter))
    read = references.read("b" * 64, "a" * 64, COMPLETIONS)
    assert (read.base.logprobs, read.adapter.logprobs) == (probe.base.logprobs, probe.adapter.logprobs)
    assert references.read("b" * 64, "a" * 64, "/classify") is None
    assert references.read("b" * 64, "a" * 16 + "c" * 48, COMPLETIONS) is None, (
        "another of the same beginning"
    )
    assert References(None).read("b" * 64, "a" * 64, COMPLETIONS) is None


# ---------------------------------------------------------------- what weights mean


def test_sketches_are_as_far_apart_as_the_weights(add, resaved):
    first, second = add(), add()
    whole = {}
    for version in (first, second):
        (a, b) = (
            load_file(version.path / WEIGHTS)[name] for name in sorted(load_file(version.path / WEIGHTS))
        )
        whole[version.ref] = b @ a
    left, right = whole[first.ref], whole[second.ref]
    truly = np.linalg.norm(left - right) / max(np.linalg.norm(left), np.linalg.norm(right))
    assert apart(sketch(first.path), sketch(second.path)) == pytest.approx(truly, rel=0.4)
    assert apart(sketch(first.path), sketch(first.path)) == 0.0


@pytest.mark.parametrize("share", [0.01, 0.3])
def test_a_small_change_of_the_weights_is_a_small_distance(add, resaved, share):
    def nudge(tensors, config):
        return {name: t * (1 + share) if "lora_B" in name else t for name, t in tensors.items()}

    first = add()
    distance = apart(sketch(first.path), sketch(resaved(first, nudge).path))
    assert distance == pytest.approx(share / (1 + share), rel=1e-3)


def test_brain_floats_are_read_as_such():
    """The other tests cannot write them: numpy has none."""
    header = Header({"t": TensorEntry("BF16", (2,), 0, 4)}, b"", 0, 4)
    assert _read(io.BytesIO(bytes([0x80, 0x3F, 0x20, 0xC1])), header, "t").tolist() == [1.0, -10.0]


def test_an_own_head_is_part_of_the_meaning_and_one_layer_does_not_decide():
    def layers(*values):
        return {str(place): np.array([value], np.float32) for place, value in enumerate(values)}

    assert apart(layers(1, 1, 1), layers(1, 1, -1)) == 0.0
    assert apart(layers(1, 1, 1), layers(-1, -1, 1)) == 2.0
    assert apart(layers(0, 1), layers(0, 0.5)) == 0.5, "what neither changes says nothing"
    assert apart(layers(1), {}) == 1.0
    assert apart({}, {}) == 0.0
    assert apart({"a": np.ones(2, np.float32)}, {"a": np.ones(3, np.float32)}) == 1.0
