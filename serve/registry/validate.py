"""Decides whether an adapter's folder may be registered, and says everything that is wrong with it at once."""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path

from serve.errors import AdapterRejected, BaseModelError
from serve.registry.adapter_config import (
    LoraConfig,
    Problem,
    UnreadableConfig,
    brief,
    check_config,
    read_config,
)
from serve.registry.base import BUILTIN, BaseIdentity, identify_base, safe_name
from serve.registry.records import AdapterFacts
from serve.registry.serving import Serving
from serve.registry.store import CONFIG, WEIGHTS

__all__ = ["AdapterFacts", "validate_adapter"]

MAX_FOLDER_ENTRIES = 10_000
MAX_ALIKE = 3
MAX_REASON = 300
MAX_IGNORED = 3
PICKLES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
ARCHIVES = {*(".zip", ".tar", ".tgz", ".tbz", ".tbz2", ".txz", ".gz", ".bz2", ".xz", ".zst", ".7z", ".rar")}
CODE = {".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".sh"}
LEFT_BY_TRAINERS = {"zero_to_fp32.py"}
TWO_FILES = f"give the folder that holds both {CONFIG} and {WEIGHTS}"
ALONE = f"give a folder with {CONFIG} and {WEIGHTS} alone"
SAFE_SAVE = (
    "load the adapter where you trust it and save it with save_pretrained(…, safe_serialization=True), then give "
    "that folder"
)
COPY_OF_BASE = re.compile(r"(-unsloth)?-(bnb-4bit|bnb-8bit|4bit|8bit|awq|gptq|gptq-int4|gptq-int8|fp8)$")
HUB_CACHE = re.compile(r"models--(?P<org>[^/]+)--(?P<name>[^/]+)(/snapshots/[^/]+)?/?$")


def validate_adapter(
    folder: Path,
    base: BaseIdentity,
    max_rank: int,
    *,
    shown: str = "",
    remote: bool = False,
    trained_here: bool = False,
) -> AdapterFacts:
    """Check a PEFT folder against a base; raises AdapterRejected with every problem found.

    Of the folder only ``adapter_config.json`` and ``adapter_model.safetensors`` are read, and only they are stored.
    Whatever else trainers leave there is ignored with a note: it is never opened, links are not followed. Refused are
    code beside the two files, as an adapter that needs it would answer otherwise than its author saw; the weights once
    more as a pickle, as nobody can say which of the two were meant; and archives, in which there may be anything.
    ``max_rank`` is the engine's; ``shown`` is what errors call the folder, where it was fetched from elsewhere. For a
    ``remote`` caller the folder of a base that the adapter names is not looked for: whether it exists is not for them.
    ``trained_here``: it is known to have been trained on this very base, whatever name it gives it.
    """
    shown = shown or str(folder)
    problems = list(_folder_problems(folder))
    if not folder.is_dir() or folder.is_symlink():
        raise _rejection(shown, problems)
    config, found = _config(folder, max_rank, base.serving)
    problems += found
    # Imported here, as numpy takes a while and most users of the registry never validate.
    from serve.registry.weights import check_weights

    base_digest = base.digest if trained_here else None
    warnings: list[str] = []
    if config is not None and not trained_here:
        base_digest, warnings, found = _base_hint(config.base, base, remote=remote)
        problems += found
    weights = None
    if (folder / WEIGHTS).is_file():
        weights = check_weights(folder / WEIGHTS, base, config)
        problems += weights.problems
    if problems or config is None or weights is None:
        raise _rejection(shown, problems)
    return AdapterFacts(
        rank=weights.rank,
        alpha=config.alpha,
        target_modules=tuple(sorted({module.rsplit(".", 1)[-1] for module in weights.sides})),
        parameters=weights.parameters,
        bytes=weights.bytes,
        all_zero=weights.all_zero,
        base_digest=base_digest,
        warnings=tuple(_printable(text) for text in (*warnings, *_ignored(folder))),
    )


def _folder_problems(folder: Path) -> Iterator[Problem]:
    if folder.is_symlink():
        yield Problem("it is a symbolic link", "give the folder itself")
        return
    if not folder.is_dir():
        what = "it is a file, and archives are not taken" if folder.exists() else "there is no such folder"
        yield Problem(what, TWO_FILES)
        return
    for name in (CONFIG, WEIGHTS):
        try:
            mode = (folder / name).lstat().st_mode
        except FileNotFoundError:
            yield _missing(folder, name)
            continue
        if stat.S_ISLNK(mode):
            yield Problem(f"{name} is a symbolic link", "copy the files themselves: cp -rL FOLDER COPY")
        elif not stat.S_ISREG(mode):
            yield Problem(f"{name} is not a regular file", TWO_FILES)
    for path in _others(folder):
        if path.suffix.lower() in CODE and path.name not in LEFT_BY_TRAINERS:
            hint = f"adapters bring no code, and none is run; if it works without, {TWO_FILES} alone"
            yield Problem(f"{path.name} is code", hint)
        elif path.name in PICKLES and (folder / WEIGHTS).exists():
            yield Problem(f"beside {WEIGHTS} it has {path.name}, a pickle with weights of its own", ALONE)
        elif path.suffix.lower() in ARCHIVES:
            yield Problem(f"{path.name} is an archive", ALONE)


def _missing(folder: Path, name: str) -> Problem:
    pickles = [pickle for pickle in PICKLES if (folder / pickle).exists()]
    if name == WEIGHTS and pickles:
        reason = f"it has no {name}, only {pickles[0]}, a pickle, which can run code when it is read"
        return Problem(reason, SAFE_SAVE)
    return Problem(f"it has no {name}", _way_out(folder, name))


def _way_out(folder: Path, name: str) -> str:
    """Where the adapter that somebody meant may be."""
    checkpoints = [
        path for path in _others(folder) if (path / CONFIG).is_file() and (path / WEIGHTS).is_file()
    ]
    if checkpoints:
        return f"give {max(checkpoints, key=lambda path: path.lstat().st_mtime)}"
    if name == CONFIG and any(path.name.startswith("model") for path in folder.glob("*.safetensors")):
        return "this looks like a whole model: serve it as a base with TENON_MODEL, or give its adapter"
    return TWO_FILES


def _ignored(folder: Path) -> list[str]:
    """A note on what else lies in the folder, if anything does."""
    names = sorted(path.name for path in _others(folder))
    if not names:
        return []
    more = len(names) - MAX_IGNORED
    shown = ", ".join(names[:MAX_IGNORED]) + (f" and {more:,} more" if more > 0 else "")
    return [f"ignored and not read: {shown}; an adapter is {CONFIG} and {WEIGHTS} alone"]


def _others(folder: Path) -> list[Path]:
    """What lies beside the two files, up to a bound; nothing below is looked at."""
    found = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if entry.name not in (CONFIG, WEIGHTS):
                found.append(Path(entry.path))
            if len(found) >= MAX_FOLDER_ENTRIES:
                break
    return found


def _config(folder: Path, max_rank: int, serving: Serving) -> tuple[LoraConfig | None, list[Problem]]:
    if not (folder / CONFIG).exists():
        return None, []
    try:
        return check_config(read_config(folder / CONFIG), max_rank, serving)
    except UnreadableConfig as error:
        return None, [Problem(str(error), "use the file that PEFT wrote when it saved the adapter")]


def _base_hint(
    hint: str | None, base: BaseIdentity, *, remote: bool
) -> tuple[str | None, list[str], list[Problem]]:
    """What ``base_model_name_or_path`` tells: the digest of the base it leads to, warnings, problems.

    It is a hint only: shapes are the hard check. A folder on this machine that is another base settles it; a
    name that differs and leads nowhere is a warning, as people rename folders. The network is never asked.
    """
    if not hint:
        note = "adapter_config.json does not say which base it was trained on; only shapes were checked"
        return None, [note], []
    folder = None if remote else _local(hint)
    if hint == BUILTIN or folder is not None:
        try:
            digest = base.digest if folder == base.path else identify_base(hint).digest
        except BaseModelError:
            note = f"the base {brief(hint)} that it was trained on cannot be read; only shapes were checked"
            return None, [note], []
        if digest != base.digest:
            reason = f"it was trained on {brief(hint)}, which is another base than {base.name}"
            way_out = "serve it with that base, or train it on this one"
            if hint == BUILTIN == base.name:
                reason = (
                    f"it names its base {hint}, which is the built-in one and not the folder of that name"
                )
                way_out += (
                    "; if it is of the folder, name this otherwise, there and in base_model_name_or_path"
                )
            return digest, [], [Problem(reason, way_out)]
        return digest, [], []
    name = _base_name(hint)
    if name == base.name:
        return None, [], []
    if COPY_OF_BASE.sub("", name) == COPY_OF_BASE.sub("", base.name):
        return None, [f"it was trained on {brief(hint)}, a quantised copy of {base.name}"], []
    return (
        None,
        [f"it was trained on {brief(hint)}, which is not on this machine; its shapes fit {base.name}"],
        [],
    )


def _local(hint: str) -> Path | None:
    """The folder that a hint names, if there is one here. A hint is whatever somebody wrote in a file."""
    try:
        folder = Path(hint).expanduser()
        return folder.absolute() if folder.is_dir() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _base_name(hint: str) -> str:
    """The name that a hub id or a path on another machine gives to a base."""
    cached = HUB_CACHE.search(hint)
    # ModelScope's cache writes a dot in a name as three underscores.
    return safe_name((cached["name"] if cached else hint).replace("___", "."))


def _rejection(shown: str, problems: list[Problem]) -> AdapterRejected:
    """One error for all problems; of those with the same way out only the first few are spelt out."""
    alike: dict[str, list[str]] = {}
    for problem in problems:
        alike.setdefault(problem.hint, []).append(problem.reason)
    reasons: list[str] = []
    for group in alike.values():
        reasons += map(_printable, group[:MAX_ALIKE])
        if len(group) > MAX_ALIKE:
            reasons.append(f"and {len(group) - MAX_ALIKE} more like these")
    return AdapterRejected(f"the adapter in {shown} is refused: {'; '.join(reasons)}", "; ".join(alike))


def _printable(text: str) -> str:
    """Text that may hold what an adapter's author wrote, fit for a terminal and a log."""
    plain = "".join(sign if sign.isprintable() else "\N{REPLACEMENT CHARACTER}" for sign in text)
    return plain if len(plain) <= MAX_REASON else f"{plain[: MAX_REASON - 1]}…"
