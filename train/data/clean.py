"""Rows that would teach nothing or teach wrongly: repeats, contradictions, leaks between splits."""

from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Sequence

from train.data.examples import Example
from train.data.report import Ledger, spell

REPEAT = "that repeat another row"
CONTRADICTION = "with a text that also has another answer"


def leak(split: str) -> str:
    """The reason to drop a row whose text another split holds too."""
    return f"with a text that is in the {split} data too"


def drop_repeats(examples: Sequence[Example], source: str, ledger: Ledger) -> list[Example]:
    """Keep the first of the rows with the same prompt and the same answer, both letter by letter."""
    seen: set[tuple[str, str]] = set()
    kept = []
    for example in examples:
        row = (example.exact, example.answer)
        if row in seen:
            ledger.drop(source, REPEAT, example.number)
        else:
            seen.add(row)
            kept.append(example)
    return kept


def drop_contradictions(
    examples: Sequence[Example], meaning: Callable[[str], str], source: str, ledger: Ledger
) -> list[Example]:
    """Give each text one answer: the one that most of its rows have, and no row where there is a tie.

    ``meaning`` maps answers that are written differently but mean the same to one value. To be called before
    :func:`drop_repeats`, as repeats are the votes; the outcome does not depend on row order.
    """
    votes: defaultdict[str, Counter[str]] = defaultdict(Counter)
    for example in examples:
        votes[example.exact][meaning(example.answer)] += 1
    kept = []
    for example in examples:
        mine = meaning(example.answer)
        counts = votes[example.exact]
        if all(count < counts[mine] for answer, count in counts.items() if answer != mine):
            kept.append(example)
        else:
            ledger.drop(source, CONTRADICTION, example.number)
    return kept


def drop_leaks(
    examples: Sequence[Example], keys: Collection[str], split: str, source: str, ledger: Ledger
) -> list[Example]:
    """Drop the rows whose folded text is among ``keys``, those of ``split``."""
    kept = []
    for example in examples:
        if example.key in keys:
            ledger.drop(source, leak(split), example.number)
        else:
            kept.append(example)
    return kept


def note_repeats(examples: Sequence[Example], source: str, ledger: Ledger) -> None:
    """Say which rows of a split given by the user repeat a text; they stay, see :func:`prepare`."""
    seen: set[str] = set()
    again = []
    for example in examples:
        if example.key in seen:
            again.append(example.number)
        seen.add(example.key)
    if again:
        where = spell(ledger.unit(source), again[:5], len(again))
        ledger.notes.append(f"{source}: {len(again):,} with a text that came before ({where}), kept as given")
