"""Training's forward against sampling's, through the learner's and the actors' own classes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from actors.sampler import Sampler
from astrolabe_ray.algorithms.flow_matching import warped_timesteps
from astrolabe_ray.models.lora import MergedLinears
from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.models.wan.context import ContextRule
from learner.spec import LearnerSpec
from tests.learner_cases import batch, changed, published, running, samples

RULES = [
    {"chunk_frames": 1, "window_frames": None, "sink_frames": 0},
    {"chunk_frames": 2, "window_frames": 4, "sink_frames": 1},
    {"chunk_frames": 3, "window_frames": 4, "sink_frames": 1, "rope": "relative"},
    {"chunk_frames": 2, "window_frames": 5, "sink_frames": 3, "rope": "relative"},
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: "-".join(map(str, rule.values())))
async def test_the_update_sees_exactly_what_the_sampler_saw(spec: LearnerSpec, rule: dict) -> None:
    """Another chunk size, window, sink, timestep or clean pass in training would train another policy.

    A video is sampled with published weights, merged; each chunk's input of each denoising step goes through
    the learner's forward of its behaviour policy, unmerged, with the finished video as clean context. In
    float32 merged weights round once more: 1e-4 of flows of size 1.
    """
    spec = changed(spec, model=rule)
    frames, timesteps = 6, warped_timesteps((1000, 500), 5.0)
    context = ContextRule(*rule.values())
    base = load_transformer(resolve(spec.model.path), torch.float32, "cpu")
    seen: list[tuple[Tensor, Tensor]] = []  # every input of the sampler and its flow
    chunk_forward = base.chunk_forward

    def watched(x_BTCHW: Tensor, *rest: object) -> Tensor:
        flow = chunk_forward(x_BTCHW, *rest)
        seen.append((x_BTCHW.clone(), flow.clone()))
        return flow

    base.chunk_forward = watched  # type: ignore[method-assign]
    async with running(spec) as learner:
        await learner.train(batch(0, samples(0, number=2)))
        merged = MergedLinears(base, spec.lora.alpha / spec.lora.rank)
        merged.load(await published(learner))
        worker = learner.worker
        text = worker._encode("a red circle")[None]
        sampler = Sampler(base, context, timesteps, spec.model.context_timestep)
        chunks = [c.clone() for c in sampler.sample(base.encode_text(text), [3], frames, 4, 4)]
        clean = torch.cat(chunks, dim=1)
        worker._load_old(worker._ring.newest)
        per_chunk = len(timesteps) + 1  # and the clean pass, which the last chunk does not have
        for number, t in enumerate(timesteps):
            inputs, flows = zip(*seen[number::per_chunk], strict=True)
            noisy, want = torch.cat(inputs, dim=1), torch.cat(flows, dim=1)
            assert noisy.shape == clean.shape
            got = worker._predict("old", noisy, torch.full((1, frames), t), text, clean)
            torch.testing.assert_close(got, want, atol=1e-4, rtol=1e-4)
            blind = worker._predict("old", noisy, torch.full((1, frames), t), text, None)
            assert (blind - want).abs().max() > 1e-3  # noisy context is another question
