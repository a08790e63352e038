"""`algorithm.loss_dtype=bfloat16` against float32 numbers that are rounded by hand after every operation."""

from __future__ import annotations

import numpy as np
import torch

from astrolabe_ray.config.schema import AlgorithmConfig
from learner.nft_step import Draw, Samples, nft_step

BETA, CLIP, KL_COEF = 0.25, 4.0, 0.5
NUM = 64


def rounded(x: np.ndarray) -> np.ndarray:
    """To the nearest number with 8 significant bits, to the even one of two: bfloat16, in float32."""
    bits = np.asarray(x, np.float32).view(np.uint32).astype(np.uint64)
    bits += 0x7FFF + ((bits >> 16) & 1)
    return (bits & 0xFFFF0000).astype(np.uint32).view(np.float32)


def mean_square(error: np.ndarray) -> np.ndarray:
    """Of two numbers a sample."""
    squares = rounded(error * error)
    return rounded(squares[:, 0] + squares[:, 1]) / np.float32(2)


def test_the_loss_in_bfloat16_is_rounded_after_every_operation() -> None:
    """A loss that is computed in float32 and rounded in the end is another one than the release's."""
    rng = np.random.default_rng(3)
    x0, noise, *flows = (rng.standard_normal((NUM, 2)).astype(np.float32) for _ in range(5))
    flow = dict(zip(("default", "old", "reference"), flows, strict=True))
    timestep, sigma = (np.float32(rng.uniform(lo, hi, (NUM, 1))) for lo, hi in ((600, 1000), (0.6, 1)))
    advantage, kl_weight = (rng.normal(scale=3, size=NUM).astype(np.float32) for _ in range(2))
    seen: list[torch.Tensor] = []

    def predict(policy: str, noisy: torch.Tensor, *_: object) -> torch.Tensor:
        seen.append(noisy)
        return torch.from_numpy(flow[policy]).view(noisy.shape)

    def losses(dtype: str) -> dict[str, np.ndarray]:
        shape = (NUM, 1, 1, 1, 2)
        algorithm = AlgorithmConfig(
            loss_dtype=dtype, nft_beta=BETA, adv_clip_max=CLIP, kl_coef=KL_COEF, clean_context=False
        )
        samples = Samples(
            torch.from_numpy(x0).view(shape),
            torch.zeros(NUM, 1, 1),
            torch.from_numpy(advantage),
            torch.from_numpy(kl_weight),
            0,
        )
        at = Draw(
            torch.from_numpy(timestep[:, 0]),
            torch.from_numpy(sigma[:, 0]),
            torch.from_numpy(noise).view(shape),
        )
        found = nft_step(
            predict, samples, at, algorithm=algorithm, on_policy=False, reference_rows=range(NUM)
        )
        return {name: getattr(found, name).numpy() for name in ("total", "policy", "kl")}

    target, share = rounded(x0), timestep / np.float32(1000)
    noisy = rounded((1 - share) * target + share * rounded(noise))
    new, old, reference = (rounded(noisy - sigma * flow[p]) for p in ("default", "old", "reference"))
    base, step = rounded(old - target), rounded(np.float32(BETA) * rounded(new - old))
    r = np.clip(advantage, -CLIP, CLIP) / np.float32(2 * CLIP) + np.float32(0.5)
    policy = r * mean_square(rounded(base + step)) + (1 - r) * mean_square(rounded(base - step))
    kl = kl_weight * mean_square(rounded(new - reference))
    want = {"policy": policy, "kl": kl, "total": policy + np.float32(KL_COEF) * kl}
    found, wide = losses("bfloat16"), losses("float32")
    assert np.array_equal(seen[0].float().numpy().reshape(NUM, 2), noisy)
    for name, value in want.items():
        np.testing.assert_allclose(found[name], value, rtol=2e-6, err_msg=name)
        assert np.mean(np.abs(wide[name] / value - 1) > 1e-4) > 0.8, "float32 gives other numbers"
