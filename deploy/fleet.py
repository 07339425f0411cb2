"""Which engines a stack has: those of its base, and those of further bases from the file of ``TENON_FLEET``.

- model: ./Qwen3-0.6B
  replicas: 2
- model: org/base-8b
  urls: [http://gpu-1:8000, http://gpu-2:8000]
  max_loras: 8
- kind: openai
  base: other-70b
  url: http://gpu-3:8080
"""

import difflib
import shlex
import socket
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    TypeAdapter,
    ValidationError,
    field_validator,
    model_validator,
)

from serve.config import Rank, Settings
from serve.engine.device import installed_device
from serve.engine.kinds import OPENAI, SERVED
from serve.engine.limits import EngineLimits, GivenLimits
from serve.engine.spec import EngineSpec, is_given
from serve.engine.state import FIRST
from serve.errors import BaseModelError, ConfigError
from serve.net import address_problem, bare
from serve.registry import Registry
from serve.registry.base import BaseIdentity, identify_base, safe_name
from serve.registry.hub import Say

HINT = "see docs/serving.md for the format"
WITHOUT_LORA = "--no-enable-lora"


class BaseEngines(BaseModel):
    """One base and its engines: ``replicas`` of our own, or those at ``urls``; limits as in the settings."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["vllm"] = "vllm"
    model: str = Field(min_length=1)
    replicas: int = Field(1, ge=1, le=64)
    urls: tuple[str, ...] = ()
    max_loras: int | None = Field(None, ge=1)
    max_cpu_loras: int | None = Field(None, ge=1)
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
        names = set(cls.model_fields) - {"kind", "urls", "replicas"}
        engines: dict[str, Any] = {"replicas": settings.replicas}
        if settings.engine_urls:
            engines = {"urls": tuple(settings.engine_urls)}
        return cls(**engines, **{name: getattr(settings, name) for name in names})

    def spec(
        self, base: BaseIdentity, otlp_endpoint: str | None = None, *, cpu_lora: bool = True
    ) -> EngineSpec:
        """How an engine of our own is started for it, which sends its traces to ``otlp_endpoint``."""
        max_loras = self.max_loras or EngineLimits.max_loras
        return EngineSpec(
            model=base.path,
            base_name=base.name,
            max_loras=max_loras,
            max_cpu_loras=self.max_cpu_loras or max(EngineLimits.max_cpu_loras, max_loras),
            max_lora_rank=self.max_lora_rank,
            max_model_len=self.max_model_len,
            max_num_seqs=self.max_num_seqs,
            extra_args=self.extra_args,
            otlp_endpoint=otlp_endpoint,
            cpu_lora=cpu_lora,
            serving=base.serving,
        )

    @property
    def extra_args(self) -> tuple[str, ...]:
        """The further arguments as the engine gets them; for an attached one, what it is said to have got."""
        return tuple(shlex.split(self.engine_args))

    @property
    def limits(self) -> GivenLimits:
        """What is said of its attached engines."""
        return GivenLimits(self.max_loras, self.max_cpu_loras, self.max_num_seqs)


class OpenAIServer(BaseModel):
    """A server that speaks OpenAI's routes alone; ``names`` are public names with what it calls them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    kind: Literal["openai"]
    base: str = Field(min_length=1)
    url: str = Field(min_length=1)
    names: dict[str, str] = {}
    max_num_seqs: int | None = Field(None, ge=1)

    @field_validator("base")
    @classmethod
    def _base_has_a_name(cls, value: str) -> str:
        if safe_name(value) != value:
            raise ValueError(f"is no name for a base: write it as {safe_name(value)}")
        return value

    @field_validator("names")
    @classmethod
    def _names_can_be_public(cls, value: dict[str, str]) -> dict[str, str]:
        if bad := [name for name in value if not SERVED.fullmatch(name)]:
            raise ValueError(f"{', '.join(map(repr, bad))}: use letters, digits and . _ : / @ - only")
        return value

    @field_validator("url")
    @classmethod
    def _url_is_that_of_the_server(cls, value: str) -> str:
        return value.rstrip("/").removesuffix("/v1")


def _kind(entry: Any) -> Any:
    return entry.get("kind", "vllm") if isinstance(entry, dict) else "vllm"


