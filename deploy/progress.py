"""Live view of a training run, fed with the run's events."""

from rich.console import Group
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from deploy.console import NAME_WIDTH, Step
from train.events import TrainEvent

MEASURES = (
    ("loss", "loss", "{:.3f}"),
    ("token_accuracy", "token accuracy", "{:.3f}"),
    ("perplexity", "perplexity", "{:.2f}"),
    ("tokens_per_second", "tokens/s", "{:,.0f}"),
    ("learning_rate", "rate", "{:.1e}"),
)


class TrainingView:
    """Turns training events into a bar with loss, token accuracy, perplexity, speed and time left.

    ``notices`` are what the run had to say besides, to be printed once the bar is gone.
    """

    def __init__(self, current: Step) -> None:
        self.notices: list[str] = []
        self._step = current
        self._training: TrainEvent | None = None
        self._validation: TrainEvent | None = None

    def see(self, event: TrainEvent) -> None:
        """Take one event and redraw."""
        if event.event == "phase" and self._training is None:
            self._step.say(event.message or "")
            return
        if event.event == "notice":
            self.notices.append("; ".join(filter(None, (event.message, event.hint))))
        elif event.event == "step":
            self._training = event
        elif event.event == "eval":
            self._validation = event
        if self._training is not None:
            self._step.show(self._render(self._training))

    def _render(self, training: TrainEvent) -> Group:
        bar = Table.grid(padding=(0, 1))
        bar.add_row(
            f"  {self._step.name:<{NAME_WIDTH}}",
            ProgressBar(total=training.total_steps or 1, completed=training.step, width=30),
            f"step {training.step}/{training.total_steps}",
            Text(f"{remaining(training.eta_seconds)} left", style="dim"),
        )
        lines = [measurements("training", training)]
        if self._validation is not None:
            lines.append(measurements("validation", self._validation))
        return Group(bar, *lines)


def measurements(name: str, event: TrainEvent) -> Text:
    """One line of what was measured; a narrow terminal cuts its end off."""
    line = Text(f"    {name:<11}", style="dim", no_wrap=True, overflow="crop")
    for key, label, form in MEASURES:
        value = getattr(event, key)
        if value is not None:
            line.append(f" {label} ").append(form.format(value), style="not dim")
    return line


def remaining(seconds: float | None) -> str:
    """Minutes and seconds, such as ``1:05``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
