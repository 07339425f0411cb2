"""Recipes: what to train, typed. YAML and ``section.key=value`` overrides become one checked object.

A recipe is refused as a whole: every problem is listed at once, and a key that does not exist is answered with
the nearest one that does.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, Self, get_args

import yaml
from pydantic import BaseModel, Field, StringConstraints, ValidationError, field_validator

from serve.errors import InputError, RecipeError
from serve.names import check_name
from train.data.spec import DataSpec, FieldName
from train.section import Section

RECIPES = Path(__file__).with_name("recipes")
COLUMNS = ("data", "columns")
HINT = "train/recipes/default.yaml shows every key with its default"

# PyYAML lets the ValueError of a date such as 2026-13-01 through, and that of bytes that are no UTF-8.
MALFORMED = (yaml.YAMLError, ValueError, RecursionError)

Module = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.]+$")]


class LoraSpec(Section):
    """The adapter: low-rank updates ``(alpha / rank) · B·A`` of linear layers (Hu et al. 2021)."""

    rank: int = Field(32, ge=1, le=512, description="rank of the updates")
    alpha: float = Field(64, gt=0, description="scale: an update is multiplied by alpha / rank")
    dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the input of the updates")
    target_modules: Literal["all-linear"] | Annotated[list[Module], Field(min_length=1)] = Field(
        "all-linear", description="layers that get an update: all linear ones, or names such as q_proj"
    )
    rslora: bool = Field(False, description="scale by alpha / sqrt(rank) instead (Kalajdzievski 2023)")


class TrainSpec(Section):
    """How the adapter is trained."""

    epochs: Annotated[float, Field(gt=0, le=1000)] | Literal["auto"] = Field(
        "auto", description="passes over the training split; auto: one, or up to three for 300 steps"
    )
    max_steps: int | None = Field(None, ge=1, description="stop after this many steps, whatever epochs says")
    learning_rate: Annotated[float, Field(gt=0, le=1)] | Literal["auto"] = Field(
        "auto",
        description="highest learning rate; auto: 5e-3 for bases below 10 M parameters, 3e-3 below 100 M, else 2e-4",
    )
    batch_size: int = Field(16, ge=1, description="rows per forward pass")
    gradient_accumulation: int = Field(1, ge=1, description="forward passes per step")
    warmup_ratio: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the rate rises")
    scheduler: Literal["linear", "cosine", "constant"] = Field("cosine", description="how the rate falls")
    weight_decay: float = Field(0.0, ge=0, description="AdamW weight decay")
    max_grad_norm: float = Field(1.0, ge=0, description="gradients are clipped to this norm; 0: never")
    max_length: int = Field(1024, ge=8, description="rows with more tokens are left out, and reported")
    eval_every: int | None = Field(None, ge=1, description="steps between validations; empty: 6 per run")
    eval_rows: Annotated[int, Field(ge=1)] | Literal["auto"] | None = Field(
        "auto",
        description="rows that a validation reads; auto: a tenth of those trained since the last, 100 at least;"
        " empty: all of them",
    )
    early_stopping_patience: int = Field(
        3, ge=0, description="stop after this many validations without a better loss; 0: never"
    )
    save_every: int | None = Field(None, ge=1, description="steps between checkpoints; empty: at validations")
    seed: int = Field(0, ge=0, lt=2**32, description="seed of the adapter's start, the order and dropout")
    precision: Literal["auto", "bf16", "fp32"] = Field(
        "auto", description="auto: bf16 where the hardware has it"
    )
    gradient_checkpointing: bool | Literal["auto"] = Field(
        "auto",
        description="less memory for a quarter more time; auto: for bases above 1 G parameters,"
        " and where a batch would keep above 8 GiB",
    )


class Recipe(Section):
    """Everything that decides what an adapter becomes, but for the base's weights and the rows themselves."""

    name: str = Field("support", description="name of the adapter; versions are NAME@v1, NAME@v2, …")
    base: str = Field(
        "tenon-tiny", min_length=1, description="base model: built-in name, local folder or hub id"
    )
    data: DataSpec = Field(default_factory=lambda: DataSpec.model_validate({}))
    lora: LoraSpec = Field(default_factory=lambda: LoraSpec.model_validate({}))
    train: TrainSpec = Field(default_factory=lambda: TrainSpec.model_validate({}))

    @field_validator("name")
    @classmethod
    def _name_is_servable(cls, name: str) -> str:
        try:
            return check_name(name)
        except InputError as error:
            raise ValueError(f"not a name for an adapter; {error.hint}") from None

    @classmethod
    def load(cls, path: Path | str | None = None, overrides: Sequence[str] = ()) -> Self:
        """Read a recipe and apply ``overrides`` such as ``train.epochs=2``; the value is read as YAML.

        ``path`` is a YAML file or the name of a recipe in ``train/recipes``; None means all defaults.
        Raises :class:`RecipeError` with every problem in its message.
        """
        problems: list[str] = []
        values = {} if path is None else _read(_find(path), problems)
        for override in overrides:
            _apply(values, override, problems)
        unknown = list(_unknown(cls, values))
        problems += [text for _, text in unknown]
        try:
            recipe = cls.model_validate(values)
        except ValidationError as error:
            known_bad = {location for location, _ in unknown}
            problems += _spell(error, known_bad)
        if problems:
            raise RecipeError("; ".join(dict.fromkeys(problems)), HINT)
        return recipe


