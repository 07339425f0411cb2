"""The comparison as a table for the terminal."""

from rich import box
from rich.table import Table
from rich.text import Text

from evalsuite.compare import Comparison
from evalsuite.words import interval, p_value, percent, points

STYLES = {"better": "bold green", "worse": "bold red", "inconclusive": "yellow"}


def comparison_table(comparison: Comparison) -> Table:
    """Base against adapter, one metric per row, the one that decides first."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False, padding=0)
    table.add_column("metric", min_width=9)
    # Text, not str: an arm's name must not be read as Rich markup.
    for heading in (comparison.baseline, comparison.candidate, "diff", "95 % interval", "p"):
        table.add_column(Text(heading), justify="right", no_wrap=True)
    table.add_column("verdict", no_wrap=True)
    for metric in comparison.metrics:
        table.add_row(
            Text(metric.title, style="bold" if metric is comparison.primary else ""),
            percent(metric.baseline),
            percent(metric.candidate),
            points(metric.difference),
            interval(metric),
            p_value(metric.p_adjusted),
            Text(metric.verdict, style=STYLES[metric.verdict]),
        )
    return table
