"""Small rules of the deploy room: who may take a name, which settings hold, what snippets say."""

import json
import os
import shlex
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from deploy.cli_stack import settings_of
from deploy.cli_train import given, recipe_of
from deploy.extras import PACKAGES, need
from deploy.pipeline import train_and_register
from deploy.sampling_options import assignments
from deploy.snippets import curl_snippet, python_snippet
from deploy.stack_file import read_stack, write_stack
from evalsuite.load.adapters import write_adapter
from serve.config import Home, Settings
from serve.errors import ConfigError, DataError, InputError, RecipeError
from serve.gateway.policy import SamplingPolicy
from serve.names import parse_version
from serve.registry import Alias, EvaluationRecord, Lineage, Registry, Version
from serve.registry.base import identify_base
from serve.registry.evidence import why_not
from serve.registry.records import AdapterFacts
from train.launch import TrainResult
from train.recipe import Recipe

NOW = datetime.now(UTC)


def rows_to_train_on(folder: Path) -> Path:
    path = folder / "train.csv"
    rows = [f"message {number},{'ab'[number % 2]}" for number in range(20)]
    path.write_text("\n".join(["text,label", *rows]))
    return path


FACTS = AdapterFacts(8, 8.0, ("q_proj",), 1, 1, False, None)


def version(text: str) -> Version:
    return Version(
        parse_version(text), "d" * 64, Path(), f"{text}-dddddddd", "base", "b", FACTS, Lineage(), NOW
    )


def alias(target: str, previous: str | None = None) -> Alias:
    return Alias("a", version(target), previous and parse_version(previous), {}, "better", False, NOW)  # type: ignore[arg-type]


def record(allowed: bool = True, live: str | None = None, silent: str | None = None) -> EvaluationRecord:
    gate = {"allowed": allowed, "reason": "it is worse", "live": live, "evidence": True}
    if silent is not None:
        gate["silent"] = silent
    return EvaluationRecord(1, parse_version("a@v2"), "b", {"gate": gate}, "better", "", NOW)


@pytest.mark.parametrize(
    ("evidence", "now", "objection"),
    [
        (None, None, "not been evaluated"),
        (record(allowed=False), None, "it is worse"),
        (record(), None, None),
        (record(), alias("a@v1"), "a@v1, which answers users now"),
        (record(live="a@v1"), alias("a@v1"), None),
        (record(silent="a@v1"), alias("a@v1"), None),
        (record(silent="a@v1"), alias("a@v3"), "a@v3, which answers users now"),
        (record(allowed=False, silent="a@v1"), alias("a@v1"), "it is worse"),
        (record(live="a@v1"), alias("a@v3"), "a@v3"),
        (record(live="a@v1"), alias("a@v3", previous="a@v2"), None),
        (record(live="a@v1"), alias("a@v2"), None),
        (record(allowed=False), alias("a@v3", previous="a@v2"), "it is worse"),
    ],
)
def test_who_may_take_a_name(
    evidence: EvaluationRecord | None, now: Alias | None, objection: str | None
) -> None:
    found = why_not(evidence, now, version("a@v2"))
    assert (found is None) == (objection is None)
    assert objection is None or objection in str(found)


def test_who_was_silent_is_compared_with_once_it_answers_again() -> None:
    evidence, now = record(silent="a@v1"), alias("a@v1")
    assert why_not(evidence, now, version("a@v2"), answers=False) is None
    assert "not compared with a@v1" in str(why_not(evidence, now, version("a@v2"), answers=True))


def test_what_up_was_asked_for_holds_until_down(tmp_path: Path) -> None:
    context: Any = type("Context", (), {"obj": tmp_path})
    assert settings_of(context).port == 8080
    write_stack(Settings.read(home=tmp_path, port=9000, max_loras=2))
    assert settings_of(context).port == 9000
    assert settings_of(context, port=9001).port == 9001
    assert settings_of(context, port=9001).max_loras == 2


