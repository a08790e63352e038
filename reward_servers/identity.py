"""What a scorer is made of, as a short digest: two runs share a server only if it is the same."""

from __future__ import annotations

import ast
import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from astrolabe_ray.config.scorer_cards import ScorerCard
from reward_servers.scorers import SCORERS, WEIGHTS, ScorerSetup, outside_class

WHOLE_BYTES = 64 << 20
"""Up to this size a file counts by its content, above by its size and its two ends of a MiB."""
END_BYTES = 1 << 20
SERVER_MODULE = "reward_servers.app"
FOLLOWED = (
    "reward_servers.",
    "astrolabe_ray.models.",
    "astrolabe_ray.data.",
    "astrolabe_ray.config.reward_files",
)
"""Imports that count: code that makes a number out of frames. Not the config's schema and the messages, which
change with every option, and not the cards: what they say of a server is in its name."""


@lru_cache
def made_of(scorer: str, files: tuple[Path, ...] = ()) -> str:
    """Digest of the source of a scorer and of its server, and of what it loads: `files`, where they exist."""
    module = SCORERS[scorer].split(":")[0] if scorer in SCORERS else outside_class(scorer).__module__
    digest = hashlib.sha256()
    for path in (*map(_source, own_modules(SERVER_MODULE, module)), *_files(WEIGHTS.get(scorer, ()) + files)):
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()


def files_of(card: ScorerCard, setup: ScorerSetup) -> tuple[Path, ...]:
    """Files that a scorer loads as it is set up, those that are here."""
    named = [setup.options[name] for name in card.file_options if setup.options[name]]
    patterns = [*(path for need in card.files for path in (need.path, *need.instead)), *named]
    found = [
        sorted(setup.folder.glob(pattern)) if "*" in pattern else [setup.folder / pattern]
        for pattern in patterns
    ]
    return tuple(path for paths in found for path in paths if path.exists())


def own_modules(*modules: str) -> list[str]:
    """These modules, and those of FOLLOWED that they import, directly or not."""
    found: dict[str, None] = dict.fromkeys(modules)
    waiting = list(modules)
    while waiting:
        for name in _imports(waiting.pop()):
            if name.startswith(FOLLOWED) and name not in found and _is_module(name):
                found[name] = None
                waiting.append(name)
    return sorted(found)


def _imports(module: str) -> set[str]:
    """What a module imports, wherever in it; a function among it is MODULE.NAME, as a module would be."""
    nodes = list(ast.walk(ast.parse(_source(module).read_text())))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    sources = [(node.module or "", node.names) for node in nodes if isinstance(node, ast.ImportFrom)]
    return (
        plain | {name for name, _ in sources} | {f"{name}.{a.name}" for name, names in sources for a in names}
    )


def _is_module(name: str) -> bool:
    """Not something inside of one. Python itself would import the module to tell."""
    package, *inner = name.split(".")
    spec = find_spec(package)
    assert spec is not None and spec.submodule_search_locations, f"{package} is not installed"
    return Path(spec.submodule_search_locations[0], *inner).with_suffix(".py").is_file()


def file_digest(path: Path) -> str:
    """Content of a file, wherever it lies and whenever it was written."""
    size = path.stat().st_size
    with path.open("rb") as file:
        digest = hashlib.sha256(str(size).encode())
        digest.update(file.read(WHOLE_BYTES if size <= WHOLE_BYTES else END_BYTES))
        if size > WHOLE_BYTES:
            file.seek(-END_BYTES, 2)
            digest.update(file.read())
    return digest.hexdigest()


def _source(module: str) -> Path:
    """The file of a module, which is not imported: it may load what only a server has."""
    spec = find_spec(module)
    assert spec is not None and spec.origin is not None, f"{module} is not installed"
    return Path(spec.origin)


def _files(paths: tuple[Path, ...]) -> list[Path]:
    """All files of files and folders, in a fixed order."""
    return [
        file
        for path in paths
        for file in ([path] if path.is_file() else sorted(p for p in path.rglob("*") if p.is_file()))
    ]
