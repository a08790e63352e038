"""The result of a run in one small file, for people and for scripts."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from astrolabe_ray.controller import RunOutcome
from astrolabe_ray.report.environment import environment
from astrolabe_ray.report.statistics import compare, is_paired
from astrolabe_ray.types import Evaluation


def summarise(outcome: RunOutcome) -> dict[str, Any]:
    """Content of `summary.json`.

    `heldout` maps the total and each reward to reward_before, reward_after, paired_diff_mean,
    paired_diff_se, paired_diff_ci95, win_rate and num_videos; it is empty when the run ended before its last
    evaluation. `evaluations` says the same of every evaluation, each compared with the first.
    `left_out`: how many held-out prompts each went without.
    """
    by_phase = {evaluation.phase: evaluation for evaluation in outcome.evaluations}
    before, after = by_phase.get("before"), by_phase.get("after")
    return {
        "heldout": _compared(before, after) if before is not None and after is not None else {},
        "evaluations": [
            {"phase": later.phase, "step": later.version.step, "heldout": _compared(before, later)}
            for later in outcome.evaluations
            if before is not None and later is not before
        ],
        "diversity": {phase: evaluation.diversity for phase, evaluation in by_phase.items()},
        "looks": {phase: evaluation.looks for phase, evaluation in by_phase.items()},
        "left_out": {phase: len(evaluation.left_out) for phase, evaluation in by_phase.items()},
        "alarms": [asdict(alarm) for alarm in outcome.alarms],
        "stopped_early": outcome.stopped_early,
        "stopped_by": outcome.stopped_by,
        "sampling": outcome.sampling,
        "num_rollouts": outcome.num_rollouts,
        "rollouts_per_s": outcome.num_rollouts / max(outcome.train_wall_s, 1e-9),
        "seconds": outcome.seconds,
        "policy_age": {str(age): count for age, count in sorted(outcome.policy_ages.items())},
        "drops": outcome.drops,
        "num_redone": outcome.num_redone,
        **environment(),
    }


def _compared(before: Evaluation, later: Evaluation) -> dict[str, dict[str, float]]:
    """Empty where fewer than two videos are in both."""
    return compare(before, later) if is_paired(before, later) else {}
