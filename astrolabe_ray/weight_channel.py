"""From the learner to the rollout actors: versioned weights, and the proof that they arrived.

The proof has three parts. Every receiver acknowledges the checksum of the buffer and the number of
linear layers it replaced; the first publish also compares the learner's and an actor's output on a
fixed input; and later publishes must change the checksum, since a step that leaves the published
weights as they were means that training is not connected to sampling.
"""

from __future__ import annotations

import math
from typing import Literal

from astrolabe_ray.errors import WeightMismatch
from astrolabe_ray.roles import Learner, RolloutPool
from astrolabe_ray.types import PublishedPolicy

PROBE_SEED = 20_260_101
PROBE_TOLERANCE = 5e-2
"""Relative RMS difference allowed between adapters beside the base and adapters merged into it; it must
cover bfloat16 (8 bits of mantissa through all layers) and is far below the effect of a lost adapter
once it has been trained."""


class WeightChannel:
    """Publishes the learner's policy to the rollout pool; neither side waits for the other."""

    def __init__(self, learner: Learner, rollouts: RolloutPool) -> None:
        self.learner, self.rollouts = learner, rollouts
        self.newest: PublishedPolicy | None = None
        self.sampling: set[str] = set()  # the ways in which the actors that were looked at sample

    async def publish(self, adapter: Literal["old", "ema"] = "old") -> PublishedPolicy:
        """Make the learner's policy the newest. Actors take it before their next request."""
        policy = await self.learner.publish(adapter)
        await self.rollouts.set_policy(policy)
        self.newest = policy
        return policy

    async def prove(self) -> float:
        """Bring all idle actors to the newest policy and check what they hold.

        Returns the relative RMS difference of the probe outputs. Raises WeightMismatch.
        """
        assert self.newest is not None
        manifest = self.newest.manifest
        expected = len(manifest.tensors) // 2  # an A and a B for each linear layer
        for ack in await self.rollouts.sync():
            self.sampling.add(ack.sampling)
            if ack.checksum != manifest.checksum or ack.num_modules != expected:
                raise WeightMismatch(
                    f"{ack.actor} acknowledged version {ack.version} with checksum {ack.checksum[:12]} "
                    f"and {ack.num_modules} adapted layers; published were {manifest.version}, "
                    f"{manifest.checksum[:12]} and {expected}. Check that both sides run the same code "
                    "and model."
                )
        difference = relative_rms(await self.learner.probe(PROBE_SEED), await self.rollouts.probe(PROBE_SEED))
        if not difference <= PROBE_TOLERANCE:
            raise WeightMismatch(
                f"learner and rollout actor disagree by {difference:.3g} (relative RMS) on the same input "
                f"with version {manifest.version}; at most {PROBE_TOLERANCE} is rounding. "
                "Check that both load the same base model."
            )
        return difference


def relative_rms(expected: list[float], actual: list[float]) -> float:
    """|actual - expected| / |expected|. Raises WeightMismatch for outputs of different length."""
    if len(expected) != len(actual):
        raise WeightMismatch(f"probe outputs have {len(expected)} and {len(actual)} numbers; models differ.")
    return math.dist(expected, actual) / max(math.hypot(*expected), 1e-12)
