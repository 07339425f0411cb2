"""The plan of a run: what will happen, checked against base and data before anything heavy is imported."""

import difflib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Protocol

from serve.errors import DataError, RecipeError
from serve.registry.base import layer_name
from train.footprint import Footprint, footprint, has_bf16, tokens_in
from train.memory import ENGINE_HOLDS, free_memory
from train.recipe import Recipe

VALIDATIONS = 6
FEWEST_EVAL_ROWS = 100
ENOUGH_STEPS, MOST_EPOCHS = 300, 3
"""What ``epochs: auto`` aims at: an adapter of fewer steps has not settled, one of more epochs knows rows by heart."""
LEARNING_RATES = ((10_000_000, 5e-3), (100_000_000, 3e-3), (math.inf, 2e-4))
"""What ``learning_rate: auto`` is for bases below so many parameters."""
CHECKPOINTED_BASE, CHECKPOINTED_KEPT = 1_000_000_000, 8 * 2**30
"""Above so many parameters of a base, or bytes that a pass would keep, ``gradient_checkpointing: auto`` turns it on."""
# Of five answers that differ, an exact McNemar test makes p = 0.0625 at best; of six, 0.031.
FEWEST_TEST_ROWS = 6
ROUTERS = frozenset({"gate", "router", "shared_expert_gate"})
# Layers that hold weights of two dimensions but are no linear layers, or may not get an update.
NOT_LINEAR = ("embed", "wte", "wpe", "lm_head", "norm", "rotary")


class Base(Protocol):
    """What a plan needs to know of a base model; :class:`serve.registry.base.BaseIdentity` has it."""

    @property
    def name(self) -> str: ...  # noqa: D102
    @property
    def shapes(self) -> Mapping[str, tuple[int, ...]]: ...  # noqa: D102
    @property
    def max_length(self) -> int: ...  # noqa: D102
    @property
    def vocab_size(self) -> int: ...  # noqa: D102
    @property
    def has_experts(self) -> bool: ...  # noqa: D102
    @property
    def unadapted(self) -> frozenset[str]: ...  # noqa: D102


