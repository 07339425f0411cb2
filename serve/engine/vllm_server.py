"""``python -m serve.engine.vllm_server`` is vLLM's OpenAI server, and takes its arguments.

It imports some six thousand modules, and a third of the time of that went into the search for garbage. A process that
it spawns imports this module first, and has here the greater part of what it needs.
"""

import atexit
import gc

from serve.imports import collector_resting

if __name__ == "__main__":
    with collector_resting():
        from vllm.entrypoints.launchers.api_server.entry import main
    # Libraries in C++ complain, in the log, of what is not taken apart at the end.
    atexit.register(gc.unfreeze)
    main()
elif __name__ == "__mp_main__":
    with collector_resting():
        import vllm.v1.engine.core  # noqa: F401
