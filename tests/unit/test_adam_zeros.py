"""Adam's state before the first update against what torch makes at it, on a GPU that fake tensors claim."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from learner.engine import adam_zeros


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_the_state_lies_where_torch_would_have_made_it(device: str, fused: bool) -> None:
    """A fused kernel takes the address of the number of updates; one of the host ends the process."""
    with FakeTensorMode():
        param = torch.nn.Parameter(torch.randn(3, 4, device=device))
        adam = torch.optim.AdamW([param], fused=fused)
        param.grad = torch.randn(3, 4, device=device)
        adam._init_group(adam.param_groups[0], [], [], [], [], [], [])  # the first thing that a step does
        made = {name: (t.device, t.shape, t.dtype) for name, t in adam.state[param].items()}
        ours = {name: (t.device, t.shape, t.dtype) for name, t in adam_zeros(param, fused=fused).items()}
        assert made["step"][0].type == (device if fused else "cpu")
    assert ours == made
