"""Settings of one Tenon home: where its files are and how its stack runs.

Each field can be set by an environment variable, ``TENON_`` and the field's name in capitals; options of the
command line win over those. Unknown ``TENON_`` variables are errors, so that a typing mistake is seen; those that
begin with ``TENON_TEST_`` are for the tests.
"""

import difflib
import os
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self
from urllib.parse import urlsplit

from pydantic import (
    BeforeValidator,
    Field,
    SecretStr,
    ValidationError,
    field_serializer,
    field_validator,
)
from pydantic_settings import BaseSettings, SettingsConfigDict

from serve.errors import ConfigError
from serve.net import address_problem, bare
from serve.telemetry import endpoint_problem

PREFIX = "TENON_"
FOR_TESTS = "TENON_TEST_"
SECRETS = ("database_url", "engine_url", "otlp_endpoint", "redis_url")
"""Settings that no message may show."""
MEDIA = ("image", "audio", "video")
DRAIN_SECONDS = 30
"""How long a gateway lets running requests go on after SIGTERM."""


def _whole_number(value: Any) -> Any:
    return int(value) if isinstance(value, str) and value.strip().isdigit() else value


Rank = Annotated[Literal[8, 16, 32, 64, 128, 256, 320, 512], BeforeValidator(_whole_number)]


