"""The NFT loss, the reference penalty, the old policy's mixing and the EMA against hand-made numbers."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from astrolabe_ray.algorithms.ema import ema_decay, ema_update_
from astrolabe_ray.algorithms.kl import squared_distance
from astrolabe_ray.algorithms.nft_loss import adaptive_nft_loss, nft_loss, nft_weight
from astrolabe_ray.algorithms.old_policy import mixed, old_policy_decay


def constant(value: float, *, batch: int = 1) -> torch.Tensor:
    return torch.full((batch, 2, 1, 1, 1), value)


def test_full_weight_ignores_the_negative_branch() -> None:
    """r = 1: pos = 0.25 * 2 + 0.75 * 0 = 0.5, and (0.5 - 1)^2 = 0.25."""
    loss = nft_loss(constant(2.0), constant(0.0), constant(1.0), torch.ones(1), nft_beta=0.25)
    assert loss.item() == pytest.approx(0.25)


def test_zero_weight_ignores_the_positive_branch() -> None:
    """r = 0: neg = 1.25 * 0 - 0.25 * 2 = -0.5, and (-0.5 - 1)^2 = 2.25."""
    loss = nft_loss(constant(2.0), constant(0.0), constant(1.0), torch.zeros(1), nft_beta=0.25)
    assert loss.item() == pytest.approx(2.25)


def test_the_loss_of_each_sample_is_its_own() -> None:
    """A mean over the batch inside would mix samples before they are weighted."""
    new = torch.cat([constant(2.0), constant(3.0)])
    old, target = constant(0.0, batch=2), constant(1.0, batch=2)
    loss = nft_loss(new, old, target, torch.tensor([1.0, 0.5]), nft_beta=1.0)
    # sample 0: (2-1)^2 = 1; sample 1: half of (3-1)^2 = 4 and half of (-3-1)^2 = 16
    assert loss.tolist() == pytest.approx([1.0, 10.0])


def test_weight_maps_the_clipped_advantage_to_zero_one() -> None:
    """The advantage of an outlier must not leave [0, 1]."""
    weight = nft_weight(torch.tensor([-9.0, -2.5, 0.0, 5.0, 7.0]), adv_clip_max=5.0)
    assert weight.tolist() == [0.0, 0.25, 0.5, 1.0, 1.0]


def test_gradient_agrees_with_finite_differences_and_spares_the_old_policy() -> None:
    """A gradient into `old` would train the wrong adapter."""
    torch.manual_seed(0)
    new, old, target = (torch.randn(3, 2, 2, 1, 2, dtype=torch.float64) for _ in range(3))
    weight = torch.rand(3, dtype=torch.float64)
    new.requires_grad_()
    old.requires_grad_()

    def loss(prediction: torch.Tensor) -> torch.Tensor:
        return nft_loss(prediction, old, target, weight, nft_beta=0.3).sum()

    (gradient,) = torch.autograd.grad(loss(new), new)
    loss(new).backward()
    assert old.grad is None
    flat = new.detach().flatten()
    for i in range(flat.numel()):
        bump = torch.zeros_like(flat)
        bump[i] = 1e-5
        high, low = (loss((flat + sign * bump).view_as(new)) for sign in (1, -1))
        assert gradient.flatten()[i].item() == pytest.approx(((high - low) / 2e-5).item(), abs=1e-8)


def test_gradient_on_policy_is_the_published_closed_form() -> None:
    """At new == old the gradient is 2 beta (2 r - 1) (old - target) / N per element."""
    torch.manual_seed(1)
    old, target = (torch.randn(2, 3, 2, 1, 1, dtype=torch.float64) for _ in range(2))
    weight = torch.tensor([0.9, 0.2], dtype=torch.float64)
    new = old.clone().requires_grad_()
    nft_loss(new, old, target, weight, nft_beta=0.1).sum().backward()
    want = 2 * 0.1 * (2 * weight - 1).view(-1, 1, 1, 1, 1) * (old - target) / 6
    assert torch.allclose(new.grad, want, atol=1e-15)


def test_the_adaptive_loss_divides_each_branch_by_its_own_error() -> None:
    """One divisor for both branches, a forgotten 1 / beta, or errors of flows instead of clean latents.

    By hand, sigma 0.5, beta 0.5: e+ = 0.5 (0.5 * 2 + 0.5 * 0 - 4) = -1.5, e- = 0.5 (-0.5 * 2 - 4) = -2.5;
    e^2 / |e| = |e|, so 5 / 0.5 * (0.25 * 1.5 + 0.75 * 2.5) = 22.5.
    """
    loss = adaptive_nft_loss(
        constant(2.0),
        constant(0.0),
        constant(4.0),
        torch.tensor([0.5]),
        torch.tensor([0.25]),
        nft_beta=0.5,
        adv_clip_max=5.0,
    )
    assert loss.item() == pytest.approx(22.5)


def test_a_perfect_branch_of_the_adaptive_loss_is_divided_by_the_floor() -> None:
    """0 / 0 where the behaviour policy reproduces a sample: e = 1e-6 gives e^2 / 1e-5 = 1e-7."""
    loss = adaptive_nft_loss(
        constant(1.0) + 1e-6,
        constant(1.0) + 1e-6,
        constant(1.0).double(),
        torch.ones(1),
        torch.ones(1),
        nft_beta=1.0,
        adv_clip_max=1.0,
    )
    assert loss.item() == pytest.approx(1e-7, rel=0.1)


def test_the_adaptive_gradient_is_that_of_a_fixed_divisor() -> None:
    """A gradient through the divisor would turn the square into an absolute value.

    Finite differences of the same quotient in numpy, whose divisor stays that of the first prediction.
    """
    rng = np.random.default_rng(2)
    new, old, target = (rng.standard_normal((2, 3, 2, 1, 1)) for _ in range(3))
    sigma, r, beta, clip = np.array([0.9, 0.4]), np.array([0.8, 0.3]), 0.3, 5.0

    def errors(prediction: np.ndarray) -> list[np.ndarray]:
        mixes = (beta * prediction + (1 - beta) * old, (1 + beta) * old - beta * prediction)
        return [(sigma.reshape(2, 1, 1, 1, 1) * (mix - target)).reshape(2, -1) for mix in mixes]

    sizes = [np.abs(e).mean(1) for e in errors(new)]

    def loss(prediction: np.ndarray) -> float:
        parts = [(e**2).mean(1) / size for e, size in zip(errors(prediction), sizes, strict=True)]
        return float(((r * parts[0] + (1 - r) * parts[1]) * clip / beta).sum())

    leaf = torch.from_numpy(new).requires_grad_()
    inputs = [torch.from_numpy(a) for a in (old, target, sigma, r)]
    got = adaptive_nft_loss(leaf, *inputs, nft_beta=beta, adv_clip_max=clip).sum()
    got.backward()
    assert got.item() == pytest.approx(loss(new), rel=1e-12)
    for i in range(new.size):
        bump = np.zeros(new.size)
        bump[i] = 1e-5
        high, low = (loss(new + sign * bump.reshape(new.shape)) for sign in (1, -1))
        assert leaf.grad.flatten()[i].item() == pytest.approx((high - low) / 2e-5, abs=1e-8)


def test_half_precision_predictions_are_compared_in_float32() -> None:
    """Squared differences in bfloat16 keep three digits only."""
    new, old, target = (constant(v).bfloat16() for v in (1.0, 1.0, 1.0078125))
    loss = nft_loss(new, old, target, torch.ones(1), nft_beta=1.0)
    assert loss.dtype == torch.float32
    assert loss.item() == 0.0078125**2


def test_shapes_that_would_broadcast_are_refused() -> None:
    """[B] against [B, 1, ...] broadcasts silently into a wrong mean."""
    with pytest.raises(ValueError, match="one shape"):
        nft_loss(
            constant(1.0, batch=2),
            constant(1.0),
            constant(1.0, batch=2),
            torch.ones(2),
            nft_beta=1.0,
        )
    with pytest.raises(ValueError, match="one shape"):
        squared_distance(constant(1.0, batch=2), constant(1.0))


def test_reference_penalty_is_the_mean_square_of_each_sample() -> None:
    """(3 - 1)^2 = 4 and (0 - 1)^2 = 1, whatever the number of elements."""
    new = torch.cat([constant(3.0), constant(0.0)])
    assert squared_distance(new, constant(1.0, batch=2)).tolist() == [4.0, 1.0]


@pytest.mark.parametrize(
    ("schedule", "step", "decay"),
    [
        ("none", 900, 0.0),
        ("linear", 1, 0.001),
        ("linear", 499, 0.499),
        ("linear", 800, 0.5),
        ("delayed", 75, 0.0),
        ("delayed", 76, 0.0075),
        ("delayed", 115, 0.3),
        ("delayed", 400, 0.999),
    ],
)
def test_old_policy_decay_follows_its_schedule(schedule, step, decay) -> None:
    """Off-by-one at the ends of the ramps."""
    assert old_policy_decay(schedule, step) == pytest.approx(decay, abs=1e-12)


def test_mixing_keeps_the_share_of_the_old_policy() -> None:
    """Swapped weights would freeze the behaviour policy's opposite."""
    old, default = torch.tensor([1.0]), torch.tensor([3.0])
    assert mixed(old, default, 0.25).item() == 2.5
    copy = mixed(old, default, 0.0)
    assert copy.item() == 3.0 and copy.data_ptr() != default.data_ptr()


