"""Trains the tiny causal Wan transformer in two stages, and writes it in the layout of the real ones.

1. A teacher by flow matching with clean context: what a chunk sees is what sampling will show it.
2. The few-step student: the teacher's ODE takes each chunk from noise to a clean end point in many
   small steps; the student learns to jump to that end point from each of the four warped timesteps.

Legend: B batch, T latent frames, C channels, H height, W width.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from astrolabe_ray.algorithms.flow_matching import NUM_TIMESTEPS, add_noise, flow_to_x0, warped_timesteps
from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.data.sprites.clips import random_captions, render_clips
from astrolabe_ray.data.sprites.tokenizer import TEXT_LEN
from astrolabe_ray.data.sprites.train_text_encoder import TEXT_DIM
from astrolabe_ray.data.sprites.training import Trainer
from astrolabe_ray.models.text_encoder import TextEncoder
from astrolabe_ray.models.vae import VideoVAE
from astrolabe_ray.models.wan.architecture import WanArchitecture, write_architecture
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.kv_cache import KVCache
from astrolabe_ray.models.wan.transformer import CausalWanModel

NUM_CLIPS = 2500
NUM_TEACHER_STEPS, NUM_STUDENT_STEPS, BATCH = 2400, 700, 32
NUM_TRAJECTORIES, NUM_ODE_STEPS = 1024, 16
ARCHITECTURE = WanArchitecture(
    dim=128, num_heads=4, num_layers=4, ffn_dim=512, freq_dim=64, text_dim=TEXT_DIM, text_len=TEXT_LEN
)
SAMPLING = ModelConfig()


@dataclass(frozen=True)
class Clips:
    """Latents [N, T, C, H, W] and text embeddings [N, L, D] of rendered clips."""

    latents: Tensor
    text: Tensor


def train_transformer(seed: int, out: Path) -> dict[str, float]:
    """Write `out/transformer`; needs `out/vae`, `out/text_encoder` and `out/tokenizer`."""
    torch.manual_seed(seed)
    rule = ContextRule(SAMPLING.chunk_frames, SAMPLING.window_frames, SAMPLING.sink_frames, SAMPLING.rope)
    clips = _encode_clips(seed, out)
    model = CausalWanModel(ARCHITECTURE)
    _train_teacher(model, rule, clips)
    _train_student(model, rule, clips)
    folder = out / "transformer"
    folder.mkdir(parents=True, exist_ok=True)
    write_architecture(ARCHITECTURE, folder / "config.json")
    tensors = {name: tensor.half().contiguous() for name, tensor in model.state_dict().items()}
    save_file(tensors, folder / "diffusion_pytorch_model.safetensors")
    return {"num_parameters": float(sum(p.numel() for p in model.parameters()))}


def _encode_clips(seed: int, out: Path) -> Clips:
    captions = random_captions(NUM_CLIPS, seed)
    vae = VideoVAE.load(out / "vae", "cpu", torch.float32)
    encoder = TextEncoder.load(out / "text_encoder", out / "tokenizer", TEXT_LEN, "cpu", torch.float32)
    pixels = torch.from_numpy(render_clips(captions, seed))
    latents = torch.cat([vae.encode(part.float() / 127.5 - 1) for part in pixels.split(32)])
    return Clips(latents, encoder.encode([str(caption) for caption in captions]))


def _train_teacher(model: CausalWanModel, rule: ContextRule, clips: Clips) -> None:
    """Flow matching; each chunk has its own timestep, uniform in u before the schedule's shift."""

    def loss() -> Tensor:
        index = torch.randint(len(clips.latents), (BATCH,))
        x0 = clips.latents[index]
        sigma_BT = _per_frame(_shifted(torch.rand(BATCH, _num_chunks(rule, x0))), rule, x0)
        sigma, eps = sigma_BT[..., None, None, None], torch.randn_like(x0)
        noisy = add_noise(x0, eps, sigma)
        flow = model.train_forward(noisy, NUM_TIMESTEPS * sigma_BT, clips.text[index], rule, x0)
        return (flow - (eps - x0)).square().mean()

    Trainer("teacher", [model], lr=2e-3, ema_decay=0.995).run(loss, num_steps=NUM_TEACHER_STEPS)


