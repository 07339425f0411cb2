"""The page and the table: complete, self-contained, and safe against what models say."""

import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest
from evaluations import BASE, CANDIDATE, CONDITIONS, answer, evaluation, questions
from rich.console import Console

from evalsuite import words
from evalsuite.evaluate import Evaluation, assemble
from evalsuite.gate import gate
from evalsuite.report.html import Provenance, render_report, write_report
from evalsuite.report.plot import forest
from evalsuite.report.table import comparison_table
from evalsuite.report.view import LONGEST_TEXT, clip, examples, label_rows, speeds
from evalsuite.tasks import Task
from serve.errors import StorageError

EVIL = '<script>alert("x")</script><img src="https://evil.example/x.png" onerror=alert(1)>{{ 7 * 7 }}'
VOID = {"meta", "br", "img", "input", "wbr", "line", "circle", "hr", "link"}


class Page(HTMLParser):
    """Collects tags and text, and fails on tags that do not nest."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in VOID:
            assert self.open.pop() == tag

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def json_evaluation(replies: list[str]) -> Evaluation:
    task = Task(kind="json", label_field="intent")
    wanted = [json.dumps({"intent": "refund", "item": "kettle"})] * len(replies)
    rows = [[answer(text) for text in wanted], [answer(text) for text in replies]]
    return assemble(task, [BASE, CANDIDATE], questions(wanted), rows, CONDITIONS)


def evil_evaluation() -> Evaluation:
    task = Task(kind="label", labels=(EVIL, "fine"))
    arms = [BASE, CANDIDATE]
    asked = questions([EVIL, "fine"] * 10)
    rows = [[answer(EVIL) for _ in asked], [answer(EVIL + "!x") for _ in asked]]
    return assemble(task, arms, asked, rows, CONDITIONS)


@pytest.mark.parametrize(
    ("base", "candidate", "verdict"), [(0.3, 0.9, "better"), (0.9, 0.3, "worse"), (0.5, 0.5, "inconclusive")]
)
def test_the_page_says_what_the_evaluation_found(base: float, candidate: float, verdict: str) -> None:
    result = evaluation(base, candidate, 0.4)
    text = " ".join(Page(render_report(result, decision=gate(result))).words)
    metric = result.against("base").primary
    for part in (verdict, words.percent(metric.baseline), words.interval(metric), "support@v1", "Macro-F1"):
        assert part in text
    assert words.headline(result.against("base")) in text
    assert ("passed the gate" in text) == gate(result).allowed


def test_the_page_asks_the_network_for_nothing() -> None:
    page = Page(
        render_report(evil_evaluation(), Provenance(base=EVIL, recipe={"name": EVIL}, versions={EVIL: EVIL}))
    )
    for tag, attributes in page.tags:
        assert tag not in {"img", "link", "iframe", "object", "base", "form"}
        assert not {"src", "href", "action", "xlink:href"} & attributes.keys()
        assert not any(name.startswith("on") for name in attributes)
    assert [tag for tag, _ in page.tags].count("script") == 1
    policy = next(
        attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"
    )
    assert (policy or "").startswith("default-src 'none'")


def test_what_models_and_people_say_is_text() -> None:
    text = render_report(json_evaluation([EVIL, json.dumps({"intent": EVIL, EVIL: 1}), "{}"] * 3))
    assert EVIL not in text
    assert "&lt;script&gt;alert" in text
    assert "7 * 7" in text
    assert "49" not in re.sub(r"<(style|script)>.*?</\1>", "", text, flags=re.DOTALL)


def test_the_script_is_the_one_that_the_policy_names() -> None:
    import base64
    import hashlib

    text = render_report(evaluation(0.3, 0.9))
    script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}" in text or f"script-src 'sha256-{digest}'" in text


def test_provenance_is_shown_where_it_is_known() -> None:
    known = Provenance(
        base_digest="b" * 64,
        adapter_digest="a" * 64,
        data_fingerprint="d" * 64,
        recipe={"lora": {"rank": 16}},
    )
    text = render_report(evaluation(0.3, 0.9), known)
    assert all(part in text for part in ("a" * 64, "b" * 64, "d" * 64, "rank: 16"))
    assert "Recipe" not in render_report(evaluation(0.3, 0.9))


def test_a_refusal_and_its_force_are_told() -> None:
    result = evaluation(0.9, 0.3)
    assert "refused by the gate" in render_report(result, decision=gate(result))
    assert "forced past the gate" in render_report(result, decision=gate(result, force=True))


def test_the_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = write_report(evaluation(0.3, 0.9), tmp_path / "evals" / "report.html")
    assert path.read_text(encoding="utf-8").rstrip().endswith("</html>")
    assert [item.name for item in path.parent.iterdir()] == ["report.html"]
    with pytest.raises(StorageError, match="cannot be written"):
        write_report(evaluation(0.3, 0.9), path / "below-a-file.html")
    folder = tmp_path / "taken"
    folder.mkdir()
    with pytest.raises(StorageError):
        write_report(evaluation(0.3, 0.9), folder)
    assert not list(tmp_path.glob(".report-*"))


def test_half_a_surrogate_in_an_answer_does_not_stop_the_report(tmp_path: Path) -> None:
    rows = [[answer("\ud800")], [answer("\udfff")]]
    result = assemble(Task(kind="text"), [BASE, CANDIDATE], questions(["x"]), rows, CONDITIONS)
    assert write_report(result, tmp_path / "report.html").stat().st_size > 1000


def test_examples_are_sorted_into_broken_fixed_and_both_wrong() -> None:
    right = json.dumps({"intent": "refund", "item": "kettle"})
    groups = examples(json_evaluation([right, '{"intent": "refund", "colour": "red"}', "sorry"]))
    assert [len(groups[kind]) for kind in ("broken", "fixed", "both_wrong")] == [2, 0, 0]
    first, second = (example.replies[1] for example in groups["broken"])
    assert first.fields == (("refund", True), ("missing", False))
    assert first.surplus == ("colour: red",)
    assert second.fields is None
    assert clip("x" * LONGEST_TEXT) == "x" * LONGEST_TEXT
    assert clip("x" * (LONGEST_TEXT + 5)).endswith("(5 more characters)")


def test_labels_are_ordered_by_change_and_their_mistakes_named() -> None:
    asked = questions(["a", "a", "b", "b"])
    rows = [[answer(text) for text in ("a", "a", "b", "x")], [answer(text) for text in ("b", "b", "b", "b")]]
    result = assemble(Task(kind="label", labels=("a", "b")), [BASE, CANDIDATE], asked, rows, CONDITIONS)
    worst, best = label_rows(result)
    assert (worst.label, worst.baseline, worst.candidate, worst.mistake, worst.mistakes) == (
        "a",
        1,
        0,
        "b",
        2,
    )
    assert (best.label, best.mistake) == ("b", None)
    assert best.candidate == pytest.approx(2 / 3)


def test_speed_leaves_missing_answers_out() -> None:
    base, candidate = speeds(evaluation(0.3, 0.9, missing=2))
    assert (base.missing, candidate.missing) == (0, 2)
    assert candidate.p50 == pytest.approx(0.1)
    assert candidate.completion_tokens == 3


@pytest.mark.parametrize(("base", "candidate"), [(0.0, 1.0), (0.5, 0.5), (0.5, 0.52), (1.0, 0.0), (1.0, 1.0)])
def test_the_forest_keeps_everything_in_the_picture(base: float, candidate: float) -> None:
    plot = forest(evaluation(base, candidate).against("base").metrics)
    places = [place for row in plot.rows for place in (row.low, row.middle, row.high)] + [
        at for _, at in plot.ticks
    ]
    assert all(0 <= place <= 100 for place in [*places, plot.zero])
    assert all(row.low <= row.middle <= row.high for row in plot.rows)
    assert 3 <= len(plot.ticks) <= 10
    assert any(abs(difference) < 1e-9 for difference, _ in plot.ticks)


def test_the_terminal_table_has_every_metric_and_fits() -> None:
    console = Console(width=100, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115
    with console.file:
        console.print(comparison_table(evaluation(0.3, 0.9).against("base")))
        text = console.export_text()
    for part in ("Accuracy", "Macro-F1", "tenon-tiny", "support@v2", "better", "< 0.001", "95 % interval"):
        assert part in text


@pytest.mark.parametrize(
    ("got", "expected"),
    [
        (words.points(-0.0004), "0.0"),
        (words.points(-0.25), "\N{MINUS SIGN}25.0"),
        (words.p_value(0.0004), "< 0.001"),
        (words.p_equals(0.034), "p = 0.034"),
        (words.seconds(0.0841), "84\N{NO-BREAK SPACE}ms"),
        (words.seconds(200), "3\N{NO-BREAK SPACE}min 20\N{NO-BREAK SPACE}s"),
        (words.thousands(3080), "3,080"),
    ],
)
def test_numbers_are_written_for_people(got: str, expected: str) -> None:
    assert got == expected
