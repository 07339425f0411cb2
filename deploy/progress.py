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
    ("learning_rate", "learning rate", "{:.1e}"),
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
        rows = Table.grid(padding=(0, 2))
        rows.add_row("   ", *cells("training", training))
        if self._validation is not None:
            rows.add_row("   ", *cells("validation", self._validation))
        return Group(bar, rows)


def cells(name: str, event: TrainEvent) -> list[Text]:
    """The cells of one line of measurements; what was not measured stays empty."""
    values = [(label, form, getattr(event, key)) for key, label, form in MEASURES]
    texts = [
        Text() if value is None else Text.assemble((label, "dim"), " ", form.format(value))
        for label, form, value in values
    ]
    return [Text(name, "dim"), *texts]


def remaining(seconds: float | None) -> str:
    """Minutes and seconds, such as ``1:05``."""
    if seconds is None:
        return "?"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
