"""Many videos: batches, records, what a rerun keeps and what it makes again."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from rich.console import Console

from astrolabe_ray.cli.generate_done import sort_out
from astrolabe_ray.errors import ConfigError, DataFailure, InfraFailure
from astrolabe_ray.metrics.video_console import VideoConsole
from astrolabe_ray.types import FrameSpec, Rollout, Scores
from astrolabe_ray.video_folder import Record, VideoFolder
from astrolabe_ray.video_run import VideoRun, batches
from astrolabe_ray.video_tasks import (
    FinishedVideos,
    PlannedScene,
    VideoPiece,
    VideoPlan,
    VideoTask,
    VideoWatcher,
)


def task(number: int, *, sample: int = 0, num_chunks: int = 2, fingerprint: str = "same") -> VideoTask:
    plan = VideoPlan((PlannedScene(f"prompt {number}", 0),), num_chunks)
    return VideoTask(number, sample, f"prompt {number}", 10 * number + sample, plan, fingerprint)


class FakePool:
    """Makes each video of its seed and number of chunks; `before_chunk` may raise or look around."""

    def __init__(self, capacity: int = 2, before_chunk: Callable[[int], None] = lambda number: None) -> None:
        self.capacity, self._before_chunk = capacity, before_chunk
        self.batches: list[tuple[int, ...]] = []
        self.num_dying = 0

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def make(self, tasks: Sequence[VideoTask], watcher: VideoWatcher) -> FinishedVideos:
        self.batches.append(tuple(task.prompt_index for task in tasks))
        if self.num_dying:  # a worker that dies after its first chunk
            self.num_dying -= 1
            watcher.begin(tasks)
            watcher.take(tasks, VideoPiece(1, tuple(b"torn" for _ in tasks)))
        watcher.begin(tasks)
        for number in range(1, tasks[0].plan.num_chunks + 1):
            await asyncio.sleep(0)
            self._before_chunk(number)
            watcher.take(
                tasks, VideoPiece(number, tuple(f"{task.seed}:{number} ".encode() for task in tasks))
            )
        ends = tuple(f"end of {task.seed}".encode() for task in tasks)
        views = tuple((f"view of {task.seed}",) for task in tasks)
        return FinishedVideos(5, 0.5, ends, (b"png",) * len(tasks), "fake", "plainly", views)


class FakeRewards:
    """Scores a video by its seed, after looking at what it got."""

    views = (FrameSpec(),)

    async def start(self) -> None: ...

    async def stop(self) -> None: ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        assert all(rollout.views == (f"view of {rollout.seed}",) for rollout in rollouts)
        assert all(rollout.prompt == f"prompt {rollout.seed // 10}" for rollout in rollouts)
        return [Scores({"size": float(rollout.seed)}) for rollout in rollouts]


def make(
    folder: VideoFolder,
    tasks: Sequence[VideoTask],
    pool: FakePool,
    *,
    batch_size: int = 2,
    kept: Sequence[Record] = (),
    **options: object,
) -> str:
    """Run, and return what a log shows of it."""
    log = io.StringIO()
    with VideoConsole(len(tasks), sum(task.plan.num_chunks for task in tasks), Console(file=log)) as console:
        run = VideoRun(pool, folder, console, fps=8, **options)  # type: ignore[arg-type]
        asyncio.run(run.make(tasks, batch_size, kept))
    return log.getvalue()


def test_batches_hold_videos_of_one_structure_in_order() -> None:
    """Videos whose scenes start at different chunks would get each other's prompts."""
    two = VideoPlan((PlannedScene("a", 0), PlannedScene("b", 1)), 2)
    cut = VideoPlan((PlannedScene("c", 0), PlannedScene("d", 1, True)), 2)
    plans = [two, cut, task(0).plan, two, two, cut]
    tasks = [VideoTask(number, 0, "", number, plan, "") for number, plan in enumerate(plans)]
    found = [tuple(task.prompt_index for task in batch) for batch in batches(tasks, 2)]
    assert found == [(0, 3), (1, 5), (2,), (4,)]