def _train_student(model: CausalWanModel, rule: ContextRule, clips: Clips) -> None:
    """Regress the end points of the teacher's trajectories, in x0-space."""
    timesteps = torch.tensor(warped_timesteps(SAMPLING.denoising_steps, SAMPLING.timestep_shift))
    ends, states, text = _trajectories(model, rule, clips, timesteps)

    def loss() -> Tensor:
        index = torch.randint(len(ends), (BATCH,))
        x0 = ends[index]
        choice = torch.randint(len(timesteps), (BATCH, _num_chunks(rule, x0)))
        t_BT = _per_frame(timesteps[choice], rule, x0)
        frame_choice = _per_frame(choice, rule, x0)[:, None, :, None, None, None]
        noisy = states[index].take_along_dim(frame_choice, dim=1)[:, 0]
        flow = model.train_forward(noisy, t_BT, text[index], rule, x0)
        sigma = (t_BT / NUM_TIMESTEPS)[..., None, None, None]
        return (flow_to_x0(noisy, flow, sigma) - x0).square().mean()

    Trainer("student", [model], lr=1e-3, ema_decay=0.99).run(loss, num_steps=NUM_STUDENT_STEPS)


@torch.no_grad()
def _trajectories(
    model: CausalWanModel, rule: ContextRule, clips: Clips, timesteps: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """End points [N, T, C, H, W], states at each of `timesteps` [N, 4, T, C, H, W], text [N, L, D]."""
    index = torch.arange(NUM_TRAJECTORIES) % len(clips.latents)
    ends, states = [], []
    for part in index.split(64):
        noise = torch.randn_like(clips.latents[part])
        chunks = list(_ode_chunks(model, rule, noise, clips.text[part], timesteps))
        ends.append(torch.cat([end for end, _ in chunks], dim=1))
        states.append(torch.cat([state for _, state in chunks], dim=2))
    return torch.cat(ends), torch.cat(states), clips.text[index]


def _ode_chunks(
    model: CausalWanModel, rule: ContextRule, noise: Tensor, text: Tensor, timesteps: Tensor
) -> Iterator[tuple[Tensor, Tensor]]:
    """Euler steps chunk by chunk with a KV cache; yields each chunk's end and its states at `timesteps`."""
    batch, num_frames = noise.shape[:2]
    text_kv = model.encode_text(text)
    grid = model.architecture.grid(*noise.shape[-2:])
    cache = KVCache(
        model.architecture,
        rule,
        batch=batch,
        num_frames=num_frames,
        grid=grid,
        dtype=model.dtype,
        device=noise.device,
    )
    own = [float(t) / NUM_TIMESTEPS for t in timesteps]
    grid_sigmas = _shifted(torch.linspace(1, 0, NUM_ODE_STEPS + 1)).tolist()
    sigmas = sorted({round(sigma, 6) for sigma in (*own, *grid_sigmas)}, reverse=True)
    for start, end in rule.chunks(num_frames):
        cache.begin(end - start)
        x, states = noise[:, start:end], []
        for sigma, following in pairwise(sigmas):
            if any(abs(sigma - stop) < 1e-5 for stop in own):
                states.append(x)
            flow = model.chunk_forward(x, model.at_timestep(NUM_TIMESTEPS * sigma), text_kv, cache)
            x = x + (following - sigma) * flow
        model.chunk_forward(x, model.at_timestep(0.0), text_kv, cache)  # later chunks see it clean
        yield x, torch.stack(states, dim=1)


def _shifted(u: Tensor) -> Tensor:
    """Noise share of a uniform draw under the model's timestep shift."""
    shift = SAMPLING.timestep_shift
    return shift * u / (1 + (shift - 1) * u)


def _num_chunks(rule: ContextRule, latents: Tensor) -> int:
    return len(rule.chunks(latents.shape[1]))


def _per_frame(per_chunk: Tensor, rule: ContextRule, latents: Tensor) -> Tensor:
    """Values [B, chunks] repeated for each frame of their chunk, [B, T]."""
    return per_chunk.repeat_interleave(rule.chunk_frames, dim=1)[:, : latents.shape[1]]
