"""What use costs: a table of prices turns tokens and engine time into money.

    currency: EUR
    default: {prompt: 0.20, completion: 0.60}   # per million tokens
    adapters:
      support: {prompt: 0.30, completion: 0.90}
      qwen3-8b: {engine_hour: 2.50}             # an engine's time, by the share that requests had of it

A price that is not given is 0; what several prices ask for is added up.
"""

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from serve.errors import ConfigError

MILLION, HOUR = 1e6, 3600.0
Money = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class Price(BaseModel):
    """Prices of one adapter or base: per million tokens, and per hour of an engine."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    prompt: Money = 0.0
    completion: Money = 0.0
    engine_hour: Money = 0.0

    def cost(self, prompt_tokens: float, completion_tokens: float, engine_seconds: float) -> float:
        """What that much use costs."""
        tokens = self.prompt * prompt_tokens + self.completion * completion_tokens
        return tokens / MILLION + self.engine_hour * engine_seconds / HOUR


class Prices(BaseModel):
    """The prices of all adapters (by name, for all of their versions) and bases; without any, all is free."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    currency: str = ""
    default: Price = Price()
    adapters: Mapping[str, Price] = {}

    def of(self, adapter: str) -> Price:
        """The price of an adapter or a base."""
        return self.adapters.get(adapter, self.default)

    @classmethod
    def load(cls, path: Path | None) -> Self:
        """Read the YAML file; without one, no prices. Raises ConfigError with every problem."""
        if path is None:
            return cls()
        try:
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
        except OSError as error:
            raise ConfigError(
                f"the prices in {path} cannot be read: {error.strerror}", "check TENON_PRICES"
            ) from error
        except (yaml.YAMLError, UnicodeDecodeError) as error:
            raise ConfigError(
                f"the prices in {path} are not YAML: {' '.join(str(error).split())}",
                "see docs/serving.md for the format",
            ) from error
        try:
            return cls.model_validate(content if content is not None else {})
        except ValidationError as error:
            problems = "; ".join(_problem(dict(item)) for item in error.errors())
            raise ConfigError(
                f"the prices in {path} are wrong: {problems}", "see docs/serving.md for the format"
            ) from error


def _problem(item: Mapping[str, Any]) -> str:
    place = ".".join(map(str, item["loc"])) or "the file"
    if item["type"] != "extra_forbidden":
        return f"{place}: {item['msg']} (got {item['input']!r})"
    known = (*Prices.model_fields, *Price.model_fields)
    near = difflib.get_close_matches(str(item["loc"][-1]), known, 1)
    return f"{place} is no key" + (f" (did you mean {near[0]}?)" if near else "")