def test_every_video_gets_its_file_sheet_and_record(tmp_path: Path) -> None:
    """A record that points to another video's file is worse than none."""
    folder = VideoFolder(tmp_path, samples_per_prompt=2)
    tasks = [task(n, sample=s) for n in (2, 0, 1) for s in (0, 1)]
    log = make(folder, tasks, FakePool(), rewards=FakeRewards())
    records = [json.loads(line) for line in folder.results.read_text().splitlines()]
    assert [(r["id"], r["sample"]) for r in records] == [(n, s) for n in range(3) for s in (0, 1)]
    for record in records:
        seed = 10 * record["id"] + record["sample"]
        assert record["video"] == f"videos/{record['id']:05d}-{record['sample']:02d}.mp4"
        assert (tmp_path / record["video"]).read_bytes() == f"end of {seed}".encode()
        assert record["scores"] == {"size": seed}
        assert (record["num_frames"], record["fps"], record["prompt"]) == (5, 8, f"prompt {record['id']}")
    assert len(list((tmp_path / "sheets").iterdir())) == 6
    assert json.loads(folder.average_scores.read_text()) == {"size": (0 + 1 + 10 + 11 + 20 + 21) / 6}
    assert len(log.splitlines()) == 6 and "6/6" in log


def test_a_streamed_file_grows_and_starts_anew_after_a_death(tmp_path: Path) -> None:
    """Bytes of a dead worker's video at the head of its successor's: no player reads that."""
    folder, seen = VideoFolder(tmp_path), []
    pool = FakePool(1, lambda number: seen.append(folder.video(task(3)).read_bytes()))
    pool.num_dying = 1
    make(folder, [task(3)], pool, is_stream=True)
    assert seen == [b"", b"30:1 "]
    assert folder.video(task(3)).read_bytes() == b"30:1 30:2 end of 30"


class Picky(FakePool):
    """Can't make the videos of some prompts."""

    def __init__(self, *refused: int) -> None:
        super().__init__()
        self._refused, self.asked = refused, list[int]()

    async def make(self, tasks: Sequence[VideoTask], watcher: VideoWatcher) -> FinishedVideos:
        self.asked += [task.prompt_index for task in tasks]
        await asyncio.sleep(0)
        if any(task.prompt_index in self._refused for task in tasks):
            raise DataFailure("not finite")
        return await super().make(tasks, watcher)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize("rewards", [None, FakeRewards()])
def test_videos_that_cannot_be_made_leave_the_others_alone(
    tmp_path: Path, batch_size: int, rewards: FakeRewards | None
) -> None:
    """One bad prompt of a thousand ended each rerun at the same place, or took its batch with it."""
    folder = VideoFolder(tmp_path)
    tasks, expected = [task(number) for number in range(8)], r"^2 of 8 .* all others are done. Prompts 1, 4; "
    with pytest.raises(DataFailure, match=expected + "the first was [14], 'prompt [14]': not finite$"):
        make(folder, tasks, Picky(1, 4), batch_size=batch_size, rewards=rewards)
    assert sorted(key[0] for key in folder.read()) == [0, 2, 3, 5, 6, 7]
    again = sort_out(tasks, folder, with_sheets=True)
    with pytest.raises(DataFailure, match=r"^2 of 2 .* all others are done"):
        make(folder, again.todo, Picky(1, 4), batch_size=batch_size, rewards=rewards, kept=again.records)
    assert len(folder.read()) == 6


def test_a_refusal_of_the_scorers_is_one_of_its_video(tmp_path: Path) -> None:
    """A caption outside a scorer's world among many."""

    class Choosy(FakeRewards):
        async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
            if any(rollout.seed == 20 for rollout in rollouts):
                raise DataFailure("no such shape")
            return await super().score(rollouts)

    folder = VideoFolder(tmp_path)
    with pytest.raises(DataFailure, match=r"^1 of 4 .*Prompts 2; .* no such shape$"):
        make(folder, [task(n) for n in range(4)], FakePool(), batch_size=4, rewards=Choosy(), is_stream=True)
    assert sorted(key[0] for key in folder.read()) == [0, 1, 3]
    assert not folder.video(task(2)).exists()


def test_what_is_left_out_is_said_at_once(tmp_path: Path) -> None:
    """What ends the command otherwise would hide it."""

    def gone(number: int) -> None:
        raise InfraFailure("cluster gone")

    log, pool = io.StringIO(), Picky(0)
    pool.capacity, pool._before_chunk = 1, gone
    with VideoConsole(2, 4, Console(file=log)) as console:
        making = VideoRun(pool, VideoFolder(tmp_path), console, fps=8).make([task(0), task(1)], 1)
        with pytest.raises(InfraFailure):
            asyncio.run(making)
    assert log.getvalue() == "prompt 0, sample 0, is left out: not finite\n"


