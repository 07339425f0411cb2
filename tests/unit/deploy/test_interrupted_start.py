"""A start that is interrupted before anybody knows the number of what was started."""

import subprocess
from pathlib import Path

import psutil
import pytest
from support.interrupts import InterruptedPopen, ctrl_c_works
from support.ports import free_port

from deploy import stack
from serve.config import Settings


def test_a_controller_whose_start_is_interrupted_is_not_left_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", InterruptedPopen)
    settings = Settings(home=tmp_path, port=free_port(), engine_url="http://127.0.0.1:1")
    with ctrl_c_works(), pytest.raises(KeyboardInterrupt):
        stack.up(settings, lambda _: None)
    controller = InterruptedPopen.started.pop()
    assert controller.returncode is not None
    assert not psutil.pid_exists(controller.pid)
