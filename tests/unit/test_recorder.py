"""The recorder: every number, evaluation and span of a run ends up in its files, under a declared name."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
from rich.console import Console

from astrolabe_ray.algorithms.advantages import group_advantages
from astrolabe_ray.metrics.console import RunConsole
from astrolabe_ray.metrics.module_gradients import module_line
from astrolabe_ray.metrics.names import METRICS, metric
from astrolabe_ray.metrics.recorder import RunRecorder, heldout_metrics
from astrolabe_ray.report.run_dir import RunDir, read_json, read_lines
from astrolabe_ray.report.video import decode_mp4
from astrolabe_ray.step_metrics import step_metrics
from astrolabe_ray.types import PolicyVersion, Rollout, RolloutGroup, Scores, Span, StepResult
from tests.small_run import AFTER, ALARM, BEFORE, HOSTILE, MIDDLE, step_row, write_run


class Sink:
    """Remembers what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int, object]] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.told.append(("numbers", step, dict(metrics)))

    def log_videos(self, videos: Mapping[str, Path], step: int) -> None:
        assert all(path.read_bytes()[4:8] == b"ftyp" for path in videos.values())
        self.told.append(("videos", step, list(videos)))

    def close(self) -> None:
        self.told.append(("closed", -1, None))


def new_recorder(path: Path, *sinks: Sink) -> tuple[RunRecorder, io.StringIO]:
    said = io.StringIO()
    return RunRecorder(RunDir(path), RunConsole(Console(file=said, width=200)), sinks), said


def test_every_step_is_a_line_that_any_program_can_read(tmp_path: Path) -> None:
    """The gradient norm of a skipped step is not a number, which JSON does not know."""
    recorder, _ = new_recorder(tmp_path)
    for step in (1, 2, 3):
        recorder.step(step_row(step))

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    lines = (tmp_path / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line, parse_constant=refuse) for line in lines]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["grad_norm"] for row in rows] == [0.5, 0.5, None]
    assert all(row["time"] > 1.7e9 for row in rows)


def test_norms_of_modules_have_a_file_of_their_own(tmp_path: Path) -> None:
    """300 curves in W&B and 300 gauges in Prometheus for each run."""
    sink = Sink()
    recorder, _ = new_recorder(tmp_path, sink)
    for step in (1, 2, 3, 2):  # the learner was lost after step 3 and began again at step 1
        recorder.step(step_row(step))
    run_dir = RunDir(tmp_path)
    assert read_lines(run_dir.gradients) == [
        {"step": 1.0, "ffn.0": [0.0, 0.1235]},
        {"step": 2.0, "ffn.0": [0.0, 0.2469]},
    ]
    told = [numbers for kind, _, numbers in sink.told if kind == "numbers"] + read_lines(run_dir.metrics)
    assert len(told) == 5 and not any(name.startswith("grad_norm_") for row in told for name in row)


def test_norms_of_modules_that_leave_a_block_out_are_refused() -> None:
    """Every later block would stand one column to the left."""
    with pytest.raises(ValueError, match=r"ffn\.0 has norms of blocks \[0, 2\] only"):
        module_line({"grad_norm_module/blocks.0.ffn.0": 1.0, "grad_norm_module/blocks.2.ffn.0": 1.0})


def test_a_second_recorder_of_the_same_folder_goes_on(tmp_path: Path) -> None:
    """A process that starts again must not erase what the first one wrote."""
    for step in (1, 2):
        recorder, _ = new_recorder(tmp_path)
        recorder.step(step_row(step))
        recorder.evaluated((BEFORE, AFTER)[step - 1])
        recorder.span(Span("save", "learner", step, step + 1, {"step": step}))
        recorder.close()
    run_dir = RunDir(tmp_path)
    assert [row["step"] for row in read_lines(run_dir.metrics)] == [1, 2]
    assert [line["phase"] for line in read_lines(run_dir.evaluations)] == ["before", "after"]
    assert [Span(**line) for line in read_lines(run_dir.timeline)] == [
        Span("save", "learner", 1, 2, {"step": 1}),
        Span("save", "learner", 2, 3, {"step": 2}),
    ]


def test_an_evaluation_keeps_every_score_and_the_shown_videos(tmp_path: Path) -> None:
    """A result that nobody can recompute, and videos that are lost with the actor that made them."""
    recorder, _ = new_recorder(tmp_path)
    recorder.evaluated(BEFORE)
    run_dir = RunDir(tmp_path)
    (line,) = read_lines(run_dir.evaluations)
    assert (line["phase"], line["step"], line["diversity"]) == ("before", 0, 0.25)
    assert [(r["seed"], r["index"], r["scores"]["tiny_clip"]) for r in line["records"]] == [
        (100, 0, 0.1),
        (101, 1, 0.2),
        (102, 0, 0.3),
        (103, 1, 0.4),
    ]
    assert line["records"][0]["total"] == pytest.approx(2 * 0.1 + 0.5)
    index = read_json(run_dir.eval_videos / "index.json")
    assert [(e["file"], e["seed"], e["step"]) for e in index] == [
        ("before/000.mp4", 100, 0),
        ("before/001.mp4", 102, 0),
    ]
    frames, comment = decode_mp4((run_dir.eval_videos / "before/000.mp4").read_bytes())
    assert frames.shape == (9, 3, 192, 192)
    assert comment == index[0]["prompt"] == HOSTILE


