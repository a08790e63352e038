"""Gradient checkpointing that recomputes everything of a block but its attention.

Torch's own selective checkpointing refuses a recomputation that makes other calls than the forward did. Under
ZeRO 3 it does: weights are gathered for other layers at a time.
"""

from __future__ import annotations

from collections import deque
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map_only

ATTENTION_OPERATORS = ("scaled_dot_product", "flash_attn", "flash_attention")
"""Parts of the names of what the attention kernels call: torch's own, FlashAttention 2 and 3."""


def attention_kept() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What `torch.utils.checkpoint` takes as `context_fn`: around the forward, and around its repetition."""
    results: deque[Any] = deque()
    return _Keep(results), _GiveBack(results)


class _Keep(TorchDispatchMode):
    """Keeps the results of attention, in order."""

    def __init__(self, results: deque[Any]) -> None:
        super().__init__()
        self._results = results

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if _is_attention(func):
            self._results.append(tree_map_only(Tensor, Tensor.detach, result))
        return result


class _GiveBack(TorchDispatchMode):
    """Takes them instead of computing them again."""

    def __init__(self, results: deque[Any]) -> None:
        super().__init__()
        self._results = results

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self._results.popleft() if _is_attention(func) else func(*args, **(kwargs or {}))


def _is_attention(operator: Any) -> bool:
    return any(part in str(operator) for part in ATTENTION_OPERATORS)
