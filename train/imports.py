"""Makes the libraries of a training import faster: of a short training, their imports are half."""

import functools
import importlib.metadata
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from serve.imports import collector_resting

UNUSED = ("sklearn", "scipy", "boto3")
"""Imported by transformers for assisted generation and for losses of detectors, and by accelerate to configure
SageMaker."""


@contextmanager
def importing_less() -> Iterator[None]:
    """Import transformers, TRL and PEFT in this, in a process that does nothing but train.

    They go without what is in ``UNUSED`` where it is not installed, and so they do here. transformers and TRL each
    read the metadata of everything that is installed; now that is done once.
    """
    for name in UNUSED:
        sys.modules.setdefault(name, None)  # type: ignore[arg-type]  # nothing is found there from now on
    importlib.metadata.packages_distributions = functools.cache(importlib.metadata.packages_distributions)
    with collector_resting():
        yield
