"""``python -m serve.engine.vllm_server`` is vLLM's OpenAI server, and takes its arguments.

It imports some six thousand modules, and a third of the time of that went into the search for garbage. A process that
it spawns imports this module first, and has here the greater part of what it needs. It leaves without having Python
take all of that apart (docs/decisions/016-starts.md).
"""

import atexit
import os
import sys

from serve.imports import collector_resting

ended_well = False


def leave() -> None:
    """End the process as Python would, but for taking apart what is imported."""
    if ended_well:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


if __name__ == "__main__":
    atexit.register(leave)  # before any other, so that it is called after all others
    with collector_resting():
        from vllm.entrypoints.launchers.api_server.entry import main
    main()
    ended_well = True
elif __name__ == "__mp_main__":
    with collector_resting():
        import vllm.v1.engine.core  # noqa: F401