class Home(BaseSettings):
    """Where the files of one Tenon are; immutable once read."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="forbid")

    home: Path = Field(Path(".tenon"), description="folder that holds the registry, adapters, runs and logs")

    @field_validator("home", mode="before")
    @classmethod
    def _home_is_somewhere(cls, value: Any) -> Any:
        if not str(value).strip():
            raise ValueError("must name a folder")
        return value

    @field_validator("home")
    @classmethod
    def _home_is_absolute(cls, value: Path) -> Path:
        return value.expanduser().absolute()

    @classmethod
    def found(cls, home: Path | None) -> Path:
        """The folder, ``home`` or what the environment says, whatever else is set there; else raise ConfigError."""
        return cls._checked({} if home is None else {"home": home}, []).home

    @classmethod
    def _checked(cls, values: Mapping[str, Any], problems: list[str]) -> Self:
        try:
            settings = cls(**values)
        except ValidationError as error:
            for item in error.errors():
                field = str(item["loc"][0]) if item["loc"] else "settings"
                reason = item["msg"].removeprefix("Value error, ")
                got = "" if field in SECRETS else f" (got {item['input']!r})"
                problems.append(f"{field}: {reason}{got}")
        if problems:
            raise ConfigError("; ".join(problems), "see docs/settings.md for every setting")
        return settings


class Settings(Home):
    """What the stack needs to know; immutable once read."""

    model: str = Field(
        "tenon-tiny", min_length=1, description="base model: built-in name, local folder or hub id"
    )
    database_url: SecretStr | None = Field(
        None, description="PostgreSQL database of the registry; without it, SQLite in the home"
    )
    prices: Path | None = Field(None, description="YAML file with prices, for `tenon usage` and metrics")
    redis_url: SecretStr | None = Field(
        None, description="Redis that counts limits for several gateways; without it, each counts for itself"
    )
    host: str = Field("127.0.0.1", min_length=1, description="address that the gateway listens on")
    port: int = Field(8080, ge=1, le=65535, description="port that the gateway listens on")
    engine_url: str | None = Field(
        None, repr=False, description="attach to this engine, or these with commas, instead of starting one"
    )
    replicas: int = Field(1, ge=1, le=64, description="engines of our own that serve the base")
    fleet: Path | None = Field(None, description="YAML file of further bases and their engines")
    max_loras: int | None = Field(
        None, ge=1, description="distinct adapters that the engine computes in one step"
    )
    max_cpu_loras: int | None = Field(None, ge=1, description="adapters that the engine keeps in memory")
    max_num_seqs: int | None = Field(None, ge=1, description="requests that the engine computes at once")
    max_lora_rank: Rank = Field(64, description="highest rank that the engine can load")
    max_adapter_mib: int = Field(2048, ge=1, description="largest weight file that a source may send, in MiB")
    adapter_timeout: float = Field(
        3600.0, gt=0, description="seconds that a source has to deliver an adapter"
    )
    allow_private_sources: bool = Field(
        False, description="fetch adapters from http(s) hosts in private networks and on this machine too"
    )
    api_adapter_folder: Path | None = Field(
        None,
        description="folder below which the management API may register adapters from this machine's disk",
    )
    max_model_len: int | None = Field(None, ge=16, description="longest prompt plus answer, in tokens")
    engine_args: str = Field(
        "", description="further arguments for the vLLM server, as a shell would split them"
    )
    cpu_lora: bool = Field(True, description="compute LoRA on a CPU with our own code instead of vLLM's")
    engine_start_timeout: float = Field(600.0, gt=0, description="seconds to wait for the engine to be ready")
    grammars: bool = Field(False, description="let requests constrain answers by regexes and grammars")
    media: str = Field(
        "", description="media that requests may carry as data: URLs, of image, audio and video, with commas"
    )
    unknown_fields: Literal["refuse", "drop"] = Field(
        "refuse", description="what becomes of a request's field that no endpoint knows: refuse or drop"
    )
    presets: Path | None = Field(None, description="YAML file of sampling presets")
    open_metrics: bool = Field(False, description="answer /metrics without a key, too")
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="level of our own logs"
    )
    log_format: Literal["text", "json"] = Field(
        "text", description="form of our own logs' lines: text or json"
    )
    otlp_endpoint: str | None = Field(
        None, description="OpenTelemetry collector that traces are sent to, as http://HOST:4318"
    )

    @field_validator("model")
    @classmethod
    def _folder_is_absolute(cls, value: str) -> str:
        # What is stored must mean the same to a command that runs in another folder.
        folder = Path(value).expanduser()
        return (
            str(folder.absolute())
            if value != cls.model_fields["model"].default and folder.is_dir()
            else value
        )

    @field_validator("database_url")
    @classmethod
    def _database_is_postgresql(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value().strip():
            return None
        try:
            url = urlsplit(value.get_secret_value())
            known = url.scheme in ("postgresql", "postgres", "postgresql+psycopg")
            named = url.port != 0 and len(url.path) > 1
        except ValueError:  # whose words would show parts of the password
            raise ValueError(
                "is no URL: write what is special in the user name or the password as %XX"
            ) from None
        if not known or not named:
            raise ValueError("must look like postgresql://USER:PASSWORD@HOST:5432/DATABASE")
        return value

    @field_validator("redis_url")
    @classmethod
    def _redis_is_redis(cls, value: SecretStr | None) -> SecretStr | None:
        if value is None or not value.get_secret_value().strip():
            return None
        try:
            url = urlsplit(value.get_secret_value())
            known = url.scheme in ("redis", "rediss") and url.hostname and url.port != 0
        except ValueError:  # whose words would show parts of the password
            known = False
        if not known:
            raise ValueError("must look like redis://:PASSWORD@HOST:6379/0, special characters as %XX")
        return value

    @field_serializer("database_url", "redis_url", when_used="json-unless-none")
    def _store_secret(self, value: SecretStr) -> str:
        # For run/stack.json, which only its owner may read.
        return value.get_secret_value()

    @field_validator("prices", "fleet", "presets", "api_adapter_folder")
    @classmethod
    def _places_are_absolute(cls, value: Path | None) -> Path | None:
        return value.expanduser().absolute() if value is not None and str(value) != "." else None

    @field_validator("otlp_endpoint")
    @classmethod
    def _collector_is_a_url(cls, value: str | None) -> str | None:
        if value is None or not value.strip():
            return None
        if problem := endpoint_problem(value):
            raise ValueError(problem)
        return value.strip()

    @field_validator("engine_url")
    @classmethod
    def _engines_have_urls(cls, value: str | None) -> str | None:
        urls = [url.strip() for url in value.split(",") if url.strip()] if value is not None else []
        if problem := next(filter(None, map(address_problem, urls)), None):
            raise ValueError(problem)
        if len(set(map(bare, urls))) != len(urls):
            raise ValueError("names an engine twice")
        return ",".join(urls) or None

    @field_validator("engine_args")
    @classmethod
    def _arguments_can_be_split(cls, value: str) -> str:
        shlex.split(value)
        return value

    @field_validator("media")
    @classmethod
    def _media_are_known(cls, value: str) -> str:
        kinds = [kind.strip() for kind in value.split(",") if kind.strip()]
        if unknown := [kind for kind in kinds if kind not in MEDIA]:
            raise ValueError(f"{', '.join(unknown)}: none of {', '.join(MEDIA)}")
        return ",".join(kinds)

    @property
    def media_kinds(self) -> list[str]:
        """The kinds of media that requests may carry."""
        return self.media.split(",") if self.media else []

    @property
    def engine_urls(self) -> list[str]:
        """The engines to attach to; none are, if there are engines of our own."""
        return self.engine_url.split(",") if self.engine_url else []

    def shown(self, name: str) -> str:
        """The value of a setting as messages may show it, without passwords."""
        if name == "engine_url" and self.engine_url:
            return ",".join(map(bare, self.engine_urls))
        return str(getattr(self, name))

    @property
    def presets_file(self) -> Path:
        """Where the operator's own sampling presets are; the file may be absent."""
        return self.presets or self.home / "presets.yaml"

    @property
    def database(self) -> Path:
        """The registry's SQLite file, unless ``database_url`` is set."""
        return self.home / "registry.db"

    @property
    def adapters(self) -> Path:
        """Content-addressed adapter files: one read-only folder per digest."""
        return self.home / "adapters"

    @property
    def runs(self) -> Path:
        """One folder per training run."""
        return self.home / "runs"

    @property
    def evals(self) -> Path:
        """One folder per evaluation."""
        return self.home / "evals"

    @property
    def state(self) -> Path:
        """What runs now: process records and locks."""
        return self.home / "run"

    @property
    def logs(self) -> Path:
        """Logs of the engine, the gateway and the controller."""
        return self.home / "logs"

    @classmethod
    def read(cls, **options: Any) -> Self:
        """Read the environment and ``options`` (those that are not None win), else raise ConfigError.

        ``model_fields_set`` of the result are the settings that somebody chose.
        """
        problems = []
        for variable in os.environ:
            field = variable.removeprefix(PREFIX).lower()
            ours = variable.startswith(PREFIX) and not variable.startswith(FOR_TESTS)
            if ours and field not in cls.model_fields:
                near = difflib.get_close_matches(field, cls.model_fields, 1)
                meant = f" (did you mean {PREFIX}{near[0].upper()}?)" if near else ""
                problems.append(f"{variable} is no setting{meant}")
        return cls._checked({key: value for key, value in options.items() if value is not None}, problems)

    @classmethod
    def stored(cls, content: Mapping[str, Any]) -> Self:
        """The settings that :meth:`model_dump` gave, whatever the environment says now; else ConfigError.

        Settings that older code did not know have their defaults.
        """
        defaults = {name: field.get_default() for name, field in cls.model_fields.items()}
        missing = [f"{name} is missing" for name in ("home", "model", "host", "port") if name not in content]
        return cls._checked({**defaults, **content}, missing)
