"""What vLLM can adapt of a base is found out before the training."""

import json
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from deploy import adaptable as module
from deploy import fleet as fleet_module
from deploy.adaptable import adaptable
from deploy.fleet import check_device
from serve.config import Settings
from serve.engine import abilities as asking
from serve.engine.abilities import FILE, KNOWN, USUAL, Abilities, abilities
from serve.errors import BaseModelError
from serve.records import read_json
from serve.registry.base import BaseIdentity

SHAPES = {
    "model.layers.0.self_attn.o_proj.weight": (8, 8),
    "model.layers.0.mlp.gate_up_proj.weight": (32, 8),
    "model.layers.0.mlp.down_proj.weight": (8, 16),
}
BASE = BaseIdentity("small", Path("/nowhere"), "d" * 64, "Glm4ForCausalLM", SHAPES, 512, 100)
EXPERTS = replace(BASE, shapes={**SHAPES, "model.layers.1.mlp.experts.0.up_proj.weight": (4, 8)})
NEEDS_VLLM = pytest.mark.skipif(find_spec("vllm") is None, reason="vLLM is not installed here")


def silent(_: str) -> None:
    pass


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.read(home=tmp_path)


@NEEDS_VLLM
def test_vllm_is_asked_once_for_what_it_adapts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = abilities("Glm4ForCausalLM", tmp_path)
    assert found is not None
    assert found.adapts
    assert not found.adapts_layer("gate_up_proj")
    assert found.adapts_layer("gate_proj")
    assert found.adapts_layer("o_proj")
    monkeypatch.setattr(asking, "_ask", None)  # so that asking again would fail
    assert abilities("Glm4ForCausalLM", tmp_path) == found


@NEEDS_VLLM
def test_architectures_that_vllm_does_not_adapt_or_does_not_have(tmp_path: Path) -> None:
    found = abilities("StableLmForCausalLM", tmp_path)
    assert found is not None
    assert not found.adapts
    assert abilities("NoneOfItsForCausalLM", tmp_path) == Abilities()
    assert len(read_json(tmp_path / FILE)[asking._version()]) == 2


@NEEDS_VLLM
@pytest.mark.xdist_group("vllm")
@pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated:DeprecationWarning")
def test_what_is_known_without_asking_is_what_vllm_says() -> None:
    from serve.engine.vllm_abilities import abilities as told

    assert [told(name) for name in KNOWN] == [
        {"adapts": True, "parts": {name: list(parts) for name, parts in USUAL.items()}}
    ] * len(KNOWN)


def test_a_class_that_cannot_be_loaded_is_asked_for_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "ModuleNotFoundError: No module named 'torchvision'"
    monkeypatch.setattr(asking, "_version", lambda: "vllm 1")
    monkeypatch.setattr(asking, "_ask", lambda _: Abilities(problem=said, hint="install it"))
    found = abilities("Glm4ForCausalLM", tmp_path)
    assert found is not None
    assert found.problem == said
    assert not (tmp_path / FILE).exists()


def test_an_answer_of_another_version_does_not_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_ask", lambda _: Abilities(parts={"a": ("b",)}))
    for version in ("vllm 1", "vllm 2"):
        monkeypatch.setattr(asking, "_version", lambda version=version: version)
        abilities("XForCausalLM", tmp_path)
        assert list(read_json(tmp_path / FILE)) == [version]


def test_without_vllm_nothing_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_version", lambda: None)
    assert abilities("Glm4ForCausalLM", tmp_path) is None


def test_a_file_that_is_damaged_is_written_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(asking, "_version", lambda: "vllm 1")
    monkeypatch.setattr(asking, "_ask", lambda _: Abilities(adapts=False))
    (tmp_path / FILE).write_text(json.dumps({"vllm 1": {"XForCausalLM": 3}}))
    found = abilities("XForCausalLM", tmp_path)
    assert found is not None
    assert not found.adapts


def test_layers_that_vllm_has_by_other_names_are_left_out(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "abilities", lambda *_: Abilities(parts=USUAL))
    assert adaptable(settings, "./small", BASE, silent).unadapted == {"gate_up_proj"}
    monkeypatch.setattr(module, "abilities", lambda *_: Abilities(parts={"gate_up_proj": ("gate_up_proj",)}))
    assert adaptable(settings, "./small", BASE, silent).unadapted == frozenset()
    monkeypatch.setattr(module, "abilities", lambda *_: None)
    assert adaptable(settings, "./small", BASE, silent) == BASE


@pytest.mark.parametrize(
    ("found", "said"),
    [
        (Abilities(adapts=False), "vLLM adapts no Glm4ForCausalLM, which small is"),
        (
            Abilities(problem="no torchvision", hint="install it"),
            "cannot load Glm4ForCausalLM: no torchvision",
        ),
    ],
)
def test_a_base_of_which_nothing_could_be_served_is_refused_unless_others_serve_it(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, found: Abilities, said: str
) -> None:
    monkeypatch.setattr(module, "abilities", lambda *_: found)
    with pytest.raises(BaseModelError, match=said) as caught:
        adaptable(settings, "org/small", BASE, silent)
    assert caught.value.hint
    attached = settings.model_copy(update={"model": "org/small", "engine_url": "http://gpu:8000"})
    assert adaptable(attached, "org/small", BASE, silent) == BASE
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text("- model: org/small\n  urls: [http://gpu:8000]\n")
    assert adaptable(settings.model_copy(update={"fleet": fleet}), "org/small", BASE, silent) == BASE
    fleet.write_text("- model: org/small\n")
    with pytest.raises(BaseModelError, match=said):
        adaptable(settings.model_copy(update={"fleet": fleet}), "org/small", BASE, silent)
    other_class = settings.model_copy(
        update={"model": "org/small", "engine_args": "--model-impl transformers"}
    )
    assert adaptable(other_class, "org/small", BASE, silent) == BASE


def test_experts_are_not_served_on_a_cpu(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "abilities", lambda *_: None)
    monkeypatch.setattr(fleet_module, "installed_device", lambda: "cuda")
    check_device(EXPERTS)
    monkeypatch.setattr(fleet_module, "installed_device", lambda: "cpu")
    check_device(BASE)
    check_device(EXPERTS, ["--no-enable-lora"])
    for_all = tmp_path / "fleet.yaml"
    for_all.write_text("- model: org/small\n")
    for found in (settings, settings.model_copy(update={"fleet": for_all})):
        with pytest.raises(BaseModelError, match="experts on a CPU"):
            adaptable(found, "org/small", EXPERTS, silent)
    attached = settings.model_copy(update={"model": "org/small", "engine_url": "http://gpu:8000"})
    assert adaptable(attached, "org/small", EXPERTS, silent) == EXPERTS
