"""The life of an adapter in one command: data, plan, train, register, verify, evaluate, gate, deploy."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import version as distribution_version
from pathlib import Path
from typing import Any

from deploy import stack
from deploy.adaptable import adaptable
from deploy.console import note, step
from deploy.evaluation import Judgement, judge
from deploy.progress import TrainingView
from deploy.questions import prepare_in, recorded
from deploy.serving import move_alias, of_another_command, wanted
from deploy.status import Status, processes
from deploy.waiting import READY_AFTER_ENGINE
from evalsuite.tasks import chat_fields
from serve.config import Settings
from serve.errors import AlreadyUp, BaseModelError, DataError, InputError, StorageError
from serve.gateway.policy import SamplingPolicy
from serve.interrupts import interrupts_wait
from serve.names import check_adapter_name
from serve.registry import Lineage, Registry, Version
from serve.registry.base import BaseIdentity, identify_base
from serve.registry.store import digest_of
from train.data.prepare import Prepared, describe
from train.data.spec import SPLITS
from train.launch import TrainResult, run_training, settle
from train.plan import make_plan
from train.recipe import Recipe

LONGEST_SAMPLE = 2_000  # characters of a question that is good to paste


@dataclass(frozen=True)
class Outcome:
    """What a whole run came to."""

    version: Version
    judgement: Judgement
    deployed: bool
    url: str
    engine_pid: int | None
    seconds: float
    keys: bool = False
    """Whether the gateway asks for API keys."""
    greedy: bool = True
    """Whether the alias may be asked at temperature 0."""

    @property
    def sample(self) -> dict[str, Any]:
        """One held-out question as fields of a chat request; tools are offered as in the evaluation."""
        questions = self.judgement.evaluation.questions
        handy = (question for question in questions if len(question.text) <= LONGEST_SAMPLE)
        question = next(handy, None) or min(questions, key=lambda question: len(question.text))
        return chat_fields(question.messages, question.tools)

    def to_dict(self) -> dict[str, Any]:
        """The outcome for a script to read."""
        return {
            "version": str(self.version.ref),
            "verdict": self.judgement.verdict,
            "deployed": self.deployed,
            "forced": self.judgement.decision.forced,
            "report": str(self.judgement.report),
            "url": self.url,
            "engine_pid": self.engine_pid,
            "seconds": round(self.seconds, 1),
            "evaluation": self.judgement.evaluation.summary(),
        }


def train_and_register(
    settings: Settings, recipe: Recipe, registry: Registry, *, to_prove: bool = False
) -> Version:
    """Data, plan, training and registration, a line each; returns the new version.

    With ``to_prove``, raises before training :class:`DataError` where no question is held out, and
    :class:`BaseModelError` where no engine could serve the adapter.
    """
    with step("data") as current:
        base = identify_base(recipe.base, say=current.say)
        check_adapter_name(recipe.name, base.name)
        prepared = prepare_in(settings.home, recipe.data)
        current.result = " · ".join(f"{count:,} {split}" for split, count in prepared.counts.items())
    for text in describe(prepared):
        note(text)
    if to_prove and not prepared.counts["test"]:
        raise DataError(
            "the test split has no rows, so nothing could prove the adapter better than its base",
            "give held-out questions with --test (make: TEST=…), or set data.test_fraction above 0 and add rows",
        )
    with step("plan") as current:
        warnings: list[str] = []
        try:
            base = adaptable(settings, recipe.base, base, current.say)
        except BaseModelError as error:
            if to_prove:
                raise
            warnings.append(f"no engine here will serve this adapter: {error.message}")
        plan = make_plan(recipe, prepared, base, max_rank=settings.max_lora_rank)
        current.result = (
            f"{plan.steps:,} steps · {plan.adapter_parameters:,} of {plan.base_parameters:,} parameters"
            f" · about {plan.memory / 2**30:.1f} GiB"
        )
    for text in (*plan.warnings, *warnings):
        note(text, "yellow")
    with step("train") as current:
        view = TrainingView(current)
        result = run_training(recipe, prepared, base, settings.runs, view.see)
        current.result = outcome_of(result)
    for text in view.notices:
        note(text, "yellow")
    with step("register") as current:
        version = register(settings, recipe, registry, prepared, base, result)
        current.result = f"{version.ref}, {version.facts.bytes / 2**20:.1f} MiB, digest {version.digest[:12]}"
    if version.facts.all_zero:
        note("all its weights are zero, so it answers exactly as the base: train more steps", "yellow")
    for text in version.facts.warnings:
        note(text, "yellow")
    return version


def outcome_of(result: TrainResult) -> str:
    """One line on how a training run ended."""
    parts = [f"{result.steps:,} steps"]
    if result.resumed_from == result.steps:
        parts.append("trained before")
    elif result.resumed_from is not None:
        parts.append(f"resumed at {result.resumed_from:,}")
    if result.metrics.get("stopped_early"):
        parts.append(f"stopped early, best at {result.metrics['best_step']:,}")
    for key, label in (("validation_loss", "loss"), ("validation_token_accuracy", "token accuracy")):
        if key in result.metrics:
            parts.append(f"validation {label} {result.metrics[key]:.3f}")
    if result.resumed_from != result.steps and "peak_memory" in result.metrics:
        parts.append(f"{result.metrics['peak_memory'] / 2**30:.1f} GiB at most")
    return " · ".join(parts)


def register(
    settings: Settings,
    recipe: Recipe,
    registry: Registry,
    prepared: Prepared,
    base: BaseIdentity,
    result: TrainResult,
) -> Version:
    """Make the trained adapter an immutable version that knows where it came from.

    If something else than its files is in the way, such as a full disk, the same command finds the run finished and
    registers it then.
    """
    lineage = Lineage(
        run=result.run_dir.name,
        recipe=wherever_run(recipe).model_dump(mode="json"),
        data_fingerprint=prepared.fingerprint,
        code_version=distribution_version("tenon-llm"),
        source="run",
        metrics=result.metrics,
        files={"test": str(prepared.folder / "test.jsonl"), "task": str(prepared.folder / "task.json")},
        base_digest=base.digest,
    )
    if result.resumed_from == result.steps:  # it may have been interrupted after it was registered
        digest = digest_of(result.adapter_dir)
        for version in registry.versions(recipe.name):
            if (version.lineage.run, version.base_digest, version.digest) == (
                lineage.run,
                base.digest,
                digest,
            ):
                settle(result)
                return version
    try:
        version = registry.register(
            result.adapter_dir, recipe.name, base, max_rank=settings.max_lora_rank, lineage=lineage
        )
    except InputError:
        settle(result)  # it would be refused again
        raise
    settle(result)
    return version


def wherever_run(recipe: Recipe) -> Recipe:
    """The recipe with data files named so that they are found from any folder."""
    files = {name: getattr(recipe.data, name) for name in SPLITS}
    paths: dict[str, Any] = {
        name: str(Path(file).expanduser().absolute())
        for name, file in files.items()
        if file is not None and Path(file).expanduser().is_file()
    }
    return recipe.model_copy(update={"data": recipe.data.model_copy(update=paths)})


def run(settings: Settings, recipe: Recipe, *, force: bool = False) -> Outcome:
    """Train an adapter, prove it against the base through the running server, and deploy it.

    The stack is started where it does not run and left running at the end; if the command fails or is
    interrupted, a stack that it started is stopped again, unless somebody else needs it. Where the gate refuses,
    the alias stays where it is and ``deployed`` is false.
    """
    started = time.monotonic()
    check_before(settings)
    with Registry.of(settings) as registry:
        keys = registry.keys_used()
        version = train_and_register(settings, recipe, registry, to_prove=True)
        ours = False
        try:
            with step("serve") as current:
                now, ours = ensure_up(settings, current.say)
                engine = f"engine process {now.engine.pid}" if now.engine.pid else "engine attached"
                current.result = f"{'up' if ours else 'was up'}: {engine}, gateway {now.url}"
            with wanted(registry, version.ref):
                judgement = judge(settings, registry, version, recorded(version), force=force)
                if judgement.decision.allowed:
                    deploy(settings, registry, version, force=force)
        except BaseException:
            with interrupts_wait():
                ours = ours and not in_use(registry)
                if ours:
                    stack.tell_to_stop(settings.home)
            if ours:
                stack.down(settings.home)
            raise
        alias = registry.alias(version.ref.name)
    policy = SamplingPolicy.parse(alias.sampling if alias is not None else {})
    return Outcome(
        version,
        judgement,
        judgement.decision.allowed,
        str(now.url),
        now.engine.pid,
        time.monotonic() - started,
        keys,
        policy.allows("temperature", 0),
    )


def deploy(settings: Settings, registry: Registry, version: Version, *, force: bool) -> None:
    """Let the adapter's own alias mean the version."""
    with step("deploy") as current:
        alias = move_alias(registry, settings, version.ref.name, version, force=force, say=current.say)
        current.result = f"alias {alias.name} → {version.ref}"
        if alias.previous is not None:
            current.result += f", before it {alias.previous}"
        if alias.forced:
            current.result += " (forced)"


def check_before(settings: Settings) -> None:
    """Find out before training, not after, that the stack could not serve the result."""
    now = processes(settings.home)
    if now.gateway.pid is None:
        stack.check_gateway(settings)


def in_use(registry: Registry) -> bool:
    """Whether another command of this machine needs the stack by now; not, where nobody can tell."""
    try:
        return any(of_another_command(holder) for holder in registry.holders())
    except StorageError:
        return False


def ensure_up(settings: Settings, say: Callable[[str], None]) -> tuple[Status, bool]:
    """The running stack, and whether it is ours: all of it was down, and we brought it up.

    Where another command is about to bring it up, that is waited for.
    """
    deadline = time.monotonic() + settings.engine_start_timeout + READY_AFTER_ENGINE
    while not (now := processes(settings.home)).healthy:
        try:
            return stack.up(settings, say)
        except AlreadyUp:
            if time.monotonic() > deadline:
                raise
            say("another command brings the stack up")
            time.sleep(0.25)
    return now, False
