"""Supervised fine-tuning of a LoRA adapter, by TRL's SFTTrainer and PEFT."""

import json
import os
import resource
import time
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from peft import LoraConfig
from transformers import (
    MODEL_FOR_CAUSAL_LM_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerBase,
)
from trl import SFTConfig

from serve.errors import BaseModelError, DataError
from train.events import TrainEvent
from train.interruption import Interruption
from train.methods.callbacks import Emit, MetricsFile, Reporter, Schedule
from train.methods.checkpoints import Progress, clear_partial, export, read_progress
from train.methods.head import add_compact_head
from train.methods.tokens import TokenRows, load_tokenizer, stop_tokens, tokenize
from train.methods.trainer import AdapterTrainer
from train.methods.tree_attention import PRODUCTS_UP_TO, share_starts
from train.plan import epochs, eval_every, total_steps
from train.recipe import Recipe
from train.runs import Run, write_text

PROBED = 3
"""Rows of each split that are asked before it is decided how batches are laid out."""


def train(run: Run, job: Mapping[str, Any], emit: Emit, interruption: Interruption) -> None:
    """Train, or go on training, what ``job`` says; leaves the adapter in the run's folder."""
    started = time.monotonic()
    _quiet()
    recipe = Recipe.model_validate(job["recipe"])
    clear_partial(run)
    latest = run.latest_checkpoint()
    progress = read_progress(latest[1]) if latest else Progress()
    resumed_from = latest[0] if latest else None
    if not progress.finished:
        _train(run, job, recipe, progress, resumed_from, emit, interruption)
    interruption.training = False
    best = progress.best_step or progress.step
    export(run, run.checkpoints / f"step-{best}", job["base"]["reference"])
    done = TrainEvent(
        event="done",
        step=progress.step,
        total_steps=progress.total_steps,
        loss=progress.best_loss,
        token_accuracy=progress.best_token_accuracy,
        perplexity=progress.best_perplexity,
        best_step=best,
        stopped_early=progress.stopped,
        resumed_from=resumed_from,
        peak_memory=peak_memory(),
        seconds=round(time.monotonic() - started, 2),
    )
    emit(done)


def _train(
    run: Run,
    job: Mapping[str, Any],
    recipe: Recipe,
    progress: Progress,
    resumed_from: int | None,
    emit: Emit,
    interruption: Interruption,
) -> None:
    emit(TrainEvent(event="phase", message="reading rows"))
    tokenizer = load_tokenizer(Path(job["base"]["path"]))
    splits = read_splits(job, tokenizer, emit)
    keep_asked(run, splits["train"], tokenizer)
    emit(TrainEvent(event="phase", message="loading the base"))
    metrics = MetricsFile(run.metrics, resumed_from or 0)

    def tell(event: TrainEvent) -> None:
        metrics.write(event)
        emit(event)

    trainer = make_trainer(run, job, tokenizer, splits, progress, interruption)
    steps = total_steps(recipe, len(trainer.train_dataset))
    schedule = Schedule(
        run,
        progress,
        interruption,
        tell,
        every=eval_every(recipe, steps),
        save_every=recipe.train.save_every,
        patience=recipe.train.early_stopping_patience,
        validates="validation" in splits,
    )
    trainer.add_callback(schedule)
    trainer.add_callback(Reporter(tell))
    emit(TrainEvent(event="plan", step=resumed_from or 0, total_steps=steps, resumed_from=resumed_from))
    interruption.training = True
    trainer.train(
        resume_from_checkpoint=None if resumed_from is None else str(run.checkpoints / f"step-{resumed_from}")
    )


def read_splits(
    job: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase, emit: Emit
) -> dict[str, TokenRows]:
    """Tokenised training rows, and validation rows where there are some; reports rows that are too long."""
    data, folder, max_length = Path(job["data"]), Path(job["base"]["path"]), job["plan"]["max_length"]
    stops = stop_tokens(tokenizer, folder)
    can_more = max_length < job["base"]["max_length"]
    more = "raise train.max_length to keep them" if can_more else "the base can read no more"
    splits = {}
    for name in ("train", "validation"):
        path = data / f"{name}.jsonl"
        if not path.exists():
            continue
        rows = tokenize(path, tokenizer, stops, max_length)
        if rows.too_long:
            shown = ", ".join(
                f"{number} (id {row}, {tokens:,} tokens)" for number, row, tokens in rows.too_long[:3]
            )
            count = len(rows.too_long)
            have = "row has" if count == 1 else "rows have"
            message = f"{path.name}: {count:,} {have} more than {max_length:,} tokens: {shown}"
            hint = f"they are left out; {more}"
            emit(TrainEvent(event="notice", message=message, hint=hint))
        if len(rows):
            splits[name] = rows
    if "validation" in splits:
        seed = job["recipe"]["train"]["seed"]
        splits["validation"] = splits["validation"].sample(job["plan"]["validation_rows"], seed)
    if "train" not in splits:
        raise DataError(
            f"every training row has more than {max_length:,} tokens",
            "raise train.max_length or shorten the rows"
            if can_more
            else "shorten the rows, or train a base that reads more",
        )
    return splits


def keep_asked(run: Run, rows: TokenRows, tokenizer: PreTrainedTokenizerBase) -> None:
    """Keep the first row and its prompt's tokens, by which it is found out whether a server writes prompts alike.

    ``day`` is there where the template may write the date, and its prompts differ from day to day.
    """
    if rows.first is None:
        return
    dated = "strftime_now" in json.dumps(tokenizer.chat_template)
    asked = {
        "messages": rows.first["prompt"],
        "tools": rows.first.get("tools"),
        "tokens": rows.first_prompt,
        "day": date.today().isoformat() if dated else None,
    }
    write_text(run.asked, json.dumps(asked, ensure_ascii=False) + "\n")


