"""The set-up script, up to the point where it would install something."""

import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A checkout without .venv."""
    (tmp_path / "deploy").mkdir()
    (tmp_path / "deploy" / "setup.py").write_bytes((ROOT / "deploy" / "setup.py").read_bytes())
    (tmp_path / "pyproject.toml").write_bytes((ROOT / "pyproject.toml").read_bytes())
    return tmp_path


@pytest.fixture
def setup_module(checkout: Path) -> ModuleType:
    """The script as a module of that checkout."""
    sys.path.insert(0, str(checkout / "deploy"))
    try:
        sys.modules.pop("setup", None)
        import setup as module
    finally:
        sys.path.pop(0)
    return module


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


def test_a_stamp_of_the_same_inputs_does_nothing(checkout: Path, setup_module: ModuleType) -> None:
    venv = checkout / ".venv"
    script(venv, "unused", "")
    (venv / "bin").mkdir()
    script(venv / "bin", "python", "echo 3 12")
    (venv / "tenon-setup.json").write_text(f'{{"fingerprint": "{setup_module.fingerprint("cpu")}"}}')
    done = run_setup(checkout)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    (checkout / "pyproject.toml").write_text("# changed")
    (venv / "bin" / "python").write_text("#!/bin/sh\nexit 1\n")
    assert (
        run_setup(checkout, "--python", str(script(checkout / "bin", "python3", "echo 3 9"))).returncode == 1
    )


def environment_that_says(checkout: Path, uv: str) -> Path:
    """A .venv whose Python writes down what it is asked, has pip's settings, and does ``uv`` when asked for uv."""
    asked = checkout / "asked"
    settings = "global.index-url='https://a/simple'\n:env:.index-url='https://b/simple'\nglobal.no-input='1'"
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True)
    text = f'echo "$@" >>{asked}\ncase "$*" in *"config list"*) echo "{settings}";; "-m uv"*) {uv};; esac'
    script(folder, "python", text)
    return asked


def test_packages_come_by_uv_from_the_indexes_that_pip_is_told(
    checkout: Path, setup_module: ModuleType
) -> None:
    asked = environment_that_says(checkout, "exit 0")
    setup_module.install_packages("-e", "here")
    last = asked.read_text().splitlines()[-1]
    assert last.startswith("-m uv pip install")
    assert last.endswith("--index-url https://b/simple -e here")


def test_where_uv_fails_pip_installs(checkout: Path, setup_module: ModuleType) -> None:
    asked = environment_that_says(checkout, "exit 2")
    setup_module.install_packages("-e", "here")
    assert (
        asked.read_text()
        .splitlines()[-1]
        .endswith("-m pip --disable-pip-version-check --no-input install -e here")
    )


def test_a_full_disk_is_not_tried_twice(checkout: Path, setup_module: ModuleType) -> None:
    asked = environment_that_says(checkout, "echo 'No space left on device'; exit 2")
    with pytest.raises(setup_module.DiskFull):
        setup_module.install_packages("-e", "here")
    assert "-m uv pip install" in asked.read_text().splitlines()[-1]


def test_lists_of_indexes_and_the_certificate_reach_uv(setup_module: ModuleType) -> None:
    options, environment = setup_module.uv_options(
        {"extra-index-url": "https://a https://b", "find-links": "/wheels", "cert": "/ca.pem"}
    )
    assert options[2:] == [
        "--extra-index-url",
        "https://a",
        "--extra-index-url",
        "https://b",
        "--find-links",
        "/wheels",
    ]
    assert environment["SSL_CERT_FILE"] == "/ca.pem"
