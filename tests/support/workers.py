"""Finding the processes that train."""

import psutil


def training_workers(parent: psutil.Process) -> list[psutil.Process]:
    """The living training workers below a process; those that have ended but were not waited for do not count."""
    found = []
    for process in parent.children(recursive=True):
        try:
            if "train.worker" in process.cmdline():
                found.append(process)
        except psutil.Error:
            continue
    return found
