"""What a scorer is made of, as a short digest: two runs share a server only if it is the same."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from reward_servers.scorers import SCORERS, WEIGHTS

WHOLE_BYTES = 64 << 20
"""Up to this size a file counts by its content, above by its size and its two ends of a MiB."""
END_BYTES = 1 << 20
SERVER_MODULE = "reward_servers.app"


@lru_cache
def made_of(key: str) -> str:
    """Digest of the source of a scorer and of its server, and of the weights that it loads."""
    modules = (SERVER_MODULE, SCORERS[key].split(":")[0])
    digest = hashlib.sha256()
    for path in (*map(_source, modules), *_files(WEIGHTS.get(key, ()))):
        digest.update(f"{path.name} {file_digest(path)}\n".encode())
    return digest.hexdigest()


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
