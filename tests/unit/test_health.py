"""Every guard in a planted case that must trip it, and a healthy run that trips none."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from astrolabe_ray.algorithms.advantages import group_advantages
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.health.step_guards import pull
from astrolabe_ray.health.watch import HealthWatch
from astrolabe_ray.report.looks import looks
from astrolabe_ray.types import Alarm, EvalRecord, Evaluation, PolicyVersion
from tests.contract.test_controller import Notebook
from tests.small_run import moving_square

HEALTHY = {
    "health/pull": 0.16,
    "advantage/zero_std_groups": 1.0,
    "health/unmoved": 0.01,
    "grad_norm": 0.5,
    "grad_norm_weakest/self_attn.q": 0.3,
    "grad_norm_weakest/ffn.2": 0.4,
    "adapter_norm/default": 10.0,
    "adapter_norm/old": 10.0,
    "adapter_norm/ema": 10.0,
}


def config(**health: Any) -> RunConfig:
    rewards = [{"key": "paid"}, {"key": "shown", "weight": 0.0}]
    return RunConfig.model_validate({"name": "x", "rewards": rewards, "health": health})  # 8 groups a step


def alarms_of(rows: list[Mapping[str, float]], **health: Any) -> tuple[list[Alarm], HealthWatch]:
    notebook = Notebook()
    watch = HealthWatch(config(**health), notebook)
    for step, row in enumerate(rows, start=1):
        watch.after_step({"step": float(step), **row})
    assert notebook.alarms == watch.alarms, "who watches must be told"
    return watch.alarms, watch


def test_a_healthy_run_sounds_no_alarm() -> None:
    """Alarms that always sound are not heard."""
    rng = np.random.default_rng(0)
    rows = [
        {name: value * rng.uniform(0.5, 1.5) for name, value in HEALTHY.items()}
        | {"adapter_norm/default": 10 + 0.1 * step, "advantage/zero_std_groups": float(step % 3 == 0)}
        for step in range(60)
    ]
    assert alarms_of(rows)[0] == []


@pytest.mark.parametrize(
    ("guard", "planted", "value"),
    [
        ("pull", {"health/pull": 0.001}, 0.001),
        ("zero_groups", {"advantage/zero_std_groups": 6.0}, 0.75),
        ("unmoved", {"health/unmoved": 0.84}, 0.84),  # bfloat16 adapters at a learning rate of 1e-5
        ("dead_modules", {"grad_norm_weakest/ffn.2": 0.0}, 0.0),
    ],
)
def test_what_lasts_is_an_alarm_once(guard: str, planted: dict[str, float], value: float) -> None:
    """One odd step is no sign, and a sign that is repeated every step hides the next one."""
    bad = HEALTHY | planted
    assert alarms_of([bad] * 4 + [HEALTHY])[0] == []
    alarms, watch = alarms_of([HEALTHY] + [bad] * 20)
    (alarm,) = alarms
    assert (alarm.guard, alarm.step, alarm.stops) == (guard, 6, False)
    assert alarm.value == pytest.approx(value)
    assert watch.after_step({"step": 22.0, **bad}) == {"health/alarms": 1.0}
    assert watch.after_step({"step": 23.0, **HEALTHY}) == {"health/alarms": 0.0}
    again, _ = alarms_of([bad] * 5 + [HEALTHY] + [bad] * 5)
    assert [alarm.step for alarm in again] == [5, 11], "it came back after it was gone"


@pytest.mark.parametrize(
    ("guard", "planted"),
    [
        ("gradient_growth", {"grad_norm": 50.0, "grad_norm_weakest/ffn.2": 50.0}),
        ("norm_growth", {"adapter_norm/old": 31.0}),
    ],
)
def test_what_runs_away_is_an_alarm_at_once(guard: str, planted: dict[str, float]) -> None:
    """Five steps later there is nothing to save."""
    (alarm,) = alarms_of([HEALTHY] * 6 + [HEALTHY | planted])[0]
    assert (alarm.guard, alarm.step) == (guard, 7)


def test_a_skipped_update_is_not_called_dead() -> None:
    """Its gradient is not a number, which is counted elsewhere."""
    nan = float("nan")
    rows = [
        HEALTHY | {"grad_norm": nan, "grad_norm_weakest/ffn.2": nan, "grad_norm_weakest/self_attn.q": nan}
    ] * 7
    assert alarms_of([HEALTHY, *rows])[0] == []


def test_only_the_guards_of_stop_on_end_a_run_and_none_can_be_off() -> None:
    """A night of training ended by a warning, or not ended by what it was told to end for."""
    bad = HEALTHY | {"health/pull": 0.0, "advantage/zero_std_groups": 8.0}
    for stop_on, stopped_by in (((), None), (("pull",), "pull"), (("unmoved",), None)):
        alarms, watch = alarms_of([bad] * 5, stop_on=stop_on)
        assert [alarm.guard for alarm in alarms] == ["pull", "zero_groups"]
        assert watch.stopped_by == stopped_by
    assert alarms_of([bad] * 9, min_pull=None, max_zero_groups=None)[0] == []


def test_a_resumed_watch_goes_on_where_it_was() -> None:
    """A condition of four steps would begin anew, and growth be measured from where it already was."""
    bad = HEALTHY | {"health/pull": 0.0}
    _, first = alarms_of([HEALTHY] * 2 + [bad] * 4)
    notebook = Notebook()
    resumed = HealthWatch(config(), notebook)
    resumed.restore(first.state())
    assert resumed.state() == first.state()
    resumed.after_step({"step": 7.0, **bad, "adapter_norm/ema": 40.0})
    assert [alarm.guard for alarm in notebook.alarms] == ["pull", "norm_growth"]


def test_the_pull_is_what_is_left_of_the_update_on_policy() -> None:
    """By hand: advantages clipped at 5 have |2 r - 1| = |A| / 5. Equal rewards pull at nothing."""
    assert pull([[1.0, -1.0], [10.0, 0.0]], adv_clip_max=5.0) == pytest.approx((0.2 + 0.2 + 1.0 + 0.0) / 4)
    equal, _ = group_advantages([[0.3] * 4, [0.7] * 4], std="global")
    assert pull(equal, adv_clip_max=5.0) == 0.0


LOOKS = {"motion": 0.1, "brightness": 0.5, "saturation": 0.4}


def evaluation(
    step: int, *, paid: float = 0.0, shown: float = 0.0, diversity: float = 0.2, **changed: float
) -> Evaluation:
    """Four prompts of two videos, whose rewards differ a little."""
    records = tuple(
        EvalRecord(f"p{i // 2}", i, i % 2, {"paid": paid + i, "shown": shown + i + 0.01 * step * i}, paid + i)
        for i in range(8)
    )
    phase = "before" if step == 0 else f"step-{step}"
    return Evaluation(phase, PolicyVersion(step=step), records, diversity, LOOKS | changed)


def alarms_after(*later: Evaluation, **health: Any) -> list[tuple[str, int]]:
    notebook = Notebook()
    watch = HealthWatch(config(**health), notebook)
    for one in later:
        watch.after_evaluation(evaluation(0), one)
    return [(alarm.guard, alarm.step) for alarm in notebook.alarms]


def test_rewards_that_rise_with_all_else_as_it_was_are_healthy() -> None:
    """The purpose of training is not an alarm."""
    healthy = [evaluation(step, paid=0.1 * step, motion=0.1 + 0.01 * step) for step in (1, 2, 3)]
    assert alarms_after(*healthy) == []


@pytest.mark.parametrize(
    ("guard", "planted"),
    [
        ("untrained_reward", {"paid": 1.0, "shown": -1.0}),
        ("motion", {"paid": 1.0, "motion": 0.01}),  # a still picture is easy to like
        ("motion", {"paid": 1.0, "motion": 0.2}),
        ("brightness", {"brightness": 0.9}),
        ("saturation", {"saturation": 0.1}),
        ("diversity", {"paid": 1.0, "diversity": 0.05}),
    ],
)
def test_a_reward_that_is_gamed_trips_its_guard(guard: str, planted: dict[str, float]) -> None:
    """The curve that everybody looks at rises."""
    gamed = [evaluation(step, **planted) for step in (4, 6)]
    assert alarms_after(evaluation(2), *gamed) == [(guard, 4)]
    assert alarms_after(gamed[0], evaluation(5), gamed[1]) == [(guard, 4), (guard, 6)]


def test_a_reward_that_is_trained_on_may_fall() -> None:
    """Among several rewards one is given up for others, and the table of the report says so."""
    assert alarms_after(evaluation(4, paid=-1.0)) == []


def test_looks_are_those_computed_by_hand() -> None:
    """A unit mixed up would shift an alarm's limit by 255."""
    still = np.zeros((5, 3, 4, 4), np.uint8)
    assert looks([still]) == {"motion": 0.0, "brightness": 0.0, "saturation": 0.0}
    still[:, 0] = 255  # red
    seen = looks([still])
    assert seen == pytest.approx({"motion": 0.0, "brightness": 0.299, "saturation": 1.0})
    blinking = np.zeros((3, 3, 4, 4), np.uint8)
    blinking[1] = 51
    assert looks([blinking, still])["motion"] == pytest.approx(0.1)  # (0.2 + 0) / 2
    assert looks([moving_square()])["motion"] > 0.005
