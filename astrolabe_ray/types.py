"""The messages that cross a process boundary: frozen, small, and the same with or without Ray.

    RolloutRequest -> Rollout -> Scores -> RolloutGroup -> TrainBatch -> StepResult
                                                     PublishedPolicy <-'

With `learner.accumulate=streaming` each group is also sent alone, as a TrainPart, before its TrainBatch.

A `Blob` stands for an array: on a cluster it is a Ray ObjectRef (the payload stays where it was
made until its one consumer fetches it), in a single process it is the array itself.

Legend of axes: F frames, T latent frames, C channels, H height, W width.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

Blob = Any
"""A numpy array, or a Ray ObjectRef of one."""

ControllerState = dict[str, Any]
"""What a checkpoint keeps for the controller: counters and what else JSON holds."""


@dataclass(frozen=True, order=True)
class PolicyVersion:
    """Optimizer steps that the weights have seen, within one life of the learner.

    `incarnation` rises whenever the learner restarts from a checkpoint, so that work of lost steps
    is recognised. Example: `PolicyVersion(step=12)`.
    """

    incarnation: int = 0
    step: int = 0

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.step}"


@dataclass(frozen=True)
class FrameSpec:
    """The frames a scorer wants to see. Rollout actors derive each distinct view once.

    Example: `FrameSpec(num_frames=10, height=336, width=588)`; the default is every frame as it is.
    """

    num_frames: int | None = None  # evenly spaced, first and last included; None: all
    height: int | None = None  # pixels; None: the video's own size
    width: int | None = None
    grayscale: bool = False  # three equal channels (ITU-R 601 luma)


@dataclass(frozen=True)
class RolloutRequest:
    """Ask for some rollouts of one group: one prompt, one seed for each video.

    Example: `RolloutRequest("train-3-1", "a small red circle ...", (17, 42), (0, 1))`.
    """

    group_id: str
    prompt: str
    seeds: tuple[int, ...]  # one generator seed per rollout
    indices: tuple[int, ...]  # position of each rollout in its group
    views: tuple[FrameSpec, ...] = ()  # distinct views to derive, in this order
    window: tuple[int, int] | None = (
        None  # latent frames first..end that are looked at; None: the whole video
    )
    prefix_seed: int | None = None  # of the frames before the window, made once; None: by each rollout
    batch_size: int | None = None  # rollouts that grow together behind a shared prefix; None: all of them

    @property
    def num_payloads(self) -> int:
        """Views and latents of each rollout, and the latents of a prefix that they share."""
        return len(self.seeds) * (len(self.views) + 1) + (self.prefix_seed is not None)


@dataclass(frozen=True)
class Rollout:
    """One video sampled from one prompt with one seed, and its record. Payloads are blobs."""

    group_id: str
    index: int
    prompt: str
    seed: int
    policy_version: PolicyVersion  # made every chunk of this video
    actor: str  # who made it, e.g. "rollout-0"
    latents: Blob  # float32 or uint16 (bf16 bits) [T, C, H, W], normalised latents up to the window's end
    views: tuple[Blob, ...]  # uint8 [F, 3, H, W] each, in the order of RolloutRequest.views
    generate_s: float = 0.0  # this video's share of the batch's denoising time
    decode_s: float = 0.0
    window_start: int = 0  # first latent frame that the views show and that is trained on
    prefix: Blob | None = None  # latents of the frames before the window, if `latents` are the window's only


@dataclass(frozen=True)
class Scores:
    """Raw scores of one rollout by reward key. Example: `Scores({"tiny_clip": 0.31})`."""

    values: dict[str, float]
    seconds: float = 0.0  # spent waiting for the reward servers


@dataclass(frozen=True)
class RolloutGroup:
    """All rollouts of one prompt with their scores: the unit of completion."""

    group_id: str
    number: int  # dispatch number; step `number // num_groups` may train it first
    prompt: str
    rollouts: tuple[Rollout, ...]
    scores: tuple[Scores, ...]

    @property
    def oldest_version(self) -> PolicyVersion:
        return min(rollout.policy_version for rollout in self.rollouts)


@dataclass(frozen=True)
class TrainSample:
    """One rollout as the learner needs it: clean latents, who made them, and how good they were."""

    rollout_id: str  # f"{group_id}/{index}"; seeds the training noise
    prompt: str
    policy_version: PolicyVersion
    latents: Blob  # [T, C, H, W] up to the window's end
    advantage: float
    kl_weight: float = 1.0  # of its distance to the reference policy, mean 1 over the batch; 0: not computed
    window_start: int = 0  # first latent frame of the loss; those before it are context
    weight: float = 1.0  # 0: a copy that only keeps the ranks in step
    prefix: Blob | None = None  # the first of the latents, where a group shares them; `latents` go on there


@dataclass(frozen=True)
class TrainPart:
    """One group of a step whose other groups are not there yet: the learner adds up its gradients.

    The samples' `advantage` is their centred reward where `algorithm.advantage_std` is global, since the std
    is not known yet, and final where it is that of the group.
    """

    group_id: str
    step: int  # the step about to be taken, counted from 0
    seed: int  # root of the training noise
    ranks: tuple[tuple[tuple[TrainSample, ...], ...], ...]  # as in TrainBatch


@dataclass(frozen=True)
class Streamed:
    """Says that a batch is exactly these parts. Example: `Streamed(("train-0", "train-1"), 2.5)`."""

    group_ids: tuple[str, ...]
    advantage_scale: float  # advantage of the batch / advantage of the part


@dataclass(frozen=True)
class TrainBatch:
    """What one optimizer step trains on: `ranks[r]` is a tuple of microbatches of rank r.

    Every sample of a microbatch has the same policy version and window. Ranks may hold different numbers of
    samples; the loss is the mean over all `num_samples` of the batch whatever the split.
    """

    step: int  # the step about to be taken, counted from 0
    seed: int  # root of the training noise
    ranks: tuple[tuple[tuple[TrainSample, ...], ...], ...]
    num_samples: int
    streamed: Streamed | None = None  # None: its gradients are computed from the samples


@dataclass(frozen=True)
class StepResult:
    """What an optimizer step did. `version` is the policy after it."""

    version: PolicyVersion
    metrics: dict[str, float]  # loss, policy_loss, kl_loss, grad_norm, ...
    seconds: float


@dataclass(frozen=True)
class TensorEntry:
    """Where one tensor lies inside the flat buffer."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # "float32" or "bfloat16"
    offset: int  # bytes
    num_bytes: int


