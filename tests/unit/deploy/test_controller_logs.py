"""What a controller says before it ends: one line, in the form that the stack was brought up with."""

import subprocess
import sys
from pathlib import Path

import orjson
import pytest

from deploy.controller.control import rules_in
from deploy.stack_file import write_stack
from deploy.waiting import Since
from serve.config import Settings


def controller(home: Path) -> "subprocess.CompletedProcess[bytes]":
    command = [sys.executable, "-m", "deploy.controller", "--home", str(home)]
    return subprocess.run(command, capture_output=True, check=False, timeout=60)


def test_without_a_stack_it_says_so_in_text(tmp_path: Path) -> None:
    done = controller(tmp_path)
    assert done.returncode == 2
    (line,) = done.stderr.decode().splitlines()
    assert "ERROR tenon.controller" in line
    assert "stack.json is missing (start the stack with `tenon up`)" in line


@pytest.mark.parametrize("form", ["text", "json"])
def test_a_failure_is_the_last_line_in_the_stacks_form(tmp_path: Path, form: str) -> None:
    write_stack(Settings.read(home=tmp_path, model="/no/such/base", log_format=form))
    done = controller(tmp_path)
    assert done.returncode != 0
    lines = done.stderr.decode().splitlines()
    line = lines[-1]
    if form == "json":
        content = [orjson.loads(line) for line in lines][-1]
        assert (content["level"], content["logger"]) == ("error", "tenon.controller")
        (tmp_path / "controller.log").write_bytes(done.stderr)
        assert Since(0.0, {}).last_line(tmp_path / "controller.log") == content["message"]
    assert "/no/such/base" in line


def test_the_gateway_logs_and_traces_as_the_stack_was_asked_to(tmp_path: Path) -> None:
    asked = Settings.read(
        home=tmp_path, log_format="json", log_level="debug", otlp_endpoint="http://collector:4318"
    )
    variables = rules_in(asked)
    assert variables["TENON_LOG_FORMAT"] == "json"
    assert variables["TENON_LOG_LEVEL"] == "debug"
    assert variables["TENON_OTLP_ENDPOINT"] == "http://collector:4318"