def test_ema_warms_up_and_converges() -> None:
    """Without warm-up the average would hang at the initial weights for 1 / (1 - decay) steps."""
    assert [ema_decay(s, maximum=0.9) for s in (0, 1, 80, 200)] == pytest.approx([0.1, 2 / 11, 0.9, 0.9])
    ema = torch.tensor([1.0])
    ema_update_(ema, torch.tensor([2.0]), decay=0.25)
    assert ema.item() == 1.75


def test_narrow_steps_round_as_bfloat16_does() -> None:
    """The comparison with the first release would quietly keep what that one loses.

    bfloat16 has 2^-7 between 1 and 2: an update of 2^-9 is lost, one of 3 * 2^-9 becomes 2^-7.
    """
    ema = torch.ones(2)
    ema_update_(ema, torch.tensor([1 + 2**-7, 1 + 3 * 2**-7]), decay=0.75, steps_in=torch.bfloat16)
    assert ema.tolist() == [1.0, 1.0 + 2**-7]
    old, new = torch.tensor([1.0]), torch.tensor([1 + 2**-7])
    assert mixed(old, new, 0.75, steps_in=torch.bfloat16).item() == 1.0
    assert mixed(old, new, 0.75).item() == 1 + 2**-9


def test_ema_refuses_half_precision() -> None:
    """A bfloat16 average loses small updates."""
    with pytest.raises(ValueError, match="float32"):
        ema_update_(torch.zeros(1, dtype=torch.bfloat16), torch.ones(1), decay=0.9)