def test_a_recipe_without_a_base_is_for_the_one_that_is_served_or_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context: Any = type("Context", (), {"obj": tmp_path})
    silent, telling = tmp_path / "silent.yaml", tmp_path / "telling.yaml"
    silent.write_text("name: tickets\ntrain: {epochs: 2}\n")
    telling.write_text("name: tickets\nbase: ./mine\n")
    assert [recipe_of(context, path, []).base for path in (None, silent)] == ["tenon-tiny", "tenon-tiny"]
    write_stack(Settings.read(home=tmp_path, model="served"))
    assert recipe_of(context, silent, []).base == "served"
    monkeypatch.setenv("TENON_MODEL", "./base: 1")
    assert [recipe_of(context, path, []).base for path in (None, silent)] == ["./base: 1", "./base: 1"]
    assert recipe_of(context, silent, []).train.epochs == 2
    assert recipe_of(context, telling, []).base == "./mine"
    assert recipe_of(context, telling, given(base="option")).base == "option"
    assert recipe_of(context, silent, ["base=override"]).base == "override"


@pytest.mark.parametrize("content", ["{", "{}", '{"port": 1, "color": "red"}'])
def test_stack_file_that_cannot_be_read_says_what_to_do(tmp_path: Path, content: str) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "stack.json").write_text(content)
    with pytest.raises(ConfigError) as caught:
        read_stack(tmp_path)
    assert "tenon down" in caught.value.hint


def test_snippets_survive_quotes_and_newlines() -> None:
    messages = [{"role": "user", "content": 'it\'s "broken"\n$HOME `x` é'}]
    words = shlex.split(curl_snippet("http://127.0.0.1:1", "a", {"messages": messages}))
    assert json.loads(words[-1])["messages"] == messages
    code = python_snippet("http://127.0.0.1:1", "a", {"messages": messages})
    assert len(code.splitlines()) == 5
    compile(code, "snippet", "exec")


def test_snippets_leave_the_temperature_to_an_alias_that_limits_it() -> None:
    sample = {"messages": [{"role": "user", "content": "x"}]}
    for snippet in (curl_snippet, python_snippet):
        assert "temperature" in snippet("http://127.0.0.1:1", "a", sample)
        assert "temperature" not in snippet("http://127.0.0.1:1", "a", sample, greedy=False)
    for limits, allowed in [
        ({}, True),
        ({"min": {"temperature": 0.2}}, False),
        ({"max": {"temperature": 1}}, True),
    ]:
        assert SamplingPolicy.parse(limits).allows("temperature", 0) == allowed
    forced = {"min": {"temperature": 0.2}, "force": {"temperature": 0.5}}
    assert SamplingPolicy.parse(forced).allows("temperature", 0)


