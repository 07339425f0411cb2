"""Where a registry of a test is."""

from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

from serve.registry import Registry


@dataclass
class Place:
    """Where a registry is: in the home alone, or in a PostgreSQL database."""

    home: Path
    url: str | None
    opened: ExitStack = field(default_factory=ExitStack)

    def open(self) -> Registry:
        """Open the registry; it is closed with the test."""
        return self.opened.enter_context(Registry.open(self.home, self.url))

    @property
    def arguments(self) -> list[str]:
        """Both, for a process to open it."""
        return [str(self.home), self.url or ""]

    @property
    def sqlalchemy_url(self) -> str:
        """What SQLAlchemy opens."""
        if self.url is None:
            return f"sqlite:///{self.home}/registry.db"
        return self.url.replace("postgresql://", "postgresql+psycopg://")
