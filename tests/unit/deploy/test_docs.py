"""Every command, setting, metric and error code is documented, and every error and help text says how to go on."""

import ast
import re
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import typer

from deploy.cli import app
from serve.config import Settings
from serve.errors import TenonError
from serve.gateway.api.management import Management
from serve.gateway.control import control_app
from serve.gateway.endpoints import ENDPOINTS, TOKENIZER_INFO
from serve.gateway.metrics import Metrics
from serve.gateway.presets import BUILT_IN
from serve.gateway.source import RouteSource
from serve.gateway.validate import FIELDS, Kind
from serve.registry import Registry
from train.data.spec import DataSpec
from train.recipe import LoraSpec, Recipe, TrainSpec

ROOT = Path(__file__).parents[3]
DOCS = ROOT / "docs"


def error_classes(root: type[TenonError] = TenonError) -> Iterator[type[TenonError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ == "serve.errors":
            yield from error_classes(child)


def helped(command: Any, name: str = "tenon") -> Iterator[tuple[str, Any]]:
    """A command and all below it, by what one types."""
    yield name, command
    for child, inner in getattr(command, "commands", {}).items():
        yield from helped(inner, f"{name} {child}")


HELPED = dict(helped(typer.main.get_command(app)))


def raised(room: str) -> Iterator[tuple[str, ast.Call]]:
    """Where a room makes one of our errors; a refused request becomes the error of its answer, not one of a command."""
    names = {kind.__name__ for kind in error_classes()} - {"BadRequest"}
    for path in (ROOT / room).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names:
                yield f"{path.relative_to(ROOT)}:{node.lineno}", node


def commands() -> list[str]:
    root = typer.main.get_command(app)
    names = []
    for name, command in root.commands.items():
        inner = getattr(command, "commands", {})
        names += [f"{name} {child}" for child in inner] or [name]
    return names


@pytest.mark.parametrize("kind", list(error_classes()), ids=lambda kind: kind.__name__)
def test_error_code_is_documented_with_its_status(kind: type[TenonError]) -> None:
    assert f"| `{kind.code}` | {kind.status} | {kind.exit_code} |" in (DOCS / "errors.md").read_text()
    assert kind.__name__ in (ROOT / "serve" / "errors.py").read_text().split('"""')[1]


@pytest.mark.parametrize("room", ["train", "evalsuite", "deploy"])
def test_every_error_that_a_command_meets_has_a_way_out(room: str) -> None:
    found = dict(raised(room))
    assert len(found) > 10
    assert [
        where
        for where, call in found.items()
        if len(call.args) < 2 and not call.keywords and not any(isinstance(a, ast.Starred) for a in call.args)
    ] == []


@pytest.mark.parametrize("command", HELPED)
def test_every_help_text_has_an_example_of_its_own(command: str) -> None:
    epilog = HELPED[command].epilog
    assert epilog.startswith(("Example: ", "Examples: "))
    assert f"{command} " in f"{epilog} "


@pytest.mark.parametrize("field", sorted(Settings.model_fields))
def test_setting_is_documented(field: str) -> None:
    assert f"| `TENON_{field.upper()}` |" in (DOCS / "settings.md").read_text()


@pytest.mark.parametrize("command", commands())
def test_command_is_documented(command: str) -> None:
    assert f"`tenon {command}" in (DOCS / "commands.md").read_text()


@pytest.mark.parametrize("path", [*ENDPOINTS, TOKENIZER_INFO])
def test_endpoint_is_documented(path: str) -> None:
    assert re.search(rf"^\|.*[` ]{path}`", (DOCS / "serving.md").read_text(), re.MULTILINE)


@pytest.mark.parametrize("kind", FIELDS)
def test_every_field_of_a_body_is_documented(kind: Kind) -> None:
    text = (DOCS / "serving.md").read_text()
    assert [field for field in FIELDS[kind] if f"`{field}`" not in text] == []


def test_every_preset_is_documented_with_its_values() -> None:
    text = (DOCS / "serving.md").read_text()
    for name, values in BUILT_IN.items():
        assert f"| `{name}` | {', '.join(f'`{key}` {value:g}' for key, value in values.items())} |" in text


def test_every_route_of_the_management_api_is_documented(tmp_path: Path) -> None:
    with Registry.open(tmp_path) as registry:
        source = RouteSource(registry, tmp_path / "engine.json")
        management = Management(registry, Settings.read(home=tmp_path), source)
        paths = control_app(source, nullcontext, management).openapi()["paths"]
    text = (DOCS / "api.md").read_text()
    for path, operations in paths.items():
        for method, operation in operations.items():
            assert f"`{method.upper()} {path}`" in text
            assert operation["description"]


def test_no_two_errors_share_a_code() -> None:
    codes = [kind.code for kind in error_classes()]
    assert sorted(set(codes)) == sorted(codes)


def test_every_metric_is_documented() -> None:
    metrics = Metrics(lambda: True)
    for family in metrics.registry.collect():
        if family.name.startswith("tenon_"):
            name = f"{family.name}_total" if family.type == "counter" else family.name
            assert f"| `{name}` |" in (DOCS / "serving.md").read_text()


def test_every_recipe_key_is_documented() -> None:
    text = (DOCS.parent / "train" / "recipes" / "default.yaml").read_text()
    for section in (Recipe, DataSpec, LoraSpec, TrainSpec):
        for key in section.model_fields:
            assert f"{key}:" in text


@pytest.mark.parametrize(
    "page", [DOCS.parent / "README.md", *sorted(DOCS.rglob("*.md"))], ids=lambda page: page.name
)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+?)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


def test_every_benchmark_has_its_numbers_and_is_a_phony_target() -> None:
    makefile = (DOCS.parent / "Makefile").read_text()
    targets = re.findall(r"^((?:bench|check)-[a-z-]+):", makefile, re.MULTILINE)
    assert len(targets) >= 7
    phony = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)[0].split()
    text = (DOCS / "benchmarks.md").read_text()
    assert [name for name in targets if name not in phony or f"make {name}" not in text] == []