@dataclass(frozen=True)
class WeightManifest:
    """Describes one published policy, so that a receiver can prove that it holds exactly that."""

    version: PolicyVersion
    tensors: tuple[TensorEntry, ...]
    num_bytes: int
    checksum: str  # sha256 of the flat buffer, hex
    lora_scale: float  # alpha / rank


@dataclass(frozen=True)
class PublishedPolicy:
    """The behaviour policy (the "old" adapter) as one flat uint8 buffer with its manifest."""

    manifest: WeightManifest
    buffer: Blob  # uint8 [num_bytes]


@dataclass(frozen=True)
class WeightAck:
    """A receiver's proof: what it holds after loading a published policy."""

    actor: str
    version: PolicyVersion
    checksum: str
    num_modules: int  # linear layers whose weights were replaced
    seconds: float
    sampling: str = ""  # how it samples, e.g. "flash3 attention in bfloat16 on NVIDIA H100 80GB HBM3"


Stage = Literal["rollout", "score", "train", "publish", "eval", "save"]


@dataclass(frozen=True)
class Span:
    """One piece of work on the timeline of a run: who did what, from when to when."""

    stage: Stage
    who: str
    start_s: float  # seconds since the run started
    end_s: float
    detail: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class EvalRecord:
    """One held-out video and its scores. Prompt and seed are the same in every evaluation of a run."""

    prompt: str
    seed: int
    index: int  # of the rollout within its prompt
    scores: dict[str, float]
    total: float  # weighted sum
    video: bytes | None = None  # an mp4 file, only for the ones that are shown


@dataclass(frozen=True)
class Evaluation:
    """All held-out videos of one policy, in a fixed order, so that evaluations can be paired."""

    phase: str  # "before", "step-<n>" or "after"
    version: PolicyVersion
    records: tuple[EvalRecord, ...]
    diversity: float  # mean over prompts of Gallery.diversity
    looks: dict[str, float] = field(default_factory=dict)  # mean over prompts of Gallery.looks
    left_out: tuple[int, ...] = ()  # numbers of held-out prompts that could not be sampled or scored


@dataclass(frozen=True)
class Alarm:
    """A sign that training does nothing, runs away or games its rewards.

    Example: `Alarm("zero_groups", 12, 0.75, 0.5, "share of groups with equal rewards; ...")`.
    """

    guard: str  # as config.health.stop_on names it
    step: int
    value: float
    limit: float
    text: str  # what the value is, and what to do
    stops: bool = False  # it ends the run
