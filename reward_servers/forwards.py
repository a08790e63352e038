"""How much goes into one forward: as much as the config allows and the device's memory holds."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from torch import Tensor

from astrolabe_ray.errors import InfraFailure

logger = logging.getLogger(__name__)


class Forwards:
    """Cuts a batch into forwards, into halves where memory runs out.

    A size that did not fit is not tried again, so a server finds its size while it warms up.
    """

    def __init__(self, most: int | None = None) -> None:
        """`most`: frames or videos in one forward; None: all there are."""
        self._most = most

    def over(self, count: int, forward: Callable[[slice], Tensor]) -> Tensor:
        """What `forward` makes of each part of 0..count, joined.

        Raises InfraFailure when memory does not suffice for one.
        """
        parts: list[Tensor] = []
        done = 0
        while done < count:
            size = min(count - done, self._most or count)
            part = _unless_full(forward, slice(done, done + size))
            if part is None:
                self._most = _half(size)
            else:
                parts.append(part)
                done += size
        return torch.cat(parts)


def _unless_full(forward: Callable[[slice], Tensor], part: slice) -> Tensor | None:
    """None where memory runs out; what the forward held until then is free again when this returns."""
    try:
        return forward(part)
    except torch.OutOfMemoryError:
        return None


def _half(size: int) -> int:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()  # blocks of the larger size would be in the way of the smaller one
    if size == 1:
        raise InfraFailure(
            "the device's memory does not suffice for a forward of one frame or video; leave more of it to "
            "this server (rewards.N.num_gpus) or less to its neighbours"
        )
    logger.warning(
        "a forward of %d does not fit the device's memory; from now on at most %d", size, size // 2
    )
    return size // 2
