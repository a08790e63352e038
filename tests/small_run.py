"""The folder of a small run, written by the code that writes real ones; only the numbers are invented."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console

from astrolabe_ray.config.schema import ModelConfig, RewardConfig, RunConfig
from astrolabe_ray.controller import RunOutcome
from astrolabe_ray.metrics.console import RunConsole
from astrolabe_ray.metrics.recorder import MetricsSink, RunRecorder
from astrolabe_ray.report.run_dir import RunDir, write_json
from astrolabe_ray.report.summary import summarise
from astrolabe_ray.report.video import encode_mp4
from astrolabe_ray.types import Alarm, EvalRecord, Evaluation, PolicyVersion, Span

HOSTILE = 'a "quoted" circle & </h3></script><img src=http://localhost:1/x onerror=alert(1)> <b>é红</b>'
PROMPTS = (HOSTILE, "a small red circle moving left")
CONFIG = RunConfig(
    name="small",
    num_steps=4,
    model=ModelConfig(num_latent_frames=3),
    rewards=(RewardConfig(key="tiny_clip", weight=2.0), RewardConfig(key="image_quality")),
)


def moving_square(*, frames: int = 9, side: int = 32, green: int = 200) -> np.ndarray:
    """uint8 [F, 3, H, W]: a flat square that moves to the right over a dark ground."""
    video = np.full((frames, 3, side, side), 20, np.uint8)
    for frame in range(frames):
        left = 2 * frame % (side // 2)
        video[frame, 1, side // 4 : side // 2, left : left + side // 4] = green
    return video


def evaluation(phase: str, step: int, clip: Sequence[float], prompts: Sequence[str] = PROMPTS) -> Evaluation:
    """Two videos of each prompt; `clip` are their scores of tiny_clip; image_quality is 0.5 always."""
    records = []
    for number, score in enumerate(clip):
        prompt, index = prompts[number // 2], number % 2
        video = (
            encode_mp4(moving_square(green=120 + step * 20), fps=8, comment=prompt) if index == 0 else None
        )
        scores = {"tiny_clip": score, "image_quality": 0.5}
        records.append(EvalRecord(prompt, 100 + number, index, scores, 2 * score + 0.5, video))
    return Evaluation(phase, PolicyVersion(step=step), tuple(records), 0.25 - 0.01 * step)


BEFORE = evaluation("before", 0, (0.1, 0.2, 0.3, 0.4))
MIDDLE = evaluation("step-2", 2, (0.2, 0.3, 0.3, 0.5))
AFTER = evaluation("after", 4, (0.2, 0.4, 0.2, 0.6))


ALARM = Alarm("zero_groups", 2, 0.75, 0.5, "share of groups with equal rewards; look at <b>the scorers</b>")


def step_row(step: int) -> dict[str, float]:
    """What a step reports, as far as the page looks at it; the update of step 3 was left out."""
    return {
        "step": float(step),
        "reward/total": 0.9 + 0.1 * step,
        "reward_std/total": 0.3,
        "reward/tiny_clip": 0.2 + 0.05 * step,
        "reward_std/tiny_clip": 0.15,
        "reward/image_quality": 0.5,
        "reward_std/image_quality": 0.0,
        "num_rollouts": 10.0,
        "policy_age/mean": 0.5,
        "loss": 1.0 / step,
        "kl_loss": 0.01 * step,
        "old_deviation": 0.02,
        "grad_norm": float("nan") if step == 3 else 0.5,
        "grad_norm_module/blocks.1.ffn.0": float("nan") if step == 3 else 0.12345678 * step,
        "grad_norm_module/blocks.0.ffn.0": 0.0,
        "rollouts_per_s": 5.0,
    }


def write_run(folder: Path, *, finished: bool = True, sinks: Sequence[MetricsSink] = ()) -> RunDir:
    """A run of four steps; with `finished=False` one that was killed before its last evaluation."""
    run_dir = RunDir.create(str(folder), "tiny_sprites", CONFIG.name)
    write_json(run_dir.config, CONFIG.model_dump(mode="json"))
    write_json(run_dir.environment, {"versions": {"python": "3.11.7"}, "machine": {"cores": 2}})
    recorder = RunRecorder(run_dir, RunConsole(Console(file=io.StringIO())), sinks)
    recorder.evaluated(BEFORE)
    for step in (1, 2, 3, 4):
        start = 3.0 * step
        recorder.span(Span("rollout", "rollout-0", start, start + 2, {"group": step}))
        recorder.span(Span("score", "reward servers", start + 2, start + 2.5, {"group": step}))
        recorder.span(Span("train", "learner", start + 2.5, start + 3, {"step": step}))
        recorder.step(step_row(step))
        if step == 2:
            recorder.evaluated(MIDDLE)
            recorder.alarmed(ALARM)
    if finished:
        recorder.evaluated(AFTER)
        write_json(run_dir.summary, summarise(outcome()))
    recorder.close()
    return run_dir


def outcome() -> RunOutcome:
    return RunOutcome(
        evaluations=[BEFORE, MIDDLE, AFTER],
        num_rollouts=40,
        train_wall_s=8.0,
        policy_ages={1: 10, 0: 30},
        drops={"DataFailure": 1},
        num_redone=2,
        stopped_early=False,
        sampling=["sdpa attention in float32 on cpu"],
        seconds={"setup": 3.0, "train": 8.0},
        alarms=[ALARM],
    )
