"""The secret that callers of the HTTP door share with it."""

from __future__ import annotations

import os
from pathlib import Path

from astrolabe_ray.errors import ConfigError

VARIABLE = "ASTROLABE_TOKEN"
MIN_CHARS = 16


def read_token(file: Path | None) -> str:
    """From `file`, else from the environment. Raises ConfigError for none and for one that can be guessed."""
    where = f"the token file {file}" if file is not None else f"${VARIABLE}"
    try:
        token = os.environ.get(VARIABLE, "") if file is None else file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as reason:
        raise ConfigError(f"can't read the token file {file}: {reason}") from None
    token = token.strip()
    ways = f"give --token-file FILE or set {VARIABLE}; `openssl rand -hex 32` makes one"
    if not token:
        raise ConfigError(f"{where} holds no token, and nothing is served without one: {ways}")
    if len(token) < MIN_CHARS or not token.isascii() or not token.isprintable() or " " in token:
        raise ConfigError(
            f"the token in {where} must be {MIN_CHARS} or more ASCII characters without spaces: {ways}"
        )
    return token