def test_an_evaluation_that_is_repeated_replaces_its_videos(tmp_path: Path) -> None:
    """A page with two pairs of one prompt, one of them from a policy that was lost."""
    recorder, _ = new_recorder(tmp_path)
    for evaluation in (BEFORE, AFTER, AFTER):
        recorder.evaluated(evaluation)
    index = read_json(tmp_path / "eval_videos" / "index.json")
    assert [(e["phase"], e["number"]) for e in index] == [
        ("before", 0),
        ("before", 1),
        ("after", 0),
        ("after", 1),
    ]


def test_sinks_hear_everything_in_the_order_of_steps(tmp_path: Path) -> None:
    """W&B silently drops what belongs to an earlier step than the last."""
    sink = Sink()
    write_run(tmp_path, sinks=(sink,))
    assert [(kind, step) for kind, step, _ in sink.told] == [
        ("numbers", 0),
        ("videos", 0),
        ("numbers", 1),
        ("numbers", 2),
        ("numbers", 2),
        ("videos", 2),
        ("numbers", 3),
        ("numbers", 4),
        ("numbers", 4),
        ("videos", 4),
        ("closed", -1),
    ]
    assert sink.told[0][2] == pytest.approx(
        {
            "heldout/step": 0.0,
            "heldout/left_out": 0.0,
            "heldout/total": 1.0,
            "heldout/tiny_clip": 0.25,
            "heldout/image_quality": 0.5,
            "heldout/diversity": 0.25,
        }
    )
    assert sink.told[1][2] == [f"{HOSTILE} (reward 0.700)", "a small red circle moving left (reward 1.100)"]


def test_an_alarm_is_heard_and_kept(tmp_path: Path) -> None:
    """A line that scrolled away at night."""
    recorder, said = new_recorder(tmp_path)
    recorder.alarmed(ALARM)
    assert "ALARM zero_groups at step 2: 0.75, limit 0.5: share of groups" in said.getvalue()
    (kept,) = read_lines(tmp_path / "alarms.jsonl")
    assert (kept["guard"], kept["step"], kept["value"]) == ("zero_groups", 2, 0.75)


def test_an_evaluation_that_comes_late_says_whose_it_is(tmp_path: Path) -> None:
    """W&B drops what belongs to an earlier step, and evaluations beside training always do."""
    sink = Sink()
    recorder, _ = new_recorder(tmp_path, sink)
    for step in (1, 2, 3):
        recorder.step(step_row(step))
    recorder.evaluated(MIDDLE)
    (kind, at, told), *_ = [entry for entry in sink.told if "heldout/step" in str(entry)]
    assert (kind, at) == ("numbers", 3)
    assert isinstance(told, dict) and told["heldout/step"] == 2.0
    (line,) = read_lines(tmp_path / "evaluations.jsonl")
    assert line["step"] == 2


def test_every_number_has_a_declared_unit_and_meaning() -> None:
    """A column that nobody can explain a month later. Whole runs are checked in test_end_to_end."""
    rollout = Rollout("g", 0, "p", 1, PolicyVersion(), "rollout-0", None, ())
    scores = Scores({"tiny_clip": 0.5})
    group = RolloutGroup("g", 0, "p", (rollout,), (scores,))
    result = StepResult(PolicyVersion(step=1), {}, 1.0)
    recorded = [
        *step_metrics([group], [[0.5]], [0], result),
        *group_advantages([[0.0, 1.0]], std="global")[1],
        *heldout_metrics(BEFORE),
    ]
    for name in recorded:
        known = metric(name)
        assert known is not None, name
        assert known.unit and known.meaning, name
    assert len({known.name for known in METRICS}) == len(METRICS)
    assert metric("rewards") is None


def test_people_read_each_step_and_the_held_out_reward(tmp_path: Path) -> None:
    """A run that says nothing until it ends."""
    recorder, said = new_recorder(tmp_path)
    recorder.phase("train", 4)
    recorder.step(step_row(1))
    recorder.step(step_row(3))
    recorder.evaluated(BEFORE)
    phase, head, first, third, heldout = said.getvalue().splitlines()
    assert "train" in phase
    assert head.split()[:4] == ["step", "reward", "tiny_clip", "image_qual"]
    assert first.split()[:4] == ["1", "1.0000", "0.2500", "0.5000"]
    assert "nan" in third.split()
    assert "held-out reward before: 1.0000 over 4 videos" in heldout


def test_steps_that_are_made_again_replace_the_lost_ones(tmp_path: Path) -> None:
    """Curves that go back and forth, and a W&B that refuses a step which it has."""
    sink = Sink()
    recorder, _ = new_recorder(tmp_path, sink)
    for attempt, step in enumerate((1, 2, 3, 2)):
        recorder.step(step_row(step) | {"loss": float(attempt)})
        recorder.evaluated(BEFORE)
    run_dir = RunDir(tmp_path)
    assert [step for _, step, told in sink.told if isinstance(told, dict) and "loss" in told] == [1, 2, 3]
    steps = [step for _, step, _ in sink.told]
    assert steps == sorted(steps)
    rows = read_lines(run_dir.metrics)
    assert [(row["step"], row["loss"]) for row in rows] == [(1, 0), (2, 3)], "step 3 was lost with the second"
    assert [line["phase"] for line in read_lines(run_dir.evaluations)] == ["before"]
