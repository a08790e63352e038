"""One learner rank: models, engine, behaviour versions, EMA. A plain class; `group` runs it under Ray.

Legend: B samples of a microbatch, T latent frames, C channels, H height, W width.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from torch import Tensor

from astrolabe_ray.algorithms.ema import ema_decay, ema_update_
from astrolabe_ray.algorithms.old_policy import mixed, old_policy_decay
from astrolabe_ray.errors import WeightMismatch
from astrolabe_ray.models.prompt_cache import prompt_encoder
from astrolabe_ray.models.registry import files_of, load_transformer
from astrolabe_ray.models.text_encoder import TextEncoder
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kernels import choose_kernel
from astrolabe_ray.roles import BlobStore
from astrolabe_ray.types import (
    ControllerState,
    PolicyVersion,
    StepResult,
    Streamed,
    TrainSample,
    WeightManifest,
)
from astrolabe_ray.weights.pack import pack
from astrolabe_ray.weights.probe import probe_output
from learner import process_group
from learner.adapter_ring import AdapterRing
from learner.base_check import require_same_base
from learner.engine import Engine
from learner.learning_rate import learning_rate
from learner.loading import read_checkpoint
from learner.nft_step import Samples, draw, nft_parts, nft_step, noise_levels, predictor, sample_seed
from learner.payloads import Payloads, read_all, video
from learner.policies import with_policies
from learner.reference import Reference, reference_kind
from learner.saving import save_checkpoint
from learner.shared_contexts import SharedContexts
from learner.shared_folder import leave_mark
from learner.skipped_updates import SkippedUpdates
from learner.spec import LearnerSpec
from learner.state_files import LearnerState
from learner.streamed_gradients import StreamedGradients
from learner.vitals import adapter_norms, gradient_norms, unmoved

PROBE_SEED = 0
CACHED_PROMPTS = 256

L = TypeVar("L")
"""Losses of a microbatch."""


class LearnerWorker:
    """Rank `rank` of `world_size`. Every rank must get the same calls in the same order."""

    def __init__(self, spec: LearnerSpec, *, rank: int, world_size: int, blobs: BlobStore) -> None:
        self.spec, self.rank, self.world_size, self._blobs = spec, rank, world_size, blobs
        self.device = torch.device("cuda" if spec.learner.num_gpus > 0 else "cpu")
        self.version = PolicyVersion()
        self._store = None
        self._levels = noise_levels(spec.model, spec.algorithm)
        self._dtype = getattr(torch, spec.lora.dtype)  # what EMA and old policy are rounded to
        self._num_moves = 0  # updates with a gradient
        self._skips = SkippedUpdates()
        self._published: dict[str, tuple[str, int]] = {}  # adapter -> checksum, moves when it was published
        self._last_flat: Tensor | None = None  # published last
        self._in_old_slot: Tensor | None = None
        self._payloads: Payloads = {}  # of the step under way

    def __repr__(self) -> str:
        return f"learner-{self.rank}"

    def open_store(self, host: str) -> int:
        """Rank 0 only: open the ranks' meeting point and return its port."""
        self._store = process_group.open_store(host, self.world_size)
        return self._store.port

    def leave_mark(self, path: Path) -> None:
        """Write an empty file. Raises ConfigError when its folder is not there on this node."""
        leave_mark(path)

    def setup(self, host: str = "", port: int = 0) -> None:
        """Join the other ranks, load the models, create engine, EMA and the first behaviour version."""
        spec, m = self.spec, self.spec.model
        process_group.join(
            self.rank,
            self.world_size,
            self.device,
            store=self._store,
            address=(host, port),
            timeout_s=spec.learner.step_timeout_s,
        )
        dtype = getattr(torch, m.dtype)
        files = files_of(m)
        base = load_transformer(files, dtype, self.device)
        base.gradient_checkpointing = spec.learner.gradient_checkpointing
        base.keep_attention = spec.learner.keep_attention
        base.use_attention(choose_kernel(m.attention, self.device, dtype))
        self._architecture = base.architecture
        model = with_policies(
            base, spec.lora, files.lora_init, seed=spec.seed, reference=reference_kind(spec.algorithm)
        )
        self._engine = Engine(model, spec.learner, self.device)
        self._reference = Reference(self._engine, spec.algorithm)
        encoder = TextEncoder.load(
            files.text_encoder,
            files.tokenizer,
            base.architecture.text_len,
            self.device,
            dtype,
            on_host=spec.learner.text_encoder_on_host,
        )
        self._encode = lru_cache(CACHED_PROMPTS)(prompt_encoder(encoder, files, m.prompt_cache))
        chunk, sink = (m.chunk_frames, m.sink_frames)
        if spec.algorithm.context_mask == "frame":
            chunk, sink = (1, 0)
        rule = ContextRule(chunk, m.window_frames, sink, m.rope)
        self._contexts = SharedContexts(is_used=spec.learner.zero_stage < 3)
        how = (self._engine, rule, m.context_timestep, spec.algorithm.detach_context)
        self._predict, self._predict_alone = predictor(*how), predictor(*how, for_backward=False)
        self._gathered = StreamedGradients(self._engine, kl_coef=spec.algorithm.kl_coef)
        self._ring = AdapterRing(spec.max_policy_age + 1)
        default = self._default = self._engine.read("default")  # as of the newest version
        self._ring.push(self.version, default)
        self._old_is_default = True
        self._ema = default.clone()

    def accumulate(
        self, group_id: str, micro_batches: Sequence[Sequence[TrainSample]], *, step: int, seed: int
    ) -> None:
        """Add this rank's share of a group to the gradients of the step under way.

        Its advantages are centred rewards where `algorithm.advantage_std` is global. Raises as `train` does,
        before anything changed, and ValueError for a group that is there already.
        """
        start = time.perf_counter()
        self._check(micro_batches, step)
        if group_id in self._gathered.group_ids:
            raise ValueError(f"group {group_id} was accumulated before")
        self._payloads = read_all(self._blobs, [sample for samples in micro_batches for sample in samples])
        algorithm = self.spec.algorithm
        step_of = nft_parts if algorithm.advantage_std == "global" else nft_step
        losses_of = partial(step_of, self._predict_alone)
        for samples, rows in zip(micro_batches, self._reference.rows(micro_batches), strict=True):
            weights_B = self._weights(samples) / algorithm.timesteps_per_sample
            for losses, _ in self._losses(losses_of, samples, seed, rows):
                self._gathered.add(losses, weights_B)
        self._payloads = {}
        self._contexts.forget()
        self._gathered.group_ids.add(group_id)
        self._gathered.seconds += time.perf_counter() - start

    def train(
        self,
        micro_batches: Sequence[Sequence[TrainSample]],
        *,
        step: int,
        seed: int,
        num_samples: int,
        streamed: Streamed | None = None,
    ) -> StepResult:
        """One optimizer step on this rank's share of a batch of `num_samples`.

        If exactly the groups of `streamed` were accumulated, their gradients are taken, else they are
        computed now; either way what was accumulated is forgotten.

        A non-finite gradient skips the update (counted as `skipped_steps`); the version moves on, since
        the batch is spent. Raises AstrolabeError after three such steps in a row, WeightMismatch for
        a sample of a version that is no longer held, ValueError for a batch of another step. Raises
        PayloadsLost, on all ranks, before anything changed.
        """
        start = time.perf_counter()
        self._check(micro_batches, step)
        gathered, self._gathered = self._gathered, self._gathered.fresh()
        num_streamed = 0
        if streamed is not None and gathered.group_ids == set(streamed.group_ids):
            num_streamed = len(gathered.group_ids)
            weight = self.world_size / num_samples  # the engine averages over ranks
            sums = gathered.hand_over(scale=streamed.advantage_scale, weight=weight)
        else:
            everything = [sample for samples in micro_batches for sample in samples]
            self._payloads = read_all(self._blobs, everything)
            sums = self._accumulate(micro_batches, seed, num_samples)
            self._payloads = {}
            self._contexts.forget()
        norms = gradient_norms(self._engine)
        lr = learning_rate(self.spec.learner, step)
        grad_norm = self._engine.step(lr)
        sums = process_group.sum_over_ranks(sums)
        names = ("loss", "policy_loss", "kl_loss", "old_deviation")
        metrics = {name: value / num_samples for name, value in zip(names, sums, strict=True)}
        self._skips.count(grad_norm, metrics["loss"])
        self._num_moves += grad_norm is not None and grad_norm > 0
        decay, other_metrics = self._move_on(moved=grad_norm is not None, kl=metrics["kl_loss"])
        metrics |= norms | other_metrics
        metrics |= {
            "grad_norm": math.nan if grad_norm is None else grad_norm,
            "skipped_steps": float(self._skips.total),
            "old_policy_decay": decay,
            "lr": lr,
        }
        if self.spec.learner.accumulate == "streaming":
            metrics["streaming/groups"] = float(num_streamed)
        return StepResult(self.version, metrics, gathered.seconds + time.perf_counter() - start)

    def pack(self, adapter: Literal["old", "ema"]) -> tuple[WeightManifest, np.ndarray]:
        """The behaviour or EMA policy as one buffer.

        Raises WeightMismatch when the weights did not change although an update had a gradient: then
        training is not connected to what is published.
        """
        flat = self._ring.newest if adapter == "old" else self._ema
        scale = self.spec.lora.alpha / self.spec.lora.rank
        manifest, buffer = pack(self._engine.named(flat), version=self.version, lora_scale=scale)
        checksum, moves = self._published.get(adapter, ("", 0))
        if manifest.checksum == checksum and self._num_moves > moves:
            raise WeightMismatch(
                f"policy {self.version} is bitwise the one published {self._num_moves - moves} updates ago, "
                "though their gradients were not zero. Raise learner.lr if it is below float32 resolution."
            )
        self._published[adapter] = (manifest.checksum, self._num_moves)
        self._last_flat = flat
        return manifest, buffer

    def probe(self, seed: int) -> list[float]:
        """Output on a fixed input of the policy that was packed last (on rank 0, whose answer counts)."""
        self._engine.write("old", self._ring.newest if self._last_flat is None else self._last_flat)
        self._in_old_slot = None
        with self._engine.using("old"):
            return probe_output(self._engine.model, self._architecture, seed)

    def save(self, directory: Path, controller: ControllerState) -> None:
        """Rank 0 writes a checkpoint atomically; the others take part in gathering.

        Raises AstrolabeError when it can't be written.
        """
        moments, num_updates = self._engine.optimizer_state()
        state = LearnerState(
            version=self.version,
            default=self._engine.read("default"),
            ema=self._ema,
            ring=tuple((version.step, flat) for version, flat in self._ring.items()),
            old_is_default=self._old_is_default,
            moments=moments,
            num_updates=num_updates,
            num_skipped=self._skips.total,
            skips_in_a_row=self._skips.in_a_row,
            probe=probe_output(self._engine.model, self._architecture, PROBE_SEED),
            reference_probe=self._reference_probe(),
            reference=self._reference.saved(),
            controller=dict(controller),
        )
        if self.rank == 0:
            save_checkpoint(state, directory, named=self._engine.named, lora=self.spec.lora)

    def load(self, directory: Path, incarnation: int) -> ControllerState:
        """Continue from a checkpoint as incarnation `incarnation` or the saved one's next, if higher.

        Any number of ranks and any ZeRO stage; also a checkpoint of the first Astrolabe release. Raises
        ConfigError when it is damaged or was made with another LoRA rank, base model or reference policy.
        """
        state = read_checkpoint(directory, self._engine, self._reference, self.spec.lora)
        self._engine.write("default", state.default)
        self._engine.load_optimizer_state(state.moments, state.num_updates)
        self._reference.restore(state.reference, directory)
        actual = probe_output(self._engine.model, self._architecture, PROBE_SEED)
        require_same_base(directory, state, actual, self._reference_probe, self.spec.model)
        life = max(incarnation, state.version.incarnation + 1)
        self.version = replace(state.version, incarnation=life)
        self._ring.replace((PolicyVersion(life, step), flat) for step, flat in state.ring[-self._ring.size :])
        self._ema, self._default = state.ema, state.default
        self._old_is_default = state.old_is_default
        self._skips = SkippedUpdates(state.num_skipped, state.skips_in_a_row)
        self._published.clear()
        self._last_flat = self._in_old_slot = None
        self._gathered = self._gathered.fresh()
        return state.controller

    def _check(self, micro_batches: Sequence[Sequence[TrainSample]], step: int) -> None:
        """Refuse what can't be trained on before any gradient is there."""
        if step != self.version.step:
            raise ValueError(f"a batch of step {step} arrived at step {self.version.step}")
        for samples in micro_batches:
            versions = {sample.policy_version for sample in samples}
            if len(versions) != 1:
                raise ValueError(f"a microbatch must come from one policy version, not from {len(versions)}")
            if len({sample.window_start for sample in samples}) != 1:
                raise ValueError("the samples of a microbatch must have one window")
            self._ring.get(versions.pop())

    def _accumulate(
        self, micro_batches: Sequence[Sequence[TrainSample]], seed: int, num_samples: int
    ) -> list[float]:
        """Gradients of the mean loss over the whole batch; this rank's sums of the four losses."""
        num_draws = self.spec.algorithm.timesteps_per_sample
        weight = self.world_size / (num_samples * num_draws)  # the engine averages over ranks
        sums = torch.zeros(4, dtype=torch.float64, device=self.device)
        reference_rows = self._reference.rows(micro_batches)
        losses_of = partial(nft_step, self._predict)
        for number, (samples, rows) in enumerate(zip(micro_batches, reference_rows, strict=True)):
            last_batch = number == len(micro_batches) - 1
            weights_B = self._weights(samples)
            for losses, last_draw in self._losses(losses_of, samples, seed, rows):
                self._engine.backward(
                    (weights_B * losses.total).sum() * weight, last=last_batch and last_draw
                )
                parts = (losses.total.detach(), losses.policy, losses.kl, losses.old_deviation)
                sums += torch.stack([(weights_B * part).double().sum() for part in parts]) / num_draws
        return sums.tolist()

    def _losses(
        self,
        losses_of: Callable[..., L],
        samples: Sequence[TrainSample],
        seed: int,
        reference_rows: Sequence[int],
    ) -> Iterator[tuple[L, bool]]:
        """What `losses_of` says at each draw of a microbatch, and whether it is the last one."""
        version = samples[0].policy_version
        on_policy = self._old_is_default and version == self.version
        if not on_policy:
            self._load_old(self._ring.get(version))
        on_device = self._on_device(samples)
        algorithm = self.spec.algorithm
        seeds = [sample_seed(seed, self.version.step, sample.rollout_id) for sample in samples]
        draws = draw(
            seeds,
            on_device.window_BTCHW.shape[1:],
            self._levels,
            algorithm.timesteps_per_sample,
            one_for_all=algorithm.timestep_draw == "microbatch",
        )
        for number, at in enumerate(draws):
            losses = losses_of(
                on_device,
                at.to(self.device),
                algorithm=algorithm,
                on_policy=on_policy,
                reference_rows=reference_rows,
            )
            yield losses, number == len(draws) - 1

    def _weights(self, samples: Sequence[TrainSample]) -> Tensor:
        return torch.tensor([sample.weight for sample in samples], device=self.device)

    def _on_device(self, samples: Sequence[TrainSample]) -> Samples:
        return Samples(
            torch.stack([video(self._payloads[sample.rollout_id]) for sample in samples]).to(self.device),
            torch.stack([self._encode(sample.prompt) for sample in samples]).float(),
            torch.tensor([sample.advantage for sample in samples], device=self.device),
            torch.tensor([sample.kl_weight for sample in samples], device=self.device),
            samples[0].window_start,
            self._contexts.of(samples, self._payloads, self.version),
        )

    def _move_on(self, *, moved: bool, kl: float) -> tuple[float, dict[str, float]]:
        """Next version: mix the behaviour policy and the EMA, move the reference if it is time.

        Returns the old policy's decay, the reference's metrics and the signs of life of the update.
        """
        step = self.version.step
        self.version = replace(self.version, step=step + 1)
        default = self._engine.read("default")
        decay = old_policy_decay(self.spec.algorithm.old_policy_decay, step + 1)
        self._ring.push(self.version, mixed(self._ring.newest, default, decay, steps_in=self._dtype))
        self._old_is_default = decay == 0
        if moved:
            ema = ema_decay(step, maximum=self.spec.algorithm.ema_decay)
            ema_update_(self._ema, default, decay=ema, steps_in=self._dtype)
        vitals = adapter_norms({"default": default, "old": self._ring.newest, "ema": self._ema})
        vitals["health/unmoved"] = unmoved(self._default, default)
        self._default = default
        return decay, vitals | self._reference.after_step(kl, default)

    def _load_old(self, flat: Tensor) -> None:
        if self._in_old_slot is not flat:
            self._engine.write("old", flat)
            self._in_old_slot = flat

    def _reference_probe(self) -> list[float]:
        with self._engine.using("reference"):
            return probe_output(self._engine.model, self._architecture, PROBE_SEED)
