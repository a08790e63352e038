"""The maths of one forward of a train step: noise, three predictions, the loss of each sample.

What a sample contributes depends on its id, the batch's seed and the step alone, never on the rank
or the microbatch that it lands in, so that any split gives the same update.

Legend: B samples of a microbatch, T latent frames, C channels, H height, W width, L text tokens, D dim.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from astrolabe_ray.algorithms.flow_matching import (
    NUM_TIMESTEPS,
    add_noise,
    flow_to_x0,
    nearest_sigma,
    sigma_of,
    warped_timesteps,
)
from astrolabe_ray.algorithms.kl import squared_distance
from astrolabe_ray.algorithms.nft_loss import adaptive_nft_loss, nft_loss, nft_weight
from astrolabe_ray.config.schema import AlgorithmConfig, ModelConfig
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kv_cache import SharedPast

Policy = Literal["default", "old", "reference"]
SharedContext = Mapping[Policy, SharedPast]
"""Of samples that go on from one history: what each policy makes of it."""


class Predict(Protocol):
    """Flow [B, T, C, H, W] of a policy; with gradients only for `default`.

    `clean`: the video up to the window's end, whose last T frames are the window; None: noisy context.
    `shared`: the frames before the window and the text are the same for all samples.
    """

    def __call__(
        self,
        policy: Policy,
        noisy: Tensor,
        t_BT: Tensor,
        text: Tensor,
        clean: Tensor | None,
        shared: SharedContext | None = None,
    ) -> Tensor: ...


@dataclass(frozen=True)
class Draw:
    """Where on the noise schedule one forward looks, and with which noise."""

    timestep_B: Tensor  # [B], in (0, 1000]
    x0_sigma_B: Tensor  # share of noise that turns a flow into clean latents
    noise_BTCHW: Tensor

    def to(self, device: torch.device) -> Draw:
        return Draw(self.timestep_B.to(device), self.x0_sigma_B.to(device), self.noise_BTCHW.to(device))


@dataclass(frozen=True)
class Samples:
    """A microbatch on one device, float32. All its samples have the same window."""

    x0_BTCHW: Tensor  # clean latents up to the window's end
    text_BLD: Tensor
    advantage_B: Tensor
    kl_weight_B: Tensor
    window_start: int
    shared: SharedContext | None = None  # where all have the same text and frames before the window

    @property
    def window_BTCHW(self) -> Tensor:
        """The clean latents that are trained on."""
        return self.x0_BTCHW[:, self.window_start :]


@dataclass(frozen=True)
class SampleLosses:
    """Per sample [B]; only `total` carries gradients."""

    total: Tensor
    policy: Tensor
    kl: Tensor  # times the sample's weight
    old_deviation: Tensor  # mean square of (default - old), in the loss's space


@dataclass(frozen=True)
class LossParts:
    """Per sample [B]: the policy loss is `free` + a * `linear` for an advantage that was not clipped and is
    `a` times what `Samples.advantage_B` says. `free` and `linear` carry gradients, and so does `penalty`."""

    free: Tensor
    linear: Tensor
    penalty: Tensor  # the distance to the reference, times the sample's weight
    old_deviation: Tensor
    has_free_gradient: bool  # False: that of `free` and `penalty` is exactly 0


def sample_seed(batch_seed: int, step: int, rollout_id: str) -> int:
    """63-bit seed of one sample's training noise in one step."""
    digest = hashlib.sha256(f"{batch_seed}/{step}/{rollout_id}".encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def noise_levels(model: ModelConfig, algorithm: AlgorithmConfig) -> list[tuple[float, float]]:
    """(timestep, share of noise in its flow) of each place where a sample may be trained."""
    steps = model.denoising_steps
    if algorithm.train_timesteps == "warped":
        steps = warped_timesteps(steps, model.timestep_shift)
    if algorithm.x0_sigma == "table":
        return [(float(t), nearest_sigma(t, model.timestep_shift)) for t in steps]
    return [(float(t), float(sigma_of(t))) for t in steps]


def draw(
    seeds: Sequence[int],
    frame_shape: Sequence[int],
    levels: Sequence[tuple[float, float]],
    num_draws: int,
    *,
    one_for_all: bool = False,
) -> list[Draw]:
    """`num_draws` draws for a microbatch with one seed per sample, on the CPU.

    A sample's timesteps are distinct members of `levels` (see `noise_levels`), each equally likely; its
    noise has shape `frame_shape` (T, C, H, W). `one_for_all`: all samples get the first one's timesteps.
    """
    table = torch.tensor(levels, dtype=torch.float32)
    chosen, noise = [], []
    for seed in seeds:
        generator = torch.Generator().manual_seed(seed)
        chosen.append(table[torch.randperm(len(table), generator=generator)[:num_draws]])
        noise.append(torch.randn(num_draws, *frame_shape, generator=generator))
    if one_for_all:
        chosen = [chosen[0]] * len(chosen)
    times, noises = torch.stack(chosen, dim=1), torch.stack(noise, dim=1)
    return [Draw(level[:, 0], level[:, 1], eps) for level, eps in zip(times, noises, strict=True)]


def nft_step(
    predict: Predict,
    samples: Samples,
    at: Draw,
    *,
    algorithm: AlgorithmConfig,
    on_policy: bool,
    reference_rows: Sequence[int],
) -> SampleLosses:
    """Losses of one microbatch at one draw.

    `on_policy`: the behaviour policy has bitwise the weights of `default`, so its prediction needs no
    forward of its own. `reference_rows`: the samples whose distance to the reference is computed; the
    others' is 0.
    """
    new, old, kl_B = _new_old_and_penalty(
        predict, samples, at, algorithm=algorithm, on_policy=on_policy, rows=list(reference_rows)
    )
    weight_B = nft_weight(samples.advantage_B, adv_clip_max=algorithm.adv_clip_max)
    policy_B = _policy_loss(new, old, samples, at, weight_B, algorithm)
    return SampleLosses(
        total=policy_B + algorithm.kl_coef * kl_B,
        policy=policy_B.detach(),
        kl=kl_B.detach(),
        old_deviation=squared_distance(new.detach(), old),
    )


def nft_parts(
    predict: Predict,
    samples: Samples,
    at: Draw,
    *,
    algorithm: AlgorithmConfig,
    on_policy: bool,
    reference_rows: Sequence[int],
) -> LossParts:
    """What `nft_step` computes, before the scale of the advantages is known.

    The loss is r pos + (1 - r) neg with r = A / (2 m) + 1/2, where m is adv_clip_max, so it is
    (pos + neg) / 2 + A (pos - neg) / (2 m). Where old and new are one policy the gradients of pos and neg
    cancel in the first part, bitwise.
    """
    new, old, kl_B = _new_old_and_penalty(
        predict, samples, at, algorithm=algorithm, on_policy=on_policy, rows=list(reference_rows)
    )
    ones_B = torch.ones_like(samples.advantage_B)
    positive_B, negative_B = (
        _policy_loss(new, old, samples, at, weight_B, algorithm) for weight_B in (ones_B, 0 * ones_B)
    )
    half_pull_B = samples.advantage_B / (2 * algorithm.adv_clip_max)
    return LossParts(
        free=(positive_B + negative_B) / 2,
        linear=half_pull_B * (positive_B - negative_B),
        penalty=kl_B,
        old_deviation=squared_distance(new.detach(), old),
        has_free_gradient=not on_policy or len(reference_rows) > 0,
    )


def _new_old_and_penalty(
    predict: Predict,
    samples: Samples,
    at: Draw,
    *,
    algorithm: AlgorithmConfig,
    on_policy: bool,
    rows: list[int],
) -> tuple[Tensor, Tensor, Tensor]:
    """Predictions of the trained and the behaviour policy, and the penalty [B] of the samples `rows`.

    The forwards without gradients come first, so that switching adapters never meets a graph under
    construction.
    """
    prediction_of = _predictions(predict, samples, at, algorithm)
    old = None if on_policy else prediction_of("old")
    reference = prediction_of("reference", rows) if rows else None
    new = prediction_of("default")
    kl_B = torch.zeros_like(samples.kl_weight_B)
    if reference is not None:
        distance = squared_distance(new[rows], reference, dtype=getattr(torch, algorithm.loss_dtype))
        kl_B = kl_B.index_put((torch.tensor(rows, device=kl_B.device),), samples.kl_weight_B[rows] * distance)
    return new, new.detach() if old is None else old, kl_B


class _Predictions(Protocol):
    """What a policy says about some of the samples, in the space of the loss."""

    def __call__(self, policy: Policy, rows: slice | list[int] = slice(None)) -> Tensor: ...


def _predictions(predict: Predict, samples: Samples, at: Draw, algorithm: AlgorithmConfig) -> _Predictions:
    """Clean latents or flows at the draw, in the dtype of the loss."""
    dtype = getattr(torch, algorithm.loss_dtype)
    x0_BTCHW, text_BLD = samples.window_BTCHW.to(dtype).float(), samples.text_BLD
    noisy = add_noise(x0_BTCHW, at.noise_BTCHW.to(dtype).float(), _per_sample(at.timestep_B) / NUM_TIMESTEPS)
    noisy, x0_sigma = noisy.to(dtype), _per_sample(at.x0_sigma_B)
    t_BT = at.timestep_B[:, None].expand(-1, x0_BTCHW.shape[1])

    def prediction_of(policy: Policy, rows: slice | list[int] = slice(None)) -> Tensor:
        clean = samples.x0_BTCHW[rows] if algorithm.clean_context else None
        flow = predict(policy, noisy[rows], t_BT[rows], text_BLD[rows], clean, samples.shared)
        if algorithm.loss_space == "v":
            return flow.to(dtype)
        return flow_to_x0(noisy[rows].float(), flow, x0_sigma[rows]).to(dtype)

    return prediction_of


def _policy_loss(
    new: Tensor, old: Tensor, samples: Samples, at: Draw, weight_B: Tensor, algorithm: AlgorithmConfig
) -> Tensor:
    dtype, clip = getattr(torch, algorithm.loss_dtype), algorithm.adv_clip_max
    x0_BTCHW = samples.window_BTCHW.to(dtype)
    if algorithm.loss_space == "x0":
        return nft_loss(new, old, x0_BTCHW, weight_B, nft_beta=algorithm.nft_beta, dtype=dtype).float()
    flow_BTCHW = at.noise_BTCHW.to(dtype) - x0_BTCHW
    return adaptive_nft_loss(
        new, old, flow_BTCHW, at.x0_sigma_B, weight_B, nft_beta=algorithm.nft_beta, adv_clip_max=clip
    )


def _per_sample(values_B: Tensor) -> Tensor:
    return values_B.view(-1, 1, 1, 1, 1)


def predictor(
    engine,
    context: ContextRule,
    context_timestep: float,
    detach_context: bool = True,
    *,
    for_backward: bool = True,
) -> Predict:
    """Predictions of the three policies that live in one PEFT model under `engine`.

    `for_backward`: what follows is `engine.backward`, not `engine.gradient`.
    """
    trained = engine if for_backward else engine.model

    def predict(
        policy: Policy,
        noisy: Tensor,
        t_BT: Tensor,
        text: Tensor,
        clean: Tensor | None,
        shared: SharedContext | None = None,
    ) -> Tensor:
        past = None if shared is None else shared[policy]
        arguments = (noisy, t_BT, text, context, clean, context_timestep, detach_context, past)
        if policy == "default":
            return trained(*arguments)
        with torch.no_grad(), engine.using(policy):
            return engine.model(*arguments)

    return predict