@pytest.mark.parametrize("capacity", [1, 3])
def test_it_ends_soon_when_no_video_can_be_made(tmp_path: Path, capacity: int) -> None:
    """Hours of GPU time for a model whose weights are not numbers."""
    pool = Picky(*range(40))
    pool.capacity = capacity
    with pytest.raises(
        DataFailure, match=r"^\d of 40 videos can't be made, and none was made. Prompts 0, 1, 2"
    ):
        make(VideoFolder(tmp_path), [task(number) for number in range(40)], pool, batch_size=1)
    assert len(pool.asked) <= 3 * capacity


def test_quick_failures_do_not_end_what_takes_its_time(tmp_path: Path) -> None:
    """The first videos of other workers were cancelled."""

    class Slow(Picky):
        async def make(self, tasks: Sequence[VideoTask], watcher: VideoWatcher) -> FinishedVideos:
            if tasks[0].prompt_index == 0:
                await asyncio.sleep(0.2)
            return await super().make(tasks, watcher)

    folder = VideoFolder(tmp_path)
    with pytest.raises(DataFailure, match=r"^9 of 10 .* all others are done"):
        make(folder, [task(number) for number in range(10)], Slow(*range(1, 10)), batch_size=1)
    assert [key[0] for key in folder.read()] == [0]


def test_a_single_video_fails_with_its_own_words(tmp_path: Path) -> None:
    """There are no others that are done."""
    with pytest.raises(DataFailure, match=r"^not finite$"):
        make(VideoFolder(tmp_path), [task(0)], Picky(0))


def test_a_rerun_finds_what_is_done_and_what_differs(tmp_path: Path) -> None:
    """Hours of work made again, or a video of other settings taken for the one that was asked for."""
    folder = VideoFolder(tmp_path)
    make(folder, [task(0), task(1), task(2)], FakePool())
    folder.video(task(2)).unlink()
    records = folder.read()
    wanted = [task(0), task(1, fingerprint="other"), task(2), task(3)]
    done = [folder.is_done(wish, records.get(wish.key), with_sheet=True) for wish in wanted]
    assert done == [True, False, False, False]


def test_the_first_failure_ends_a_run_and_what_is_done_stays(tmp_path: Path) -> None:
    """A record of a video that was being overwritten when it failed would keep a torn file."""
    folder = VideoFolder(tmp_path)
    make(folder, [task(0), task(1)], FakePool())

    def fail(number: int) -> None:
        raise InfraFailure("all workers are gone")

    with pytest.raises(InfraFailure, match="gone"):
        make(folder, [task(1, fingerprint="other")], FakePool(1, fail), is_stream=True)
    assert list(folder.read()) == [(0, 0)], "the record of 1 was void as soon as it was begun again"
    pool = FakePool(1)

    def fail_late(number: int) -> None:
        if len(pool.batches) == 3:
            raise InfraFailure("all workers are gone")

    pool._before_chunk = fail_late
    with pytest.raises(InfraFailure, match="gone"):
        make(folder, [task(n) for n in range(1, 6)], pool, batch_size=1)
    assert list(folder.read()) == [(0, 0), (1, 0), (2, 0)]


def test_a_wrong_command_that_is_stopped_costs_no_more_than_it_had_begun(tmp_path: Path) -> None:
    """One flag mistyped, a thousand videos void at once, and the right command would make them all anew."""
    folder = VideoFolder(tmp_path)
    four = [task(number) for number in range(4)]
    make(folder, four, FakePool())

    def interrupt(number: int) -> None:
        if len(pool.batches) == 2:
            raise KeyboardInterrupt

    pool = FakePool(1, interrupt)
    wrong = [task(number, fingerprint="other") for number in range(4)]
    with pytest.raises(KeyboardInterrupt):
        make(folder, wrong, pool, batch_size=1)
    assert [json.loads(line)["id"] for line in folder.results.read_text().splitlines()] == [0]
    done = sort_out(four, folder, with_sheets=True)
    assert [wanted.key for wanted in done.todo] == [(0, 0), (1, 0)]
    assert (done.num_differ, done.num_others) == (1, 0)


