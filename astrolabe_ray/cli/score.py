"""`score`: find the videos and their prompts, find somebody who scores, print or write what they say."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import typer

from astrolabe_ray.cli.inputs import check_rewards
from astrolabe_ray.cli.token import read_token
from astrolabe_ray.cli.wiring import VideoScorer, Wiring
from astrolabe_ray.config.loader import load
from astrolabe_ray.config.schema import ModelConfig, RewardConfig, RunConfig
from astrolabe_ray.errors import ConfigError, DataFailure
from astrolabe_ray.saved_videos import SavedVideo, prompt_of, videos_of

EMBEDDED = ("tiny_clip", "motion_quality", "image_quality")
"""Rewards that need no files."""


@dataclass(frozen=True)
class What:
    """What was typed."""

    videos: tuple[Path, ...]
    prompt: str | None
    from_run: Path | None
    rewards: tuple[str, ...]
    url: str | None
    token_file: Path | None
    config: str | None
    gpu: bool
    as_json: bool


@dataclass(frozen=True)
class Scored:
    """A video with its scores, or why it has none."""

    video: SavedVideo
    scores: Mapping[str, float]
    failure: str | None = None


def score(what: What, wiring: Wiring) -> None:
    """Raises ConfigError before anything heavy loads, and DataFailure in the end if a video has no score.

    What ends it earlier, as reward servers that die or Ctrl-C, leaves the scores that there are.
    """
    _check_flags(what)
    videos = videos_of(what.from_run) if what.from_run is not None else _given(what)
    scored: list[Scored] = []
    try:
        with _scorer(what, wiring) as scorer:
            for video in videos:
                scored.append(_scored(video, scorer, wiring))
    finally:
        if scored:
            _say(what, videos, scored)
    failed = [each for each in scored if each.failure is not None]
    if failed:
        lines = "\n".join(f"{each.video.file}: {each.failure}" for each in failed)
        raise DataFailure(f"{len(failed)} of {len(scored)} videos were not scored\n{lines}")


def _say(what: What, videos: Sequence[SavedVideo], scored: Sequence[Scored]) -> None:
    """`scored` are the first of `videos`, or all."""
    typer.echo(_json(scored) if what.as_json else table(scored))
    if what.from_run is not None:
        _write(what.from_run, videos, scored, is_quiet=what.as_json)


def _check_flags(what: What) -> None:
    if bool(what.videos) == (what.from_run is not None):
        raise ConfigError("name either videos or --from-run DIR")
    if what.from_run is not None and what.prompt is not None:
        raise ConfigError("--prompt does not go with --from-run: its videos have their prompts")
    if what.prompt is not None and not what.prompt.strip():
        raise ConfigError("--prompt is empty; describe what the videos show")
    if what.url is not None and what.config is not None:
        raise ConfigError("--url and --config are two places to score; name one")
    if what.token_file is not None and what.url is None:
        raise ConfigError("--token-file is for a door elsewhere; it needs --url http://HOST:PORT")
    if what.gpu and (what.url is not None or what.config is not None):
        raise ConfigError("--gpu is for scoring in this process, without --url and --config")


def _given(what: What) -> list[SavedVideo]:
    """The files that were named. Raises ConfigError for one that is not there or has no prompt."""
    for file in what.videos:
        if not file.is_file():
            raise ConfigError(f"there is no file {file}")
    return [SavedVideo(file, what.prompt or prompt_of(file), str(file)) for file in what.videos]


@contextmanager
def _scorer(what: What, wiring: Wiring) -> Iterator[VideoScorer]:
    """Through a door, from the servers of a config, or in this process."""
    if what.url is not None:
        scorer = wiring.door_scorer(what.url, read_token(what.token_file), what.rewards)
        try:
            yield scorer
        finally:
            scorer.close()
    elif what.config is not None:
        with _joined(what, load(what.config, ()), wiring) as scorer:
            yield scorer
    else:
        rewards = [RewardConfig(key=key, num_gpus=int(what.gpu)) for key in what.rewards or EMBEDDED]
        check_rewards(rewards, wiring.reward_problems)
        scorer = wiring.pool_scorer(rewards, None)
        try:
            yield scorer
        finally:
            scorer.close()


@contextmanager
def _joined(what: What, config: RunConfig, wiring: Wiring) -> Iterator[VideoScorer]:
    """The running reward servers of `config`; none are started, since they would need room and a leave."""
    import ray

    from astrolabe_ray.config.plan import servers
    from astrolabe_ray.runtime.cluster import connect

    rewards = _chosen(what, config)
    connect(config.cluster, may_start=False)
    try:
        running = wiring.running_rewards(rewards)
        missing = [name for name in servers(rewards) if name not in running]
        if missing:
            raise ConfigError(
                f"no reward server of {', '.join(missing)} runs; start what is missing: "
                f"python launch.py rewards up --config {what.config}"
            )
        scorer = wiring.pool_scorer(rewards, config.cluster)
        try:
            yield scorer
        finally:
            scorer.close()
    finally:
        ray.shutdown()


def _chosen(what: What, config: RunConfig) -> list[RewardConfig]:
    by_key = {reward.key: reward for reward in config.rewards}
    for key in what.rewards:
        if key not in by_key:
            raise ConfigError(f"'{key}' is no reward of {what.config}; it has: {', '.join(by_key)}")
    return [by_key[key] for key in what.rewards or by_key]


def _scored(video: SavedVideo, scorer: VideoScorer, wiring: Wiring) -> Scored:
    try:
        scenes = wiring.plan_scenes(video.prompt, ModelConfig(), None).scenes
        if len(scenes) != 1:
            raise DataFailure(f"it has {len(scenes)} scenes; a score is of one prompt")
        return Scored(video, scorer.score(video.file, scenes[0].prompt))
    except DataFailure as failure:
        return Scored(video, {}, str(failure))


def table(scored: Sequence[Scored]) -> str:
    """A line for each video and, below several, the means."""
    keys = list(dict.fromkeys(key for each in scored for key in each.scores))
    rows = [
        [each.video.name, *(f"{each.scores[k]:.4f}" if k in each.scores else "-" for k in keys)]
        for each in scored
    ]
    if len(scored) > 1:
        columns = [[each.scores[key] for each in scored if key in each.scores] for key in keys]
        rows.append(["mean", *(f"{sum(column) / len(column):.4f}" for column in columns)])
    rows = [["video", *keys], *rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *(n.rjust(w) for n, w in zip(numbers, widths[1:], strict=True))])
        for name, *numbers in rows
    )


def _json(scored: Sequence[Scored]) -> str:
    return json.dumps(
        [
            {
                "video": each.video.name,
                "prompt": each.video.prompt,
                "scores": dict(each.scores),
                "failure": each.failure,
            }
            for each in scored
        ],
        ensure_ascii=False,
        indent=2,
    )


def _write(folder: Path, videos: Sequence[SavedVideo], scored: Sequence[Scored], *, is_quiet: bool) -> None:
    from astrolabe_ray.report.rescoring import merged, write_agreement

    nothing: Mapping[str, float] = {}
    not_reached = [nothing] * (len(videos) - len(scored))
    records = merged(folder, videos, [*(each.scores for each in scored), *not_reached])
    written = write_agreement(folder, records)
    if not is_quiet:
        typer.echo(f"\n{written.read_text()}\nResults: {written.parent / 'rescored.jsonl'}, {written}")
