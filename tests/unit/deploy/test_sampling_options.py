"""The options of ``tenon deploy`` that make a sampling policy, and the rules that reach the gateway."""

from pathlib import Path
from typing import Any

import pytest

from deploy.controller.control import rules_in, secrets_in
from deploy.sampling_options import policy_of
from serve.config import Settings
from serve.errors import ConfigError, InputError
from serve.gateway.presets import BUILT_IN
from serve.gateway.rules import Rules


def policy(home: Path, **options: Any) -> dict[str, Any] | None:
    names = ("defaults", "minimum", "maximum", "forced", "preset")
    return policy_of(Settings(home=home), **{name: options.get(name) for name in names})


def test_nothing_said_keeps_what_the_alias_has(tmp_path: Path) -> None:
    assert policy(tmp_path) is None


def test_defaults_alone_are_stored_as_they_always_were(tmp_path: Path) -> None:
    assert policy(tmp_path, defaults=["temperature=0", "stop=[a, b]"]) == {
        "temperature": 0,
        "stop": ["a", "b"],
    }


def test_limits_forced_values_and_presets(tmp_path: Path) -> None:
    assert policy(
        tmp_path, defaults=["top_p=0.8"], maximum=["max_tokens=512"], forced=["seed=1"], preset="balanced"
    ) == {
        "defaults": {"temperature": 0.7, "top_p": 0.8},
        "max": {"max_tokens": 512},
        "force": {"seed": 1},
        "preset": "balanced",
    }
    (tmp_path / "presets.yaml").write_text("terse: {max_tokens: 64}")
    assert policy(tmp_path, preset="terse") == {"defaults": {"max_tokens": 64}, "preset": "terse"}


def test_problems_name_field_and_option(tmp_path: Path) -> None:
    for options, words in (
        ({"defaults": ["temprature=1"]}, "did you mean temperature"),
        ({"defaults": ["temperature=0.9"], "maximum": ["temperature=0.5"]}, "above 0.5"),
        ({"minimum": ["seed=1"]}, "seed has no limits"),
        ({"forced": ["stop=["]}, "--fix stop=\\["),
        ({"preset": "wild"}, "no preset is called 'wild'"),
    ):
        with pytest.raises(InputError, match=words):
            policy(tmp_path, **options)


def test_a_gateway_that_is_started_again_has_the_rules_of_the_stack(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("terse: {max_tokens: 64}")
    settings = Settings(
        home=tmp_path, grammars=True, media="image, audio", unknown_fields="drop", presets=file
    )
    for name, value in rules_in(settings).items():
        monkeypatch.setenv(name, value)
    rules = Rules.of(Settings.read(home=tmp_path))
    assert rules == Rules(
        True, frozenset({"image", "audio"}), "drop", {**BUILT_IN, "terse": {"max_tokens": 64}}
    )


def test_the_gateway_is_told_secrets_and_prices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    urls = {"redis_url": "redis://:s3cret@cache/1", "database_url": "postgresql://me:s3cret@db/tenon"}
    settings = Settings.read(home=tmp_path, prices=tmp_path / "prices.yaml", open_metrics=True, **urls)
    traced = Settings.read(home=tmp_path, otlp_endpoint="http://127.0.0.1:4318")
    assert "4318" in str(rules_in(traced))
    assert "4318" not in str(secrets_in(traced))
    for name, value in {**rules_in(settings), **secrets_in(settings)}.items():
        monkeypatch.setenv(name, value)
    assert Settings.read(home=tmp_path) == settings
    # Whatever the environment of the controller says, a stack without them has none.
    for name, value in secrets_in(Settings(home=tmp_path, redis_url=None, database_url=None)).items():
        monkeypatch.setenv(name, value)
    told = Settings.read(home=tmp_path)
    assert told.redis_url is told.database_url is None


def test_media_are_of_known_kinds() -> None:
    with pytest.raises(ConfigError, match="smell"):
        Settings.read(media="image,smell")
