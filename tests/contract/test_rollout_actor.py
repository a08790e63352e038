"""What a rollout actor promises: videos by seed, one policy per video, and proof of what it holds."""

from __future__ import annotations

import asyncio
import dataclasses
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl_wan import AutoencoderKLWan

from actors.decoder import VideoDecoder, to_uint8
from actors.local_pool import LocalRolloutPool
from actors.rollout_actor import RolloutActor, RolloutActorSpec, latents_payload, with_payloads
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.errors import ConfigError, DataFailure, InfraFailure, WeightMismatch
from astrolabe_ray.models.lora import add_adapters, block_linears
from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.models.vae import VideoVAE
from astrolabe_ray.types import FrameSpec, PolicyVersion, PublishedPolicy, Rollout, RolloutRequest
from astrolabe_ray.weights.pack import pack
from astrolabe_ray.weights.probe import probe_output
from tests.tiny_policy import LORA, published, random_adapters, tiny_run

pytestmark = pytest.mark.usefixtures("one_thread")
VIEWS = (FrameSpec(), FrameSpec(num_frames=3, height=8, width=8, grayscale=True))
SCALE = LORA.alpha / LORA.rank


def actor_of(config: RunConfig) -> RolloutActor:
    spec = dataclasses.replace(RolloutActorSpec.of(config), num_threads=None)
    actor = RolloutActor(spec, "rollout-7")
    actor.setup()
    return actor


@asynccontextmanager
async def local_pool(config: RunConfig, policy: PublishedPolicy | None) -> AsyncIterator[LocalRolloutPool]:
    pool = LocalRolloutPool(config)
    await pool.start()
    if policy is not None:
        await pool.set_policy(policy)
    try:
        yield pool
    finally:
        await pool.stop()


def request(*seeds: int, prompt: str = "a red circle") -> RolloutRequest:
    return RolloutRequest("train-0-0", prompt, seeds, tuple(range(len(seeds))), VIEWS)


def generated(actor: RolloutActor, asked: RolloutRequest) -> list[Rollout]:
    records, *blobs = actor.generate(asked)
    return with_payloads(records, blobs, len(asked.views))


def is_same_video(a: Rollout, b: Rollout) -> bool:
    """Bitwise, latents and every view."""
    pairs = zip((a.latents, *a.views), (b.latents, *b.views), strict=True)
    return all(x.dtype == y.dtype and np.array_equal(x, y) for x, y in pairs)


async def test_a_video_follows_from_its_seed_prompt_and_policy_and_nothing_else(model_root: Path) -> None:
    """Work that is redone on another actor would train on another video than the one that was scored."""
    config = tiny_run(model_root)
    async with local_pool(config, published(model_root, 1)) as pool:
        first = await pool.generate(request(11, 12))
        await pool.generate(request(98, 99, prompt="a blue square"))
        torch.manual_seed(4)  # the global generator must not matter
        again = await pool.generate(request(11, 12))
        other_seed = await pool.generate(request(13, 12))
        other_prompt = await pool.generate(request(11, 12, prompt="a blue square"))
    async with local_pool(config, published(model_root, 1)) as pool:
        elsewhere = await pool.generate(request(11, 12))
    assert all(map(is_same_video, first, again))
    assert all(map(is_same_video, first, elsewhere))
    assert not is_same_video(first[0], first[1])
    assert [is_same_video(*pair) for pair in zip(first, other_seed, strict=True)] == [False, True]
    assert not any(map(is_same_video, first, other_prompt))


async def test_what_rests_on_the_host_changes_no_video(model_root: Path) -> None:
    """Models that go to and fro could leave a layer behind, or merge the second policy upon the first."""
    videos = {}
    for on_host in (False, True):
        config = tiny_run(model_root, dtype="bfloat16", base_on_host=on_host, text_encoder_on_host=on_host)
        assert RolloutActorSpec.of(config).base_on_host is on_host
        async with local_pool(config, published(model_root, 1)) as pool:
            first = await pool.generate(request(11, 12))
            await pool.set_policy(published(model_root, 2))
            videos[on_host] = first + await pool.generate(request(11, 12, prompt="a blue square"))
    assert all(map(is_same_video, videos[False], videos[True]))
    assert not is_same_video(videos[True][0], videos[True][2])


