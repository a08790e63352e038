"""What a continued run takes over from the run of its checkpoint."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from astrolabe_ray.report.continued import Earlier, take_over
from astrolabe_ray.report.page import build_report
from astrolabe_ray.report.run_dir import RunDir, read_json, read_lines, write_json, write_lines
from astrolabe_ray.report.statistics import compare
from tests.small_run import AFTER, BEFORE, CONFIG, MIDDLE, write_run


@pytest.fixture
def finished(tmp_path: Path) -> RunDir:
    """A run of four steps with checkpoints after the third and the last."""
    run = write_run(tmp_path)
    run.wandb_id.write_text("abc123\n")
    for step in (3, 4):
        folder = run.checkpoints / f"checkpoint-{step}"
        folder.mkdir()
        (folder / "state.json").write_text(json.dumps({"step": step}))
    return run


def continued(finished: RunDir, step: int) -> tuple[RunDir, Earlier]:
    run_dir = RunDir.create(str(finished.path.parents[1]), "tiny_sprites", CONFIG.name)
    write_json(run_dir.config, CONFIG.model_dump(mode="json"))
    return run_dir, take_over(finished.checkpoints / f"checkpoint-{step}", run_dir)


def test_a_continued_run_compares_with_the_true_start(finished: RunDir) -> None:
    """A resumed run had no result, since it has no evaluation of the first policy."""
    _, earlier = continued(finished, 3)
    before, middle = earlier.evaluations
    assert [(e.phase, e.version.step) for e in (before, middle)] == [("before", 0), ("step-2", 2)]
    assert compare(before, AFTER) == compare(BEFORE, AFTER)
    assert middle.diversity == MIDDLE.diversity
    assert earlier.wandb_id == "abc123"


@pytest.mark.parametrize("step", [3, 4])
def test_its_page_shows_the_whole_run_up_to_the_checkpoint(finished: RunDir, step: int) -> None:
    """Steps after the checkpoint are lost; shown beside those that replaced them, they are a zigzag."""
    run_dir, _ = continued(finished, step)
    assert [row["step"] for row in read_lines(run_dir.metrics)] == list(range(1, step + 1))
    assert [row["step"] for row in read_lines(run_dir.gradients)] == list(range(1, step + 1))
    assert [alarm["guard"] for alarm in read_lines(run_dir.alarms)] == ["zero_groups"]
    phases = [line["phase"] for line in read_lines(run_dir.evaluations)]
    assert phases == ["before", "step-2"], "the last evaluation is another policy's, of the EMA"
    shown = [entry["file"] for entry in read_json(run_dir.eval_videos / "index.json")]
    assert [name.split("/")[0] for name in shown] == ["before", "before", "step-2", "step-2"]
    for name in shown:
        assert (run_dir.eval_videos / name).read_bytes() == (finished.eval_videos / name).read_bytes()
    assert f"Steps up to {step} are those of {finished.path}," in build_report(run_dir).read_text()


def test_a_continued_run_knows_what_an_evaluation_left_out(finished: RunDir) -> None:
    """It would take an evaluation of the same run for one of other prompts, and compare nothing with it."""
    lines = read_lines(finished.evaluations)
    lines[0] |= {"left_out": [1]}
    write_lines(
        finished.evaluations,
        [lines[0], *({k: v for k, v in x.items() if k != "left_out"} for x in lines[1:])],
    )
    _, earlier = continued(finished, 3)
    assert [e.left_out for e in earlier.evaluations] == [(1,), ()], "earlier versions left out nothing"


def test_a_checkpoint_without_its_run_is_continued_all_the_same(finished: RunDir, tmp_path: Path) -> None:
    """Whoever copied nothing but the checkpoint to another machine could not go on."""
    alone = tmp_path / "elsewhere" / "some" / "checkpoint-3"
    alone.parent.mkdir(parents=True)
    (finished.checkpoints / "checkpoint-3").rename(alone)
    run_dir = RunDir.create(str(tmp_path), "tiny_sprites", CONFIG.name)
    assert take_over(alone, run_dir) == Earlier()
    assert read_lines(run_dir.metrics) == []
