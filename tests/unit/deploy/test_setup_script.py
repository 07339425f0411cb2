"""The set-up script, up to the point where it would install something."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without .venv."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "setup.py").write_bytes((ROOT / "deploy" / "setup.py").read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return tmp_path


def script(folder: Path, name: str, text: str) -> Path:
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def run_setup(checkout: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "deploy/setup.py", "--device", "cpu", *arguments],
        cwd=checkout,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )


def test_old_python_is_named_with_a_way_out(checkout: Path) -> None:
    old = script(checkout / "bin", "python3", "echo 3 9")
    done = run_setup(checkout, "--python", str(old))
    assert done.returncode == 1
    assert "no suitable Python" in done.stderr
    assert "3.9" in done.stderr
    assert "PYTHON=" in done.stderr
    assert not (checkout / ".venv").exists()


def test_registry_that_does_not_answer_is_named(checkout: Path) -> None:
    done = run_setup(
        checkout,
        PIP_CONFIG_FILE=os.devnull,
        PIP_INDEX_URL="http://127.0.0.1:9/simple",
        PIP_EXTRA_INDEX_URL="",
        PIP_FIND_LINKS="",
        PIP_DEFAULT_TIMEOUT="1",
        PIP_RETRIES="1",
        HTTPS_PROXY="http://127.0.0.1:9",
        https_proxy="http://127.0.0.1:9",
        NO_PROXY="127.0.0.1",
        no_proxy="127.0.0.1",
    )
    assert done.returncode == 1
    assert "registry does not answer" in done.stderr
    assert not (checkout / ".venv" / "tenon-setup.json").exists()


def test_a_stamp_of_the_same_inputs_does_nothing(checkout: Path) -> None:
    sys.path.insert(0, str(checkout / "deploy"))
    try:
        import setup as script_module
    finally:
        sys.path.pop(0)
    venv = checkout / ".venv"
    script(venv, "unused", "")
    (venv / "bin").mkdir()
    script(venv / "bin", "python", "echo 3 12")
    (venv / "tenon-setup.json").write_text(f'{{"fingerprint": "{script_module.fingerprint("cpu")}"}}')
    done = run_setup(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (checkout / "pyproject.toml").write_text("# changed")
    (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert (
        run_setup(checkout, "--python", str(script(checkout / "bin", "python3", "echo 3 9"))).returncode == 1
    )