async def test_the_records_name_each_video_and_carry_payloads_that_can_travel(model_root: Path) -> None:
    """A seed or index off by one pairs a reward with another video."""
    asked = RolloutRequest("train-3-1", "a red circle", (21, 22), (4, 5), VIEWS)
    async with local_pool(tiny_run(model_root), published(model_root, 2)) as pool:
        rollouts = await pool.generate(asked)
        (swapped, _) = await pool.generate(dataclasses.replace(asked, seeds=(22, 21)))
    assert [(r.group_id, r.index, r.seed, r.prompt) for r in rollouts] == [
        ("train-3-1", 4, 21, "a red circle"),
        ("train-3-1", 5, 22, "a red circle"),
    ]
    assert is_same_video(swapped, rollouts[1])
    for rollout in rollouts:
        assert rollout.latents.dtype == np.float32
        assert rollout.latents.shape == (4, 4, 4, 2)  # T, C, 32 / 8, 16 / 8
        assert [(view.dtype, view.shape) for view in rollout.views] == [
            (np.uint8, (13, 3, 32, 16)),  # 4 (4 - 1) + 1 frames
            (np.uint8, (3, 3, 8, 8)),
        ]
        assert rollout.views[0].std() > 1, "a black video proves nothing"
        assert rollout.generate_s > 0
        assert rollout.decode_s > 0


async def test_a_new_policy_waits_for_the_end_of_the_video_in_progress(model_root: Path) -> None:
    """A video whose first chunks are of one policy and whose last are of the next is of no policy at all."""
    config = tiny_run(model_root)
    expected = {}
    for step in (1, 2):
        async with local_pool(config, published(model_root, step)) as pool:
            expected[step] = await pool.generate(request(5, 6))
    assert not any(map(is_same_video, expected[1], expected[2]))

    started, may_go_on = threading.Event(), threading.Event()

    def pause(*_) -> None:
        started.set()
        assert may_go_on.wait(20)

    async with local_pool(config, published(model_root, 1)) as pool:
        await pool.sync()
        hook = pool._actor._model.patch_embedding.register_forward_hook(pause)
        in_progress = asyncio.ensure_future(pool.generate(request(5, 6)))
        queued = asyncio.ensure_future(pool.generate(request(5, 6)))
        assert await asyncio.to_thread(started.wait, 20)
        await pool.set_policy(published(model_root, 2))
        synced = asyncio.ensure_future(pool.sync())
        may_go_on.set()
        before, after, (ack,) = await asyncio.gather(in_progress, queued, synced)
        hook.remove()
    assert {r.policy_version for r in before} == {PolicyVersion(step=1)}
    assert {r.policy_version for r in after} == {PolicyVersion(step=2)}
    assert all(map(is_same_video, before, expected[1]))
    assert all(map(is_same_video, after, expected[2]))
    assert ack.version == PolicyVersion(step=2)


async def test_the_version_on_a_record_is_exactly_the_one_that_was_published(model_root: Path) -> None:
    """Losing the incarnation would let work of lost steps pass as current."""
    tensors = random_adapters(model_root, seed=3)
    version = PolicyVersion(incarnation=2, step=17)
    policy = PublishedPolicy(*pack(tensors, version=version, lora_scale=SCALE))
    async with local_pool(tiny_run(model_root), policy) as pool:
        assert {r.policy_version for r in await pool.generate(request(1, 2))} == {version}


async def test_an_acknowledgement_states_checksum_and_number_of_layers(model_root: Path) -> None:
    """A sync that binds no layer at all looks like a policy that does not learn."""
    policy = published(model_root, 1)
    async with local_pool(tiny_run(model_root), policy) as pool:
        (ack,) = await pool.sync()
        (again,) = await pool.sync()
    assert (ack.actor, ack.version, ack.checksum) == (
        "rollout-0",
        PolicyVersion(step=1),
        policy.manifest.checksum,
    )
    assert ack.num_modules == 2 * (4 + 4 + 2)  # 2 blocks: self-attention, cross-attention, feed-forward
    assert ack.sampling == "sdpa attention in float32 on cpu"
    assert again == ack, "loaded twice"