Entry = Annotated[
    Annotated[BaseEngines, Tag("vllm")] | Annotated[OpenAIServer, Tag(OPENAI)], Discriminator(_kind)
]
KEYS = {"vllm": BaseEngines.model_fields, OPENAI: OpenAIServer.model_fields}
"""What may stand in an entry of each kind."""


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


@dataclass(frozen=True)
class PlannedServer:
    """One server that is only asked; ``name`` is used for its files, too."""

    name: str
    server: OpenAIServer


def planned(settings: Settings, say: Say | None = None) -> list[PlannedEngine]:
    """Every engine that a stack is to have; raises ConfigError and BaseModelError.

    A base that is not there yet is downloaded, and ``say`` is told how far that is.

    The first is called ``engine``, its replicas ``engine-2`` and so on, those of a further base after the base.
    """
    found: dict[str, PlannedEngine] = {}
    bases: dict[str, str] = {}
    for engines in [BaseEngines.of(settings), *_further(settings)]:
        base = identify_base(engines.model, engines.extra_args, say)
        if not engines.urls:
            check_device(base, engines.extra_args)
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


def planned_servers(settings: Settings, engines: Iterable[PlannedEngine]) -> list[PlannedServer]:
    """The servers that a stack asks beside its ``engines``, called after their bases; raises ConfigError."""
    names = {name for engine in engines for name in (engine.name, engine.base.name)}
    found: list[PlannedServer] = []
    for entry in read_fleet(settings.fleet):
        if isinstance(entry, OpenAIServer):
            if entry.base in names:
                raise ConfigError(
                    f"two entries are called {entry.base}",
                    "give the base of one another name, and map it by names",
                )
            names.add(entry.base)
            found.append(PlannedServer(entry.base, entry))
    return found


def read_fleet(path: Path | None) -> list[BaseEngines | OpenAIServer]:
    """Read the file of further bases; without one there are none. Raises ConfigError with every problem."""
    if path is None:
        return []
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
        return TypeAdapter(list[Entry]).validate_python(content or [])
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


def engine_args(settings: Settings) -> tuple[str, ...]:
    """The further arguments of the engines of ``settings.model``: the fleet's, where a command names a base of it."""
    return (engines_of(settings, settings.model) or BaseEngines.of(settings)).extra_args


def engines_of(settings: Settings, model: str) -> BaseEngines | None:
    """What the fleet, or else the settings, say of a base's engines; None where they name no such base."""
    named = [*_further(settings), BaseEngines.of(settings)]
    return next((engines for engines in named if _same(engines.model, model)), None)


def _further(settings: Settings) -> list[BaseEngines]:
    """The further bases of the fleet."""
    return [entry for entry in read_fleet(settings.fleet) if isinstance(entry, BaseEngines)]


def check_device(base: BaseIdentity, arguments: Sequence[str] = ()) -> None:
    """Raise :class:`BaseModelError` where the installed engine could not serve adapters of this base.

    vLLM starts, and ends at the first request. ``arguments`` are the engine's further ones.
    """
    if base.has_experts and installed_device() == "cpu" and not is_given(arguments, WITHOUT_LORA):
        raise BaseModelError(
            f"vLLM serves no adapters on a base with experts on a CPU, and {base.name} has some",
            "choose a base without experts, or a machine with a GPU",
        )


def _same(model: str, other: str) -> bool:
    one, two = Path(model).expanduser(), Path(other).expanduser()
    return model == other or (one.is_dir() and two.is_dir() and one.samefile(two))


def _problem(item: Mapping[str, Any]) -> str:
    kinds = [part for part in item["loc"][1:2] if part in KEYS]  # pydantic's word, not the file's
    path = [*item["loc"][:1], *item["loc"][1 + len(kinds) :]]
    place = ".".join(str(part + 1 if isinstance(part, int) else part) for part in path) or "the file"
    if item["type"] == "union_tag_invalid":
        return f"{place}.kind: is neither vllm nor openai"
    if item["type"] != "extra_forbidden":
        return f"{place}: {item['msg'].removeprefix('Value error, ')}"
    near = difflib.get_close_matches(str(item["loc"][-1]), KEYS[kinds[0]], 1)
    return f"{place}: no such key" + (f" (did you mean {near[0]}?)" if near else "")
