"""The running stack as tests handle it."""

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import httpx
import openai

from deploy.serving import wait_until_loaded
from deploy.status import Status, status
from evalsuite.load.adapters import write_adapter
from serve.config import Settings
from serve.names import VersionRef
from serve.registry import Registry, Version
from serve.registry.base import BaseIdentity, identify_base


def until(true: Callable[[], bool], seconds: float = 20.0) -> None:
    """Wait, and fail the test when it takes longer."""
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, f"not within {seconds} s"
        time.sleep(0.1)


def healthy(home: Path) -> Status:
    """The status of a stack that is, though it may be too busy to answer each health check in time."""
    deadline = time.monotonic() + 20
    while not (now := status(home)).healthy:
        assert time.monotonic() < deadline, now
        time.sleep(0.1)
    return now


def slowly_loaded_alias(home: Path, engine: str, folder: Path, seconds: float) -> None:
    """Have ``faq`` mean a new version of the built-in base, which the fake engine takes its time to load."""
    base = identify_base("tenon-tiny")
    with Registry.open(home) as registry:
        version = registry.register(write_adapter(folder, base), "faq", base, max_rank=64)
        registry.set_alias("faq", version.ref, forced=True)
    slow = {"kind": "slow_load", "seconds": seconds}
    httpx.post(f"{engine}/_fake/faults", json={"faults": [slow]}).raise_for_status()


@dataclass
class RunningStack:
    """The real engine with the built-in base, a gateway and a controller, in a home of their own."""

    settings: Settings
    registry: Registry
    base: BaseIdentity
    folder: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.settings.port}"

    @property
    def environment(self) -> dict[str, str]:
        """What makes a ``tenon`` command work on this stack."""
        return {**os.environ, "TENON_HOME": str(self.settings.home), "COLUMNS": "120"}

    def client(self) -> openai.OpenAI:
        """The unmodified client; it does not retry, so that every failure is seen."""
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=60)

    def add(self, name: str, *, seed: int, scale: float = 2.0, zero: bool = False) -> Version:
        """Register a random adapter as the next version of ``name``."""
        folder = write_adapter(self.folder / f"{name}-{seed}", self.base, seed=seed, scale=scale, zero=zero)
        return self.registry.register(folder, name, self.base, max_rank=64)

    def serve(self, name: str, *, seed: int, scale: float = 2.0) -> Version:
        """Register a random adapter, load it and point its alias at it."""
        version = self.add(name, seed=seed, scale=scale)
        self.load(version.ref)
        self.point(name, version.ref)
        return version

    def load(self, ref: VersionRef) -> None:
        """Have the engine hold a version."""
        self.registry.want(ref)
        wait_until_loaded(self.registry, self.settings, ref, lambda _: None)

    def point(self, name: str, ref: VersionRef) -> None:
        """Point an alias at a loaded version."""
        self.registry.set_alias(name, ref, forced=True, by="test")
        self.load(ref)
