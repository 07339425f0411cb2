"""TRL's SFT trainer with exact resumption: a seeded order of rows, whole checkpoints, exact validation."""

import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Sampler
from transformers import Trainer, TrainerControl
from transformers.trainer_pt_utils import get_length_grouped_indices
from trl import SFTTrainer

from train.interruption import Interrupted, Interruption
from train.methods.checkpoints import Progress, writing
from train.runs import Run


class LengthGroupedOrder(Sampler[int]):
    """Rows in an order that puts rows of like length into one batch; it depends on seed and epoch alone.

    The sampler of transformers draws from the global generator, so a resumed run would see other batches.
    """

    def __init__(self, lengths: Sequence[int], batch: int, seed: int) -> None:
        self._lengths, self._batch, self._seed, self._epoch = list(lengths), batch, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the data loader at the start of each epoch."""
        self._epoch = epoch

    def __len__(self) -> int:
        return len(self._lengths)

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self._seed * 1_000_003 + self._epoch)
        return iter(get_length_grouped_indices(self._lengths, self._batch, generator=generator))


class AdapterTrainer(SFTTrainer):  # type: ignore[misc]  # trl is not typed
    """Trains an adapter in a run's folder."""

    control: TrainerControl

    def __init__(self, run: Run, progress: Progress, interruption: Interruption, **options: Any) -> None:
        self._run, self._progress, self._interruption = run, progress, interruption
        self._scratch: Path | None = None
        super().__init__(**options)

    def _get_train_sampler(self, train_dataset: Any = None) -> Sampler[int]:
        rows = self.train_dataset if train_dataset is None else train_dataset
        batch = self.args.train_batch_size * self.args.gradient_accumulation_steps
        return LengthGroupedOrder([len(ids) for ids in rows["input_ids"]], batch, self.args.seed)

    def _get_output_dir(self, trial: Any) -> str:
        return str(self._scratch or self._run.checkpoints)

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        self._progress.step, self._progress.total_steps = self.state.global_step, self.state.max_steps
        with writing(self._run, self._progress) as self._scratch:
            # Not SFTTrainer's own: it writes a model card into every checkpoint.
            Trainer._save_checkpoint(self, model, trial)
        self._scratch = None

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        # Tokenizer and arguments are in the base and the job; a checkpoint holds what changes.
        self.model.save_pretrained(output_dir, state_dict=state_dict, save_embedding_layers=False)

    def evaluate(
        self, eval_dataset: Any = None, ignore_keys: Any = None, metric_key_prefix: str = "eval"
    ) -> dict[str, float]:
        """Loss, perplexity and token accuracy over all supervised tokens of the validation split.

        The trainers of transformers and TRL average batches, in which a token of a short answer weighs more.
        """
        loss, hits, tokens = 0.0, 0.0, 0
        self.model.eval()
        with torch.no_grad(), self.compute_loss_context_manager():
            for batch in self.get_eval_dataloader(eval_dataset):
                if self._interruption.asked:
                    raise Interrupted
                outputs = self.model(**self._prepare_inputs(batch), use_cache=False, fused_lm_head=True)
                loss -= float(outputs.log_probs.double().sum())
                hits += float(outputs.is_top1.sum())
                tokens += int(outputs.label_mask.sum())
        self.model.train()
        loss /= max(tokens, 1)
        metrics = {
            "eval_loss": loss,
            "eval_perplexity": perplexity(loss),
            "eval_token_accuracy": hits / max(tokens, 1),
        }
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics


def perplexity(loss: float) -> float:
    """``exp(loss)`` for a loss in nats per token; infinite where that is too large for a float."""
    return math.exp(loss) if loss < 700 else math.inf
