"""A batch that does not fit the device is cut into halves, and every row is computed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from astrolabe_ray.errors import InfraFailure
from reward_servers.forwards import Forwards
from reward_servers.scoring import finite_numbers
from tests.tiny_rewards import every_scorer


class Device:
    """Has room for so many rows, and fails as CUDA does beyond."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.tried: list[int] = []

    def rows(self, part: slice) -> Tensor:
        self.tried.append(part.stop - part.start)
        if self.tried[-1] > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 9.00 GiB.")
        return torch.arange(part.start, part.stop)[:, None]


@given(count=st.integers(1, 40), room=st.integers(1, 40), most=st.none() | st.integers(1, 40))
def test_rows_come_once_and_in_order_whatever_fits(count: int, room: int, most: int | None) -> None:
    """A part that was tried in vain must not be left out, nor be there twice."""
    device = Device(room)
    joined = Forwards(most).over(count, device.rows)
    assert joined[:, 0].tolist() == list(range(count))
    assert max(device.tried) <= (most or count)


def test_a_size_that_did_not_fit_is_not_tried_again() -> None:
    """Each batch would begin with a forward in vain. 20 of 32, with room for 6: 20, 10, then fives."""
    device, forwards = Device(6), Forwards(32)
    forwards.over(20, device.rows)
    assert device.tried == [20, 10, 5, 5, 5, 5]
    device.tried.clear()
    forwards.over(7, device.rows)
    assert device.tried == [5, 2]


def test_a_device_without_room_for_one_is_said_to_be() -> None:
    """Halving for ever, or an allocator's message that names no way out."""
    with pytest.raises(InfraFailure, match=r"one frame or video; .*rewards\.N\.num_gpus"):
        Forwards(4).over(4, Device(0).rows)


def test_what_is_wrong_with_a_forward_is_not_taken_for_memory() -> None:
    """A wrong kernel would be tried on ever smaller parts."""

    def wrong(part: slice) -> Tensor:
        raise RuntimeError("CUDA error: an illegal memory access")

    with pytest.raises(RuntimeError, match="illegal"):
        Forwards(4).over(4, wrong)


def limited(forward: Callable[..., Any], most: int) -> Callable[..., Any]:
    """`forward` on a device with room for so many rows of its first argument."""

    def run(rows: Tensor, *args: Any) -> Any:
        if len(rows) > most:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return forward(rows, *args)

    return run


@pytest.mark.parametrize("name", ["hpsv3", "videoreward", "hpsv2"])
def test_scores_are_the_same_on_a_smaller_device(tmp_path: Path, name: str) -> None:
    """A video that is cut where memory ends must get the captions and frames that belong to it."""
    scorer: Any = every_scorer(tmp_path)[name]
    videos = np.random.default_rng(2).integers(0, 256, (3, 4, 3, 40, 56), dtype=np.uint8)
    prompts = ("a red kite", "two dogs that run along a long beach", "rain")
    whole = finite_numbers(scorer, videos, prompts)
    model, method = (scorer._clip._model, "encode_image") if name == "hpsv2" else (scorer._network, "forward")
    setattr(model, method, limited(getattr(model, method), 2))
    parts = finite_numbers(scorer, videos, prompts)
    for number, column in whole.items():
        np.testing.assert_allclose(parts[number], column, atol=5e-5, err_msg=number)
