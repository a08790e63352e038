"""Flow matching with a shifted few-step schedule.

x_t = (1 - sigma) x0 + sigma eps, flow = eps - x0, timestep = 1000 sigma. One sigma rule everywhere:
the timestep a sample was noised at gives its sigma exactly.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

NUM_TIMESTEPS = 1000


def sigma_of(timestep: float | Tensor) -> float | Tensor:
    """Share of noise (0..1) at a timestep (0..1000)."""
    return timestep / NUM_TIMESTEPS


def warped_timesteps(steps: Sequence[int], shift: float) -> tuple[float, ...]:
    """Timesteps that a few-step schedule becomes when its sigmas u = step / 1000 are shifted.

    sigma = shift u / (1 + (shift - 1) u): shift 5 turns 1000, 750, 500, 250 into 1000, 937.5,
    833.33, 625. `steps` in 1..1000. The numbers are those of the table that released few-step models were
    distilled with, rounded to float32 where it is; only with shift 1 they stay exactly as they are.
    """
    assert all(1 <= step <= NUM_TIMESTEPS for step in steps), f"steps {tuple(steps)} are not within 1..1000"
    if shift == 1:
        return tuple(map(float, steps))
    timesteps = _shifted_sigmas(shift) * NUM_TIMESTEPS
    return tuple(float(timesteps[NUM_TIMESTEPS - step]) for step in steps)


def add_noise(x0: Tensor, eps: Tensor, sigma: float | Tensor) -> Tensor:
    """Noisy latents (1 - sigma) x0 + sigma eps; `sigma` is a number or broadcasts over `x0`."""
    return (1 - sigma) * x0 + sigma * eps


def flow_to_x0(x_t: Tensor, flow: Tensor, sigma: float | Tensor) -> Tensor:
    """Clean latents that a flow prediction points to: x_t - sigma flow, at the precision of `x_t`."""
    return x_t - sigma * flow.to(x_t.dtype)


def nearest_sigma(timestep: float, shift: float) -> float:
    """Sigma of the nearest entry in the shifted table of 1000 timesteps, the first one of two.

    Released few-step models convert flow to x0 with this table. It has no entry at 0 and few near
    it (timestep 500 at shift 5 gives 0.50060), so only comparisons with them should use it.
    """
    sigmas = _shifted_sigmas(shift)
    nearest = (sigmas.double() * NUM_TIMESTEPS - timestep).abs().argmin()
    return float(sigmas[nearest])


def _shifted_sigmas(shift: float) -> Tensor:
    """Of the steps 1000, 999, ..., 1, in float32."""
    steps = torch.linspace(1, 0, NUM_TIMESTEPS + 1, dtype=torch.float32)[:-1]
    return shift * steps / (1 + (shift - 1) * steps)