class Rows(Protocol):
    """What a plan needs to know of the data; :class:`train.data.prepare.Prepared` has it."""

    @property
    def counts(self) -> Mapping[str, int]: ...  # noqa: D102
    @property
    def longest(self) -> int: ...  # noqa: D102


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run will do.

    ``steps`` counts optimizer steps if no row is too long and nothing stops early; ``memory`` is an estimate in
    bytes for a batch of the longest rows; ``target_modules`` are the names of the layers that get an update;
    ``warnings`` are for the user.
    """

    rows: int
    validation_rows: int
    steps: int
    eval_every: int
    learning_rate: float
    max_length: int
    base_parameters: int
    adapter_parameters: int
    target_modules: tuple[str, ...]
    memory: int
    gradient_checkpointing: bool
    warnings: tuple[str, ...]


def total_steps(recipe: Recipe, rows: int) -> int:
    """Optimizer steps of a run over ``rows`` rows: an epoch ends with a smaller batch where they do not divide."""
    if recipe.train.max_steps is not None:
        return recipe.train.max_steps
    return max(1, math.ceil(epochs(recipe, rows) * _steps_per_epoch(recipe, rows)))


def epochs(recipe: Recipe, rows: int) -> float:
    """Passes over ``rows`` rows: as the recipe says, or one, or as many up to three as make 300 steps."""
    if recipe.train.epochs != "auto":
        return recipe.train.epochs
    return min(MOST_EPOCHS, max(1, math.ceil(ENOUGH_STEPS / _steps_per_epoch(recipe, rows))))


def _steps_per_epoch(recipe: Recipe, rows: int) -> int:
    batches = math.ceil(rows / recipe.train.batch_size)
    return max(1, math.ceil(batches / recipe.train.gradient_accumulation))


def eval_every(recipe: Recipe, steps: int) -> int:
    """Steps between validations."""
    return recipe.train.eval_every or max(1, math.ceil(steps / VALIDATIONS))


def learning_rate(recipe: Recipe, parameters: int) -> float:
    """The highest learning rate on a base of so many parameters."""
    given = recipe.train.learning_rate
    return next(rate for below, rate in LEARNING_RATES if parameters < below) if given == "auto" else given


def eval_rows(recipe: Recipe, every: int, validation: int) -> int:
    """Rows of ``validation`` that a validation reads, of which there is one each ``every`` steps."""
    most = recipe.train.eval_rows
    if most == "auto":
        trained = every * recipe.train.batch_size * recipe.train.gradient_accumulation
        most = max(FEWEST_EVAL_ROWS, trained // 10)
    return validation if most is None else min(validation, most)


def make_plan(recipe: Recipe, prepared: Rows, base: Base, *, max_rank: int | None = None) -> Plan:
    """Check ``recipe`` against data and base; raises RecipeError or DataError where they cannot go together.

    ``max_rank`` is the highest rank that the engine will load, if the adapter is for one.
    """
    rows, validation = prepared.counts.get("train", 0), prepared.counts.get("validation", 0)
    if rows == 0:
        raise DataError(
            "the training split has no rows", "give more data, or lower the other splits' fractions"
        )
    parameters = sum(math.prod(shape) for shape in base.shapes.values())
    linear = _linear(base)
    rank = recipe.lora.rank
    _check(_rank_problems(rank, max_rank), _target_problems(recipe, linear, base))
    targets = _targets(recipe, linear)
    shapes = [shape for name, shape in linear.items() if layer_name(name) in targets]
    adapter = sum(rank * (shape[0] + shape[1]) for shape in shapes)
    length = min(recipe.train.max_length, base.max_length)
    steps = total_steps(recipe, rows)
    every = eval_every(recipe, steps)
    tokens = recipe.train.batch_size * tokens_in(prepared.longest, length)
    needed = _footprint(recipe, base, adapter, tokens)
    checkpointing = recipe.train.gradient_checkpointing
    if checkpointing == "auto":
        checkpointing = parameters > CHECKPOINTED_BASE or needed.kept > CHECKPOINTED_KEPT
    plan = Plan(
        rows=rows,
        validation_rows=eval_rows(recipe, every, validation),
        steps=steps,
        eval_every=every,
        learning_rate=learning_rate(recipe, parameters),
        max_length=length,
        base_parameters=parameters,
        adapter_parameters=adapter,
        target_modules=targets,
        memory=needed.total(checkpointing=checkpointing),
        gradient_checkpointing=checkpointing,
        warnings=(),
    )
    warnings = (
        *_warnings(plan, recipe, base, min(min(shape) for shape in shapes)),
        *_verdict_warnings(prepared.counts.get("test", 0)),
        *_memory_warnings(plan),
    )
    return replace(plan, warnings=warnings)


def _footprint(recipe: Recipe, base: Base, adapter: int, tokens: int) -> Footprint:
    precision, experts = recipe.train.precision, _expert_layers(base)  # of which a token passes a few
    passed = {
        name: shape for name, shape in _matrices(base.shapes).items() if layer_name(name) not in experts
    }
    return footprint(
        base.shapes,
        passed,
        adapter=adapter,
        tokens=tokens,
        vocabulary=base.vocab_size,
        bf16=precision == "bf16" or (precision == "auto" and has_bf16()),
        dropout=recipe.lora.dropout > 0,
    )


def _linear(base: Base) -> dict[str, tuple[int, ...]]:
    left_out = _expert_layers(base) | base.unadapted
    return {name: shape for name, shape in _matrices(base.shapes).items() if layer_name(name) not in left_out}


def _matrices(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    return {
        name: shape
        for name, shape in shapes.items()
        if len(shape) == 2 and name.endswith(".weight") and not any(word in name for word in NOT_LINEAR)
    }


def _expert_layers(base: Base) -> frozenset[str]:
    """The names of layers in experts, and of their routers: PEFT adapts those as raw parameters, no engine does.

    A layer elsewhere that is called as one of them is among them, as PEFT tells layers by their names.
    """
    if not base.has_experts:
        return frozenset()
    return frozenset(
        layer_name(name)
        for name in _matrices(base.shapes)
        if not (ROUTERS | {"experts"}).isdisjoint(name.removesuffix(".weight").split("."))
    )


def _check(*found: Iterator[tuple[str, str]]) -> None:
    """Raise one RecipeError for all problems and their ways out."""
    problems = [problem for problems in found for problem in problems]
    if problems:
        reasons, hints = zip(*problems, strict=True)
        raise RecipeError("; ".join(reasons), "; ".join(hints))


def _rank_problems(rank: int, highest: int | None) -> Iterator[tuple[str, str]]:
    if highest is not None and rank > highest:
        yield (
            f"lora.rank {rank} is above {highest}, the highest that the engine loads",
            f"set lora.rank to {highest} or less, or raise TENON_MAX_LORA_RANK and restart the engine",
        )


def _target_problems(
    recipe: Recipe, linear: Mapping[str, tuple[int, ...]], served: Base
) -> Iterator[tuple[str, str]]:
    layers, base, experts = _layers(linear), served.name, _expert_layers(served)
    if any(name.endswith("c_attn.weight") and shape[1] == 3 * shape[0] for name, shape in linear.items()):
        # GPT-2's layers, whose weights are the other way round.
        yield f"the layers of {base} are Conv1D, of which no engine adapts any", "choose another base"
    elif not layers:
        yield f"{base} has no linear layers that an adapter could update", "choose another base"
    elif recipe.lora.target_modules != "all-linear":
        problems = []
        for module in recipe.lora.target_modules:
            if module in experts:
                problems.append(
                    f"{module} is of the experts of {base} or their router, which no engine adapts"
                )
            elif module in served.unadapted:
                problems.append(f"{module} of {base} is a layer that vLLM does not adapt by this name")
            elif module not in layers:
                near = difflib.get_close_matches(module, layers, 1)
                meant = f" (did you mean {near[0]}?)" if near else ""
                problems.append(f"{base} has no layer {module}{meant}")
        if problems:
            yield (
                f"lora.target_modules: {'; '.join(problems)}",
                f"its layers: {', '.join(layers)}; or all-linear",
            )


def _layers(linear: Mapping[str, tuple[int, ...]]) -> list[str]:
    return sorted({layer_name(name) for name in linear})


def _targets(recipe: Recipe, linear: Mapping[str, tuple[int, ...]]) -> tuple[str, ...]:
    chosen = recipe.lora.target_modules
    return tuple(_layers(linear) if chosen == "all-linear" else sorted(set(chosen)))


def _warnings(plan: Plan, recipe: Recipe, base: Base, narrowest: int) -> Iterator[str]:
    train = recipe.train
    if _expert_layers(base):
        yield f"the experts of {base.name} get no update, as no engine adapts them; its other layers do"
    if unadapted := sorted(base.unadapted & set(map(layer_name, _matrices(base.shapes)))):
        layers = f"{', '.join(unadapted)} of {base.name}"
        yield f"no update for {layers}, which vLLM does not adapt by this name; the other layers get one"
    if train.max_length > base.max_length and "max_length" in train.model_fields_set:
        yield f"train.max_length is cut to {base.max_length:,}, the longest that {base.name} can read"
    if plan.validation_rows == 0:
        yield "no validation rows: no early stopping, and the last checkpoint is taken as the best"
    if recipe.lora.rank > narrowest:
        yield f"lora.rank {recipe.lora.rank} is above the width {narrowest} of a layer: it adds nothing"
    if plan.rows < train.batch_size:
        yield f"only {plan.rows:,} training rows, fewer than one batch of {train.batch_size}"


def _verdict_warnings(test_rows: int) -> Iterator[str]:
    if test_rows < FEWEST_TEST_ROWS:
        rows = "no test rows" if test_rows == 0 else f"too few test rows ({test_rows})"
        yield (
            f"{rows}: no verdict on the adapter is possible with fewer than {FEWEST_TEST_ROWS}; "
            "give data.test or more rows"
        )


def _memory_warnings(plan: Plan) -> Iterator[str]:
    free = free_memory()
    if plan.memory > free.bytes:
        less = "" if plan.gradient_checkpointing else ", or set train.gradient_checkpointing=true"
        yield (
            f"needs about {plan.memory / 2**30:,.1f} GiB of {free.kind}, {free.bytes / 2**30:,.1f} GiB are free: "
            f"lower train.batch_size or train.max_length{less}" + (f"; {ENGINE_HOLDS}" if free.on_gpu else "")
        )
