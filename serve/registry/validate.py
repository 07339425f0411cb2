"""Decides whether an adapter's folder may be registered, and says everything that is wrong with it at once."""

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from serve.errors import AdapterRejected, BaseModelError
from serve.registry.adapter_config import LoraConfig, Problem, UnreadableConfig, check_config, read_config
from serve.registry.base import BUILTIN, BaseIdentity, identify_base, safe_name
from serve.registry.records import AdapterFacts
from serve.registry.store import CONFIG, WEIGHTS

__all__ = ["AdapterFacts", "validate_adapter"]

MAX_FOLDER_ENTRIES = 10_000
MAX_ALIKE = 3
PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".npy", ".npz"}
CODE = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh"}
ARCHIVES = {".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".whl"}
TWO_FILES = f"give a folder with {CONFIG} and {WEIGHTS} alone"


def validate_adapter(folder: Path, base: BaseIdentity, max_rank: int) -> AdapterFacts:
    """Check a PEFT folder against a base; raises AdapterRejected with every problem found.

    Of the folder only ``adapter_config.json`` and ``adapter_model.safetensors`` are read. Other harmless files
    are ignored; pickles, code, archives and links anywhere in it are refused. ``max_rank`` is the engine's.
    """
    problems = list(_folder_problems(folder))
    if not folder.is_dir() or folder.is_symlink():
        raise _rejection(folder, problems)
    config, found = _config(folder, max_rank)
    problems += found
    # Imported here, as numpy takes a while and most users of the registry never validate.
    from serve.registry.weights import check_weights

    base_digest: str | None = None
    warnings: list[str] = []
    if config is not None:
        base_digest, warnings, found = _base_hint(config.base, base)
        problems += found
    weights = None
    if (folder / WEIGHTS).is_file():
        weights = check_weights(folder / WEIGHTS, base, config)
        problems += weights.problems
    if problems or config is None or weights is None:
        raise _rejection(folder, problems)
    return AdapterFacts(
        rank=weights.rank,
        alpha=config.alpha,
        target_modules=tuple(sorted({module.rsplit(".", 1)[-1] for module in weights.sides})),
        parameters=weights.parameters,
        bytes=weights.bytes,
        all_zero=weights.all_zero,
        base_digest=base_digest,
        warnings=tuple(warnings),
    )


def _folder_problems(folder: Path) -> Iterator[Problem]:
    if folder.is_symlink():
        yield Problem("it is a symbolic link", "give the folder itself")
        return
    if not folder.is_dir():
        what = "it is a file, and archives are not taken" if folder.exists() else "there is no such folder"
        yield Problem(what, TWO_FILES)
        return
    pickled = False
    for number, path in enumerate(_entries(folder)):
        if number >= MAX_FOLDER_ENTRIES:
            yield Problem(f"it holds more than {MAX_FOLDER_ENTRIES:,} files", TWO_FILES)
            break
        problem = _file_problem(path, str(path.relative_to(folder)))
        if problem is not None:
            pickled = pickled or path.suffix.lower() in PICKLES
            yield problem
    for name in (CONFIG, WEIGHTS):
        if not (folder / name).exists() and not (folder / name).is_symlink():
            pickle_way = pickled and name == WEIGHTS
            yield Problem(f"it has no {name}", _safe_save() if pickle_way else TWO_FILES)


def _entries(folder: Path) -> Iterator[Path]:
    for place, folders, files in os.walk(folder):
        for name in (*folders, *files):
            yield Path(place, name)


def _file_problem(path: Path, shown: str) -> Problem | None:
    suffix = path.suffix.lower()
    mode = path.lstat().st_mode
    if stat.S_ISLNK(mode):
        return Problem(f"{shown} is a symbolic link", "copy the files themselves: cp -rL FOLDER COPY")
    if stat.S_ISDIR(mode):
        return None
    if not stat.S_ISREG(mode):
        return Problem(f"{shown} is a device, pipe or socket", TWO_FILES)
    if suffix in PICKLES:
        return Problem(f"{shown} may hold a pickle, which can run code when it is read", _safe_save())
    if suffix in CODE:
        return Problem(f"{shown} is code", f"adapters bring no code; {TWO_FILES}")
    if suffix in ARCHIVES:
        return Problem(f"{shown} is an archive", f"unpack it elsewhere; {TWO_FILES}")
    return None


def _safe_save() -> str:
    return f"save the adapter with save_pretrained(…, safe_serialization=True) and {TWO_FILES}"


def _config(folder: Path, max_rank: int) -> tuple[LoraConfig | None, list[Problem]]:
    if not (folder / CONFIG).exists():
        return None, []
    try:
        return check_config(read_config(folder / CONFIG), max_rank)
    except UnreadableConfig as error:
        return None, [Problem(str(error), "use the file that PEFT wrote when it saved the adapter")]


def _base_hint(hint: str | None, base: BaseIdentity) -> tuple[str | None, list[str], list[Problem]]:
    """What ``base_model_name_or_path`` tells: the digest of the base it leads to, warnings, problems.

    It is a hint only: shapes are the hard check. A folder on this machine that is another base settles it; a
    name that differs and leads nowhere is a warning, as people rename folders. The network is never asked.
    """
    if not hint:
        return (
            None,
            ["adapter_config.json does not say which base it was trained on; only shapes were checked"],
            [],
        )
    folder = Path(hint).expanduser()
    if hint == BUILTIN or folder.is_dir():
        try:
            digest = base.digest if folder.absolute() == base.path else identify_base(hint).digest
        except BaseModelError:
            return (
                None,
                [f"the base {hint} that it was trained on cannot be read; only shapes were checked"],
                [],
            )
        if digest != base.digest:
            reason = f"it was trained on {hint}, which is another base than {base.name}"
            return digest, [], [Problem(reason, "serve it with that base, or train it on this one")]
        return digest, [], []
    if safe_name(hint) == base.name:
        return None, [], []
    return None, [f"it was trained on {hint!r}, which is not on this machine; its shapes fit {base.name}"], []


def _rejection(folder: Path, problems: list[Problem]) -> AdapterRejected:
    """One error for all problems; of those with the same way out only the first few are spelt out."""
    alike: dict[str, list[str]] = {}
    for problem in problems:
        alike.setdefault(problem.hint, []).append(problem.reason)
    reasons = []
    for group in alike.values():
        reasons += group[:MAX_ALIKE]
        if len(group) > MAX_ALIKE:
            reasons.append(f"and {len(group) - MAX_ALIKE} more like these")
    return AdapterRejected(f"the adapter in {folder} is refused: {'; '.join(reasons)}", "; ".join(alike))
