"""Programs import with the collector of cycles at rest."""

import gc
import subprocess
import sys

import pytest

from serve.imports import collector_resting

COUNTING = """
import gc, runpy, sys
seen = []
gc.callbacks.append(lambda phase, _: seen.append(phase))
sys.argv[1:] = ["--help"]
try:
    runpy.run_module(PROGRAM, run_name="__main__")
except SystemExit as end:
    assert not end.code
print(seen.count("start"), gc.isenabled(), file=sys.stderr)
"""


def test_it_rests_meanwhile_and_spares_what_was_imported() -> None:
    try:
        with collector_resting():
            assert not gc.isenabled()
        assert gc.isenabled()
        assert gc.get_freeze_count() > 0
    finally:
        gc.unfreeze()


@pytest.mark.parametrize("program", ["deploy", "serve.gateway"])
def test_programs_look_for_garbage_a_few_times_only(program: str) -> None:
    code = f"PROGRAM = {program!r}\n{COUNTING}"
    done = subprocess.run([sys.executable, "-P", "-c", code], capture_output=True, text=True, check=True)
    times, enabled = done.stderr.split()
    assert int(times) < 30, "else more than a hundred"
    assert enabled == "True"
