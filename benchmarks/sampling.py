"""Sampling with the ring KV cache against the plain way of caching, in one process, turn by turn.

    python -m benchmarks.sampling                       the embedded model, 21 latent frames
    python -m benchmarks.sampling --model 1.3b --device cuda --dtype bfloat16 --height 480 --width 832 \\
        --ways plain,ring,compiled,graphs

Full-size models have random weights: their speed is that of trained ones. All ways give the same video,
which is checked first. Numbers are medians over `--repeats` videos. `compiled` puts each block, apart from
its attention, through torch.compile; `graphs` replays these parts as CUDA graphs.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Annotated, Any, Literal

import torch
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor

from actors.sampler import Sampler
from astrolabe_ray.algorithms.flow_matching import warped_timesteps
from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.models.wan.architecture import WAN_1_3B, WAN_14B
from astrolabe_ray.models.wan.attention import Attend
from astrolabe_ray.models.wan.context import ContextRule
from astrolabe_ray.models.wan.transformer import CausalWanModel
from benchmarks.live_bytes import LiveBytes
from benchmarks.operations import Operations
from benchmarks.plain_sampling import plain_sample

FRAMES_PER_LATENT_FRAME = 4
WAYS = ("plain", "ring", "compiled", "graphs")
COPIES = ("aten.clone", "aten.copy_", "aten._to_copy", "aten.cat", "aten.fill_", "aten.zeros", "aten.zero_")
READS = ("aten._local_scalar_dense", "aten.nonzero", "aten.masked_select", "aten.equal", "aten._unique2")
"""What needs a value, or a number of values, of the device on the host: a GPU has to finish first."""
MASKED = ("aten.index", "aten.index_put", "aten.index_put_", "aten._index_put_impl_")
"""They look for the places of a mask first."""


@dataclass(frozen=True)
class Speed:
    """One way of sampling."""

    frames_per_s: float
    ms_per_chunk: float
    copied_mb_per_chunk: float
    syncs_per_chunk: float
    peak_mb: float  # of GPU memory, or of tensors on a CPU; beside the weights, for this way alone


class Counter(Operations):
    """Bytes written by copies and conversions, and operations in which the host waits for a GPU: reads of
    values, masks, and copies between host and device that are blocking or come from memory which is not
    pinned. On a CPU there are no such copies; reads and masks are counted, which would wait on a GPU.
    """

    def __init__(self) -> None:
        super().__init__()
        self.copied_bytes = self.num_syncs = 0
        self._pinned: dict[int, Tensor] = {}  # by their storage

    def run(self, func: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        name = str(func.overloadpacket)
        self.num_syncs += reads(name, args)  # first: on fake tensors there is nothing to be read
        result = func(*args, **kwargs)
        if kwargs.get("pin_memory"):
            self._pinned[result.untyped_storage()._cdata] = result
        if name in ("aten._to_copy", "aten.copy_"):
            source = args[0] if name == "aten._to_copy" else args[1]
            is_blocking = not (kwargs.get("non_blocking") or (name == "aten.copy_" and args[2:] == (True,)))
            self.num_syncs += self._waits(source, result, is_blocking)
        if name in COPIES and isinstance(result, Tensor):
            self.copied_bytes += result.numel() * result.element_size()
        return result

    def _waits(self, source: Tensor, target: Tensor, is_blocking: bool) -> bool:
        if (source.device.type == "cpu") == (target.device.type == "cpu"):
            return False
        is_pageable = source.device.type == "cpu" and source.untyped_storage()._cdata not in self._pinned
        return is_blocking or is_pageable


def reads(name: str, args: Sequence[Any]) -> bool:
    """Whether the operation needs values of a GPU on the host, that its tensors are or would be on."""
    if name in MASKED:
        return any(isinstance(i, Tensor) and i.dtype in (torch.bool, torch.uint8) for i in args[1])
    return name in READS


class Ring:
    """Sampling with a KV cache that lives from call to call."""

    def __init__(self, make: Callable[[], Sampler], sample: Callable[[Sampler], Iterator[Tensor]]) -> None:
        self._make, self._sample = make, sample
        self._sampler = make()

    def __call__(self) -> Tensor:
        return torch.cat(list(self._sample(self._sampler)), dim=1)

    def drop_cache(self) -> None:
        self._sampler = self._make()


def main(
    model: Annotated[Literal["sprites", "1.3b", "14b"], typer.Option(help="Which transformer.")] = "sprites",
    num_latent_frames: Annotated[int, typer.Option(min=1)] = 21,
    height: Annotated[int, typer.Option(help="Pixels, a multiple of 16.")] = 32,
    width: Annotated[int, typer.Option(help="Pixels, a multiple of 16.")] = 32,
    batch: Annotated[int, typer.Option(min=1, help="Videos sampled together.")] = 24,
    window: Annotated[int, typer.Option(min=0, help="Latent frames of the window; 0: all.")] = 12,
    sink: Annotated[int, typer.Option(min=0)] = 3,
    rope: Annotated[Literal["absolute", "relative"], typer.Option()] = "relative",
    device: Annotated[Literal["cpu", "cuda"], typer.Option()] = "cpu",
    dtype: Annotated[Literal["float32", "bfloat16"], typer.Option()] = "float32",
    threads: Annotated[int, typer.Option(min=1, help="Of torch, on a CPU.")] = 1,
    ways: Annotated[str, typer.Option(help="Some of plain, ring, compiled, graphs (CUDA).")] = "plain,ring",
    repeats: Annotated[int, typer.Option(min=1)] = 5,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Frames per second of each way, and the others' against the first."""
    names = chosen_ways(ways)
    torch.set_num_threads(threads)
    transformer = build(model, device, getattr(torch, dtype))
    rule = ContextRule(3, window or None, sink, rope)
    timesteps = warped_timesteps((1000, 750, 500, 250), 5.0)
    arch = transformer.architecture
    text_BLD = torch.randn(1, arch.text_len, arch.text_dim, generator=torch.Generator().manual_seed(0))
    text_BLD = text_BLD.to(device)
    size = (num_latent_frames, height // 8, width // 8)
    seeds = range(batch)
    ring = Ring(
        lambda: Sampler(transformer, rule, timesteps, 0.0),
        lambda sampler: sampler.sample(transformer.encode_text(text_BLD), seeds, *size),
    )

    def plain() -> Tensor:
        return plain_sample(transformer, rule, timesteps, text_BLD, seeds, *size)

    def compiled(mode: str | None) -> Callable[[], Tensor]:
        blocks = CompiledBlocks(transformer, mode)

        def run() -> Tensor:
            with blocks:
                return ring()

        return run

    runs: list[Callable[[], Tensor]] = [plain, ring, compiled(None), compiled("reduce-overhead")]
    every: dict[str, Callable[[], Tensor]] = dict(zip(WAYS, runs, strict=True))
    chosen = {name: every[name] for name in names}
    reference = ring()
    difference = max(float((way() - reference).abs().max()) for way in chosen.values())
    num_frames = batch * (FRAMES_PER_LATENT_FRAME * (num_latent_frames - 1) + 1)
    num_chunks = len(rule.chunks(num_latent_frames))
    weights = list(transformer.parameters())
    speeds = measure(chosen, weights, num_frames, num_chunks, repeats, device, drop_cache=ring.drop_cache)
    if as_json:
        rows = {name: vars(speed) for name, speed in speeds.items()}
        typer.echo(json.dumps({**rows, "max_difference": difference, "torch": torch.__version__}))
    else:
        show(speeds, f"{model}, {size[0]} latent frames, {batch} videos, {device}, {dtype}", difference)


def chosen_ways(text: str) -> list[str]:
    """Names of ways, with commas between them. Raises BadParameter for one that there is not."""
    names = [name.strip() for name in text.split(",")]
    unknown = [name for name in names if name not in WAYS]
    if unknown:
        reason = f"there is no way '{unknown[0]}'; there are: {', '.join(WAYS)}"
        raise typer.BadParameter(reason, param_hint="--ways")
    return names


class CompiledBlocks:
    """A model's blocks through torch.compile, used inside `with`. Attention, whose shapes change from
    chunk to chunk, is left out of the compiled parts.
    """

    def __init__(self, model: CausalWanModel, mode: str | None) -> None:
        self._blocks: list[Any] = list(model.blocks)
        self._compiled = [torch.compile(block.steered, mode=mode, dynamic=False) for block in self._blocks]

    def __enter__(self) -> None:
        for block, compiled in zip(self._blocks, self._compiled, strict=True):
            block.steered = without_attention(compiled, begins=block is self._blocks[0])

    def __exit__(self, *_: object) -> None:
        for block in self._blocks:
            del block.steered


def without_attention(compiled: Callable[..., Tensor], *, begins: bool) -> Callable[..., Tensor]:
    """`begins`: the first block of a forward, up to which CUDA graphs keep the results of the one before."""

    def run(x_BTSD: Tensor, steering: Any, text: Any, attention: Attend) -> Tensor:
        if begins:
            torch.compiler.cudagraph_mark_step_begin()
        return compiled(x_BTSD, steering, text, torch.compiler.disable(attention))

    return run


def build(name: str, device: str, dtype: torch.dtype) -> CausalWanModel:
    """The embedded model, or a full-size one with random weights."""
    if name == "sprites":
        return load_transformer(resolve("builtin:sprites"), dtype, device)
    with torch.device("meta"):
        model = CausalWanModel(WAN_1_3B if name == "1.3b" else WAN_14B).to(dtype)
    model = model.to_empty(device=device).eval().requires_grad_(False)
    generator = torch.Generator(device).manual_seed(0)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.02, generator=generator)
    return model


