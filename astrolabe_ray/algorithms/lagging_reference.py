"""When the reference policy of the KL penalty is set to the trained one again.

After Astrolabe (arXiv 2603.17051) and GARDO: when the policy got too far from it, or when it is too old.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

SHORT_AGE = 5  # steps
THRESHOLD_STEP = 1 / 15  # of the first threshold
MIN_THRESHOLD, MAX_THRESHOLD = 2 / 3, 4 / 3


@dataclass(frozen=True)
class LaggingReference:
    """Age of the reference, and how far the policy may get from it.

    Example: `LaggingReference(0.16, age=2, num_refreshes=3)`.
    """

    threshold: float  # mean squared distance in x0-space
    age: int = 0  # optimizer steps since the reference was the trained policy
    num_refreshes: int = 0


def after_step(
    state: LaggingReference, kl: float, *, first_threshold: float, max_age: int
) -> tuple[LaggingReference, bool]:
    """The state after a step whose penalty was `kl`, and whether the reference is now the trained policy.

    It is when `kl` exceeds the threshold or the reference would be older than `max_age` steps. The
    threshold adapts by 1/15 of the first one: down to 2/3 of it when age alone made the change, up to
    4/3 when the reference lasted fewer than 5 steps. A `kl` that is not a number exceeds nothing.
    """
    age = state.age + 1
    is_old = age > max_age
    if not is_old and not kl > state.threshold:
        return replace(state, age=age), False
    threshold = state.threshold
    if is_old and not kl > state.threshold:
        threshold = max(threshold - THRESHOLD_STEP * first_threshold, MIN_THRESHOLD * first_threshold)
    elif age < SHORT_AGE:
        threshold = min(threshold + THRESHOLD_STEP * first_threshold, MAX_THRESHOLD * first_threshold)
    return LaggingReference(threshold, 0, state.num_refreshes + 1), True
