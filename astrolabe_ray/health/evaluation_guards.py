"""Guards on every evaluation: rewards that are paid with what nobody rewards.

A policy that games its rewards gets better by them and worse by others: by a reward that is only looked at
(weight 0), or by what videos look like at all.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import get_args

from astrolabe_ray.config.schema import HealthConfig, Look
from astrolabe_ray.health.readings import Reading
from astrolabe_ray.report.statistics import compare
from astrolabe_ray.types import Evaluation


def evaluation_readings(
    first: Evaluation, later: Evaluation, limits: HealthConfig, *, weights: Mapping[str, float]
) -> list[Reading]:
    """Of an evaluation against the first, of the same prompts and seeds. `weights`: of the rewards."""
    readings: list[Reading] = []
    if limits.max_untrained_drop is not None:
        for key, values in compare(first, later).items():
            if weights.get(key) == 0:
                drop, error = -values["paired_diff_mean"], max(values["paired_diff_se"], 1e-12)
                what = f"standard errors that {key}, which is not trained on, fell by"
                advice = (
                    "the trained rewards may be gamed: look at the videos, and export an earlier checkpoint"
                )
                readings.append(
                    Reading("untrained_reward", drop / error, limits.max_untrained_drop, what, advice)
                )
    for look in get_args(Look):
        if limits.max_look_change is not None and first.looks.get(look, 0.0) > 0 and look in later.looks:
            change = abs(later.looks[look] / first.looks[look] - 1)
            what = f"relative change of the held-out videos' {look} since the first evaluation"
            advice = "is it what the prompts ask for? Look at the videos of the report"
            readings.append(Reading(look, change, limits.max_look_change, what, advice))
    if limits.max_diversity_drop is not None and first.diversity > 0:
        drop = 1 - later.diversity / first.diversity
        what = "relative loss of diversity among the videos of a prompt since the first evaluation"
        advice = "the policy collapses: raise algorithm.kl_coef, or lower learner.lr"
        readings.append(Reading("diversity", drop, limits.max_diversity_drop, what, advice))
    return readings
