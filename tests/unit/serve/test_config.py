"""Settings: from the environment and from options, complete and checked."""

import os
from collections.abc import Iterator
from pathlib import Path

import orjson
import pytest

from serve.config import Settings
from serve.errors import ConfigError

VALUES = {
    "home": "/srv/tenon",
    "model": "org/base",
    "database_url": "**********",
    "redis_url": "**********",
    "prices": "/etc/prices.yaml",
    "host": "0.0.0.0",
    "port": "9000",
    "engine_url": "http://127.0.0.1:8000",
    "replicas": "2",
    "fleet": "/etc/fleet.yaml",
    "max_loras": "8",
    "max_cpu_loras": "32",
    "max_num_seqs": "64",
    "max_lora_rank": "128",
    "max_adapter_mib": "512",
    "adapter_timeout": "60",
    "allow_private_sources": "True",
    "max_model_len": "4096",
    "engine_args": "--seed 1",
    "cpu_lora": "False",
    "engine_start_timeout": "30",
    "grammars": "True",
    "media": "image,audio",
    "unknown_fields": "drop",
    "presets": "/srv/presets.yaml",
    "api_adapter_folder": "/srv/adapters",
    "open_metrics": "True",
    "log_level": "debug",
    "log_format": "json",
    "otlp_endpoint": "http://collector:4318",
}
DATABASE = "postgresql://me:s3cret@db/tenon"


@pytest.fixture(autouse=True)
def environment() -> Iterator[None]:
    """An environment of the test's own."""
    before = dict(os.environ)
    for name in list(os.environ):
        if name.startswith("TENON_"):
            del os.environ[name]
    yield
    os.environ.clear()
    os.environ.update(before)


def test_every_setting_can_come_from_the_environment() -> None:
    assert VALUES.keys() == Settings.model_fields.keys()
    os.environ.update({f"TENON_{name.upper()}": value for name, value in VALUES.items()})
    os.environ.update(TENON_DATABASE_URL=DATABASE, TENON_REDIS_URL="redis://:s3cret@cache")
    settings = Settings.read()
    assert {name: str(getattr(settings, name)) for name in VALUES} == {
        **VALUES,
        "engine_start_timeout": "30.0",
        "adapter_timeout": "60.0",
    }
    assert settings.model_fields_set == VALUES.keys()


def test_options_win_over_the_environment_and_none_does_not() -> None:
    os.environ["TENON_PORT"] = "9000"
    assert Settings.read(port=9001).port == 9001
    assert Settings.read(port=None).port == 9000
    assert Settings.read().model_fields_set == {"port"}


def test_stored_settings_do_not_see_the_environment() -> None:
    content = Settings.read().model_dump(mode="json")
    os.environ.update(TENON_MAX_MODEL_LEN="99", TENON_PORT="9000")
    settings = Settings.stored(content)
    assert settings.max_model_len is None
    assert settings.port == 8080


def test_stored_settings_of_older_code_have_the_defaults_of_what_it_did_not_know() -> None:
    content = Settings.read(port=9000).model_dump(mode="json")
    del content["max_model_len"], content["log_level"]
    os.environ.update(TENON_MAX_MODEL_LEN="99")
    settings = Settings.stored(content)
    assert settings.max_model_len is None
    assert settings.log_level == "info"
    assert settings.port == 9000


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("TENON_PROT", "1", "TENON_PORT"),
        ("TENON_PORT", "http", "port"),
        ("TENON_PORT", "70000", "65535"),
        ("TENON_MAX_LORA_RANK", "20", "max_lora_rank"),
        ("TENON_HOME", "", "home"),
        ("TENON_ENGINE_ARGS", "'x", "engine_args"),
        ("TENON_DATABASE_URL", "mysql://me:s3cret@db/tenon", "postgresql://USER"),
        ("TENON_DATABASE_URL", "postgresql://me:s3cret@db", "postgresql://USER"),
        ("TENON_DATABASE_URL", "postgresql://me:s3/cret@db/tenon", "%XX"),
        ("TENON_ENGINE_URL", "me:s3cret@gpu:8000", "http://HOST"),
        ("TENON_ENGINE_URL", "http://me:s3/cret@gpu:8000", "%XX"),
        ("TENON_ENGINE_URL", "http://me:12/s3@gpu:8000", "%XX"),
        ("TENON_ENGINE_URL", "http://me:s3#cret@gpu:8000", "%XX"),
        ("TENON_ENGINE_URL", "http://me:s3 cret@gpu:8000", "%XX"),
        ("TENON_ENGINE_URL", "http://me:s3@gpu,http://me:s3cret@gpu", "twice"),
    ],
)
def test_wrong_settings_are_named(name: str, value: str, words: str) -> None:
    os.environ[name] = value
    with pytest.raises(ConfigError) as caught:
        Settings.read()
    assert words in caught.value.message
    assert "docs/settings.md" in caught.value.hint
    assert "s3" not in caught.value.message


def test_the_password_of_an_engine_is_kept_and_not_shown() -> None:
    settings = Settings.read(engine_url="http://me:s3cret@gpu:8000, https://gpu-2/base")
    assert settings.engine_urls == ["http://me:s3cret@gpu:8000", "https://gpu-2/base"]
    assert settings.shown("engine_url") == "http://gpu:8000,https://gpu-2/base"
    assert "s3" not in repr(settings)
    assert Settings.stored(settings.model_dump(mode="json")).engine_urls == settings.engine_urls
    assert Settings.read().shown("engine_url") == "None"


def test_all_problems_at_once() -> None:
    os.environ.update(TENON_PROT="1", TENON_MAX_LORAS="0")
    with pytest.raises(ConfigError) as caught:
        Settings.read(port=0)
    assert all(word in caught.value.message for word in ("TENON_PROT", "max_loras", "port"))


def test_a_model_folder_means_the_same_from_everywhere(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        assert Settings.read(model="./base").model == str(tmp_path / "base")
        assert Settings.read(model="Qwen/Qwen3-0.6B").model == "Qwen/Qwen3-0.6B"
    finally:
        os.chdir(here)


def test_the_databases_password_is_stored_but_not_shown() -> None:
    os.environ["TENON_DATABASE_URL"] = DATABASE
    settings = Settings.read()
    assert "s3cret" not in f"{settings} {settings!r} {settings.database_url}"
    stored = Settings.stored(orjson.loads(orjson.dumps(settings.model_dump(mode="json"))))
    assert stored == settings
    assert stored.database_url is not None
    assert stored.database_url.get_secret_value() == DATABASE
    os.environ["TENON_DATABASE_URL"] = ""
    assert Settings.read().database_url is None


def test_settings_of_the_tests_are_let_through() -> None:
    os.environ["TENON_TEST_REQUIRE_POSTGRES"] = "1"
    assert Settings.read().port == 8080
