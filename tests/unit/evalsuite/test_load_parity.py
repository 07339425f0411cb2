import pytest

from evalsuite.load.lora_parity import Token, compare, judged, moved, questions

A, B = Token("a", -0.1, 3.0), Token("b", -0.7, 0.01)


def test_same_answers_are_the_same():
    found = compare([[A, B]], [[Token("a", -0.12, 3.0), B]], tie=0.05)
    assert (found.same, found.tie, found.different, found.tokens) == (1, 0, 0, 2)
    assert found.worst == pytest.approx(0.02)
    assert found.mean == pytest.approx(0.01)


def test_answers_may_part_where_two_tokens_were_equally_likely():
    found = compare([[A, B, A]], [[A, Token("c", -0.7, 0.01), Token("d", -9.0, 1.0)]], tie=0.05)
    assert (found.same, found.tie, found.different) == (0, 1, 0)
    assert found.tokens == 1, "what follows a parting is of another text"


@pytest.mark.parametrize("other", [[Token("c", -0.1, 3.0), B], [A]], ids=["another token", "shorter"])
def test_any_other_difference_counts(other):
    found = compare([[A, B], [A]], [other, [A]], tie=0.05)
    assert (found.same, found.tie, found.different) == (1, 0, 1)
    assert "answer 0" in found.examples[0]


def test_answers_that_adapters_change_are_counted():
    assert moved([[A], [A], [B], [B, A], [B], [B, A]], 3) == 2
    assert moved([[A], [A], [B], [B]], 2) == 0


def test_the_questions_differ_from_each_other():
    assert len(set(questions(500))) == 500


def test_the_top_two_say_how_far_a_token_was_ahead():
    top = [{"logprob": -0.25}, {"logprob": -1.5}]
    assert Token.of({"token": "x", "logprob": -0.25, "top_logprobs": top}) == Token("x", -0.25, 1.25)


def test_a_reference_says_which_leads_rounding_may_turn():
    lead = 0.25
    stock, ours = [[Token("a", -2.1, lead), B]], [[Token("c", -2.2, 0.0), B]]
    assert judged(stock, ours, ours, 0.13)["vLLM's code and ours"].different == 1
    for moved_by, differ in ((0.05, 1), (0.13, 0), (1.0, 0)):
        reference = [[Token("a", -2.1 + moved_by, 0.1), Token("d", -1.0, 3.0)]]
        found = judged(stock, ours, stock, 0.13, reference)
        assert found["vLLM's code and ours"].different == differ
        assert found["float32 and vLLM's code"].worst == pytest.approx(moved_by)
        assert found["float32 and ours"].tokens == 0


def test_a_reference_makes_no_tie_of_what_leads_clearly_nor_between_ours_and_ours():
    stock, ours = [[Token("a", -2.1, 0.3)]], [[Token("c", -2.2, 0.3)]]
    found = judged(stock, ours, [[Token("a", -2.1, 0.2)]], 0.13, [[Token("a", -9.0, 3.0)]])
    assert found["vLLM's code and ours"].different == 1
    assert found["ours alone and mixed"].different == 1