def test_a_folder_is_a_base_by_its_place_whatever_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("my base", "tenon-tiny"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    assert Settings.read(home=tmp_path, model="my base").model == str(tmp_path / "my base")
    assert Settings.read(home=tmp_path, model="org/model").model == "org/model"
    assert Settings.read(home=tmp_path, model="tenon-tiny").model == "tenon-tiny"


def test_snippets_of_a_question_with_tools_are_python_and_json() -> None:
    sample = {
        "messages": [{"role": "user", "content": "x"}],
        "tools": [{"type": "function", "function": {"name": "f", "strict": True, "parameters": None}}],
    }
    body = json.loads(shlex.split(curl_snippet("http://127.0.0.1:1", "a", sample))[-1])
    assert body == {"model": "a", **sample, "temperature": 0}
    lines = python_snippet("http://127.0.0.1:1", "a", sample).splitlines()
    said: dict[str, Any] = {}
    exec("\n".join(lines[2:4]), said)
    assert {name: said[name] for name in sample} == sample
    assert "messages=messages, tools=tools" in lines[4]


def test_snippets_read_the_key_from_the_environment_where_one_is_needed() -> None:
    messages = [{"role": "user", "content": "x"}]
    assert "Bearer" not in curl_snippet("http://127.0.0.1:1", "a", {"messages": messages})
    assert "Bearer $OPENAI_API_KEY" in shlex.split(
        curl_snippet("http://127.0.0.1:1", "a", {"messages": messages}, keys=True)
    )[5].replace("authorization: ", "")
    code = python_snippet("http://127.0.0.1:1", "a", {"messages": messages}, keys=True)
    assert "api_key" not in code
    compile(code, "snippet", "exec")


@pytest.mark.parametrize(
    "path",
    ["/data/it's: a [file] #1.csv", f"/{'a long name ' * 20}.csv", '"\\ $x\ny é \U0001f600', "1", "true"],
)
def test_options_become_overrides_whatever_characters_they_hold(path: str) -> None:
    recipe = Recipe.load(None, given(base=None, name="x", data=path, test=path))
    assert (recipe.data.train, recipe.data.test) == (path, path)
    assert recipe.name == "x"


def test_an_empty_option_is_not_taken_for_none() -> None:
    with pytest.raises(RecipeError, match=r"data\.train: .*at least 1 character"):
        Recipe.load(None, given(base=None, name="x", data="", test=None))


@pytest.mark.parametrize("text", ["bob's.csv", "a b;c", "$HOME `id` $(x)", '"', "#1"])
def test_make_hands_values_to_the_command_as_they_are(tmp_path: Path, text: str) -> None:
    names = ("MODEL", "DATA", "TEST", "NAME", "RECIPE")
    seen = tmp_path / "seen"
    tenon = tmp_path / "tenon"
    tenon.write_text(f'#!/bin/sh\nprintf "%s\\n" "$@" >{seen}\n')
    tenon.chmod(0o755)
    setup = tmp_path / "setup"
    setup.write_text("#!/bin/sh\nexit 0\n")
    setup.chmod(0o755)
    subprocess.run(
        [
            "make",
            "train-and-deploy",
            f"TENON={tenon}",
            f"PYTHON={setup}",
            "ARGS=",  # `make test ARGS=…` is not for this one
            *(f"{name}={text}" for name in names),
        ],
        cwd=Path(__file__).parents[3],
        env={name: value for name, value in os.environ.items() if "MAKE" not in name and name != "MFLAGS"},
        check=True,
    )
    options = [word for name in names for word in (f"--{name.lower()}", text)]
    assert seen.read_text().splitlines() == ["run", *options]


def test_a_run_without_a_question_to_prove_it_by_ends_before_training(tmp_path: Path) -> None:
    settings = Settings.read(home=tmp_path)
    recipe = Recipe.load(None, ["data.test_fraction=0", f"data.train={rows_to_train_on(tmp_path)}"])
    with Registry.of(settings) as registry:
        with pytest.raises(DataError, match="test split has no rows") as caught:
            train_and_register(settings, recipe, registry, to_prove=True)
        assert "data.test_fraction" in caught.value.hint
        assert registry.versions() == []
    assert not settings.runs.exists()


def test_an_adapter_is_not_called_as_its_base_which_is_said_before_training(tmp_path: Path) -> None:
    settings = Settings.read(home=tmp_path / "home")
    recipe = Recipe.load(None, ["name=tenon-tiny", f"data.train={rows_to_train_on(tmp_path)}"])
    with Registry.of(settings) as registry, pytest.raises(InputError, match="name of the base itself"):
        train_and_register(settings, recipe, registry)
    assert not settings.runs.exists()


def test_an_adapter_that_learnt_nothing_is_said_to_be_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = Settings.read(home=tmp_path / "home")
    recipe = Recipe.load(None, [f"data.train={rows_to_train_on(tmp_path)}"])
    adapter = write_adapter(tmp_path / "adapter", identify_base(recipe.base), zero=True)
    trained = TrainResult(tmp_path / "run", adapter, 1, None, {}, 1.0)
    monkeypatch.setattr("deploy.pipeline.run_training", lambda *_: trained)
    with Registry.of(settings) as registry:
        assert train_and_register(settings, recipe, registry).facts.all_zero
    assert "all its weights are zero" in capsys.readouterr().out


def test_what_runs_is_found_whatever_else_is_set_wrongly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TENON_PROT", "1")
    monkeypatch.setenv("TENON_PORT", "none")
    monkeypatch.setenv("TENON_HOME", str(tmp_path))
    assert Home.found(None) == tmp_path
    assert Home.found(Path("there")) == Path("there").absolute()
    monkeypatch.setenv("TENON_HOME", "")
    with pytest.raises(ConfigError, match="home: must name a folder"):
        Home.found(None)


def test_set_takes_yaml_and_names_what_is_not() -> None:
    assert assignments(["temperature=0.2", "stop=[a, b]"], "--set") == {
        "temperature": 0.2,
        "stop": ["a", "b"],
    }
    with pytest.raises(InputError, match="stop"):
        assignments(["stop=["], "--set")
    with pytest.raises(InputError, match="KEY=VALUE"):
        assignments(["temperature"], "--min")


def test_missing_extra_is_named() -> None:
    PACKAGES["nothing"] = ("no_such_package",)
    try:
        with pytest.raises(ConfigError, match="no_such_package") as caught:
            need("nothing")
    finally:
        del PACKAGES["nothing"]
    assert "tenon-llm[nothing]" in caught.value.hint
