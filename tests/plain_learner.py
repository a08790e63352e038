"""A second, slow learner to compare with: float64, sample by sample, no PEFT, DeepSpeed or torch.optim.

It always looks at whole videos; a window's context is cut off from the gradient by hooks, if at all.

Adapters enter as weights W + scale B A; Adam, clipping, schedules and the loss are written out again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from torch.func import functional_call

from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.models.text_encoder import TextEncoder
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.types import PolicyVersion, TrainSample
from learner.spec import LearnerSpec

Adapter = dict[str, Tensor]


class PlainLearner:
    def __init__(self, spec: LearnerSpec, initial: Mapping[str, Tensor]) -> None:
        self.spec = spec
        files = resolve(spec.model.path)
        self.model = load_transformer(files, torch.float64, "cpu")
        self.encoder = TextEncoder.load(
            files.text_encoder, files.tokenizer, self.model.architecture.text_len, "cpu", torch.float32
        )
        self.default = {name: t.double().clone() for name, t in initial.items()}
        self.old = {PolicyVersion(): dict(self.default)}
        self.ema = dict(self.default)
        is_base = spec.model.lora_init is None or spec.algorithm.kl_reference == "base"
        self.reference = {} if is_base else dict(self.default)
        self.reference_age = 0
        self.m = {name: torch.zeros_like(t) for name, t in self.default.items()}
        self.v = {name: torch.zeros_like(t) for name, t in self.default.items()}
        self.step = 0

    def predict_flow(self, adapter: Adapter, x_t: Tensor, t: float, x0: Tensor, prompt: str) -> Tensor:
        m = self.spec.model
        scale = self.spec.lora.alpha / self.spec.lora.rank
        weights = dict(self.model.named_parameters())
        for name in {key.rsplit(".", 1)[0] for key in adapter}:
            delta = scale * adapter[f"{name}.lora_B"] @ adapter[f"{name}.lora_A"]
            weights[f"{name}.weight"] = weights[f"{name}.weight"] + delta
        rule = ContextRule(m.chunk_frames, m.window_frames, m.sink_frames, m.rope)
        if self.spec.algorithm.context_mask == "frame":
            rule = ContextRule(1, m.window_frames, 0, m.rope)
        clean = x0[None] if self.spec.algorithm.clean_context else None
        t_BT = torch.full((1, len(x0)), t, dtype=torch.float64)
        text = self.encoder.encode([prompt]).double()
        first = len(x0) - len(x_t)
        whole = torch.cat([torch.zeros_like(x0[:first]), x_t])[None]
        num_detached = first if self.spec.algorithm.detach_context else 0
        with self.detached(num_detached * x0[0, 0].numel() // 4):
            flow = functional_call(self.model, weights, (whole, t_BT, text, rule, clean, m.context_timestep))
        return flow[0, first:]

    @contextmanager
    def detached(self, num_tokens: int) -> Iterator[None]:
        """Inside, no gradient flows into the keys and values of the first, clean tokens."""

        def cut(module: object, inputs: object, output: Tensor) -> Tensor:
            return torch.cat([output[:, :num_tokens].detach(), output[:, num_tokens:]], dim=1)

        last = [m for block in self.model.blocks for m in (block.self_attn.norm_k, block.self_attn.v)]
        hooks = [module.register_forward_hook(cut) for module in last]
        yield
        for hook in hooks:
            hook.remove()

    def generator(self, sample: TrainSample, seed: int) -> torch.Generator:
        digest = hashlib.sha256(f"{seed}/{self.step}/{sample.rollout_id}".encode()).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest[:8], "big") // 2)

    def losses(
        self, adapter: Adapter, sample: TrainSample, seed: int, leader: TrainSample
    ) -> tuple[Tensor, Tensor, Tensor]:
        """(total, policy, weighted KL) loss of one sample, the mean over timesteps, which are `leader`'s."""
        a, m = self.spec.algorithm, self.spec.model
        generator = self.generator(sample, seed)
        shift, fractions = m.timestep_shift, [s / 1000 for s in m.denoising_steps]
        if a.train_timesteps == "plain":
            shift = 1.0
        table = [1000 * shift * u / (1 + (shift - 1) * u) for u in fractions]
        torch.randperm(len(table), generator=generator)  # its own timesteps come before its noise
        chosen = torch.randperm(len(table), generator=self.generator(leader, seed))
        picked = chosen[: a.timesteps_per_sample]
        x0 = torch.from_numpy(sample.latents).double()
        window = x0[sample.window_start :]
        noises = torch.randn(len(picked), *window.shape, generator=generator).double()
        r = max(-a.adv_clip_max, min(a.adv_clip_max, sample.advantage)) / a.adv_clip_max / 2 + 0.5
        total, policy, penalty = torch.zeros(()), torch.zeros(()), torch.zeros(())
        for i, noise in zip(picked.tolist(), noises, strict=True):
            sigma = table[i] / 1000
            at = ((1 - sigma) * window + sigma * noise, table[i], x0, sample.prompt)
            new = self.predict_flow(adapter, *at)
            with torch.no_grad():
                old = self.predict_flow(self.old[sample.policy_version], *at)
                reference = self.predict_flow(self.reference, *at)
            share = self.table_sigma(table[i]) if a.x0_sigma == "table" else sigma
            mixes = (a.nft_beta * new + (1 - a.nft_beta) * old, (1 + a.nft_beta) * old - a.nft_beta * new)
            if a.loss_space == "v":
                errors = [share * (mix - (noise - window)) for mix in mixes]
                parts = [(e**2).mean() / e.detach().abs().mean() for e in errors]
                nft = (r * parts[0] + (1 - r) * parts[1]) * a.adv_clip_max / a.nft_beta
            else:
                parts = [((at[0] - share * mix - window) ** 2).mean() for mix in mixes]
                nft = r * parts[0] + (1 - r) * parts[1]
                new, reference = at[0] - share * new, at[0] - share * reference
            kl = sample.kl_weight * ((new - reference) ** 2).mean()
            policy, penalty = policy + nft / len(picked), penalty + kl / len(picked)
            total = total + (nft + a.kl_coef * kl) / len(picked)
        return total, policy, penalty

    def table_sigma(self, t: float) -> float:
        shift = self.spec.model.timestep_shift
        sigmas = [shift * u / (1 + (shift - 1) * u) for u in (1 - n / 1000 for n in range(1000))]
        return min(sigmas, key=lambda sigma: abs(1000 * sigma - t))

    def train(
        self, samples: Sequence[TrainSample], seed: int, leaders: Sequence[TrainSample] | None = None
    ) -> dict[str, float]:
        """`leaders`: whose timesteps each sample takes; without, its own."""
        parameters = {name: t.clone().requires_grad_() for name, t in self.default.items()}
        pairs = zip(samples, leaders or samples, strict=True)
        rows = [self.losses(parameters, sample, seed, leader) for sample, leader in pairs]
        loss, policy, kl = (sum(column) / len(samples) for column in zip(*rows, strict=True))
        grads = dict(zip(parameters, torch.autograd.grad(loss, list(parameters.values())), strict=True))
        norm = sum(float((g**2).sum()) for g in grads.values()) ** 0.5
        clip = min(1.0, self.spec.learner.max_grad_norm / (norm + 1e-6))
        self._adam({name: g * clip for name, g in grads.items()})
        self._follow()
        self._refresh(kl.item())
        return {"loss": loss.item(), "policy_loss": policy.item(), "kl_loss": kl.item(), "grad_norm": norm}

    def _adam(self, grads: Adapter) -> None:
        c, n = self.spec.learner, self.step + 1
        b1, b2 = c.adam_betas
        for name, g in grads.items():
            self.m[name] = b1 * self.m[name] + (1 - b1) * g
            self.v[name] = b2 * self.v[name] + (1 - b2) * g**2
            update = (self.m[name] / (1 - b1**n)) / ((self.v[name] / (1 - b2**n)) ** 0.5 + c.adam_eps)
            self.default[name] = self.default[name] * (1 - c.lr * c.weight_decay) - c.lr * update

    def _refresh(self, kl: float) -> None:
        """A reference that moves, with a threshold that never adapts."""
        a = self.spec.algorithm
        self.reference_age += 1
        is_due = self.reference_age > a.reference_max_age or kl > a.reference_max_kl
        if (a.kl_samples == "disagreeing" or a.kl_reference == "lagging") and is_due:
            self.reference, self.reference_age = dict(self.default), 0

    def _follow(self) -> None:
        """EMA and the next behaviour policy; supports the schedules `none` and `linear`."""
        a = self.spec.algorithm
        decay = min((1 + self.step) / (10 + self.step), a.ema_decay)
        self.ema = {name: decay * t + (1 - decay) * self.default[name] for name, t in self.ema.items()}
        newest = self.old[PolicyVersion(0, self.step)]
        self.step += 1
        d = {"none": 0.0, "linear": min(0.001 * self.step, 0.5)}[a.old_policy_decay]
        self.old[PolicyVersion(0, self.step)] = {
            name: d * newest[name] + (1 - d) * t for name, t in self.default.items()
        }
