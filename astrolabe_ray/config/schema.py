"""Every option of a run, its default, its unit and its range: the one place for each default.

Sections are frozen and refuse unknown keys. No torch and no ray here: a laptop can check a config.
"""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every config section: immutable; unknown keys, infinity and NaN are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ModelConfig(Section):
    """The causal video model that is aligned, and how it is sampled."""

    base_model: str = Field(default="tiny_sprites", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Name of the base model; names the run's folder."""
    path: str = "builtin:sprites"
    """Directory of folders (transformer/, vae/, text_encoder/, tokenizer/), an original Wan directory, or
    `builtin:sprites`."""
    checkpoint: str | None = None
    """File (.pt or .safetensors) with the transformer's weights; None: those in `path`."""
    checkpoint_key: Literal["generator_ema", "generator", "model", "state_dict"] | None = None
    """Which weights of a checkpoint that holds several; None: it holds nothing but one set of weights."""
    lora_init: str | None = None
    """LoRA (a folder or a .pt file) that training starts from; None: fresh adapters, which change nothing."""
    num_latent_frames: int = Field(default=9, gt=0)
    """Latent frames of one video; T latent frames are 4 (T - 1) + 1 frames."""
    height: int = Field(default=32, gt=0)
    """Pixels; a multiple of 16 (8 from the VAE, 2 from the patches)."""
    width: int = Field(default=32, gt=0)
    fps: int = Field(default=8, gt=0)
    chunk_frames: int = Field(default=3, gt=0)
    """Latent frames generated together."""
    window_frames: int | None = Field(default=7, gt=0)
    """Latent frames that attention can see, sink and current chunk included; None: all."""
    sink_frames: int = Field(default=1, ge=0)
    """First latent frames that are never evicted from the KV cache."""
    denoising_steps: tuple[int, ...] = (1000, 750, 500, 250)
    """Few-step schedule before the shift warps it."""
    timestep_shift: float = Field(default=5.0, gt=0)
    context_timestep: float = Field(default=0.0, ge=0, lt=1000)
    """Timestep of the clean pass that fills the KV cache."""
    rope: Literal["absolute", "relative"] = "absolute"
    """Temporal positions: absolute frame index, or slot in the window."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the frozen base; LoRA, optimizer and EMA are float32 unless lora.dtype says otherwise."""
    attention: Literal["auto", "sdpa", "flash2", "flash3"] = "auto"
    """Attention kernel; auto: the fastest that the GPU, the dtype and the installation allow."""
    prompt_cache: str | None = Field(default=None, min_length=1)
    """Folder with text embeddings of prompts, which actors, ranks and later runs share; made where it is
    missing. None: each process encodes what it meets."""


class LoraConfig(Section):
    """Adapters on every linear layer of the transformer blocks."""

    rank: int = Field(default=16, gt=0)
    alpha: int = Field(default=16, gt=0)
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the adapters, their gradients and Adam's moments, and what EMA and old policy are rounded to;
    bfloat16 loses most updates, is for comparison only and needs learner.zero_stage 0."""


class DataConfig(Section):
    """Prompts for training and the held-out ones for evaluation."""

    train_prompts: str = "builtin:sprites/train"
    """A text file with one prompt a line, or `builtin:sprites/train`."""
    heldout_prompts: str = "builtin:sprites/heldout"
    prompts_per_step: int | None = Field(default=None, gt=0)
    """Distinct prompts of a step, which its groups then share; None: one for each group."""


class RolloutConfig(Section):
    """What one step samples, and by whom."""

    num_groups: int = Field(default=8, gt=0)
    """Groups (distinct prompts) per train step."""
    group_size: int = Field(default=8, ge=1)
    """Rollouts per group; with 1, all rollouts of a step are compared with each other."""
    batch_size: int = Field(default=8, gt=0)
    """Rollouts that one actor makes together; divides group_size."""
    group_sampling: Literal["sequence", "clip"] = "sequence"
    """What the rollouts of a group share; sequence: the prompt; clip: also the frames before their window
    (see algorithm.train_window_frames), which one actor makes once."""
    min_actors: int = Field(default=1, gt=0)
    max_actors: int = Field(default=1, gt=0)
    max_policy_age: int = Field(default=0, ge=0, le=16)
    """Largest difference in steps between the policy that trains and the one that sampled."""
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    """Resources of one rollout actor."""
    base_on_host: bool = False
    """Keep the base of the layers that adapters are merged into in host memory: less GPU memory by their size
    (26 GiB at 14B), for seconds at each new policy."""
    text_encoder_on_host: bool = False
    """Keep the text encoder in host memory; it visits the GPU for each new prompt."""
    request_timeout_s: float = Field(default=600, gt=0)
    max_attempts: int = Field(default=5, gt=0)
    """Tries of one request before the run stops."""


class RewardConfig(Section):
    """One reward: a scorer's key, its weight and its server, which rewards of the same scorer share."""

    key: str
    """A built-in key, the name of an installed plug-in, or `module:object` for a scorer of your own."""
    weight: float = 1.0
    """Factor in the sum of rewards; 0: only shown, and with kl_samples=disagreeing heard as a witness."""
    folder: str = "reward_ckpts"
    """Where the files of the scorer are."""
    options: str = ""
    """Options of the scorer, `NAME=VALUE,NAME=VALUE`; which ones it has says docs/rewards.md."""
    min_replicas: int = Field(default=1, gt=0)
    max_replicas: int = Field(default=1, gt=0)
    target_ongoing_requests: float = Field(default=4, gt=0)
    """Requests per replica, waiting or being scored, that the number of replicas follows."""
    upscale_delay_s: float = Field(default=5, ge=0)
    """The load must be high for so long before a replica is added."""
    downscale_delay_s: float = Field(default=120, ge=0)
    """The load must be low for so long before a replica goes."""
    num_cpus: float = Field(default=0.25, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    """Of each replica; a part of one (0.5) shares the GPU with others."""
    python: str = ""
    """Interpreter of the replicas, for a scorer whose packages do not go with ours; empty: ours."""
    packages: str = ""
    """Packages that pip installs for the replicas only, separated by blanks, for example `a==1.0 b>=2`."""
    max_batch_size: int = Field(default=16, gt=0)
    """Videos that one forward scores together."""
    frames_per_forward: int = Field(default=32, gt=0)
    """Frames in one forward, for scorers that judge frame by frame."""
    request_timeout_s: float = Field(default=300, gt=0)
    max_attempts: int = Field(default=4, gt=0)
    max_in_flight: int = Field(default=64, gt=0)
    """Requests of this run that may wait at the server at once; fewer while the server refuses some."""


class AlgorithmConfig(Section):
    """DiffusionNFT on distilled autoregressive video models."""

    compat: Literal["none", "astrolabe"] = "none"
    """astrolabe: the options that docs/algorithm.md lists get the values of the first Astrolabe release,
    unless the command line sets them; for comparison only."""
    loss_space: Literal["x0", "v"] = "x0"
    """Loss and penalty on clean predictions, or on flows with DiffusionNFT's adaptive weight."""
    loss_dtype: Literal["float32", "bfloat16"] = "float32"
    """Of the noised latents, the predictions and their squared errors; bfloat16 keeps three digits."""
    nft_beta: float = Field(default=1.0, gt=0, le=1)
    """Mixing weight of the positive and negative targets."""
    kl_coef: float = Field(default=1e-4, ge=0)
    """Weight of the squared distance to the reference policy: see kl_reference."""
    kl_reference: Literal["start", "base", "lagging"] = "start"
    """The reference policy: what training starts from, the base without `model.lora_init`, or one that
    follows the trained one in jumps, as always with kl_samples=disagreeing."""
    kl_samples: Literal["all", "disagreeing"] = "all"
    """Samples that the distance counts for; disagreeing: some of those that main_reward ranks above what the
    other rewards say; then kl_reference is lagging."""
    main_reward: str | None = None
    """Key of the reward whose ranking is compared with the other rewards'; for kl_samples=disagreeing."""
    kl_rule: Literal["paper", "release"] = "paper"
    """How samples are chosen and the reference's threshold moves; release: the first release's signs and
    min/max, see docs/decisions/0004; for kl_samples=disagreeing."""
    reference_max_age: int = Field(default=15, gt=0)
    """Largest age in steps of a lagging reference policy."""
    reference_max_kl: float = Field(default=0.15, gt=0)
    """Squared distance at which a lagging reference policy is set to the trained one; moves by a third at
    most."""
    reward_scale: Literal["raw", "group"] = "raw"
    """What is weighted and added up: raw scores, or each reward centred and divided by its own std within a
    group, so that none drowns the others by its range."""
    adv_clip_max: float = Field(default=5.0, gt=0)
    """Advantages are clipped to plus or minus this, and divided by it."""
    advantage_mode: Literal["all", "positive_only", "negative_only", "one_only", "binary"] = "all"
    """What of an advantage A is trained on: A; max(A, 0); min(A, 0); 1 where A > 0, else 0; the sign of A."""
    advantage_std: Literal["global", "group"] = "global"
    """Divide centred rewards by the std of the whole batch or of each group."""
    advantage_peers: Literal["group", "prompt"] = "group"
    """Whose mean (and std, if of groups) a reward is compared with: its group's, or that of all of the step's
    groups with its prompt."""
    prompt_history: int = Field(default=0, ge=0)
    """Newest rewards of a prompt from earlier steps that count for that mean, too."""
    skip_equal_groups: bool = False
    """Leave groups whose rewards are all equal out of the batch, unless all are."""
    train_timesteps: Literal["warped", "plain"] = "warped"
    """Train at the sampler's timesteps, or at those of model.denoising_steps before the shift."""
    x0_sigma: Literal["exact", "table"] = "exact"
    """Share of noise that turns a flow into a clean prediction: that of the timestep, or the nearest of the
    shifted table of 1000."""
    timestep_draw: Literal["sample", "microbatch"] = "sample"
    """Draw timesteps for each sample, or one set for all samples of a microbatch."""
    timesteps_per_sample: int = Field(default=1, gt=0)
    """Denoising timesteps that one sample trains on in one step, drawn without replacement."""
    old_policy_decay: Literal["none", "linear", "delayed"] = "none"
    """old <- d old + (1 - d) default; d = 0, min(0.001 step, 0.5) or the delayed ramp."""
    ema_decay: float = Field(default=0.9, ge=0, lt=1)
    clean_context: bool = True
    """Training sees clean earlier frames, as sampling does; False: noisy ones."""
    context_mask: Literal["chunk", "frame"] = "chunk"
    """Training attends chunk by chunk with the sink, as sampling does, or frame by frame without a sink;
    frame needs clean_context=false."""
    train_window_frames: int | None = Field(default=None, gt=0)
    """Latent frames of a rollout that are scored and trained on; frames before them are context, and none are
    made after them. None: the whole video."""
    window_start: Literal["last", "random"] | int = "last"
    """First latent frame of that window: as late as possible, drawn for each group, or this one."""
    detach_context: bool = True
    """The gradient ends where the window starts; False: it also goes through the frames before it, and their
    activations take memory."""


class LearnerConfig(Section):
    """Ranks, ZeRO and the optimizer."""

    num_ranks: int = Field(default=1, gt=0)
    zero_stage: Literal[0, 1, 2, 3] = 2
    micro_batch_size: int = Field(default=16, gt=0)
    """Samples in one forward."""
    accumulate: Literal["batch", "streaming"] = "batch"
    """When gradients are computed. batch: when all groups of a step are scored; streaming: group by group,
    while the others are still sampled; needs rollout.max_policy_age 0, see docs/algorithm.md."""
    lr: float = Field(default=1e-5, gt=0)
    lr_schedule: Literal["constant", "linear", "cosine"] = "constant"
    """How lr falls after the warm-up."""
    lr_warmup_steps: int = Field(default=0, ge=0)
    """Steps over which lr rises linearly from lr / (steps + 1)."""
    lr_decay_steps: int = Field(default=1000, gt=0)
    """Steps after the warm-up until lr has fallen to lr_final_share of itself, if it falls."""
    lr_final_share: float = Field(default=0.0, ge=0, le=1)
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=1e-4, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    gradient_checkpointing: bool = False
    keep_attention: bool = False
    """Checkpointing keeps the results of attention, which are dear to compute and small."""
    offload_optimizer: bool = False
    """Keep the optimizer's state in host memory; needs ZeRO 1 to 3."""
    num_cpus: float = Field(default=1, ge=0)
    num_gpus: float = Field(default=0, ge=0)
    """Resources of one learner rank."""
    text_encoder_on_host: bool = False
    """As rollout.text_encoder_on_host, for each rank."""
    step_timeout_s: float = Field(default=1800, gt=0)


class EvaluationConfig(Section):
    """Held-out prompts, sampled with fixed seeds before, during and after training."""

    num_prompts: int = Field(default=16, gt=0)
    rollouts_per_prompt: int = Field(default=4, gt=0)
    seed: int = Field(default=0, ge=0)
    """Root of the noise seeds; the same for every run, so that runs can be compared."""
    num_latent_frames: int | None = Field(default=None, gt=0)
    """Latent frames of a held-out video, all of which are scored; None: model.num_latent_frames."""
    every_steps: int = Field(default=0, ge=0)
    """Evaluate the sampling policy every so many steps; 0: only before, and the EMA weights after."""
    num_shown_videos: int = Field(default=8, ge=0)
    """Before/after pairs written to eval_videos/ and the report."""


class CheckpointConfig(Section):
    every_steps: int = Field(default=30, gt=0)
    keep_last: int = Field(default=3, gt=0)
    keep_best: bool = True
    """Also save every policy that is evaluated in the middle of a run, and keep the one of the best held-out
    reward besides the last ones."""
    resume: str = "never"
    """`never`, `auto` (newest valid checkpoint of a run with this name) or a checkpoint folder."""


Look = Literal["motion", "brightness", "saturation"]
Guard = Literal[
    "pull",
    "zero_groups",
    "unmoved",
    "dead_modules",
    "gradient_growth",
    "norm_growth",
    "untrained_reward",
    "motion",
    "brightness",
    "saturation",
    "diversity",
]


class HealthConfig(Section):
    """Alarms for training that does nothing, runs away or games its rewards; a limit of none: no alarm."""

    patience_steps: int = Field(default=5, gt=0)
    """Steps in a row that pull, zero_groups, unmoved and dead_modules must last; the others sound at once."""
    min_pull: float | None = Field(default=0.01, ge=0)
    """Mean share of its largest weight at which a sample pulls the policy."""
    max_zero_groups: float | None = Field(default=0.5, ge=0)
    """Share of groups whose rewards are all equal."""
    max_unmoved: float | None = Field(default=0.5, ge=0)
    """Share of the adapter's numbers that a step leaves bitwise as they were."""
    min_module_gradient: float | None = Field(default=1e-6, ge=0)
    """Gradient norm of any one layer over that of the whole adapter; dead_modules."""
    max_gradient_growth: float | None = Field(default=20.0, gt=0)
    """Gradient norm over its median of the last 20 steps."""
    max_norm_growth: float | None = Field(default=3.0, gt=0)
    """Norm of the trained, the behaviour or the EMA adapter over its first one."""
    max_untrained_drop: float | None = Field(default=3.0, gt=0)
    """Standard errors that a held-out reward of weight 0 may fall by; untrained_reward."""
    max_look_change: float | None = Field(default=0.5, gt=0)
    """Relative change of the held-out videos' motion, brightness and saturation since the first one."""
    max_diversity_drop: float | None = Field(default=0.5, gt=0)
    """Relative loss of diversity among the held-out videos of a prompt since the first evaluation."""
    stop_on: tuple[Guard, ...] = ()
    """Guards whose alarm ends the run after its step and a save; the others only warn."""


class LoggingConfig(Section):
    log_dir: str = "logs/nft"
    wandb: Literal["disabled", "offline", "online"] = "offline"
    wandb_project: str = "astrolabe-ray"


class ClusterConfig(Section):
    """The Ray cluster that the run joins."""

    address: str = "auto"
    """`auto`: join the cluster of RAY_ADDRESS or a running one, else start one here; `local`: start one."""
    namespace: str = "astrolabe"
    placement_timeout_s: float = Field(default=120, gt=0)
    stall_timeout_s: float = Field(default=2400, gt=0)
    """Stop when nothing moved for so long while work remained; more than one answer may take."""
    keep_reward_servers: bool = True
    """Leave the reward servers running for the next run. False takes them from other runs, too."""
    reward_idle_timeout_s: float | None = Field(default=3600, gt=0)
    """Reward servers that nobody used or held for so long go by themselves; none: they stay."""
    reward_load_timeout_s: float = Field(default=900, gt=0)
    """A reward server that has found room must answer within so long."""


class RunConfig(Section):
    """Everything that defines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's folder."""
    seed: int = Field(default=0, ge=0)
    num_steps: int = Field(default=100, gt=0)
    model: ModelConfig = ModelConfig()
    lora: LoraConfig = LoraConfig()
    data: DataConfig = DataConfig()
    rollout: RolloutConfig = RolloutConfig()
    rewards: tuple[RewardConfig, ...]
    algorithm: AlgorithmConfig = AlgorithmConfig()
    learner: LearnerConfig = LearnerConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    health: HealthConfig = HealthConfig()
    logging: LoggingConfig = LoggingConfig()
    cluster: ClusterConfig = ClusterConfig()
