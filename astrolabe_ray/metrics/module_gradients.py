"""Gradient norms of single adapter modules: too many for a curve each, so they have a file of their own."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Mapping

MODULE_GRADIENT = "grad_norm_module/"
"""How the norm of one module is called among the numbers of a step, before the module's name."""
_MODULE = re.compile(r"blocks\.(?P<block>\d+)\.(?P<kind>.+)")
DIGITS = 4


def without_modules(metrics: Mapping[str, float]) -> dict[str, float]:
    return {name: value for name, value in metrics.items() if not name.startswith(MODULE_GRADIENT)}


def module_line(metrics: Mapping[str, float]) -> dict[str, list[float]]:
    """By kind of layer the norms of blocks 0, 1, ..., to 4 digits. Example: `{"ffn.0": [0.25, 0.1253]}`.

    Raises ValueError when a block is missing.
    """
    found: defaultdict[str, dict[int, float]] = defaultdict(dict)
    for name, value in metrics.items():
        if name.startswith(MODULE_GRADIENT):
            module = _MODULE.fullmatch(name.removeprefix(MODULE_GRADIENT))
            if module is None:
                raise ValueError(f"{name} is not the norm of a block's layer")
            found[module["kind"]][int(module["block"])] = value
    for kind, of in found.items():
        if of.keys() != set(range(len(of))):
            raise ValueError(f"{kind} has norms of blocks {sorted(of)} only")
    return {kind: [float(f"{of[b]:.{DIGITS}g}") for b in range(len(of))] for kind, of in found.items()}
