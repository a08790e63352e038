"""What a run needs of memory, computed from its config: arithmetic only, so that a laptop can ask.

Weights, adapters, optimizer and caches are exact; what a block keeps for its backward pass is right within a
few percent; decoding, reward servers and what passes through are estimates.
"""

from __future__ import annotations

from astrolabe_ray.config.base_models import BASE_MODELS, ModelSizes
from astrolabe_ray.config.plan import PIXELS_PER_TOKEN, Plan, eval_prompts_in_flight, server_role, servers
from astrolabe_ray.config.schema import ModelConfig, RunConfig
from astrolabe_ray.config.scorer_cards import BY_NAME
from astrolabe_ray.config.train_window import evaluation_frames, longest_rollout, window_frames
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.wan.architecture import WanArchitecture

GB = 10**9
CUDA_BYTES = 0.7 * GB
"""What a process takes of a GPU before it holds anything."""

LARGEST_BUCKET = 500_000_000
"""Gradients that ZeRO reduces at once; DeepSpeed's own number."""
DECODER_KEPT = 25
"""Maps of a full-size frame with `vae_channels` channels that the decoder keeps for the next frames."""
DECODER_PASSING = 30
"""And those that are alive at once while it decodes a latent frame, beside some of the kept ones. Frames
that are decoded together are small: they take less than one frame at full size."""

Parts = dict[str, float]
"""Component -> bytes."""


def sizes_of(model: ModelConfig) -> ModelSizes:
    """Raises ConfigError for a base model whose sizes are not in the table of base models."""
    known = sizes_by_name()
    if model.base_model not in known:
        raise ConfigError(
            f"the sizes of model.base_model '{model.base_model}' are not known before it is loaded; "
            f"known are {', '.join(known)}."
        )
    return known[model.base_model]


def sizes_by_name() -> dict[str, ModelSizes]:
    """Of the base models that have sizes in `BASE_MODELS`."""
    return {name: model.sizes for name, model in BASE_MODELS.items() if model.sizes is not None}


def memory_by_role(config: RunConfig) -> dict[str, Parts]:
    """Role, as in `Plan.needs` -> its parts in the memory of one GPU (or of the host, without GPUs).

    Raises ConfigError for a base model of unknown size.
    """
    sizes = sizes_of(config.model)
    found = {"learner rank": learner_rank(config, sizes), "rollout actor": rollout_actor(config, sizes)}
    for name, reward in servers(config.rewards).items():
        parts = dict(BY_NAME[name].memory) if name in BY_NAME else {"unknown": 0.0}
        found[server_role(name)] = _with_cuda(parts, reward.num_gpus)
    return found


def rollout_actor(config: RunConfig, sizes: ModelSizes) -> Parts:
    """Sampling and decoding `rollout.batch_size` videos."""
    m, batch, width = config.model, config.rollout.batch_size, _bytes_per_value(config.model)
    num_caches = batch + (config.rollout.group_sampling == "clip")  # that of the shared prefix stays
    a = sizes.transformer
    chunk_tokens = batch * m.chunk_frames * _tokens(m)
    pixels = m.height * m.width
    parts: Parts = {
        "base weights": width * transformer_params(a),
        "base of the merged layers": 0 if config.rollout.base_on_host else width * block_linear_params(a),
        "KV cache": kv_cache_bytes(m, a, num_caches, max(longest_rollout(config), evaluation_frames(config))),
        "text keys and values": width * 2 * a.num_layers * a.text_len * a.dim,
        "text encoder": width * sizes.text_encoder,
        "VAE": width * sizes.vae,
        "activations": width * chunk_tokens * (12 * a.dim + 2 * a.ffn_dim),
        "decoding": width * batch * pixels * sizes.vae_channels * (DECODER_KEPT + DECODER_PASSING),
    }
    if config.rollout.text_encoder_on_host:
        _let_visit(parts, "text encoder", before=("activations", "decoding"))
    return _with_cuda(parts, config.rollout.num_gpus)


def learner_rank(config: RunConfig, sizes: ModelSizes) -> Parts:
    """A step on microbatches of `learner.micro_batch_size`."""
    c, a, width = config.learner, sizes.transformer, _bytes_per_value(config.model)
    lora, lora_width = lora_params(a, config.lora.rank), 2 if config.lora.dtype == "bfloat16" else 4
    adapters = 3 if has_reference(config) else 2  # default, old, and a reference that is not the base
    share = {stage: c.num_ranks if c.zero_stage >= stage else 1 for stage in (1, 2, 3)}
    tokens = c.micro_batch_size * train_frames(config) * _tokens(config.model)
    block = tokens * block_bytes_per_token(a, width)
    context = longest_rollout(config) - window_frames(config)
    input_bytes = tokens * (width * a.dim + (attention_bytes_per_token(a, width) if c.keep_attention else 0))
    kept = input_bytes if c.gradient_checkpointing else block
    passing = tokens * (width + 4) * a.ffn_dim  # gradients of the widest map
    parts: Parts = {
        "base weights": width * transformer_params(a) / share[3],
        "adapters": lora_width * adapters * lora / share[3],
        "Adam": (2 * lora_width if c.zero_stage == 0 else 12) * lora / share[1],  # ZeRO updates its own copy
        "gradients": lora_width * lora / share[2],
        "gradients under way": lora_width * min(lora, LARGEST_BUCKET) if c.zero_stage else 0,
        "text encoder": width * sizes.text_encoder,
        "kept activations": a.num_layers * kept,
        "activations of a block": passing + (block if c.gradient_checkpointing else 0),
        "predictions": 8 * 4 * c.micro_batch_size * _latent_values(config.model, a) * window_frames(config),
    }
    if c.accumulate == "streaming":
        num_sums = 2 if config.algorithm.advantage_std == "global" else 1
        parts["sums of gradients"] = (num_sums + 1) * 4 * lora  # and a group's own, or what the step takes
    if context > 0 and config.algorithm.detach_context:
        caches = max(c.micro_batch_size, 3 if shares_context(config) else 0)
        parts["KV of earlier frames"] = kv_cache_bytes(config.model, a, caches, context)
    if c.text_encoder_on_host:
        _let_visit(parts, "text encoder", before=("kept activations", "activations of a block"))
    if c.num_gpus and c.offload_optimizer:
        parts["Adam"] = 0.0
    if not c.num_gpus:  # else they are in other memory than the rest
        parts["policies beside the model"] = host_policies(config) * 4 * lora
    return _with_cuda(parts, c.num_gpus)