def measure(
    ways: dict[str, Callable[[], Tensor]],
    weights: Sequence[Tensor],
    num_frames: int,
    num_chunks: int,
    repeats: int,
    device: str,
    *,
    drop_cache: Callable[[], None],
) -> dict[str, Speed]:
    """Time the ways turn by turn, so that a busy moment of the machine hits both."""
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            with timed(seconds[name], device):
                way()
    speeds = {}
    for name, way in ways.items():
        drop_cache()
        with Counter() as counter:
            way()
        drop_cache()  # of the way before, which is no part of this one's memory
        peak_mb = peak_of(way, weights, device)
        middle = median(seconds[name])
        speeds[name] = Speed(
            frames_per_s=num_frames / middle,
            ms_per_chunk=1000 * middle / num_chunks,
            copied_mb_per_chunk=counter.copied_bytes / num_chunks / 1e6,
            syncs_per_chunk=counter.num_syncs / num_chunks,
            peak_mb=peak_mb,
        )
    return speeds


def peak_of(way: Callable[[], Tensor], weights: Sequence[Tensor], device: str) -> float:
    """MB beside `weights`, of GPU memory with nothing counted beside it; on a CPU of tensors that operations
    made."""
    if device == "cpu":
        live = LiveBytes()
        for weight in weights:  # else those that an operation makes views of would be counted, and only those
            live.saw(weight.untyped_storage())
        held = live.now
        with live.counting():
            way()
        return (live.peak - held) / 1e6
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    way()
    held = sum(weight.numel() * weight.element_size() for weight in weights)
    return (torch.cuda.max_memory_allocated() - held) / 1e6


@contextmanager
def timed(seconds: list[float], device: str) -> Iterator[None]:
    """Append the seconds that the body and the device's work for it take."""
    start = time.perf_counter()
    yield
    if device == "cuda":
        torch.cuda.synchronize()
    seconds.append(time.perf_counter() - start)


def show(speeds: dict[str, Speed], title: str, difference: float) -> None:
    """A row for each number; behind each other way its ratio to the first."""
    (first, base), *others = speeds.items()
    table = Table("", first, *(part for name, _ in others for part in (name, f"/ {first}")), title=title)
    for row in Speed.__dataclass_fields__:
        value = getattr(base, row)
        cells = [f"{value:.1f}"]
        for _, speed in others:
            number = getattr(speed, row)
            cells += [f"{number:.1f}", f"{number / value:.2f}" if value else "-"]
        table.add_row(row, *cells)
    console = Console()
    console.width = max(console.width, 12 + 22 * len(speeds))  # no number is cut
    console.print(table)
    typer.echo(f"largest difference between the latents of the ways: {difference:.1e}")


if __name__ == "__main__":
    typer.run(main)
