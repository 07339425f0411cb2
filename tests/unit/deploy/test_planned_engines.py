"""Which engines the settings and the file of further bases ask for."""

from pathlib import Path

import pytest

from deploy.fleet import BaseEngines, engine_args, planned, planned_servers, read_fleet
from deploy.keepers import supervisor_of, watcher_of
from serve.config import Settings
from serve.engine.limits import GivenLimits
from serve.errors import ConfigError
from serve.registry import Registry
from serve.registry.base import resolve_model


def settings(tmp_path: Path, **changes: object) -> Settings:
    return Settings.read(home=tmp_path / "home", **changes)


def fleet(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "fleet.yaml"
    path.write_text(text)
    return path


def second(tmp_path: Path) -> Path:
    folder = tmp_path / "Second Base"
    folder.symlink_to(resolve_model("tenon-tiny"))
    copy = tmp_path / "second-base"
    copy.mkdir()
    for file in folder.iterdir():
        (copy / file.name).symlink_to(file.resolve())
    return copy


def test_one_engine_by_default_as_the_settings_say(tmp_path: Path) -> None:
    (engine,) = planned(settings(tmp_path, max_loras=2, max_num_seqs=7, engine_args="--seed 3"))
    assert (engine.name, engine.url, engine.base.name) == ("engine", None, "tenon-tiny")
    spec = engine.engines.spec(engine.base)
    assert (spec.max_loras, spec.max_num_seqs, spec.extra_args) == (2, 7, ("--seed", "3"))


def test_our_code_for_cpus_is_off_by_setting_for_every_base(tmp_path: Path) -> None:
    path = fleet(tmp_path, f"- model: {second(tmp_path)}\n")
    for given, used in (({}, True), ({"cpu_lora": False}, False)):
        chosen = settings(tmp_path, fleet=path, **given)
        with Registry.open(tmp_path / "home") as registry:
            specs = [supervisor_of(engine, chosen, registry, ()).spec for engine in planned(chosen)]
        assert [spec.cpu_lora for spec in specs if spec is not None] == [used, used]


def test_replicas_and_urls_have_names_that_stay(tmp_path: Path) -> None:
    assert [engine.name for engine in planned(settings(tmp_path, replicas=3))] == [
        "engine",
        "engine-2",
        "engine-3",
    ]
    attached = planned(settings(tmp_path, engine_url="http://a:1 , http://b:2", max_num_seqs=9))
    assert [(engine.name, engine.url) for engine in attached] == [
        ("engine", "http://a:1"),
        ("engine-2", "http://b:2"),
    ]
    assert attached[0].engines.limits.max_num_seqs == 9


def test_a_base_is_served_for_what_its_arguments_say(tmp_path: Path) -> None:
    classify = """--convert classify --hf-overrides '{"method":"no_post_processing"}'"""
    path = fleet(tmp_path, f"- model: {second(tmp_path)}\n  engine_args: {classify}\n")
    first, further = planned(settings(tmp_path, fleet=path))
    assert [engine.base.serving.purpose for engine in (first, further)] == ["generate", "classify"]
    assert "--max-lora-cls-labels" not in first.engines.spec(first.base).argv()
    argv = further.engines.spec(further.base).argv()
    assert argv[argv.index("--max-lora-cls-labels") + 1] == "32"
    attached = planned(settings(tmp_path, engine_url="http://a:1", engine_args=classify))
    assert attached[0].base.serving.purpose == "classify"


def test_a_command_that_names_a_base_of_the_fleet_gets_its_arguments(tmp_path: Path) -> None:
    path = fleet(tmp_path, f"- model: {second(tmp_path)}\n  engine_args: --convert embed\n")
    place = f"{tmp_path}/./second-base"
    assert engine_args(settings(tmp_path, fleet=path, model=place)) == ("--convert", "embed")
    assert engine_args(settings(tmp_path, fleet=path, engine_args="--seed 3")) == ("--seed", "3")


def test_further_bases_come_after_the_first(tmp_path: Path) -> None:
    path = fleet(
        tmp_path, f"- model: {second(tmp_path)}\n  replicas: 2\n  max_loras: 8\n  max_lora_rank: 128\n"
    )
    engines = planned(settings(tmp_path, fleet=path))
    assert [engine.name for engine in engines] == ["engine", "second-base", "second-base-2"]
    spec = engines[2].engines.spec(engines[2].base)
    assert (spec.base_name, spec.max_loras, spec.max_lora_rank) == ("second-base", 8, 128)


def test_a_base_is_given_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="both served as tenon-tiny"):
        planned(settings(tmp_path, fleet=fleet(tmp_path, "- model: tenon-tiny\n")))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("- modle: x\n", "1.modle: no such key (did you mean model?)"),
        ("- model: x\n  replicas: 0\n", "1.replicas"),
        ("- model: x\n  urls: [http://a]\n  replicas: 2\n", "not both"),
        ("- model: x\n  urls: [http://a, http://a]\n", "twice"),
        ("- model: x\n  max_lora_rank: 3\n", "1.max_lora_rank"),
        ("- model: x\n  kind: tgi\n", "1.kind: is neither vllm nor openai"),
        ("- kind: openai\n  base: x\n  ulr: y\n", "1.ulr: no such key (did you mean url?)"),
        ("- kind: openai\n  base: x\n", "1.url"),
        ("- kind: openai\n  base: Org/X\n  url: y\n", "1.base: is no name for a base: write it as x"),
        ("- kind: openai\n  base: x\n  url: y\n  names: {'a b': c}\n", "1.names: 'a b': use letters"),
        ("model: x\n", "is wrong"),
        ("- model: [", "is not YAML"),
        ("- model: x\n  urls: [http://me:s3cret@a, b: ]]\n", "is not YAML: see line 2"),
        ("- model: x\n  urls: [http://me:s3/cret@a]\n", "1: urls must look like"),
    ],
)
def test_what_is_wrong_in_the_file_is_said(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read_fleet(fleet(tmp_path, text))
    assert words in caught.value.message
    assert "s3" not in caught.value.message


def test_servers_that_are_only_asked_are_called_after_their_bases(tmp_path: Path) -> None:
    entry = "- kind: openai\n  base: {}\n  url: http://a:1/v1/\n  names: {{{}: Big}}\n"
    chosen = settings(tmp_path, fleet=fleet(tmp_path, entry.format("big", "big")))
    (engine,) = planned(chosen)
    (server,) = planned_servers(chosen, [engine])
    assert (engine.name, server.name, server.server.names) == ("engine", "big", {"big": "Big"})
    state = watcher_of(server, chosen).state
    assert (state.kind, state.url, state.base_name) == ("openai", "http://a:1", "big")
    for taken in (entry.format("tenon-tiny", "x"), entry.format("engine", "x"), entry.format("big", "x") * 2):
        with pytest.raises(ConfigError, match="two entries are called"):
            planned_servers(settings(tmp_path, fleet=fleet(tmp_path, taken)), [engine])


def test_limits_that_nobody_gives_are_left_to_attached_engines_and_usual_for_ours(tmp_path: Path) -> None:
    (attached,) = planned(settings(tmp_path, engine_url="http://a"))
    assert attached.engines.limits == GivenLimits()
    spec = attached.engines.spec(attached.base)
    assert (spec.max_loras, spec.max_cpu_loras) == (4, 16)
    (wide,) = planned(settings(tmp_path, max_loras=32))
    assert wide.engines.spec(wide.base).max_cpu_loras == 32


def test_no_file_is_no_further_base_and_a_missing_one_an_error(tmp_path: Path) -> None:
    assert read_fleet(None) == []
    assert read_fleet(fleet(tmp_path, "")) == []
    with pytest.raises(ConfigError, match="cannot be read"):
        read_fleet(tmp_path / "nothing.yaml")


def test_an_engine_url_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="twice"):
        settings(tmp_path, engine_url="http://a,http://a")
    assert settings(tmp_path, engine_url=" ").engine_urls == []
    assert BaseEngines.of(settings(tmp_path, engine_url="http://a")).urls == ("http://a",)
