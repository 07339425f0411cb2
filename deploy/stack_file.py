"""What ``tenon up`` was asked for, kept for as long as the stack is wanted."""

from pathlib import Path

from serve.config import Settings
from serve.errors import ConfigError
from serve.records import read_json, write_json


def stack_file(home: Path) -> Path:
    """Where ``tenon up`` writes what it was asked for; there from then until ``tenon down``."""
    return home / "run" / "stack.json"


def read_stack(home: Path) -> Settings | None:
    """The settings of the stack that was brought up in ``home`` and not taken down since, if there is one."""
    path = stack_file(home)
    if not path.exists():
        return None
    try:
        return Settings.stored(read_json(path))
    except ConfigError as error:
        if not path.exists():  # taken down between both looks
            return None
        raise ConfigError(f"{path}: {error.message}", "run `tenon down`, then `tenon up`") from error


def write_stack(settings: Settings) -> None:
    """Remember what the stack was asked for, so that a new controller carries on with the same.

    Only its owner may read the file, as the URLs of the database and of engines may hold passwords.
    """
    write_json(stack_file(settings.home), settings.model_dump(mode="json"), private=True)
