"""What follows from a config: derived numbers, and the rules that hold between its sections.

The schema checks each option alone; here options are checked against each other, so that a run that
can't work ends on the command line and not minutes later inside a worker.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from astrolabe_ray.config.algorithm_rules import algorithm_rules, streaming_rules
from astrolabe_ray.config.schema import ModelConfig, RewardConfig, RolloutConfig, RunConfig
from astrolabe_ray.config.scorer_cards import scorer_name
from astrolabe_ray.config.train_window import longest_rollout, window_frames
from astrolabe_ray.errors import ConfigError

PIXELS_PER_TOKEN = 16  # 8 from the VAE, 2 from the patches
PIXELS_PER_LATENT = 8
FRAMES_PER_LATENT_FRAME = 4
SPARE_EVAL_PROMPTS = 2
"""Held-out prompts that wait for an actor, or for their scores, while the others are being sampled."""
OF_THE_RUN = {"key", "weight", "request_timeout_s", "max_attempts", "max_in_flight"}
"""Options of a reward that its server does not know."""


@dataclass(frozen=True)
class Need:
    """Processes of one role and what each of them reserves. Example: `Need("learner rank", 2, 1, 1)`."""

    role: str
    count: int
    num_cpus: float
    num_gpus: float
    reward: str | None = None  # the scorer, for a reward server, which may run already

    def __str__(self) -> str:
        gpus = f" + {self.num_gpus:g} GPU" if self.num_gpus else ""
        return f"{self.count} x {self.role} ({self.num_cpus:g} CPU{gpus})"


@dataclass(frozen=True)
class Plan:
    """Derived numbers of a run. Counts are per train step unless the name says otherwise."""

    num_frames: int  # of one video
    num_scored_frames: int  # of one rollout, at most
    num_chunks: int  # of one video
    latent_shape: tuple[int, int, int]  # T, H, W
    sampled_latent_frames: int  # of the longest rollout
    tokens_per_latent_frame: int
    num_rollouts: int
    requests_per_group: int
    samples_per_rank: int  # of the fullest learner rank
    max_groups_in_flight: int
    eval_rollouts: int  # of one evaluation
    needs: tuple[Need, ...]

    @property
    def num_cpus(self) -> float:
        """CPUs that the smallest form of the run reserves."""
        return sum(need.count * need.num_cpus for need in self.needs)

    @property
    def num_gpus(self) -> float:
        return sum(need.count * need.num_gpus for need in self.needs)


def make_plan(config: RunConfig) -> Plan:
    """The plan of `config`. Raises ConfigError with a line for each rule that does not hold."""
    broken = list(_broken_rules(config))
    if broken:
        raise ConfigError("\n".join(broken))
    model, rollout = config.model, config.rollout
    num_rollouts = rollout.num_groups * rollout.group_size
    num_frames = FRAMES_PER_LATENT_FRAME * (model.num_latent_frames - 1) + 1
    return Plan(
        num_frames=num_frames,
        num_scored_frames=min(num_frames, FRAMES_PER_LATENT_FRAME * window_frames(config)),
        num_chunks=model.num_latent_frames // model.chunk_frames,
        latent_shape=(
            model.num_latent_frames,
            model.height // PIXELS_PER_LATENT,
            model.width // PIXELS_PER_LATENT,
        ),
        sampled_latent_frames=longest_rollout(config),
        tokens_per_latent_frame=(model.height // PIXELS_PER_TOKEN) * (model.width // PIXELS_PER_TOKEN),
        num_rollouts=num_rollouts,
        requests_per_group=1
        if rollout.group_sampling == "clip"
        else rollout.group_size // rollout.batch_size,
        samples_per_rank=-(-num_rollouts // config.learner.num_ranks),
        max_groups_in_flight=(rollout.max_policy_age + 1) * rollout.num_groups,
        eval_rollouts=config.evaluation.num_prompts * config.evaluation.rollouts_per_prompt,
        needs=_needs(config),
    )


def eval_prompts_in_flight(config: RunConfig) -> int:
    """Held-out prompts whose videos may be in the object store at once: one per free actor and some more."""
    requests_per_prompt = math.ceil(config.evaluation.rollouts_per_prompt / config.rollout.batch_size)
    at_work = math.ceil(config.rollout.max_actors / requests_per_prompt)
    return min(config.evaluation.num_prompts, at_work + SPARE_EVAL_PROMPTS)


def _needs(config: RunConfig) -> tuple[Need, ...]:
    rollout, learner = config.rollout, config.learner
    return (
        Need("learner rank", learner.num_ranks, learner.num_cpus, learner.num_gpus),
        Need("rollout actor", rollout.min_actors, rollout.num_cpus, rollout.num_gpus),
        *server_needs(config.rewards),
    )


def server_needs(rewards: Sequence[RewardConfig]) -> tuple[Need, ...]:
    """A need for each server of `rewards`."""
    return tuple(
        Need(server_role(name), reward.min_replicas, reward.num_cpus, reward.num_gpus, reward=name)
        for name, reward in servers(rewards).items()
    )


def servers(rewards: Sequence[RewardConfig]) -> dict[str, RewardConfig]:
    """Scorer -> the first of its rewards, which tells of its server what the others tell, too."""
    found: dict[str, RewardConfig] = {}
    for reward in rewards:
        found.setdefault(scorer_name(reward.key), reward)
    return found


def server_role(scorer: str) -> str:
    """Example: `reward server hpsv3`."""
    return f"reward server {scorer}"


def _broken_rules(config: RunConfig) -> Iterator[str]:
    yield from _model_rules(config.model)
    yield from _rollout_rules(config.rollout)
    yield from _reward_rules(config)
    yield from _kl_rules(config)
    yield from _window_rules(config)
    yield from algorithm_rules(config)
    yield from streaming_rules(config)
    yield from _waiting_rules(config)
    num_rollouts = config.rollout.num_groups * config.rollout.group_size
    if config.learner.num_ranks > num_rollouts:
        yield (
            f"learner.num_ranks {config.learner.num_ranks} is more than the {num_rollouts} rollouts of a "
            f"step (num_groups x group_size), so ranks would idle. "
            f"Try --config.learner.num_ranks={num_rollouts}."
        )
    num_timesteps = len(config.model.denoising_steps)
    if config.algorithm.timesteps_per_sample > num_timesteps:
        yield (
            f"algorithm.timesteps_per_sample {config.algorithm.timesteps_per_sample} is more than the "
            f"{num_timesteps} model.denoising_steps it draws from without replacement. "
            f"Try --config.algorithm.timesteps_per_sample={num_timesteps}."
        )


def _model_rules(model: ModelConfig) -> Iterator[str]:
    for name, size in (("height", model.height), ("width", model.width)):
        if size % PIXELS_PER_TOKEN:
            near = _multiples_around(size, PIXELS_PER_TOKEN)
            yield (
                f"model.{name} {size} is not a multiple of {PIXELS_PER_TOKEN} (8 from the VAE, 2 from the "
                f"patches). Try --config.model.{name}={near}."
            )
    if model.num_latent_frames % model.chunk_frames:
        near = _multiples_around(model.num_latent_frames, model.chunk_frames)
        yield (
            f"model.num_latent_frames {model.num_latent_frames} is not a multiple of model.chunk_frames "
            f"{model.chunk_frames}. Try --config.model.num_latent_frames={near}."
        )
    needed = model.sink_frames + model.chunk_frames
    if model.window_frames is not None and model.window_frames < needed:
        yield (
            f"model.window_frames {model.window_frames} does not hold model.sink_frames {model.sink_frames} "
            f"+ model.chunk_frames {model.chunk_frames} = {needed}. "
            f"Try --config.model.window_frames={needed}."
        )
    steps = model.denoising_steps
    if not steps or list(steps) != sorted(set(steps), reverse=True) or not 0 < steps[-1] <= steps[0] <= 1000:
        yield (
            f"model.denoising_steps {list(steps)} must fall from at most 1000 to above 0, each only once, "
            "for example --config.model.denoising_steps=1000,750,500,250."
        )


def _rollout_rules(rollout: RolloutConfig) -> Iterator[str]:
    if rollout.group_size % rollout.batch_size:
        divisors = [n for n in range(1, rollout.group_size + 1) if rollout.group_size % n == 0]
        near = sorted(divisors, key=lambda n: (abs(n - rollout.batch_size), -n))[:2]
        yield (
            f"rollout.batch_size {rollout.batch_size} does not divide rollout.group_size "
            f"{rollout.group_size}. Try --config.rollout.batch_size={' or '.join(map(str, sorted(near)))}."
        )
    if rollout.min_actors > rollout.max_actors:
        yield (
            f"rollout.min_actors {rollout.min_actors} is more than rollout.max_actors {rollout.max_actors}. "
            f"Try --config.rollout.max_actors={rollout.min_actors}."
        )


def _reward_rules(config: RunConfig) -> Iterator[str]:
    keys = [reward.key for reward in config.rewards]
    if not keys:
        yield "rewards is empty: there is nothing to learn from. Name at least one reward in the preset."
    elif all(reward.weight == 0 for reward in config.rewards):
        yield "every reward has weight 0: there is nothing to learn from. Try --config.rewards.0.weight=1."
    for key in sorted({key for key in keys if keys.count(key) > 1}):
        yield f"rewards names '{key}' {keys.count(key)} times. Name it once and add up the weights."
    yield from _shared_server_rules(config.rewards)
    for index, reward in enumerate(config.rewards):
        if reward.min_replicas > reward.max_replicas:
            yield (
                f"rewards.{index}.min_replicas {reward.min_replicas} ({reward.key}) is more than "
                f"max_replicas {reward.max_replicas}. "
                f"Try --config.rewards.{index}.max_replicas={reward.min_replicas}."
            )


def _waiting_rules(config: RunConfig) -> Iterator[str]:
    """Nothing moves while a single answer is waited for, and that wait has an error of its own."""
    waits = {
        "learner.step_timeout_s": config.learner.step_timeout_s,
        "rollout.request_timeout_s": config.rollout.request_timeout_s,
    }
    waits |= {f"rewards.{i}.request_timeout_s": r.request_timeout_s for i, r in enumerate(config.rewards)}
    longest = max(waits, key=lambda name: waits[name])
    if config.cluster.stall_timeout_s <= waits[longest]:
        yield (
            f"cluster.stall_timeout_s {config.cluster.stall_timeout_s:g} is not more than {longest} "
            f"{waits[longest]:g}, so a healthy run could be ended while it waits for one answer. "
            f"Try --config.cluster.stall_timeout_s={waits[longest] * 4 / 3:g}."
        )


def _shared_server_rules(rewards: Sequence[RewardConfig]) -> Iterator[str]:
    """Rewards of one scorer share a server, so they must say the same about it."""
    first = servers(rewards)
    for index, reward in enumerate(rewards):
        other = first[scorer_name(reward.key)]
        for name in sorted(RewardConfig.model_fields.keys() - OF_THE_RUN):
            here, there = getattr(reward, name), getattr(other, name)
            if here != there:
                yield (
                    f"rewards.{index}.{name} {here} ({reward.key}) differs from {there} of {other.key}, and "
                    f"both come from one server. Try --config.rewards.{index}.{name}={there}."
                )


def _kl_rules(config: RunConfig) -> Iterator[str]:
    """Samples can only disagree between rewards, one of which is the main one."""
    algorithm, keys = config.algorithm, [reward.key for reward in config.rewards]
    if algorithm.kl_reference == "lagging" and algorithm.kl_coef == 0:
        yield (
            "algorithm.kl_reference=lagging has no effect with algorithm.kl_coef 0. "
            "Try --config.algorithm.kl_coef=0.0001 or --config.algorithm.kl_reference=start."
        )
    if algorithm.kl_samples == "all":
        if algorithm.main_reward is not None:
            yield (
                f"algorithm.main_reward '{algorithm.main_reward}' has no effect with kl_samples=all. "
                "Try --config.algorithm.kl_samples=disagreeing or --config.algorithm.main_reward=none."
            )
        return
    if algorithm.kl_coef == 0:
        yield (
            "algorithm.kl_samples=disagreeing has no effect with algorithm.kl_coef 0. "
            "Try --config.algorithm.kl_coef=0.0001."
        )
    if len(keys) < 2:
        yield (
            "algorithm.kl_samples=disagreeing compares the rankings of at least two rewards, there is "
            f"{len(keys)}. Try --config.algorithm.kl_samples=all."
        )
    elif algorithm.main_reward not in keys:
        yield (
            f"algorithm.main_reward {algorithm.main_reward} is not one of the rewards {', '.join(keys)}. "
            f"Try --config.algorithm.main_reward={keys[0]}."
        )


def _window_rules(config: RunConfig) -> Iterator[str]:
    """A window of whole chunks within the video, in whose context training sees what sampling saw."""
    model, algorithm = config.model, config.algorithm
    chunk, total = model.chunk_frames, model.num_latent_frames
    window, start = algorithm.train_window_frames, algorithm.window_start
    shown = config.evaluation.num_latent_frames
    if shown is not None and shown % chunk:
        yield (
            f"evaluation.num_latent_frames {shown} is not a multiple of model.chunk_frames {chunk}. "
            f"Try --config.evaluation.num_latent_frames={_multiples_around(shown, chunk)}."
        )
    if window is None:
        if start != "last":
            yield (
                f"algorithm.window_start {start} has no effect without algorithm.train_window_frames. "
                f"Try --config.algorithm.train_window_frames={chunk}."
            )
        yield from _whole_video_rules(config)
        return
    if window % chunk or window > total:
        near = total if window > total else _multiples_around(window, chunk)
        yield (
            f"algorithm.train_window_frames {window} must be a multiple of model.chunk_frames {chunk} and at "
            f"most model.num_latent_frames {total}. Try --config.algorithm.train_window_frames={near}."
        )
    elif isinstance(start, int) and (start % chunk or not 0 <= start <= total - window):
        near = _multiples_around(start, chunk) if 0 < start <= total - window else total - window
        yield (
            f"algorithm.window_start {start} must be a multiple of model.chunk_frames {chunk}, and the "
            f"{window} frames from there on must lie within model.num_latent_frames {total}. "
            f"Try --config.algorithm.window_start={near}."
        )
    if not algorithm.clean_context:
        yield (
            "algorithm.clean_context=false shows the window noisy frames, and those before it are never "
            "noisy. Try --config.algorithm.clean_context=true."
        )


def _whole_video_rules(config: RunConfig) -> Iterator[str]:
    """Without a window there is nothing before it."""
    way_out = f"Try --config.algorithm.train_window_frames={config.model.chunk_frames}."
    if config.rollout.group_sampling == "clip":
        yield (
            "rollout.group_sampling=clip shares the frames before the window, and without "
            f"algorithm.train_window_frames there are none. {way_out}"
        )
    if not config.algorithm.detach_context:
        yield (
            "algorithm.detach_context=false has no effect without algorithm.train_window_frames: there is no "
            f"context before a whole video. {way_out}"
        )


def _multiples_around(value: int, unit: int) -> str:
    """The multiples of `unit` below and above `value`. Example: 50 and 16 -> "48 or 64"."""
    below = value // unit * unit
    return f"{below} or {below + unit}" if below else f"{unit}"
