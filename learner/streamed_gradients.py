"""Gradients of a step that are added up group by group, before its last group is there.

With `algorithm.advantage_std=global` the std that rewards are divided by is known only at the end. The loss
of a sample is linear in its advantage as long as that is not clipped, so there are two sums: G0 of what is
free of the advantage, G1 of what is linear in it, taken with rewards that are only centred. The gradient of
the batch is G0 + G1 / std. With `group` the advantages are final, and G0 is all.
Each rank has its own sums; nothing is reduced before the step.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from learner.engine import Engine
from learner.nft_step import LossParts, SampleLosses


class StreamedGradients:
    """This rank's sums of gradients and losses of the groups of one step."""

    def __init__(self, engine: Engine, *, kl_coef: float) -> None:
        self.group_ids: set[str] = set()
        self.seconds = 0.0
        self._engine, self._kl_coef = engine, kl_coef
        self._free: list[Tensor] = []  # G0
        self._linear: list[Tensor] = []  # G1
        self._losses = torch.zeros(4, dtype=torch.float64)  # policy, linear policy, KL, old deviation

    def fresh(self) -> StreamedGradients:
        """One with nothing in it."""
        return StreamedGradients(self._engine, kl_coef=self._kl_coef)

    def add(self, losses: LossParts | SampleLosses, weights_B: Tensor) -> None:
        """Samples of one draw; `LossParts` if their advantages are scaled at the end."""
        if isinstance(losses, SampleLosses):
            _add(self._free, self._engine.gradient((weights_B * losses.total).sum()))
            parts = (losses.policy, torch.zeros_like(losses.policy), losses.kl, losses.old_deviation)
        else:
            if losses.has_free_gradient:
                free = (weights_B * (losses.free + self._kl_coef * losses.penalty)).sum()
                _add(self._free, self._engine.gradient(free, keep_graph=True))
            linear = (weights_B * losses.linear).sum()
            _add(self._linear, self._engine.gradient(linear))
            parts = (losses.free, losses.linear, losses.penalty, losses.old_deviation)
        sums = [(weights_B * part.detach()).double().sum() for part in parts]
        self._losses += torch.stack(sums).cpu()

    def hand_over(self, *, scale: float, weight: float) -> list[float]:
        """Give the engine `weight` (G0 + `scale` G1).

        Returns the sums of the total, the policy and the KL loss and of the old policy's deviation.
        """
        gradients: list[Tensor] = []
        _add(gradients, self._free, weight)
        if self._linear:
            _add(gradients, self._linear, weight * scale)
        self._engine.take_gradients(gradients)
        free, linear, kl, old_deviation = self._losses.tolist()
        policy = free + scale * linear
        return [policy + self._kl_coef * kl, policy, kl, old_deviation]


def _add(sums: list[Tensor], gradients: Sequence[Tensor], factor: float = 1.0) -> None:
    """Add `factor` times `gradients` to float32 `sums` in place. An empty list is zero."""
    if not sums:
        sums += [factor * gradient.float() for gradient in gradients]
        return
    for total, gradient in zip(sums, gradients, strict=True):
        total.add_(gradient, alpha=factor)
