"""The loop that trains the embedded models."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from astrolabe_ray.data.sprites.training import Trainer


def test_a_regression_reaches_its_known_optimum() -> None:
    """A loop that steps the wrong way, or not at all, still ends and writes weights."""
    torch.manual_seed(0)
    line = nn.Linear(2, 1)
    inputs = torch.randn(64, 2)
    targets = inputs @ torch.tensor([[2.0], [-0.5]]) + 0.25
    Trainer("line", [line], lr=0.05).run(lambda: (line(inputs) - targets).square().mean(), num_steps=600)
    assert line.weight.tolist()[0] == pytest.approx([2.0, -0.5], abs=1e-3)
    assert line.bias.item() == pytest.approx(0.25, abs=1e-3)


def descend(ema_decay: float, num_steps: int) -> tuple[list[float], float]:
    """Weight before each step and after the run, for the loss (w - 1)^2 from w = 0."""
    point = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(point.weight)
    seen: list[float] = []

    def loss() -> Tensor:
        seen.append(point.weight.item())
        return (point.weight - 1).square().sum()

    Trainer("point", [point], lr=0.1, ema_decay=ema_decay).run(loss, num_steps=num_steps)
    return seen, point.weight.item()


def test_without_averaging_the_last_weights_are_kept() -> None:
    """The average must not leak into a model that did not ask for it."""
    before, last = descend(0.0, 5)
    longer, _ = descend(0.0, 1000)
    assert len(before) == 5
    assert before[0] == 0.0
    assert before[-1] < last < 1
    assert longer[-1] == pytest.approx(1, abs=1e-3)


@pytest.mark.parametrize("decay", [0.2, 0.9])
def test_the_modules_end_with_the_average_of_their_weights(decay: float) -> None:
    """Saving the last weights instead gives noisier models without any sign of it."""
    seen, last = descend(0.0, 40)
    after_each_step = [*seen[1:], last]
    average = 0.0
    for step, weight in enumerate(after_each_step):
        keep = min(decay, step / (step + 10))  # the first weights are forgotten quickly
        average = keep * average + (1 - keep) * weight
    seen_again, averaged = descend(decay, 40)
    assert seen_again == seen
    assert averaged == pytest.approx(average, abs=1e-6)
    assert averaged < last - 1e-4


def test_the_learning_rate_warms_up_and_falls_to_zero() -> None:
    """Adam's first steps are as long as its last ones, whatever the gradient, unless the rate says so."""
    slope = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(slope.weight)
    seen: list[float] = []

    def loss() -> Tensor:
        seen.append(slope.weight.item())
        return -slope.weight.sum()  # a constant gradient: every step of Adam is as long as its rate

    Trainer("slope", [slope], lr=0.1).run(loss, num_steps=200)
    steps = [after - before for before, after in zip(seen, [*seen[1:], slope.weight.item()], strict=True)]
    expected = [0.1 * min(1, (i + 1) / 50) * (1 - i / 200) for i in range(200)]
    assert steps == pytest.approx(expected, rel=1e-2, abs=1e-5)


def test_a_steep_loss_is_clipped() -> None:
    """One bad batch would throw the weights far away; Adam remembers its gradient for long."""
    norms: list[float] = []
    point = nn.Linear(4, 1, bias=False)

    def loss() -> Tensor:
        if point.weight.grad is not None:
            norms.append(point.weight.grad.norm().item())
        return 1e6 * point.weight.sum()

    Trainer("point", [point], lr=1e-3).run(loss, num_steps=3)
    assert norms == pytest.approx([1.0, 1.0], rel=1e-5)


def test_frozen_parameters_stay_as_they_are() -> None:
    """A part that was trained before would drift with the next one."""
    trained, frozen = nn.Linear(1, 1), nn.Linear(1, 1)
    frozen.requires_grad_(False)
    before = frozen.weight.clone()
    trainer = Trainer("both", [trained, frozen], lr=0.1, ema_decay=0.9)
    trainer.run(lambda: (frozen(trained(torch.ones(1))) - 3).square().sum(), num_steps=5)
    assert torch.equal(frozen.weight, before)
    assert trainer.params == list(trained.parameters())
