"""Signs of life of an update: gradients by kind of layer, norms of the policies, weights that stay put."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Mapping

from torch import Tensor

from learner.engine import Engine

_MODULE = re.compile(r"(?P<module>blocks\.\d+\.(?P<kind>.+))\.lora_[AB]")


def gradient_norms(engine: Engine) -> dict[str, float]:
    """Norm of the gradient of each kind of layer over all blocks, and that of the block where it is smallest;
    between the last backward and the step.

    Examples of keys: `grad_norm/self_attn.q`, `grad_norm_weakest/self_attn.q`. Not clipped.
    """
    squares: defaultdict[str, defaultdict[str, float]] = defaultdict(lambda: defaultdict(float))
    for name, gradient in engine.gradients():
        found = _MODULE.fullmatch(name)
        assert found is not None, f"{name} is an adapter's tensor"
        squares[found["kind"]][found["module"]] += float(gradient.double().square().sum())
    whole = {f"grad_norm/{kind}": math.sqrt(sum(of.values())) for kind, of in squares.items()}
    return whole | {f"grad_norm_weakest/{kind}": math.sqrt(min(of.values())) for kind, of in squares.items()}


def adapter_norms(flats: Mapping[str, Tensor]) -> dict[str, float]:
    return {f"adapter_norm/{name}": float(flat.norm()) for name, flat in flats.items()}


def unmoved(before: Tensor, after: Tensor) -> float:
    """Share of the numbers that are bitwise the same."""
    return float((before == after).double().mean())