def test_the_probe_shows_the_published_policy_on_top_of_the_base_every_time(model_root: Path) -> None:
    """Merging onto weights that hold an earlier merge: the bytes are right, the policy is not.

    Oracle: PEFT with the same adapter, never merged.
    """
    actor = actor_of(tiny_run(model_root))
    base = load_transformer(resolve(str(model_root)), torch.float32, "cpu")
    untouched = probe_output(base, base.architecture, seed=1)
    wrapped = add_adapters(base, LORA, names=("old",))
    layers = dict(wrapped.named_modules())
    for step in (1, 2, 1):
        policy = published(model_root, step)
        for name, tensor in random_adapters(model_root, seed=step).items():
            linear, factor = name.rsplit(".", 1)
            getattr(layers[f"base_model.model.{linear}"], factor)["old"].weight.data.copy_(tensor)
        actor.load_policy(policy.manifest, policy.buffer)
        expected = probe_output(wrapped, base.architecture, seed=1)
        assert actor.probe(1) == pytest.approx(expected, abs=2e-5)
        assert np.abs(np.subtract(expected, untouched)).max() > 0.05
        assert actor.probe(2) != actor.probe(1)


def test_an_actor_without_a_policy_serves_nothing(model_root: Path) -> None:
    """The base model would pass as policy 0 after a restart in mid-run."""
    actor = actor_of(tiny_run(model_root))
    with pytest.raises(InfraFailure, match="rollout-7 holds no policy yet"):
        actor.generate(request(1, 2))
    with pytest.raises(InfraFailure, match="rollout-7 holds no policy yet"):
        actor.probe(1)


