"""What the tests of the benchmarks share."""

import sys

import pytest


@pytest.fixture
def fake_command() -> str:
    """The command that runs the fake engine instead of vLLM."""
    return f"{sys.executable} -m serve.engine.fake"
