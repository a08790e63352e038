"""Clips that go on from one history, against videos without any cache that contain both."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan
from torch import Tensor

from actors.decoder import VideoDecoder
from actors.sampler import Sampler
from actors.shared_prefix import Sampled, sample_clips
from astrolabe_ray.models.vae import VideoVAE
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.types import RolloutRequest
from tests.plain_video import PlainVideo
from tests.random_wan import prompts, random_model

pytestmark = pytest.mark.usefixtures("one_thread")
TIMESTEPS = (1000.0, 625.0)
CONTEXT_TIMESTEP = 20.0
HEIGHT, WIDTH = 32, 16
RULES = [ContextRule(2, 4, 1, "relative"), ContextRule(2, None, 0)]
PREFIX_SEED = 5


@pytest.fixture
def vae(model_root: Path) -> VideoVAE:
    return VideoVAE.load(model_root / "vae", "cpu", torch.float32)


def asked(seeds: Sequence[int], window: tuple[int, int], batch_size: int | None = None) -> RolloutRequest:
    indices = tuple(range(len(seeds)))
    return RolloutRequest("train-0", "any", tuple(seeds), indices, (), window, PREFIX_SEED, batch_size)


def clips(vae: VideoVAE, rule: ContextRule, request: RolloutRequest) -> Sampled:
    model = random_model()
    sampler = Sampler(model, rule, TIMESTEPS, CONTEXT_TIMESTEP)
    text = model.encode_text(prompts(1))
    return sample_clips(sampler, vae, text, request, height=HEIGHT, width=WIDTH)


def plain_video(rule: ContextRule, seed: int, start: int, end: int) -> Tensor:
    """Prefix and one clip as one video of `end` frames: every call recomputes all earlier frames."""
    shape = (end, 4, HEIGHT // 8, WIDTH // 8)
    plain = PlainVideo(random_model(), rule, TIMESTEPS, CONTEXT_TIMESTEP, prompts(1), (PREFIX_SEED,), shape)
    chunks = [plain.extend(2) for _ in range(0, start, 2)]
    plain.generators = [torch.Generator().manual_seed(seed)]  # the clip's own noise, from its beginning
    plain.noise = torch.randn(1, *shape, generator=plain.generators[0]).double()
    plain.num_noised = 0
    chunks += [plain.extend(2) for _ in range(start, end, 2)]
    return torch.cat(chunks, dim=1)


@pytest.mark.parametrize("rule", RULES, ids=str)
def test_a_candidate_and_its_history_are_one_video_made_without_a_cache(
    vae: VideoVAE, rule: ContextRule
) -> None:
    """A frozen prefix that is not what the candidate would have made itself, or another one's noise."""
    start, end = 4, 8
    made = clips(vae, rule, asked((21, 22, 23), (start, end), batch_size=2))
    assert made.prefix_1TCHW is not None
    for number, seed in ((0, 21), (2, 23)):
        plain = plain_video(rule, seed, start, end)
        whole = torch.cat([made.prefix_1TCHW[0], made.latents_BTCHW[number]])
        torch.testing.assert_close(whole.double(), plain[0], atol=1e-4, rtol=1e-4)
        pixels = ((vae.decode(plain.float())[0] + 1) * 127.5).round().byte().numpy()
        off_by = np.abs(made.videos[number].astype(int) - pixels[4 * start - 3 :].astype(int))
        assert made.videos[number].shape[0] == 4 * (end - start)
        assert off_by.max() <= 1  # rounding
    assert (made.latents_BTCHW[0] - made.latents_BTCHW[1]).abs().max() > 0.1


def test_the_history_is_made_and_decoded_once_for_all_candidates(
    vae: VideoVAE, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The method's saving would be none: 24 candidates of a minute would sample 24 minutes."""
    model, rule, sampled, decoded = random_model(), ContextRule(2, 5, 1), [], []
    model.patch_embedding.register_forward_pre_hook(
        lambda module, args: sampled.append(args[0].shape[0] * args[0].shape[1])
    )
    decode = type(vae.stream(1))._decoded
    monkeypatch.setattr(
        "astrolabe_ray.models.vae.DecodeStream._decoded",
        lambda stream, x: decoded.append(x.shape[0] * x.shape[2]) or decode(stream, x),
    )
    sampler = Sampler(model, rule, TIMESTEPS, CONTEXT_TIMESTEP)
    text, start, end = model.encode_text(prompts(1)), 40, 44
    request = asked((1, 2, 3, 4), (start, end), batch_size=2)
    sample_clips(sampler, vae, text, request, height=HEIGHT, width=WIDTH)
    prefix = start * (2 + 1)  # two denoising steps and the clean pass
    assert sum(sampled) == prefix + 4 * (4 * 2 + 2)  # the last chunk of a clip needs no clean pass
    assert sum(decoded) == vae.context_frames + 4 * 4
    assert vae.context_frames < start


def test_a_candidate_does_not_depend_on_those_beside_it(vae: VideoVAE) -> None:
    """Redone on an actor that makes more of them at a time, a score would be of another clip."""
    rule = ContextRule(2, 5, 1)
    several, again = (clips(vae, rule, asked((7, 8, 9, 10), (6, 10), 2)) for _ in range(2))
    assert torch.equal(several.latents_BTCHW, again.latents_BTCHW)
    assert np.array_equal(several.videos, again.videos)
    swapped = clips(vae, rule, asked((9, 10, 7, 8), (6, 10), 2))
    assert torch.equal(swapped.latents_BTCHW[[2, 3, 0, 1]], several.latents_BTCHW)
    together = clips(vae, rule, asked((7, 8, 9, 10), (6, 10)))
    torch.testing.assert_close(together.latents_BTCHW, several.latents_BTCHW, atol=1e-5, rtol=1e-5)


def random_decoder(num_res_blocks: int) -> VideoVAE:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        return VideoVAE(
            AutoencoderKLWan(
                base_dim=4,
                z_dim=4,
                num_res_blocks=num_res_blocks,
                latents_mean=[0.0] * 4,
                latents_std=[1.0] * 4,
            )
        )


@pytest.mark.parametrize(("num_res_blocks", "context"), [(1, 30), (2, 38)])
def test_a_window_is_decoded_bitwise_from_the_frames_that_its_pixels_depend_on(
    num_res_blocks: int, context: int
) -> None:
    """Too little context changes the pixels that are scored; too much decodes minutes that nobody sees.

    By hand, for the two residual blocks a stage of the published VAE: 12 convolutions over three frames at
    the latent rate, 7 at the doubled and 13 at the full one look back at 24 + 14 / 2 + 26 / 4 = 37.5 latent
    frames.
    """
    vae, first = random_decoder(num_res_blocks), context + 4
    assert vae.context_frames == context
    latents = torch.randn(1, first + 2, 4, 1, 1, generator=torch.Generator().manual_seed(3))
    other_past = torch.cat([latents[:, : first - context] + 5, latents[:, first - context :]], dim=1)

    def window(skipped: int, latents_BTCHW: Tensor) -> np.ndarray:
        decoder = VideoDecoder(
            vae, batch=1, num_latent_frames=first + 2, height=8, width=8, first_latent_frame=skipped
        )
        for chunk in latents_BTCHW.split(3, dim=1):
            decoder.add(chunk)
        return decoder.videos()[:, -8:]

    whole = window(0, latents)
    assert np.array_equal(window(first, latents), whole)
    assert np.array_equal(window(0, other_past), whole)
    cut = vae.decode(latents[:, first - context // 4 :])[:, -8:]
    assert (cut - vae.decode(latents)[:, -8:]).abs().max() > 1e-6