def _flipped(policy: PublishedPolicy, root: Path) -> PublishedPolicy:
    buffer = policy.buffer.copy()
    buffer[len(buffer) // 2] ^= 1
    return PublishedPolicy(policy.manifest, buffer)


def _truncated(policy: PublishedPolicy, root: Path) -> PublishedPolicy:
    return PublishedPolicy(policy.manifest, policy.buffer[:-16])


def _of_another_version(policy: PublishedPolicy, root: Path) -> PublishedPolicy:
    return PublishedPolicy(policy.manifest, published(root, 9).buffer)


def _one_layer_short(policy: PublishedPolicy, root: Path) -> PublishedPolicy:
    tensors = random_adapters(root, seed=2)
    del tensors["blocks.1.ffn.0.lora_B"]
    return PublishedPolicy(*pack(tensors, version=policy.manifest.version, lora_scale=SCALE))


def _of_another_shape(policy: PublishedPolicy, root: Path) -> PublishedPolicy:
    tensors = random_adapters(root, seed=2)
    tensors["blocks.1.ffn.0.lora_A"] = torch.zeros(2, 7)
    return PublishedPolicy(*pack(tensors, version=policy.manifest.version, lora_scale=SCALE))


def _of_another_scale(policy: PublishedPolicy, root: Path) -> PublishedPolicy:
    manifest = dataclasses.replace(policy.manifest, lora_scale=SCALE / 2)
    return PublishedPolicy(manifest, policy.buffer)


@pytest.mark.parametrize(
    ("tampered", "reason"),
    [
        (_flipped, "damaged on the way"),
        (_truncated, "bytes arrived"),
        (_of_another_version, "damaged on the way"),
        (_one_layer_short, r"differ in 1 tensors, first blocks\.1\.ffn\.0\.lora_B"),
        (_of_another_shape, r"blocks\.1\.ffn\.0: .* does not give"),
        (_of_another_scale, "has LoRA scale 1, rollout-7 merges with 2"),
    ],
)
def test_a_policy_that_is_not_what_its_manifest_says_is_refused_and_the_held_one_stays(
    model_root: Path, tampered, reason: str
) -> None:
    """Half a new policy in the weights, under the name of either one."""
    actor, good = actor_of(tiny_run(model_root)), published(model_root, 1)
    actor.load_policy(good.manifest, good.buffer)
    before = generated(actor, request(1, 2))
    bad = tampered(published(model_root, 2), model_root)
    with pytest.raises(WeightMismatch, match=reason):
        actor.load_policy(bad.manifest, bad.buffer)
    after = generated(actor, request(1, 2))
    assert {r.policy_version for r in after} == {PolicyVersion(step=1)}
    assert all(map(is_same_video, before, after))


async def test_a_pool_with_a_tampered_policy_makes_no_video(model_root: Path) -> None:
    """Going on with the policy before would train on videos that are older than they say."""
    good = published(model_root, 1)
    async with local_pool(tiny_run(model_root), good) as pool:
        await pool.generate(request(1, 2))
        await pool.set_policy(_flipped(published(model_root, 2), model_root))
        for refused in (pool.generate(request(1, 2)), pool.sync(), pool.probe(1)):
            with pytest.raises(WeightMismatch, match="damaged on the way"):
                await refused
        await pool.set_policy(good)
        assert {r.policy_version for r in await pool.generate(request(1, 2))} == {PolicyVersion(step=1)}


def test_chunks_decoded_one_by_one_are_the_video_decoded_as_a_whole(model_root: Path) -> None:
    """A seam every chunk. Oracle: diffusers' own decoding of all latents at once."""
    latents_BTCHW = torch.randn(2, 5, 4, 4, 2, generator=torch.Generator().manual_seed(1))
    network = AutoencoderKLWan.from_pretrained(model_root / "vae")
    mean, std = (
        torch.tensor(getattr(network.config, name)).view(1, 1, -1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    with torch.no_grad():
        pixels_BCFHW = network.decode((latents_BTCHW * std + mean).transpose(1, 2), return_dict=False)[0]
    whole = ((pixels_BCFHW.transpose(1, 2).clamp(-1, 1) + 1) * 127.5).round().byte().numpy()

    vae = VideoVAE.load(model_root / "vae", "cpu", torch.float32)
    for sizes in ([2, 2, 1], [1, 1, 1, 1, 1], [5]):
        decoder = VideoDecoder(vae, batch=2, num_latent_frames=5, height=32, width=16)
        for chunk in latents_BTCHW.split(sizes, dim=1):
            decoder.add(chunk)
        off_by = np.abs(decoder.videos().astype(int) - whole.astype(int))
        assert off_by.max() <= 1, sizes  # another order of sums may fall on the other side of a half
        assert (off_by > 0).mean() < 0.01, sizes
    assert whole.std() > 1


def test_the_frames_of_a_rollout_are_those_of_its_latents(model_root: Path) -> None:
    """Scoring one video and training on another."""
    actor, policy = actor_of(tiny_run(model_root)), published(model_root, 1)
    actor.load_policy(policy.manifest, policy.buffer)
    vae = VideoVAE.load(model_root / "vae", "cpu", torch.float32)
    for rollout in generated(actor, request(1, 2)):
        decoded = to_uint8(vae.decode(torch.from_numpy(rollout.latents)[None]))[0]
        assert np.abs(decoded.astype(int) - rollout.views[0].astype(int)).max() <= 1


@pytest.mark.parametrize("first", [0, 1, 2, 4])
def test_frames_before_the_window_are_decoded_and_not_kept(model_root: Path, first: int) -> None:
    """A window decoded by itself starts with a still frame and without the motion before it."""
    latents_BTCHW = torch.randn(1, 5, 4, 4, 2, generator=torch.Generator().manual_seed(1))
    vae = VideoVAE.load(model_root / "vae", "cpu", torch.float32)
    videos = []
    for skipped in (0, first):
        decoder = VideoDecoder(
            vae, batch=1, num_latent_frames=5, height=32, width=16, first_latent_frame=skipped
        )
        for chunk in latents_BTCHW.split(2, dim=1):
            decoder.add(chunk)
        videos.append(decoder.videos())
    whole, window = videos
    assert window.shape[1] == (17 if first == 0 else 4 * (5 - first))
    assert np.array_equal(window, whole[:, -window.shape[1] :])


def test_a_window_is_what_the_views_show_and_where_the_latents_end(model_root: Path) -> None:
    """Scores of other frames than those that are trained on."""
    config = tiny_run(model_root)
    config = config.model_copy(update={"model": config.model.model_copy(update={"num_latent_frames": 8})})
    actor, policy = actor_of(config), published(model_root, 1)
    actor.load_policy(policy.manifest, policy.buffer)
    steps = []
    actor._model.patch_embedding.register_forward_hook(lambda *call: steps.append(1))
    (rollout,) = generated(actor, dataclasses.replace(request(1), window=(2, 6)))
    assert len(steps) == 3 * 2 + 2  # three chunks of two steps, and what the later two must see
    (whole,) = generated(actor, dataclasses.replace(request(1), window=(0, 6)))
    assert (rollout.window_start, whole.window_start) == (2, 0)
    assert np.array_equal(rollout.latents, whole.latents) and len(rollout.latents) == 6
    assert len(rollout.views[0]) == 16 and np.array_equal(rollout.views[0], whole.views[0][5:])


def test_a_video_with_chunks_missing_is_never_handed_out(model_root: Path) -> None:
    """The rest of the array is whatever the memory held."""
    vae = VideoVAE.load(model_root / "vae", "cpu", torch.float32)
    decoder = VideoDecoder(vae, batch=1, num_latent_frames=4, height=32, width=16)
    decoder.add(torch.zeros(1, 2, 4, 4, 2))
    with pytest.raises(AssertionError, match="5 of 13 frames decoded"):
        decoder.videos()


def test_pixels_are_rounded_to_the_nearest_value_and_never_wrap() -> None:
    """Cutting off instead of rounding darkens every video by half a step; 256 would turn black."""
    assert to_uint8(torch.tensor([-1.1, -1.0, -0.998, -0.996, 0.0, 1.0, 1.1])).tolist() == [
        0, 0, 0, 1, 128, 255, 255
    ]  # fmt: skip  # (x + 1) 127.5 = -12.75, 0, .255, .51, 127.5 (to even), 255, 267.75


def test_latents_of_a_bfloat16_model_travel_as_the_bits_of_bfloat16() -> None:
    """Twice the bytes, or a conversion that the learner does not undo."""
    latents = torch.tensor([1.0, -2.0, 0.1])
    bits = latents_payload(latents, "bfloat16")
    assert bits.dtype == np.uint16
    assert bits.tolist() == [0x3F80, 0xC000, 0x3DCD]
    whole = latents_payload(latents.double(), "float32")
    assert whole.dtype == np.float32
    assert whole.tolist() == latents.tolist()


def test_a_bfloat16_model_makes_whole_videos(model_root: Path) -> None:
    """The released models run in bfloat16; nothing else here does."""
    actor, policy = actor_of(tiny_run(model_root, dtype="bfloat16")), published(model_root, 1)
    actor.load_policy(policy.manifest, policy.buffer)
    (rollout,) = generated(actor, request(1))
    assert rollout.latents.dtype == np.uint16
    assert rollout.views[0].shape == (13, 3, 32, 16)
    assert len(set(actor.probe(1))) > 1


def test_latents_that_are_not_finite_are_a_fault_of_the_data(model_root: Path) -> None:
    """NaN pixels are black frames, and a black video has a score like any other."""
    actor = actor_of(tiny_run(model_root))
    tensors = {name: torch.full_like(t, float("nan")) for name, t in random_adapters(model_root, 1).items()}
    manifest, buffer = pack(tensors, version=PolicyVersion(step=4), lora_scale=SCALE)
    actor.load_policy(manifest, buffer)
    with pytest.raises(DataFailure, match=r"policy 0\.4 gave latents that are not finite for 'a red circle'"):
        actor.generate(request(1, 2))


def test_a_full_gpu_names_the_option_that_helps(model_root: Path) -> None:
    """An out-of-memory error counts as a crash, and the same request is tried on actor after actor."""
    actor, policy = actor_of(tiny_run(model_root)), published(model_root, 1)
    actor.load_policy(policy.manifest, policy.buffer)

    def full(*_):
        raise torch.OutOfMemoryError("CUDA out of memory")

    actor._model.patch_embedding.register_forward_hook(full)
    with pytest.raises(ConfigError, match=r"rollout-7 .*\.batch_size 2: .* Lower rollout\.batch_size"):
        actor.generate(request(1, 2))


def test_a_model_folder_with_a_file_missing_is_named_at_setup(model_root: Path, tmp_path: Path) -> None:
    """A worker that dies while loading, with a traceback on another machine."""
    config = tiny_run(tmp_path / "nowhere")
    with pytest.raises(ConfigError, match="nowhere"):
        actor_of(config)


def test_every_linear_layer_of_a_block_gets_its_weights(model_root: Path) -> None:
    """A layer left at the base: a policy weaker than the one that is trained."""
    actor, policy = actor_of(tiny_run(model_root)), published(model_root, 1)
    before = {name: linear.weight.clone() for name, linear in block_linears(actor._model).items()}
    actor.load_policy(policy.manifest, policy.buffer)
    tensors = random_adapters(model_root, seed=1)
    for name, linear in block_linears(actor._model).items():
        a, b = (tensors[f"{name}.lora_{factor}"].double() for factor in "AB")
        expected = before[name].double() + 2.0 * b @ a  # alpha 4 / rank 2
        torch.testing.assert_close(linear.weight.double(), expected, atol=1e-6, rtol=1e-6)
        assert (expected - before[name]).abs().max() > 0.01
