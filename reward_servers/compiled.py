"""Networks through torch.compile, for scorers whose option `compile=yes` asks for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch._dynamo.exc import BackendCompilerFailed

from astrolabe_ray.errors import ConfigError
from reward_servers.scorers import ScorerSetup


def compile_if_asked(network: nn.Module, setup: ScorerSetup) -> None:
    """From now on `network` runs compiled, for batches of all sizes; compiled when it is first used.

    A server uses it before it is ready, so one that can't compile does not start.
    """
    if setup.is_compiled:
        network.forward = _refusing(torch.compile(network.forward, dynamic=True))


def _refusing(compiled: Callable[..., Any]) -> Callable[..., Any]:
    """Raises ConfigError where nothing can be compiled."""

    def forward(*args: Any, **kwargs: Any) -> Any:
        try:
            return compiled(*args, **kwargs)
        except BackendCompilerFailed as reason:
            said = " ".join(str(reason).split("\n\n")[0].split())
            raise ConfigError(
                f"options=compile=yes: torch.compile does not work here: {said}. Install a C++ compiler, or "
                "leave the option out"
            ) from None

    return forward
