from argparse import Namespace

from evalsuite.load.lora_cpu import Load, Rate, loads, rows, show, type_option


def test_the_ratio_is_to_the_base_of_the_same_engine_and_load():
    base = [Rate(4.0, 0.5), Rate(2.0, 1.0), Rate(3.0, 0.75)]
    measured = {("decode", "base"): base, ("decode", "3 mixed"): [Rate(1.5, 1.0)]}
    other = {("decode", "base"): [Rate(9.0, 0.1)]}
    first, mixed, last = rows({"ours": measured, "stock": other})
    assert (first["requests_per_second"], first["to_base"], first["rounds"]) == (3.0, 1.0, [4.0, 2.0, 3.0])
    assert (mixed["to_base"], mixed["cpu_seconds"], mixed["cpu_to_base"]) == (0.5, 1.0, 0.75)
    assert (last["lora_code"], last["to_base"]) == ("stock", 1.0)
    assert show([first, mixed, last]).row_count == 3


def test_only_the_loads_that_are_asked_for():
    options = Namespace(loads=["prefill"], tokens=32, sentences=5)
    assert loads(options) == [Load("prefill", 5, 2)]


def test_no_question_begins_like_another():
    first, second = (Load("decode", 1, 8).body("base", number)["messages"][0]["content"] for number in (1, 2))
    assert first[0] != second[0]


def test_the_type_is_ours_unless_it_is_given():
    assert type_option(Namespace(dtype=None)) == ()
    assert type_option(Namespace(dtype="bfloat16")) == ("--dtype", "bfloat16")