def make_trainer(
    run: Run,
    job: Mapping[str, Any],
    tokenizer: PreTrainedTokenizerBase,
    splits: Mapping[str, TokenRows],
    progress: Progress,
    interruption: Interruption,
    *,
    share: bool = True,
) -> AdapterTrainer:
    """The trainer of a job on its base; ``share`` lets it compute common starts of rows once where it can."""
    recipe, plan = Recipe.model_validate(job["recipe"]), job["plan"]
    bf16 = recipe.train.precision == "bf16" or (recipe.train.precision == "auto" and has_bf16())
    longest = max(rows.longest for rows in splits.values())
    base = Path(job["base"]["path"])
    own = has_own_attention(base)
    lora = LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=recipe.lora.alpha,
        lora_dropout=recipe.lora.dropout,
        # By name: PEFT's own all-linear spells out every layer of a small base, and servers want names.
        target_modules=list(plan["target_modules"]),
        use_rslora=recipe.lora.rslora,
        task_type="CAUSAL_LM",
    )
    trainer = AdapterTrainer(
        run,
        progress,
        interruption,
        model=_model(base, bf16, longest, eager=own),
        args=_arguments(run, recipe, plan, epochs(recipe, len(splits["train"])), bf16),
        train_dataset=_dataset(splits["train"]),
        eval_dataset=_dataset(splits["validation"]) if "validation" in splits else None,
        processing_class=tokenizer,
        peft_config=lora,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    if not torch.cuda.is_available():
        add_compact_head(trainer.model.get_base_model())
        if share and not own:
            longest_rows = [row for rows in splits.values() for row in rows.longest_rows(PROBED)]
            trainer.data_collator = share_starts(trainer.model, trainer.data_collator, longest_rows)
    return trainer


def _arguments(run: Run, recipe: Recipe, plan: Mapping[str, Any], passes: float, bf16: bool) -> SFTConfig:
    spec = recipe.train
    gpu = torch.cuda.is_available()
    return SFTConfig(
        output_dir=str(run.checkpoints),
        num_train_epochs=passes,
        max_steps=spec.max_steps or -1,
        learning_rate=plan["learning_rate"],
        per_device_train_batch_size=spec.batch_size,
        per_device_eval_batch_size=spec.batch_size * 2,
        gradient_accumulation_steps=spec.gradient_accumulation,
        warmup_steps=spec.warmup_ratio,  # below 1 it is a share of all steps
        lr_scheduler_type="constant_with_warmup" if spec.scheduler == "constant" else spec.scheduler,
        weight_decay=spec.weight_decay,
        max_grad_norm=spec.max_grad_norm,
        max_length=None,  # tokenize has left out what is too long
        seed=spec.seed,
        bf16=bf16,
        gradient_checkpointing=plan["gradient_checkpointing"],
        pad_to_multiple_of=8,
        # A step of which nobody is told cannot be resumed exactly.
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_strategy="no",  # Schedule decides
        eval_strategy="no",
        report_to="none",
        disable_tqdm=True,
        use_cpu=not gpu,
        dataloader_pin_memory=gpu,
    )


def _model(folder: Path, bf16: bool, longest: int, *, eager: bool) -> Any:
    eager = eager or (bf16 and not torch.cuda.is_available() and longest <= PRODUCTS_UP_TO)
    try:
        model, found = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=torch.bfloat16 if bf16 else torch.float32,
            attn_implementation="eager" if eager else "sdpa",
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, RuntimeError) as error:
        words = " ".join(str(error).split())[:500]
        raise BaseModelError(f"{folder} cannot be loaded: {words}", "give a folder in hub format") from error
    if missing := sorted(found["missing_keys"]):
        # They would be made up at random, and the engine would refuse what is trained on them.
        raise BaseModelError(
            f"{folder} lacks weights: {', '.join(missing[:3])}{' …' if missing[3:] else ''}",
            "fetch the base anew",
        )
    return model


def has_own_attention(folder: Path) -> bool:
    """Whether torch's attention is none of the base's: it has no cap on logits (Gemma 2) and no sinks (gpt-oss)."""
    try:
        config = AutoConfig.from_pretrained(folder)
    except (OSError, ValueError):
        return False  # what is wrong with it is said where the base is loaded
    found = MODEL_FOR_CAUSAL_LM_MAPPING.get(type(config), None)
    capped = getattr(config.get_text_config(), "attn_logit_softcapping", None) is not None
    return capped or not getattr(found, "_supports_sdpa", True)


def _dataset(rows: TokenRows) -> datasets.Dataset:
    return datasets.Dataset.from_dict({"input_ids": rows.ids, "labels": rows.labels})


def has_bf16() -> bool:
    """Whether GPU or CPU multiplies bf16 matrices in hardware; elsewhere bf16 is slower than fp32."""
    if torch.cuda.is_available():
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities()
    return bool(able.get("avx512_bf16") or able.get("amx_bf16"))


def peak_memory() -> int:
    """The most bytes that this process has held: of GPU memory, or without a GPU of the machine's."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_reserved())
    try:  # what getrusage says on Linux is at least what the process had that started this one
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    except (OSError, StopIteration):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # macOS, in bytes


def _quiet() -> None:
    """No progress bars; warnings go to the log once."""
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")
    datasets.disable_progress_bars()
    transformers.utils.logging.disable_progress_bar()
    transformers.utils.logging.set_verbosity_warning()
