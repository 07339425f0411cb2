"""What a gateway says that it uses, and what is made of it."""

import subprocess
import sys

import pytest

from serve.engine.use import Use, tell_use
from serve.records import ProcessIdentity, read_json, write_json


def test_a_gateway_that_lives_is_believed(tmp_path):
    path = tmp_path / "run" / "used.json"
    tell_use(path, {"engine": ["b", "a"], "other": []})
    use = Use.read(path)
    assert (use.order("engine"), use.engaged("engine")) == (["b", "a"], ["b", "a"])
    assert use.engaged("other") == use.engaged("unknown") == []


def test_one_that_has_ended_is_on_nothing_but_its_order_stays(tmp_path):
    path = tmp_path / "used.json"
    tell_use(path, {"engine": ["b", "a"]})
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        gone = ProcessIdentity.of(child.pid).to_json()
    write_json(path, {**read_json(path), "gateway": gone})
    use = Use.read(path)
    assert (use.order("engine"), use.engaged("engine")) == (["b", "a"], [])


@pytest.mark.parametrize(
    "content",
    [{}, {"engine": ["a"]}, {"engines": 1, "gateway": 1}, {"engines": {"engine": 1}, "gateway": {}}],
)
def test_what_says_nothing_says_nothing(tmp_path, content):
    path = tmp_path / "used.json"
    assert Use.read(path) == Use()
    write_json(path, content)
    assert Use.read(path) == Use()
