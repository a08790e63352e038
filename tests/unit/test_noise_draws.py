"""Where on the noise schedule samples train, and what a step hands to the learner."""

from __future__ import annotations

import pytest
import torch

from astrolabe_ray.config.schema import AlgorithmConfig, ModelConfig
from learner.nft_step import draw, noise_levels

MODEL = ModelConfig(denoising_steps=(1000, 750, 500, 250), timestep_shift=5.0)


@pytest.mark.parametrize(
    ("timesteps", "sigma", "want"),
    [
        ("warped", "exact", [(1000, 1), (937.5, 0.9375), (833.333, 0.833333), (625, 0.625)]),
        ("plain", "exact", [(1000, 1), (750, 0.75), (500, 0.5), (250, 0.25)]),
        ("plain", "table", [(1000, 1), (750, 0.75), (500, 0.50060), (250, 0.25160)]),
    ],
)
def test_noise_levels_are_those_of_the_schedule(timesteps: str, sigma: str, want: list) -> None:
    """Training at noise that the sampler never meets; numbers of the release by hand, to its digits."""
    levels = noise_levels(MODEL, AlgorithmConfig(train_timesteps=timesteps, x0_sigma=sigma))
    assert [t for t, _ in levels] == pytest.approx([t for t, _ in want], abs=1e-3)
    assert [s for _, s in levels] == pytest.approx([s for _, s in want], abs=2e-4)


def test_each_sample_draws_for_itself_unless_a_microbatch_draws_for_all() -> None:
    """With a generator per microbatch a sample's noise would depend on who trains beside it."""
    levels, seeds = noise_levels(MODEL, AlgorithmConfig()), range(12)
    own = draw(seeds, (1, 1, 1, 1), levels, 1)[0]
    shared = draw(seeds, (1, 1, 1, 1), levels, 1, one_for_all=True)[0]
    alone = torch.cat([draw([seed], (1, 1, 1, 1), levels, 1)[0].timestep_B for seed in seeds])
    assert own.timestep_B.tolist() == alone.tolist()
    assert len(set(own.timestep_B.tolist())) > 1
    assert set(shared.timestep_B.tolist()) == {own.timestep_B[0].item()}
    assert torch.equal(own.noise_BTCHW, shared.noise_BTCHW)


def test_all_timesteps_of_a_sample_are_distinct() -> None:
    """Drawn with replacement, `all` would be some of them twice."""
    draws = draw([5, 6], (1, 1, 1, 1), noise_levels(MODEL, AlgorithmConfig()), 4)
    for row in torch.stack([d.timestep_B for d in draws], dim=1).tolist():
        assert sorted(row) == pytest.approx([625, 833.3333, 937.5, 1000], abs=1e-3)
