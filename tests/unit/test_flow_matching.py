"""The shifted few-step schedule and the flow conversions, with numbers computed by hand."""

from __future__ import annotations

import pytest
import torch

from astrolabe_ray.algorithms.flow_matching import (
    add_noise,
    flow_to_x0,
    nearest_sigma,
    sigma_of,
    warped_timesteps,
)


def test_shift_five_warps_the_four_step_schedule_to_known_timesteps() -> None:
    """Sampling and training at other timesteps than the model was distilled for."""
    # u = 0.75: 5 * 0.75 / (1 + 4 * 0.75) = 3.75 / 4; u = 0.5: 2.5 / 3; u = 0.25: 1.25 / 2
    assert warped_timesteps((1000, 750, 500, 250), 5.0) == pytest.approx((1000, 937.5, 2500 / 3, 625))


def test_warped_timesteps_are_the_float32_numbers_of_the_released_table() -> None:
    """A timestep off by one rounding changes latents in the fifth digit against the released samplers."""
    assert warped_timesteps((1000, 757, 522), 5.0) == (1000.0, 939.6723022460938, 845.2072143554688)
    assert warped_timesteps((1000, 500), 5.0)[1] == float(torch.tensor(2500 / 3))


def test_shift_one_leaves_a_schedule_as_it_is() -> None:
    """A shift counted twice would show here."""
    assert warped_timesteps((1000, 400), 1.0) == (1000.0, 400.0)


def test_sigma_is_a_thousandth_of_the_timestep() -> None:
    """Noising and x0 conversion must use one rule."""
    assert sigma_of(937.5) == 0.9375


def test_noise_mixes_linearly() -> None:
    """Swapped weights would pass any test at sigma 0.5."""
    x0, eps = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    assert add_noise(x0, eps, 0.25).tolist() == [1.5, 0.25]


def test_the_true_flow_leads_back_to_the_clean_latents() -> None:
    """flow = eps - x0 with x_t - sigma flow; a wrong sign doubles the noise."""
    x0, eps = torch.tensor([2.0]), torch.tensor([-1.0])
    assert flow_to_x0(torch.tensor([1.25]), eps - x0, 0.25).item() == pytest.approx(2.0)


def test_a_bfloat16_flow_is_subtracted_at_the_precision_of_the_latents() -> None:
    """The clean latents would be rounded to eight bits at every step."""
    x_t = torch.tensor([1.001])
    assert flow_to_x0(x_t, torch.zeros(1, dtype=torch.bfloat16), 0.5).item() == x_t.item()


@pytest.mark.parametrize(("timestep", "sigma"), [(1000, 1.0), (937.5, 0.9375), (500, 0.5006), (0, 0.00498)])
def test_the_released_models_table_has_its_known_entries(timestep: float, sigma: float) -> None:
    """Its last entry is not zero and it has no entry at 500."""
    assert nearest_sigma(timestep, 5.0) == pytest.approx(sigma, abs=5e-6)
