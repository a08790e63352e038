"""Which attention kernel runs where, and what it computes."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.wan.kernels import KernelName, choose_kernel, obstacle, sdpa
from tests.random_wan import prompts, random_model, video

CPU = torch.device("cpu")
AMPERE, HOPPER, BLACKWELL, TURING = (8, 0), (9, 0), (10, 0), (7, 5)


def installed(*modules: str) -> Callable[[str], object]:
    return lambda name: object() if name in modules else None


def test_sdpa_is_softmax_attention_over_all_keys() -> None:
    """Axes swapped or a causal mask by default would still give plausible shapes."""
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, length, 3, 4, generator=generator) for length in (5, 7, 7))
    scores = torch.einsum("blhd,bmhd->bhlm", q.double(), k.double()) / 2
    expected = torch.einsum("bhlm,bmhd->blhd", scores.softmax(-1), v.double())
    torch.testing.assert_close(sdpa(q, k, v).double(), expected, atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize(
    ("name", "capability", "dtype", "modules", "reason"),
    [
        ("flash3", HOPPER, torch.bfloat16, ("flash_attn_interface",), None),
        ("flash3", AMPERE, torch.bfloat16, ("flash_attn_interface",), "this GPU has 8.0"),
        ("flash3", BLACKWELL, torch.bfloat16, ("flash_attn_interface",), "this GPU has 10.0"),
        ("flash3", HOPPER, torch.bfloat16, ("flash_attn",), "flash_attn_interface is not installed"),
        ("flash2", AMPERE, torch.float16, ("flash_attn",), None),
        ("flash2", BLACKWELL, torch.bfloat16, ("flash_attn",), None),
        ("flash2", TURING, torch.float16, ("flash_attn",), "8.0 or more, this GPU has 7.5"),
        ("flash2", HOPPER, torch.float32, ("flash_attn",), "the model is in float32"),
        ("flash2", HOPPER, torch.bfloat16, (), "flash_attn is not installed"),
        ("flash2", None, torch.bfloat16, ("flash_attn",), "needs an NVIDIA GPU"),
    ],
)
def test_the_chip_decides_and_not_its_name(
    name: KernelName,
    capability: tuple[int, int] | None,
    dtype: torch.dtype,
    modules: tuple[str, ...],
    reason: str | None,
) -> None:
    """A kernel chosen by the name of a device misses its successors, and crashes where it can't run."""
    assert name != "sdpa"
    found = obstacle(name, capability, dtype, installed(*modules))
    assert found is None if reason is None else reason in str(found)


def test_auto_takes_what_runs_here_and_a_named_kernel_is_never_replaced() -> None:
    """A silent change of kernel changes results; a crash in the first rollout comes an hour late."""
    assert choose_kernel("auto", CPU, torch.float32) == "sdpa"
    assert choose_kernel("sdpa", CPU, torch.bfloat16) == "sdpa"
    with pytest.raises(
        ConfigError, match=r"model.attention 'flash2' cannot run here: it needs an NVIDIA GPU"
    ):
        choose_kernel("flash2", CPU, torch.bfloat16)


def test_every_attention_of_a_model_goes_through_the_chosen_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cross-attention, or training, would stay on another kernel than the one reported."""
    from astrolabe_ray.models.wan import kernels
    from astrolabe_ray.models.wan.context import ContextRule

    calls: list[int] = []

    def counted(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
        calls.append(k.shape[1])
        return sdpa(q, k, v)

    monkeypatch.setitem(kernels.KERNELS, "flash2", counted)
    model = random_model()
    model.use_attention("flash2")
    model(video(1, 4), torch.full((2, 4), 500.0), prompts(), ContextRule(2, None, 0))
    tokens, text = 6, model.architecture.text_len
    assert calls == [2 * tokens, 4 * tokens, text] * 2  # two chunks and the text, in each of two layers
