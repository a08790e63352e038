"""The loss in two parts, one free of the advantage and one linear in it, against the loss written out."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from astrolabe_ray.config.schema import AlgorithmConfig
from learner.nft_step import Draw, LossParts, Samples, nft_parts

BETA, MAX, KL_COEF, STD = 0.5, 5.0, 0.1, 1.7
CENTRED = (2.0, -0.5, -1.5)  # rewards of a group minus their mean; none is clipped when divided by STD
TIMESTEPS, SIGMAS = (900.0, 500.0, 250.0), (0.9, 0.5, 0.25)
POLICIES = {"default": (0.7, -0.2), "old": (0.5, 0.1), "reference": (0.1, 0.3)}


def flow(policy: tuple[Tensor, Tensor], noisy: Tensor, t_BT: Tensor) -> Tensor:
    """A model with two weights."""
    return policy[0] * noisy + policy[1] * t_BT[..., None, None, None] / 1000


def numbers(dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Clean latents and noise [3, 2, 1, 2, 2]."""
    generator = torch.Generator().manual_seed(1)
    x0 = torch.randn(3, 2, 1, 2, 2, generator=generator)
    return x0.to(dtype), torch.randn(x0.shape, generator=generator).to(dtype)


def written_out(space: str, *, on_policy: bool, rows: list[int]) -> tuple[list[float], list[float]]:
    """Gradient for the two weights and loss of each sample, in float64, with final advantages."""
    x0, noise = numbers(torch.float64)
    theta = torch.tensor(POLICIES["default"], dtype=torch.float64, requires_grad=True)
    old_theta = theta.detach() if on_policy else torch.tensor(POLICIES["old"], dtype=torch.float64)
    losses = []
    for i, centred in enumerate(CENTRED):
        sigma, t_BT = SIGMAS[i], torch.full((1, 2), TIMESTEPS[i], dtype=torch.float64)
        noisy = (1 - TIMESTEPS[i] / 1000) * x0[i] + TIMESTEPS[i] / 1000 * noise[i]
        predict = [
            flow((w[0], w[1]), noisy[None], t_BT)[0]
            for w in (theta, old_theta, torch.tensor(POLICIES["reference"], dtype=torch.float64))
        ]
        target = noise[i] - x0[i]
        if space == "x0":
            predict, target = [noisy - sigma * p for p in predict], x0[i]
        new, old, reference = predict
        r = centred / STD / (2 * MAX) + 0.5
        plus = BETA * new + (1 - BETA) * old - target
        minus = (1 + BETA) * old - BETA * new - target
        if space == "x0":
            loss = r * (plus**2).mean() + (1 - r) * (minus**2).mean()
        else:
            plus, minus = sigma * plus, sigma * minus
            loss = r * (plus**2).mean() / plus.detach().abs().mean()
            loss = loss + (1 - r) * (minus**2).mean() / minus.detach().abs().mean()
            loss = loss * MAX / BETA
        if i in rows:
            loss = loss + KL_COEF * ((new - reference) ** 2).mean()
        losses.append(loss)
    (gradient,) = torch.autograd.grad(sum(losses), theta)
    return gradient.tolist(), [float(loss.detach()) for loss in losses]


def in_parts(space: str, *, on_policy: bool, rows: list[int]) -> tuple[LossParts, tuple[Tensor, Tensor]]:
    weights = (
        torch.tensor(POLICIES["default"][0], requires_grad=True),
        torch.tensor(POLICIES["default"][1], requires_grad=True),
    )

    def predict(policy, noisy: Tensor, t_BT: Tensor, text: Tensor, clean: Tensor | None, shared) -> Tensor:
        if policy == "default":
            return flow(weights, noisy, t_BT)
        values = POLICIES[policy]
        return flow((torch.tensor(values[0]), torch.tensor(values[1])), noisy, t_BT)

    x0, noise = numbers(torch.float32)
    samples = Samples(x0, torch.zeros(3, 1, 1), torch.tensor(CENTRED), torch.ones(3), window_start=0)
    parts = nft_parts(
        predict,
        samples,
        Draw(torch.tensor(TIMESTEPS), torch.tensor(SIGMAS), noise),
        algorithm=AlgorithmConfig(
            loss_space=space,
            nft_beta=BETA,
            adv_clip_max=MAX,
            kl_coef=KL_COEF,  # type: ignore[arg-type]
        ),
        on_policy=on_policy,
        reference_rows=rows,
    )
    return parts, weights


@pytest.mark.parametrize("space", ["x0", "v"])
@pytest.mark.parametrize("on_policy", [True, False])
@pytest.mark.parametrize("rows", [[], [0, 2]], ids=str)
def test_the_two_gradients_make_that_of_the_loss_when_the_std_is_known(
    space: str, on_policy: bool, rows: list[int]
) -> None:
    """A part that is scaled twice, or not at all, trains on other advantages without any error."""
    parts, weights = in_parts(space, on_policy=on_policy, rows=rows)
    free = parts.free + KL_COEF * parts.penalty
    g0 = torch.autograd.grad(free.sum(), weights, retain_graph=True)
    g1 = torch.autograd.grad(parts.linear.sum(), weights)
    want, losses = written_out(space, on_policy=on_policy, rows=rows)
    got = [float(a + b / STD) for a, b in zip(g0, g1, strict=True)]
    assert got == pytest.approx(want, rel=2e-5)
    assert (free + parts.linear / STD).tolist() == pytest.approx(losses, rel=1e-5)
    assert any(abs(float(b)) > 1e-3 for b in g1)


@pytest.mark.parametrize("space", ["x0", "v"])
def test_on_policy_without_a_penalty_the_free_part_has_a_gradient_of_exactly_zero(space: str) -> None:
    """Its backward pass, half of all, is left out then; that must not change the update."""
    parts, weights = in_parts(space, on_policy=True, rows=[])
    assert not parts.has_free_gradient
    assert [float(g) for g in torch.autograd.grad(parts.free.sum(), weights)] == [0.0, 0.0]
    for on_policy, rows in ((False, []), (True, [1])):
        assert in_parts(space, on_policy=on_policy, rows=rows)[0].has_free_gradient
