"""Makes ``.venv`` and installs Tenon into it: ``make setup``, or ``python3 deploy/setup.py``.

Runs before anything is installed, so it uses the standard library only and syntax that old interpreters
can read far enough to be told that they are too old. Outside ``.venv`` only pip and uv keep their caches, and
the checkout gets its metadata (``*.egg-info``). A stamp in ``.venv`` makes the second run a no-op until
pyproject.toml, the interpreter or the device changes.

The device is looked for once: from then on ``auto`` is what the environment was set up for, so that a container
that was started without its GPU leaves the environment as it is. Another one is asked for by name, and has the
environment made anew, as vLLM's builds for CPU and GPU share a folder. A GPU that came later is told of, unless the
CPU was asked for. A checkout that was moved or copied has its environment made anew, too, as that names the old place.
"""

import argparse
import ast
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
PLACE = os.path.realpath(ROOT)
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "tenon-setup.json")
LOG = os.path.join(VENV, "tenon-setup.log")
OLDEST, NEWEST = (3, 11), (3, 13)
TORCH = "2.13.0"
CPU_TORCH = "torch==%s+cpu" % TORCH
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
ROOM_NEEDED = {"cpu": 6, "gpu": 16}  # GiB of a finished .venv, and the unpacking before it
UNUSED = ("torchvision", "torchaudio", "torchcodec")  # dependencies of vLLM that few text models import
IMPORTED = (  # by the commands, the gateway, trainings and evaluations; all else that is installed hangs on these
    "deploy.cli",
    "deploy.evaluation",
    "serve.gateway.command",
    "train.methods.sft",
)
FULL = "the disk is full; free some gigabytes and run `make setup` again"
UNREACHED = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Max retries|ProxyError|Temporary failure in name resolution"
    r"|Connection refused|Connection reset|SSLError|Network is unreachable|50[0-9] (Server Error|Bad Gateway)",
    re.I,
)


class SetupError(Exception):
    """Set-up cannot go on; the text says why and what to do."""


class DiskFull(SetupError):
    """Another index would not help."""


