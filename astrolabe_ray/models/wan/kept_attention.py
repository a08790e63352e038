"""Gradient checkpointing that recomputes everything of a block but its attention."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

from torch.utils.checkpoint import CheckpointPolicy, create_selective_checkpoint_contexts

ATTENTION_OPERATORS = ("scaled_dot_product", "flash_attn", "flash_attention")
"""Parts of the names of what the attention kernels call: torch's own, FlashAttention 2 and 3."""


def attention_kept() -> tuple[AbstractContextManager[Any], AbstractContextManager[Any]]:
    """What `torch.utils.checkpoint` takes as `context_fn`."""
    return create_selective_checkpoint_contexts(_policy)


def _policy(context: Any, operator: Any, *args: Any, **kwargs: Any) -> CheckpointPolicy:
    is_attention = any(part in str(operator) for part in ATTENTION_OPERATORS)
    return CheckpointPolicy.MUST_SAVE if is_attention else CheckpointPolicy.PREFER_RECOMPUTE
