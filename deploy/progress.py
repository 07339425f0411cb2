"""Live view of a training run, fed with the run's events."""

from collections.abc import Mapping
from typing import Any

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.console import Step


class TrainingView:
    """Turns training events into a bar with loss, token accuracy, perplexity, speed and time left."""

    def __init__(self, current: Step) -> None:
        self._step = current
        self._last: dict[str, Any] = {}
        self._validation: dict[str, Any] = {}
        self._best: float | None = None

    def see(self, event: Mapping[str, Any]) -> None:
        """Take one event of ``metrics.jsonl`` and redraw."""
        kind = event.get("event")
        if kind == "step":
            self._last.update(event)
        elif kind == "eval":
            self._validation = dict(event)
            loss = event.get("loss")
            if loss is not None and (self._best is None or loss < self._best):
                self._best = float(loss)
        self._step.show(self._render())

    @property
    def summary(self) -> str:
        """One line on how the run ended."""
        parts = []
        if "loss" in self._last:
            parts.append(f"loss {self._last['loss']:.3f}")
        if "token_accuracy" in self._validation:
            parts.append(f"validation token accuracy {self._validation['token_accuracy']:.3f}")
        return " · ".join(parts) or "no step was needed"

    def _render(self) -> Group:
        last, rows = self._last, Table.grid(padding=(0, 2))
        bar = Table.grid(padding=(0, 1))
        total = int(last.get("total_steps") or 0)
        done = int(last.get("step") or 0)
        bar.add_row(
            f"  {self._step.name:<12}",
            ProgressBar(total=total or 1, completed=done, width=30),
            f"step {done}/{total}",
            Text(f"{remaining(last.get('eta_seconds'))} left", style="dim"),
        )
        rows.add_row("   ", *describe("training", last))
        if self._validation:
            rows.add_row("   ", *describe("validation", self._validation))
        return Group(bar, rows)


def describe(name: str, event: Mapping[str, Any]) -> list[str]:
    """The cells of one line of measurements."""
    cells = [f"[dim]{name}[/]"]
    for key, label, form in (
        ("loss", "loss", "{:.3f}"),
        ("token_accuracy", "token accuracy", "{:.3f}"),
        ("perplexity", "perplexity", "{:.2f}"),
        ("tokens_per_second", "tokens/s", "{:,.0f}"),
        ("learning_rate", "learning rate", "{:.1e}"),
    ):
        value = event.get(key)
        if value is not None:
            cells.append(f"[dim]{label}[/] {form.format(value)}")
    return cells


def remaining(seconds: float | None) -> str:
    """Minutes and seconds, such as ``1:05``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
