"""What a stack that comes up waits for: what aliases mean, as far as its own engines will hold it."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from deploy import serving
from deploy.serving import base_served, on_their_way, wait_for_aliases, why_silent
from evalsuite.load.adapters import write_adapter
from serve.config import Settings
from serve.engine.state import record_file
from serve.names import VersionRef
from serve.records import ProcessIdentity, write_json
from serve.registry import Registry
from serve.registry.base import identify_base

States = dict[str, tuple[str, str]]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings.read(home=tmp_path / "home")


@pytest.fixture
def registry(settings: Settings, tmp_path: Path) -> Iterator[Registry]:
    """Two versions, of which the alias means the second."""
    base = identify_base("tenon-tiny")
    with Registry.of(settings) as opened:
        for seed in range(2):
            opened.register(write_adapter(tmp_path / str(seed), base, seed=seed), "faq", base, max_rank=64)
        opened.set_alias("faq", "faq@v2", forced=True)
        yield opened


def engines(settings: Settings, registry: Registry, **states: States) -> None:
    """Engines that answer, and what each says of versions."""
    for name, said in states.items():
        if name != "another_machines":
            digest = registry.version("faq@v2").base_digest
            content = {"engine_id": name, "state": "ready", "base_digest": digest}
            write_json(record_file(settings.state, name), content)
        registry.set_loaded(name, said)


@pytest.mark.parametrize(
    ("states", "coming"),
    [
        ({}, []),
        ({"engine": {}}, ["faq@v2"]),
        ({"engine": {"faq@v2": ("pending", "")}}, ["faq@v2"]),
        ({"engine": {"faq@v2": ("loading", "")}}, ["faq@v2"]),
        ({"engine": {"faq@v2": ("ready", ""), "faq@v1": ("loading", "")}}, []),
        ({"engine": {"faq@v2": ("failed", "its rank is too high")}}, []),
        ({"engine": {"faq@v2": ("pending", "no room")}}, []),
        ({"engine": {"faq@v2": ("loading", "")}, "second": {"faq@v2": ("ready", "")}}, []),
        ({"engine": {"faq@v2": ("loading", "")}, "another_machines": {"faq@v2": ("ready", "")}}, ["faq@v2"]),
        ({"another_machines": {"faq@v2": ("pending", "")}}, []),
    ],
)
def test_what_is_waited_for(
    settings: Settings, registry: Registry, states: dict[str, States], coming: list[str]
) -> None:
    engines(settings, registry, **states)
    assert on_their_way(registry, settings) == coming


@pytest.mark.parametrize(
    ("states", "reason"),
    [
        ({}, "no engine here has its base"),
        ({"another_machines": {"faq@v2": ("ready", "")}}, "no engine here has its base"),
        ({"engine": {"faq@v2": ("failed", "its file is damaged")}}, "its file is damaged"),
        ({"engine": {"faq@v2": ("failed", "x")}, "second": {"faq@v2": ("ready", "")}}, None),
        ({"engine": {"faq@v2": ("failed", "x")}, "second": {}}, None),
        ({"engine": {"faq@v2": ("failed", "x")}, "second": {"faq@v2": ("failed", "y")}}, "x"),
        ({"engine": {"faq@v2": ("loading", "")}}, None),
    ],
)
def test_why_nobody_will_answer_for_a_version(
    settings: Settings, registry: Registry, states: dict[str, States], reason: str | None
) -> None:
    engines(settings, registry, **states)
    assert why_silent(registry, settings, VersionRef("faq", 2)) == reason


@pytest.mark.parametrize("record", [{"state": "starting"}, {"state": "down", "attached": True}])
def test_an_engine_that_is_away_may_answer_again(
    settings: Settings, registry: Registry, record: dict[str, object]
) -> None:
    digest = registry.version("faq@v2").base_digest
    write_json(record_file(settings.state, "engine"), {"base_digest": digest, **record})
    registry.set_loaded("engine", {"faq@v2": ("failed", "x")})
    assert why_silent(registry, settings, VersionRef("faq", 2)) is None


def test_a_base_is_called_as_its_engines_call_it(settings: Settings, registry: Registry) -> None:
    version = registry.version("faq@v2")
    assert base_served(settings, version) == ("tenon-tiny", None)
    other = {"state": "ready", "base_digest": "other", "base_name": "other", "max_model_len": 9}
    write_json(record_file(settings.state, "engine"), other)
    assert base_served(settings, version) == ("tenon-tiny", None)
    attached = {"base_digest": version.base_digest, "base_name": "served-as"}
    for name, length in (("second", 2048), ("third", 1024)):
        write_json(record_file(settings.state, name), {**attached, "max_model_len": length})
    assert base_served(settings, version) == ("served-as", 1024)


@pytest.mark.parametrize(
    ("record", "others", "coming"),
    [
        ({"state": "down", "error": "the engine ended"}, {}, ["faq@v2"]),
        ({"state": "backoff", "error": "the engine ended"}, {}, ["faq@v2"]),
        ({"state": "starting", "error": "the engine ended"}, {}, ["faq@v2"]),
        ({"state": "down", "error": "it does not answer", "attached": True}, {}, []),
        ({"state": "down", "error": ""}, {}, []),  # it was stopped
        ({"state": "down", "error": "the engine ended", "base_digest": "another"}, {}, []),
        ({"state": "backoff", "error": "no memory"}, {"second": {"faq@v2": ("failed", "too high")}}, []),
    ],
)
def test_an_engine_that_ended_is_waited_for_where_it_is_started_again(
    settings: Settings,
    registry: Registry,
    record: dict[str, object],
    others: dict[str, States],
    coming: list[str],
) -> None:
    digest = registry.version("faq@v2").base_digest
    write_json(record_file(settings.state, "engine"), {"base_digest": digest, **record})
    registry.set_loaded("engine", {"faq@v2": ("pending", "")})
    engines(settings, registry, **others)
    assert on_their_way(registry, settings) == coming


@pytest.fixture
def controller(settings: Settings) -> None:
    """This process on record as the controller."""
    write_json(settings.state / "controller.json", ProcessIdentity.of(os.getpid()).to_json())


@pytest.mark.usefixtures("controller")
def test_what_takes_too_long_is_told(
    settings: Settings, registry: Registry, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(serving, "ALIASES_PATIENCE", 0.5)
    engines(settings, registry, engine={"faq@v2": ("loading", "")})
    said: list[str] = []
    assert wait_for_aliases(settings, said.append) == ["faq@v2"]
    assert set(said) == {"faq@v2"}


def test_nobody_waits_for_what_no_controller_would_load(settings: Settings, registry: Registry) -> None:
    engines(settings, registry, engine={"faq@v2": ("loading", "")})
    assert wait_for_aliases(settings, print) == ["faq@v2"]


def test_a_stack_that_goes_down_meanwhile_ends_the_wait(settings: Settings, registry: Registry) -> None:
    assert wait_for_aliases(settings, print) == []
