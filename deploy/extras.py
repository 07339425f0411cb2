"""Commands need packages that the base install leaves out; who lacks one is told its name."""

from importlib.util import find_spec

from serve.errors import ConfigError

PACKAGES = {"train": ("torch", "transformers", "trl", "peft", "datasets"), "eval": ("jinja2",)}


def need(*names: str) -> None:
    """Raise :class:`ConfigError` unless the packages of these extras are installed."""
    for name in names:
        missing = [package for package in PACKAGES[name] if find_spec(package) is None]
        if missing:
            raise ConfigError(
                f"this command needs {', '.join(missing)}",
                f"run `pip install 'tenon-llm[{name}]'`, or `make setup`",
            )