class _StrictLoader(yaml.SafeLoader):
    """YAML whose keys are words, none of them repeated: PyYAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
            if not isinstance(key, yaml.ScalarNode):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a word, not a list or a mapping", key.start_mark
                )
            if key.value in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"{key.value} is given twice", key.start_mark
                )
            seen.add(key.value)
        return super().construct_mapping(node, deep)


def _find(path: Path | str) -> Path:
    """The file that ``path`` names, a recipe of ours where there is no such file."""
    path = Path(path)
    if path.exists():
        return path
    names = sorted(file.stem for file in RECIPES.glob("*.yaml"))
    if path.name in names and path.parent == Path():
        return RECIPES / f"{path.name}.yaml"
    beside = sorted(file.name for file in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, [*beside, *names], 1)
    raise RecipeError(
        f"there is no recipe {path}" + (f" (did you mean {near[0]}?)" if near else ""),
        f"give a YAML file or one of: {', '.join(names)}",
    )


def _read(path: Path, problems: list[str]) -> dict[str, Any]:
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _StrictLoader)
    except OSError as error:
        raise RecipeError(
            f"{path} cannot be read: {error.strerror or error}", "give a readable YAML file"
        ) from error
    except MALFORMED as error:
        raise RecipeError(f"{path} is not YAML: {' '.join(str(error).split())}", HINT) from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        problems.append(f"{path} holds a {type(values).__name__}, not keys and values")
        return {}
    # A section whose keys are all commented out reads as null.
    sections = _sections(Recipe)
    return {str(key): {} if value is None and key in sections else value for key, value in values.items()}


def _apply(values: dict[str, Any], override: str, problems: list[str]) -> None:
    """Set what ``a.b=c`` says in ``values``; note in ``problems`` why it cannot be."""
    dotted, equals, text = override.partition("=")
    keys = dotted.strip().split(".")
    if not equals or not all(keys):
        problems.append(f"{override!r} is no override (write it as train.epochs=2)")
        return
    try:
        value = yaml.load(text, _StrictLoader)
    except MALFORMED as error:
        problems.append(f"{override}: the value is not YAML ({' '.join(str(error).split())})")
        return
    inner = values
    for depth, key in enumerate(keys[:-1], 1):
        if inner.get(key) is None:
            inner[key] = {}
        if not isinstance(inner[key], dict):
            problems.append(
                f"{override} cannot be set: the recipe's {'.'.join(keys[:depth])} holds no keys of its own"
            )
            return
        inner = inner[key]
    inner[keys[-1]] = value


def _sections(model: type[BaseModel]) -> dict[str, type[BaseModel]]:
    fields = model.model_fields.items()
    return {
        name: field.annotation
        for name, field in fields
        if isinstance(field.annotation, type) and issubclass(field.annotation, BaseModel)
    }


def _unknown(model: type[BaseModel], values: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], str]]:
    """Keys of ``values`` that ``model`` has not, each with its location and the problem in words."""
    sections = _sections(model)
    everywhere = [f"{section}.{key}" for section, inner in sections.items() for key in inner.model_fields]
    for key, value in values.items():
        if key not in model.model_fields:
            yield (key,), f"{key} is no key of a recipe{_nearest(key, [*model.model_fields, *everywhere])}"
        elif key in sections and isinstance(value, Mapping):
            local = [f"{key}.{name}" for name in sections[key].model_fields]
            for name in value:
                if f"{key}.{name}" not in local:
                    elsewhere = [other for other in everywhere if other.endswith(f".{name}")]
                    yield (
                        (key, name),
                        f"{key}.{name} is no key of a recipe{_nearest(f'{key}.{name}', elsewhere or local)}",
                    )


def _nearest(key: str, known: Sequence[str]) -> str:
    """``(did you mean …?)`` with the key of ``known`` whose last part is most like that of ``key``."""
    last: dict[str, str] = {}
    for name in known:
        last.setdefault(name.rpartition(".")[2], name)
    near = difflib.get_close_matches(key.rpartition(".")[2].lower().replace("-", "_"), last, 1, 0.5)
    return f" (did you mean {last[near[0]]}?)" if near else ""


def _spell(error: ValidationError, unknown: set[tuple[str, ...]]) -> Iterator[str]:
    """Each key's problem as pydantic found it, but for the unknown keys, which are spelled already."""
    problems: dict[str, list[str]] = {}
    inputs: dict[str, Any] = {}
    for item in error.errors(include_url=False):
        location = tuple(str(part) for part in item["loc"])
        if location in unknown:
            continue
        # A union has a problem for each of its branches, with the branch in the location; a reader knows the key.
        key = ".".join(location[: 3 if location[:2] == COLUMNS else 2])
        if location[:2] == COLUMNS and location[-1] == "[key]":
            near = _nearest(location[2], [f"data.columns.{name}" for name in get_args(FieldName)])
            problems[f"{key} is no field of a row{near}"] = []
            continue
        message = item["msg"].removeprefix("Value error, ")
        if message not in (found := problems.setdefault(key, [])):
            found.append(message)
        inputs.setdefault(key, item["input"])
    for key, messages in problems.items():
        shown = inputs.get(key, {})
        got = "" if isinstance(shown, BaseModel | dict) else f" (got {shown!r})"
        first, *others = messages or [""]
        message = ", or ".join([first, *(text.removeprefix("Input should be ") for text in others)])
        yield f"{key}: {message}{got}" if key and message else f"{key}{message}"
