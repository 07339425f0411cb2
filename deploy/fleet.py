"""Which engines a stack has: those of its base, and those of further bases from the file of ``TENON_FLEET``.

- model: ./Qwen3-0.6B
  replicas: 2
- model: org/base-8b
  urls: [http://gpu-1:8000, http://gpu-2:8000]
  max_loras: 8
"""

import difflib
import shlex
import socket
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError, model_validator

from serve.config import Rank, Settings
from serve.engine.spec import EngineLimits, EngineSpec
from serve.engine.state import FIRST, record_file, used_file
from serve.engine.supervisor import Supervisor
from serve.errors import ConfigError
from serve.net import address_problem, bare, is_local
from serve.registry import Registry
from serve.registry.base import BaseIdentity, identify_base
from serve.telemetry import traces_endpoint

HINT = "see docs/serving.md for the format"


class BaseEngines(BaseModel):
    """One base and its engines: ``replicas`` of our own, or those at ``urls``; limits as in the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    model: str = Field(min_length=1)
    replicas: int = Field(1, ge=1, le=64)
    urls: tuple[str, ...] = ()
    max_loras: int = Field(4, ge=1)
    max_cpu_loras: int = Field(16, ge=1)
    max_num_seqs: int | None = Field(None, ge=1)
    max_lora_rank: Rank = 64
    max_model_len: int | None = Field(None, ge=16)
    engine_args: str = ""

    @model_validator(mode="after")
    def _engines_are_ours_or_not(self) -> Self:
        if self.urls and "replicas" in self.model_fields_set:
            raise ValueError("give replicas for engines of our own, or urls of others, not both")
        if problem := next(filter(None, map(address_problem, self.urls)), None):
            raise ValueError(f"urls {problem}")
        if len(set(map(bare, self.urls))) != len(self.urls):
            raise ValueError("urls names an engine twice")
        shlex.split(self.engine_args)
        return self

    @classmethod
    def of(cls, settings: Settings) -> Self:
        """The base that the settings themselves name."""
        names = set(cls.model_fields) - {"urls", "replicas"}
        engines: dict[str, Any] = {"replicas": settings.replicas}
        if settings.engine_urls:
            engines = {"urls": tuple(settings.engine_urls)}
        return cls(**engines, **{name: getattr(settings, name) for name in names})

    def spec(self, base: BaseIdentity, otlp_endpoint: str | None = None) -> EngineSpec:
        """How an engine of our own is started for it, which sends its traces to ``otlp_endpoint``."""
        return EngineSpec(
            model=base.path,
            base_name=base.name,
            max_loras=self.max_loras,
            max_cpu_loras=self.max_cpu_loras,
            max_lora_rank=self.max_lora_rank,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            extra_args=tuple(shlex.split(self.engine_args)),
            otlp_endpoint=otlp_endpoint,
        )

    @property
    def limits(self) -> EngineLimits:
        """What its attached engines do at once."""
        return EngineLimits(
            self.max_loras, self.max_cpu_loras, self.max_num_seqs or EngineLimits.max_num_seqs
        )


@dataclass(frozen=True)
class PlannedEngine:
    """One engine as it should be; ``url`` is that of an attached one, ``name`` is used for its files, too."""

    name: str
    base: BaseIdentity
    engines: BaseEngines
    url: str | None

    def engine_id(self, registry: Registry) -> str:
        """Its name in the registry: where other machines use that, too, with the name of this one."""
        return f"{self.name[:31]}@{socket.gethostname()[:32]}" if registry.shared else self.name

    def supervisor(self, settings: Settings, registry: Registry, elsewhere: Iterable[str]) -> Supervisor:
        """What keeps it up; ``elsewhere`` are the digests of all bases."""
        traces = traces_endpoint(settings.otlp_endpoint)
        return Supervisor(
            registry,
            self.base,
            state_file=record_file(settings.state, self.name),
            log_file=settings.logs / f"{self.name}.log",
            spec=self.engines.spec(self.base, traces) if self.url is None else None,
            engine_url=self.url,
            limits=self.engines.limits,
            start_timeout=settings.engine_start_timeout,
            engine_id=self.engine_id(registry),
            elsewhere=frozenset(elsewhere),
            used_file=used_file(settings.state),
            announced=registry.shared and self.url is not None and not is_local(self.url),
        )


def planned(settings: Settings) -> list[PlannedEngine]:
    """Every engine that a stack is to have; raises ConfigError and BaseModelError.

    The first is called ``engine``, its replicas ``engine-2`` and so on, those of a further base after the base.
    """
    found: dict[str, PlannedEngine] = {}
    bases: dict[str, str] = {}
    for engines in [BaseEngines.of(settings), *read_fleet(settings.fleet)]:
        base = identify_base(engines.model)
        if base.name in bases:
            raise ConfigError(
                f"{engines.model} and {bases[base.name]} are both served as {base.name}",
                "give each base once, and rename the folder of one of two that are called alike",
            )
        first = base.name if bases else FIRST
        bases[base.name] = engines.model
        urls: Iterable[str | None] = engines.urls or [None] * engines.replicas
        for number, url in enumerate(urls, 1):
            name = first if number == 1 else f"{first}-{number}"
            if name in found:
                raise ConfigError(f"two engines are called {name}", f"rename the folder of {engines.model}")
            found[name] = PlannedEngine(name, base, engines, url)
    return list(found.values())


def read_fleet(path: Path | None) -> list[BaseEngines]:
    """Read the file of further bases; without one there are none. Raises ConfigError with every problem."""
    if path is None:
        return []
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(list[BaseEngines]).validate_python(content or [])
    except OSError as error:
        raise ConfigError(
            f"the fleet in {path} cannot be read: {error.strerror}", "check TENON_FLEET"
        ) from error
    except ValidationError as error:
        problems = "; ".join(_problem(dict(item)) for item in error.errors())
        raise ConfigError(f"the fleet in {path} is wrong: {problems}", HINT) from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        # Its own words quote the line, in which a password may stand.
        mark = error.problem_mark if isinstance(error, yaml.MarkedYAMLError) else None
        reason = f"see line {mark.line + 1}" if mark is not None else type(error).__name__
        raise ConfigError(f"the fleet in {path} is not YAML: {reason}", HINT) from error


def _problem(item: Mapping[str, Any]) -> str:
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in item["loc"]) or "the file"
    if item["type"] != "extra_forbidden":
        return f"{place}: {item['msg'].removeprefix('Value error, ')}"
    near = difflib.get_close_matches(str(item["loc"][-1]), BaseEngines.model_fields, 1)
    return f"{place}: no such key" + (f" (did you mean {near[0]}?)" if near else "")