def shares_context(config: RunConfig) -> bool:
    """Whether each of a learner's three policies keeps what it makes of a group's history."""
    return config.rollout.group_sampling == "clip" and config.learner.zero_stage < 3


def has_reference(config: RunConfig) -> bool:
    """Whether the reference policy of the KL penalty is an adapter, not the base without any."""
    starts_there = config.algorithm.kl_reference == "start" and config.model.lora_init is not None
    follows = config.algorithm.kl_reference == "lagging" or config.algorithm.kl_samples == "disagreeing"
    return starts_there or follows


def host_policies(config: RunConfig) -> int:
    """Whole adapters in float32 that a rank keeps in host memory at the end of a step: behaviour policies of
    every age and the one that is forgotten next, EMA, the trained one as it is and as it was."""
    ages = config.rollout.max_policy_age + 1
    return (ages + 1) + 1 + 2


def transformer_params(a: WanArchitecture) -> int:
    """All parameters of a `CausalWanModel`."""
    d, patch = a.dim, a.patch[0] * a.patch[1] * a.patch[2]
    embeddings = (a.in_channels * patch + 1) * d
    embeddings += (a.text_dim + 1) * d + (d + 1) * d  # text
    embeddings += (a.freq_dim + 1) * d + (d + 1) * d + (d + 1) * 6 * d  # time
    norms = a.num_layers * (4 * d + 2 * d + 6 * d)  # queries and keys, before text, modulation
    head = (d + 1) * a.out_channels * patch + 2 * d
    return embeddings + block_linear_params(a) + norms + head


def block_linear_params(a: WanArchitecture) -> int:
    """Weights and biases of the linear layers that carry adapters."""
    d, f = a.dim, a.ffn_dim
    return a.num_layers * (8 * (d * d + d) + (d * f + f) + (f * d + d))


def lora_params(a: WanArchitecture, rank: int) -> int:
    """Parameters of one adapter: rank x (in + out) of each linear layer."""
    return a.num_layers * rank * (8 * 2 * a.dim + 2 * (a.dim + a.ffn_dim))


def block_bytes_per_token(a: WanArchitecture, width: int) -> int:
    """What a block with adapters keeps of a token for its backward pass, beside the block's own input.

    The adapters see float32 copies of what the frozen layers see in `width` bytes. Counted from what
    autograd saves for 21 frames; longer videos keep a few more copies of keys and values.
    """
    return (8 * width + 54) * a.dim + (width + 4) * a.ffn_dim


def attention_bytes_per_token(a: WanArchitecture, width: int) -> int:
    """Results of a block's two attentions: a vector, and a float32 number for each head."""
    return 2 * (width * a.dim + 4 * a.num_heads)


def kv_cache_bytes(model: ModelConfig, a: WanArchitecture, batch: int, num_latent_frames: int) -> int:
    """Keys and values of the frames that the window holds, for `batch` videos of `num_latent_frames`."""
    frames = min(num_latent_frames, model.window_frames or num_latent_frames)
    return _bytes_per_value(model) * 2 * a.num_layers * batch * frames * _tokens(model) * a.dim


def train_frames(config: RunConfig) -> int:
    """Latent frames of one sample that a training forward keeps: noisy ones and clean ones between them."""
    window = window_frames(config)
    if not config.algorithm.clean_context:
        return window
    context = 0 if config.algorithm.detach_context else longest_rollout(config) - window
    return context + window + window - config.model.chunk_frames


def object_store_need(config: RunConfig, plan: Plan) -> int:
    """Bytes that may lie there at once: frames and latents of every rollout that has a slot, none of them
    scored yet, and of the held-out prompts in flight. Whole videos; smaller views come on top.
    """
    m = config.model
    video_bytes = plan.num_scored_frames * 3 * m.height * m.width
    latent_values = 16 * plan.sampled_latent_frames * plan.latent_shape[1] * plan.latent_shape[2]
    in_flight = plan.max_groups_in_flight * config.rollout.group_size
    in_flight += eval_prompts_in_flight(config) * config.evaluation.rollouts_per_prompt
    return in_flight * (video_bytes + latent_values * _bytes_per_value(m))


def _bytes_per_value(model: ModelConfig) -> int:
    return 2 if model.dtype == "bfloat16" else 4


def _tokens(model: ModelConfig) -> int:
    """Of one latent frame."""
    return (model.height // PIXELS_PER_TOKEN) * (model.width // PIXELS_PER_TOKEN)


def _latent_values(model: ModelConfig, a: WanArchitecture) -> int:
    """Of one latent frame."""
    return a.out_channels * 4 * _tokens(model)


def _let_visit(parts: Parts, guest: str, before: tuple[str, ...]) -> None:
    """`guest` is there only before the parts `before` are: it adds what it is larger than they are."""
    parts[guest] = max(0.0, parts[guest] - sum(parts[name] for name in before))


def _with_cuda(parts: Parts, num_gpus: float) -> Parts:
    return parts | {"CUDA": CUDA_BYTES} if num_gpus else parts
