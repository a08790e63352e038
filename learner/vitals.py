"""Signs of life of an update: gradients by adapter module, norms of the policies, weights that stay put."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

from astrolabe_ray.metrics.module_gradients import MODULE_GRADIENT
from learner.engine import Engine

_MODULE = re.compile(r"(?P<module>blocks\.\d+\.(?P<kind>.+))\.lora_[AB]")


def gradient_norms(engine: Engine) -> dict[str, float]:
    """Norm of the gradient of each adapter module (A and B of a linear), of each kind of layer over all
    blocks, and of the block where a kind's is smallest; between the last backward and the step.

    Examples of keys: `grad_norm_module/blocks.0.self_attn.q`, `grad_norm/self_attn.q`,
    `grad_norm_weakest/self_attn.q`. Not clipped.
    """
    names, norms = [], []
    for name, gradient in engine.gradients():
        names.append(name)
        norms.append(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    squares: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, norm in zip(names, torch.stack(norms).tolist(), strict=True):  # the host waits for a GPU once
        found = _MODULE.fullmatch(name)
        assert found is not None, f"{name} is an adapter's tensor"
        squares[found["kind"]][found["module"]] += norm**2
    metrics: dict[str, float] = {}
    for kind, of in squares.items():
        metrics |= {f"{MODULE_GRADIENT}{module}": math.sqrt(square) for module, square in of.items()}
        metrics[f"grad_norm/{kind}"] = math.sqrt(sum(of.values()))
        metrics[f"grad_norm_weakest/{kind}"] = math.sqrt(min(of.values()))
    return metrics


def adapter_norms(flats: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"adapter_norm/{name}": float(flat.norm()) for name, flat in flats.items()}


def unmoved(before: Tensor, after: Tensor) -> float:
    """Share of the numbers that are bitwise the same."""
    return float((before == after).double().mean())