def main(argv=None):
    """Set up, or say in one line why not; return the exit code."""
    parser = argparse.ArgumentParser(description="Make .venv and install Tenon into it.")
    parser.add_argument("--device", choices=["auto", "cpu", "gpu"], default="auto")
    parser.add_argument(
        "--python", default=os.environ.get("PYTHON", ""), help="interpreter to build .venv from"
    )
    options = parser.parse_args(argv)
    try:
        with open(__file__) as lock:
            take_turn(lock)
            set_up(options.device, options.python)
    except SetupError as error:
        print("setup: " + str(error), file=sys.stderr)
        return 1
    except OSError as error:
        print("setup: %s" % unwritten(error), file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("setup: interrupted; run it again to go on", file=sys.stderr)
        return 130
    return 0


def take_turn(lock):
    """Wait for another set-up of this checkout to end; the lock goes with the process."""
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        print("setup: another set-up of this checkout runs; waiting for it", file=sys.stderr)
        fcntl.flock(lock, fcntl.LOCK_EX)
    except OSError:  # a file system without locks
        return


def set_up(wanted, python):
    """Install what is missing for the device that is wanted; ``auto`` is what the environment is for already."""
    mark, asked = stamp(), wanted != "auto"
    device = wanted if asked else mark.get("device") or find_device()
    asked = asked or mark.get("asked", False)
    if mark.get("fingerprint") != fingerprint(device) or moved(mark) or not usable(python):
        install(device, python, asked)
    elif asked:
        leave_stamp(device, asked, mark["fingerprint"])
    elif device == "cpu" and find_device() == "gpu":
        print(
            "setup: .venv is for the CPU, but a GPU is here: `make setup DEVICE=gpu` uses it", file=sys.stderr
        )


def find_device():
    """``gpu`` where an NVIDIA GPU answers, else ``cpu``."""
    try:
        found = subprocess.run(
            ["nvidia-smi", "-L"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=30
        )
    except (OSError, subprocess.TimeoutExpired):
        return "cpu"
    return "gpu" if found.returncode == 0 and b"GPU" in found.stdout else "cpu"


def fingerprint(device):
    """What the installed environment depends on, besides its interpreter."""
    digest = hashlib.sha256(device.encode())
    for name in ("pyproject.toml", os.path.join("deploy", "setup.py")):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    return digest.hexdigest()


def stamp():
    """What the last set-up left: its ``device``, if it was ``asked`` for, its ``fingerprint`` if it was completed.

    ``made`` is false where it was broken off while the bare environment was made, which then has no pip.
    """
    try:
        with open(STAMP) as file:
            mark = json.load(file)
    except (OSError, ValueError):
        return {}
    return mark if isinstance(mark, dict) else {}


def moved(mark):
    """Whether the environment was made for a checkout in another place."""
    return mark.get("root", PLACE) != PLACE


def leave_stamp(device, asked, mark=None, made=True):
    """Say what the environment is for and where, and with a fingerprint, that it is complete."""
    content = {"fingerprint": mark, "device": device, "asked": asked, "root": PLACE, "made": made}
    with open(STAMP, "w") as file:
        json.dump(content, file)


def unwritten(error):
    """What to tell where the operating system lets nothing be written."""
    if error.errno == errno.ENOSPC:
        return FULL
    way_out = "give yourself the right to write there, or use a checkout of your own"
    return "%s: %s; %s" % (error.filename or ROOT, error.strerror or error, way_out)


def install(device, python, asked):
    """Make the environment from nothing or from what an earlier try left."""
    started = time.monotonic()
    print(
        "Setting up .venv for "
        + ("an NVIDIA GPU" if device == "gpu" else "the CPU")
        + " (log: .venv/tenon-setup.log)"
    )
    mark = stamp()
    anew = mark.get("device", device) != device or moved(mark) or not mark.get("made", True)
    with Step("Python"):
        check_room(device, anew)
        if anew or not usable(python):
            make_venv(python, device, asked)
        leave_stamp(device, asked)
    extras = "train,eval,dev," + device
    if device == "cpu":
        with Step("torch " + TORCH + ", CPU build"):
            install_cpu_torch()
        pinned = CPU_TORCH
    else:  # where pip's settings offer the CPU build, too, it would win: its version counts as the higher one
        pinned = "torch==%s,!=%s+cpu" % (TORCH, TORCH)
    constraints = os.path.join(VENV, "tenon-constraints.txt")
    with open(constraints, "w") as file:
        file.write(pinned + "\n")
    with Step("vLLM, training, evaluation and test packages"):
        install_packages("-c", constraints, "-e", ROOT + "[" + extras + "]")
    with Step("Check"):
        remove_broken()
        check_imports()
    leave_stamp(device, asked, fingerprint(device))
    print("Set up in %.0f s" % (time.monotonic() - started))


class Step:
    """Prints what is being done and how long it took."""

    def __init__(self, name):
        self.name = name

    def __enter__(self):
        self.started = time.monotonic()
        print("  %-48s" % self.name, end="", flush=True)

    def __exit__(self, kind, error, trace):
        print("%5.0f s" % (time.monotonic() - self.started) if kind is None else " failed", flush=True)


def check_room(device, anew):
    """Raise where the disk cannot hold the environment, in the place of what is there."""
    if stamp().get("fingerprint") and not anew:
        return
    held = sum(
        os.path.getsize(os.path.join(folder, name))
        for folder, _, names in os.walk(VENV)
        for name in names
        if not os.path.islink(os.path.join(folder, name))
    )
    needed = ROOM_NEEDED[device] - held / 2**30
    free = shutil.disk_usage(ROOT).free / 2**30
    if free < needed:
        raise SetupError(
            "the disk of %s has %.1f GiB free and %.1f are needed; free some, or move the checkout"
            % (ROOT, free, needed)
        )


def usable(asked):
    """Whether ``.venv`` runs, with a version that Tenon supports and that was asked for."""
    version = version_of(PYTHON)
    if version is None or not OLDEST <= version <= NEWEST:
        return False
    return not asked or version_of(shutil.which(asked) or asked) in (None, version)


def make_venv(wanted, device, asked):
    """Create ``.venv`` by the Python that is wanted, in the place of what is there."""
    python = find_python(wanted)
    if not os.access(ROOT, os.W_OK):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), ROOT)
    discard()
    os.mkdir(VENV)
    leave_stamp(device, asked, made=False)
    done = subprocess.run(
        [python, "-m", "venv", VENV], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    if done.returncode != 0:
        shutil.rmtree(VENV, ignore_errors=True)
        raise SetupError(
            "%s could not make a virtual environment: %s\n  on Debian and Ubuntu, install python3-venv"
            % (python, (done.stdout.strip().splitlines() or ["no reason given"])[-1])
        )


def discard():
    """Remove the environment; whoever breaks off leaves none that is half there."""
    old = VENV + ".old"
    remove(old)
    if os.path.lexists(VENV):
        os.rename(VENV, old)
        remove(old)


def remove(path):
    """Remove a folder or a link, if there is one."""
    if os.path.islink(path):
        os.unlink(path)
    elif os.path.lexists(path):
        shutil.rmtree(path)


def find_python(asked):
    """The interpreter asked for, else the first suitable one on PATH."""
    names = [asked] if asked else ["python3"] + ["python3.%d" % minor for minor in (12, 11, 13)]
    seen = []
    for name in names:
        path = shutil.which(name)
        version = version_of(path) if path else None
        if version is not None:
            if OLDEST <= version <= NEWEST:
                # An activated environment's Python is a link, and goes with it.
                return os.path.realpath(path) if path.startswith(VENV + os.sep) else path
            seen.append("%s is %d.%d" % ((name,) + version))
    raise SetupError(
        "no suitable Python: Tenon needs 3.%d to 3.%d (%s); install one and say `make setup PYTHON=/path/to/python3.12`"
        % (OLDEST[1], NEWEST[1], ", ".join(seen) or "none of %s runs" % ", ".join(names))
    )


def version_of(python):
    """(major, minor) of an interpreter, or None where it does not run."""
    try:
        out = subprocess.run(
            [python, "-c", "import sys; print(*sys.version_info[:2])"],
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=60,
            check=True,
        )
        major, minor = out.stdout.split()
    except (OSError, ValueError, subprocess.SubprocessError):
        return None
    return int(major), int(minor)


def install_cpu_torch():
    """Ask the configured indexes for the CPU build, then PyTorch's own index; never take the CUDA build."""
    try:
        pip("install", "--no-compile", CPU_TORCH)  # most of its modules are never imported
    except DiskFull:
        raise
    except SetupError as first:
        try:
            pip("install", "--no-compile", CPU_TORCH, "--index-url", TORCH_CPU_INDEX)
        except DiskFull:
            raise
        except SetupError as second:
            raise SetupError(
                "no CPU build of torch %s for Python %d.%d\n  from the configured indexes: %s\n"
                "  from PyTorch's index: %s" % ((TORCH,) + version_of(PYTHON) + (first, second))
            ) from second


def install_packages(*arguments):
    """Install by uv, which takes a fifth of pip's time, from the indexes that pip is configured with; else by pip."""
    try:
        pip("install", "uv>=0.9")
        options, environment = uv_options(pip_settings())
        run_logged(
            ["-m", "uv", "pip", "install", "--python", PYTHON] + options + list(arguments), environment
        )
    except DiskFull:
        raise
    except SetupError:  # pip knows every setting of its own, and says best what is wrong
        pip("install", *arguments)


def pip_settings():
    """pip's settings by name; the environment's win over those of the command, and these over global ones."""
    out = subprocess.run(
        [PYTHON, "-m", "pip", "config", "list"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    ranks = {"global": 0, "install": 1, ":env:": 2}
    found = []
    for line in out.stdout.splitlines():
        key, equals, value = line.partition("=")
        section, _, name = key.rpartition(".")
        if equals and section in ranks:
            found.append((ranks[section], name, ast.literal_eval(value)))
    return {name: value for _, name, value in sorted(found)}


def uv_options(settings):
    """The options and the environment that have uv ask the same indexes as pip, for the best version of all."""
    options = ["--index-strategy", "unsafe-best-match"]
    for name in ("index-url", "extra-index-url", "find-links", "trusted-host", "constraint"):
        option = "--allow-insecure-host" if name == "trusted-host" else "--" + name
        for value in str(settings.get(name, "")).split():
            options += [option, value]
    environment = dict(os.environ)
    if settings.get("cert"):
        environment["SSL_CERT_FILE"] = str(settings["cert"])
    return options, environment


def pip(*arguments):
    """Run pip in ``.venv``, logging all; raise with its telling lines."""
    run_logged(["-m", "pip", "--disable-pip-version-check", "--no-input"] + list(arguments))


def run_logged(arguments, environment=None):
    """Run the environment's Python, logging all; raise with the telling lines of what it said."""
    with open(LOG, "a") as log:
        log.write("\n$ python " + " ".join(arguments) + "\n")
        start = log.tell()
        code = subprocess.call([PYTHON] + arguments, stdout=log, stderr=subprocess.STDOUT, env=environment)
    if code == 0:
        return
    with open(LOG, errors="replace") as log:
        log.seek(start)
        text = log.read()
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line[7:] for line in lines if line.startswith("ERROR")] or lines
    if "No space left on device" in text:
        raise DiskFull(FULL)
    if UNREACHED.search(text):
        raise SetupError(
            "the package registry does not answer; check the network, or pip's index settings"
            " (`pip config list`), and run `make setup` again (details in .venv/tenon-setup.log)"
        )
    raise SetupError(
        "pip failed: %s (details in .venv/tenon-setup.log)"
        % (errors[-1] if errors else "exit code %d" % code)
    )


def remove_broken():
    """Uninstall those unused packages whose builds do not fit this torch: they break ``import transformers``."""
    probe = (
        "import importlib\n"
        "for name in %r:\n"
        "    try: importlib.import_module(name)\n"
        "    except Exception as error:\n"
        "        if getattr(error, 'name', '') != name: print(name)\n" % (UNUSED,)
    )
    out = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", probe], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    broken = out.stdout.split() if out.returncode == 0 else list(UNUSED)
    if broken:
        pip("uninstall", "-y", *broken)


def check_imports():
    """Raise unless what was installed imports together; keep the bytecode of what every process imports."""
    environment = dict(os.environ)
    # As containers have it: each start would compile all again.
    environment.pop("PYTHONDONTWRITEBYTECODE", None)
    done = subprocess.run(
        [PYTHON, "-W", "ignore", "-c", "import " + ", ".join(IMPORTED)],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        cwd=ROOT,
        env=environment,
    )
    if done.returncode != 0:
        raise SetupError(
            "what was installed does not import: %s; delete .venv and run `make setup` again"
            % (done.stdout.strip().splitlines() or ["no reason given"])[-1]
        )


def interrupt(number, frame):
    """Let SIGTERM end what was started as ctrl-C does."""
    raise KeyboardInterrupt


if __name__ == "__main__":
    signal.signal(signal.SIGTERM, interrupt)
    sys.exit(main())
