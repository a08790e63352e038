"""Names of the transformer's parameters: the original ones, those of diffusers, and what wrappers add.

The two families name the same tensors, one to one; only the names differ.
"""

from __future__ import annotations

import re

_WRAPPERS = ("_fsdp_wrapped_module.", "_checkpoint_wrapped_module.", "_orig_mod.")
_PREFIXES = ("model.", "diffusion_model.")

_PARTS = {
    "text_embedding.0": "condition_embedder.text_embedder.linear_1",
    "text_embedding.2": "condition_embedder.text_embedder.linear_2",
    "time_embedding.0": "condition_embedder.time_embedder.linear_1",
    "time_embedding.2": "condition_embedder.time_embedder.linear_2",
    "time_projection.1": "condition_embedder.time_proj",
    "patch_embedding": "patch_embedding",
    "head.modulation": "scale_shift_table",
    "head.head": "proj_out",
}
_BLOCK_PARTS = {
    "modulation": "scale_shift_table",
    "norm3": "norm2",
    "ffn.0": "ffn.net.0.proj",
    "ffn.2": "ffn.net.2",
} | {
    f"{ours}.{part}": f"{theirs}.{name}"
    for ours, theirs in (("self_attn", "attn1"), ("cross_attn", "attn2"))
    for part, name in {
        "q": "to_q",
        "k": "to_k",
        "v": "to_v",
        "o": "to_out.0",
        "norm_q": "norm_q",
        "norm_k": "norm_k",
    }.items()
}
_PARTS_BACK = {theirs: ours for ours, theirs in _PARTS.items()}
_BLOCK_PARTS_BACK = {theirs: ours for ours, theirs in _BLOCK_PARTS.items()}
_NAME = re.compile(r"(?P<block>blocks\.\d+\.)?(?P<part>.+?)(?P<end>\.(?:weight|bias|lora_[AB]))?")


def bare_name(name: str) -> str:
    """The name without what training and compiling wrap around the model.

    Example: `model._fsdp_wrapped_module.blocks.0.ffn.0.bias` -> `blocks.0.ffn.0.bias`.
    """
    for wrapper in _WRAPPERS:
        name = name.replace(wrapper, "")
    for prefix in _PREFIXES:
        name = name.removeprefix(prefix)
    return name


def is_diffusers_name(name: str) -> bool:
    """Whether only diffusers names a parameter so."""
    return name.startswith(("condition_embedder.", "proj_out.")) or ".attn1." in name


def to_diffusers(name: str) -> str:
    """A parameter's name in diffusers' WanTransformer3DModel; unknown names stay."""
    return _renamed(name, _PARTS, _BLOCK_PARTS)


def from_diffusers(name: str) -> str:
    """Inverse of `to_diffusers`."""
    return _renamed(name, _PARTS_BACK, _BLOCK_PARTS_BACK)


def _renamed(name: str, parts: dict[str, str], block_parts: dict[str, str]) -> str:
    found = _NAME.fullmatch(name)
    assert found is not None, "the pattern takes every name"
    block, part, end = found["block"] or "", found["part"], found["end"] or ""
    return block + (block_parts if block else parts).get(part, part) + end