@pytest.mark.parametrize("line", ['{"sample_id": 0, "video_path": "videos/00000.mp4"}', "[1]", "a line"])
def test_results_of_another_program_are_left_alone(tmp_path: Path, line: str) -> None:
    """The first release writes a file of the same name with other keys: a traceback, or its results gone."""
    folder = VideoFolder(tmp_path)
    folder.results.write_text(line + "\n")
    with pytest.raises(ConfigError, match=r"results\.jsonl holds something else .*name another --output-dir"):
        sort_out([task(0)], folder, with_sheets=True)
    assert folder.results.read_text() == line + "\n"


def test_scores_of_an_earlier_run_do_not_outlive_it(tmp_path: Path) -> None:
    """An average of videos that are no longer there."""
    folder = VideoFolder(tmp_path)
    make(folder, [task(1)], FakePool(), rewards=FakeRewards())
    assert folder.average_scores.exists()
    make(folder, [task(1)], FakePool())
    assert not folder.average_scores.exists()


def size_of(folder: VideoFolder) -> float:
    return json.loads(folder.average_scores.read_text())["size"]


def test_the_average_is_of_the_videos_that_were_asked_for(tmp_path: Path) -> None:
    """Fewer prompts, or another LoRA: what lay in the folder before would count, too."""
    folder = VideoFolder(tmp_path)
    four = [task(number) for number in range(4)]
    make(folder, four, FakePool(), rewards=FakeRewards())
    assert size_of(folder) == (0 + 10 + 20 + 30) / 4
    done = sort_out(four[1:3], folder, with_sheets=True)
    assert (len(done.kept), len(done.todo), done.num_others) == (2, 0, 2)
    folder.begin(done.records)  # nothing is to be made
    assert size_of(folder) == (10 + 20) / 2
    assert [json.loads(line)["id"] for line in folder.results.read_text().splitlines()] == [1, 2]

    other = [task(1), task(2, fingerprint="other LoRA")]
    done = sort_out(other, folder, with_sheets=True)
    assert (len(done.kept), len(done.todo), done.num_differ) == (1, 1, 1)
    make(folder, done.todo, FakePool(), kept=done.records, rewards=FakeRewards())
    assert size_of(folder) == (10 + 20) / 2
    assert [json.loads(line)["id"] for line in folder.other_results.read_text().splitlines()] == [0, 3]


def test_videos_of_an_earlier_plan_are_found_again(tmp_path: Path) -> None:
    """A look at two of a thousand prompts, and all the others would be made anew."""
    folder, pool = VideoFolder(tmp_path), FakePool()
    four = [task(number) for number in range(4)]
    make(folder, four, pool, rewards=FakeRewards())
    folder.begin(sort_out(four[:2], folder, with_sheets=True).records)
    done = sort_out(four, folder, with_sheets=True)
    assert (len(done.kept), done.num_others) == (4, 0)
    folder.begin(done.records)
    assert size_of(folder) == 15 and not folder.other_results.exists()


def test_a_video_that_was_made_anew_is_not_found_under_its_old_settings(tmp_path: Path) -> None:
    """The record that was set aside would vouch for a file that shows something else by now."""
    folder = VideoFolder(tmp_path)
    make(folder, [task(0), task(1)], FakePool())
    folder.begin(sort_out([task(0)], folder, with_sheets=True).records)
    make(folder, [task(1, fingerprint="other")], FakePool())
    done = sort_out([task(0), task(1)], folder, with_sheets=True)
    assert [wanted.key for wanted in done.todo] == [(1, 0)]


def test_a_sheet_that_is_gone_is_drawn_from_its_video(tmp_path: Path) -> None:
    """It would be missing for ever, or cost the making of the video."""
    folder = VideoFolder(tmp_path)
    make(folder, [task(0), task(1)], FakePool())
    folder.sheet(task(1)).unlink()
    done = sort_out([task(0), task(1)], folder, with_sheets=True)
    assert (len(done.todo), [wanted.key for wanted, _ in done.sheets_due]) == (0, [(1, 0)])
    assert not sort_out([task(0), task(1)], folder, with_sheets=False).sheets_due


def test_without_files_the_record_says_so(tmp_path: Path) -> None:
    """A path to a file that was never written."""
    folder = VideoFolder(tmp_path)
    make(folder, [task(1)], FakePool(), with_files=False)
    (record,) = folder.read().values()
    assert record["video"] is None
    assert not (tmp_path / "videos").exists()
    assert folder.is_done(task(1), record, with_sheet=True)
    folder.sheet(task(1)).unlink()
    assert not folder.is_done(task(1), record, with_sheet=True), "there is no file to draw it from"
    assert folder.is_done(task(1), record, with_sheet=False)
