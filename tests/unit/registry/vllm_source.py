"""Single functions and classes of the installed vLLM, run without importing vLLM (which would import torch)."""

import ast
import importlib.util
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest


@cache
def definition(module: str, name: str) -> Any:
    """One definition of a module of vLLM; what it imports of vLLM and torch is missing or hollow."""
    spec = importlib.util.find_spec("vllm")
    if spec is None or spec.origin is None:
        pytest.skip("vLLM is not installed")
    path = Path(spec.origin).parent / f"{module}.py"
    tree = ast.parse(path.read_text())
    kept = [node for node in tree.body if _harmless(node) or getattr(node, "name", None) == name]
    code = compile(ast.Module(kept, []), str(path), "exec")
    silent = SimpleNamespace(info_once=lambda *_: None)
    namespace: dict[str, Any] = {"logger": silent, "LoRAConfig": object, "__name__": module}
    exec(code, namespace)
    return namespace[name]


def _harmless(node: ast.stmt) -> bool:
    if isinstance(node, ast.Import):
        return all(alias.name.split(".")[0] not in ("vllm", "torch", "safetensors") for alias in node.names)
    return isinstance(node, ast.ImportFrom) and str(node.module).split(".")[0] in ("dataclasses", "typing")
