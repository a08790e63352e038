"""Which prompt a group rolls out and which seed each of its rollouts gets: pure functions of numbers."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from functools import lru_cache


class GroupSampler:
    """Deals out prompts by dispatch number: every prompt once a pass, each pass in a new order.

    The same number always gives the same prompt, so a resumed or repeated run sees the same ones.
    `shared`: (groups of a step, distinct prompts among them), for steps whose groups share prompts.
    """

    def __init__(self, prompts: Sequence[str], seed: int, *, shared: tuple[int, int] = (1, 1)) -> None:
        self._prompts, self._seed = tuple(prompts), seed
        self._num_groups, self._num_distinct = shared
        self._order = lru_cache(maxsize=2)(self._shuffled)

    def prompt(self, number: int) -> str:
        """Prompt of the group with dispatch number `number`, counted from 0."""
        step, group = divmod(number, self._num_groups)
        place = step * self._num_distinct + group % self._num_distinct
        pass_number, position = divmod(place, len(self._prompts))
        return self._prompts[self._order(pass_number)[position]]

    def _shuffled(self, pass_number: int) -> list[int]:
        order = list(range(len(self._prompts)))
        random.Random(f"{self._seed}/{pass_number}").shuffle(order)
        return order


def rollout_seed(run_seed: int, step: int, group: int, index: int) -> int:
    """63-bit seed of one rollout: the same wherever and whenever it is made."""
    return _hashed(f"{run_seed}/{step}/{group}/{index}")


def group_seed(run_seed: int, step: int, group: int) -> int:
    """63-bit seed of what all rollouts of a group share."""
    return _hashed(f"{run_seed}/{step}/{group}")


def prefix_seed(run_seed: int, step: int, group: int) -> int:
    """63-bit seed of the frames that all rollouts of a group go on from."""
    return _hashed(f"{run_seed}/{step}/{group}/prefix")


def _hashed(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1
