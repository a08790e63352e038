"""`summary.json`: the result of a run for scripts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from astrolabe_ray.report.summary import summarise
from tests.small_run import outcome


def test_the_last_evaluation_is_compared_with_the_first() -> None:
    """Differences of the total: 0.2, 0.4 and -0.2, 0.4, mean 0.2; they leave 0.2 and -0.2 to the two prompts.

    An evaluation in between is compared in its own place.
    """
    middle, last = summarise(outcome())["evaluations"]
    assert (middle["phase"], middle["step"]) == ("step-2", 2)
    assert middle["heldout"]["total"]["paired_diff_mean"] == pytest.approx((0.2 + 0.2 + 0.0 + 0.2) / 4)
    assert last["heldout"] == summarise(outcome())["heldout"]
    total = summarise(outcome())["heldout"]["total"]
    assert total["reward_before"] == pytest.approx(1.0)
    assert total["reward_after"] == pytest.approx(1.2)
    assert total["paired_diff_mean"] == pytest.approx(0.2)
    assert total["paired_diff_se"] == pytest.approx((2 * (0.04 + 0.04)) ** 0.5 / 4)
    assert (total["win_rate"], total["num_videos"]) == (0.75, 4)


def test_a_run_counts_what_it_did() -> None:
    """Speed and age of a run are compared across machines by these numbers."""
    summary = summarise(outcome())
    assert summary["rollouts_per_s"] == 5.0
    assert summary["policy_age"] == {"0": 30, "1": 10}
    assert list(summary["policy_age"]) == ["0", "1"], "in the order of ages"
    assert summary["diversity"] == {"before": 0.25, "step-2": 0.23, "after": 0.21}
    assert summary["drops"] == {"DataFailure": 1}
    assert summary["stopped_early"] is False
    assert [(alarm["guard"], alarm["step"]) for alarm in summary["alarms"]] == [("zero_groups", 2)]
    assert summary["sampling"] == ["sdpa attention in float32 on cpu"]


def test_a_run_without_its_last_evaluation_has_no_comparison() -> None:
    """A stopped run that compares its middle as if it were its end."""
    first, middle, _ = outcome().evaluations
    assert summarise(replace(outcome(), evaluations=[first, middle], stopped_early=True))["heldout"] == {}
    assert summarise(replace(outcome(), evaluations=[]))["heldout"] == {}


def test_a_number_can_be_traced_to_versions_and_machine() -> None:
    """A result of unknown code on an unknown machine."""
    summary = json.loads(json.dumps(summarise(outcome()), allow_nan=False))
    assert {"python", "torch", "ray", "deepspeed"} <= set(summary["versions"])
    assert summary["machine"]["cores"] > 0
    assert summary["machine"]["memory_gib"] > 0
    assert "commit" in summary
