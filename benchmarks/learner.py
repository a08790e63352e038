"""A learner step by ZeRO stage and accumulation against a plain one, in one process per rank and one run.

    python -m benchmarks.learner                            1 and 2 ranks on CPUs, the embedded model
    python -m benchmarks.learner --ranks 2 --micro-batches 4 --samples 2

`plain` reduces all gradients after every microbatch and always makes three forwards, as the first release
does; the others are the learner's own engine and step on the same samples. Times are medians over `--repeats`
steps of the slowest rank, after one that warms up; bytes are what a rank hands to collectives in a step;
memory is what the process held at most, torch and DeepSpeed included.
"""

from __future__ import annotations

import json
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from statistics import median
from typing import Annotated, Any, cast

import torch
import torch.distributed as dist
import typer
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from astrolabe_ray.config.schema import AlgorithmConfig, LearnerConfig, LoraConfig, ModelConfig
from astrolabe_ray.models.lora import adapter_tensors
from astrolabe_ray.models.registry import load_transformer, resolve
from astrolabe_ray.models.wan.context import ContextRule
from benchmarks.rank_processes import in_processes
from learner.engine import Engine
from learner.nft_step import Draw, Samples, draw, nft_step, noise_levels, predictor
from learner.policies import with_policies
from learner.process_group import join, open_store

ALGORITHM = AlgorithmConfig()
WAYS = ("plain", "zero 0", "zero 1", "zero 2", "zero 3")
COLLECTIVES = (
    "all_reduce",
    "reduce",
    "reduce_scatter_tensor",
    "all_gather",
    "all_gather_into_tensor",
    "broadcast",
)


@dataclass(frozen=True)
class Cost:
    """One way of taking a step."""

    way: str
    ranks: int
    step_s: float
    sent_mb: float
    peak_mb: float


class SentBytes:
    """Counts the bytes that this rank hands to every collective: of its input, which comes last."""

    def __init__(self) -> None:
        self.total = 0

    def count(self) -> None:
        """From now on in this process. DeepSpeed keeps some of the functions that it finds when it starts."""
        for name in COLLECTIVES:
            setattr(dist, name, self._counting(getattr(dist, name)))

    def _counting(self, function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            tensors = [v for v in (*args, *kwargs.values()) if isinstance(v, Tensor)]
            self.total += tensors[-1].nbytes if tensors else 0
            return function(*args, **kwargs)

        return run


def main(
    ranks: Annotated[str, typer.Option(help="Numbers of ranks.")] = "1,2",
    micro_batches: Annotated[int, typer.Option(min=1, help="Of a rank in a step.")] = 4,
    samples: Annotated[int, typer.Option(min=1, help="In a microbatch.")] = 2,
    rank: Annotated[int, typer.Option(min=1, help="Of the adapters.")] = 16,
    ways: Annotated[str, typer.Option(help=f"Some of {', '.join(WAYS)}.")] = ",".join(WAYS),
    repeats: Annotated[int, typer.Option(min=1)] = 3,
    timeout_s: Annotated[float, typer.Option(min=1, help="For all steps of one way.")] = 600,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Seconds, bytes and memory of a step of each way."""
    costs = [
        measure(way, number, (micro_batches, samples, rank, repeats), timeout_s)
        for number in map(int, ranks.split(","))
        for way in ways.split(",")
    ]
    if as_json:
        for cost in costs:
            print(json.dumps(asdict(cost)))
        return
    table = Table("way", "ranks", "s per step", "against plain", "MB sent per rank", "peak MB per rank")
    plain = {cost.ranks: cost.step_s for cost in costs if cost.way == "plain"}
    for c in costs:
        faster = f"{plain[c.ranks] / c.step_s:.2f}x" if c.ranks in plain else ""
        table.add_row(c.way, str(c.ranks), f"{c.step_s:.3f}", faster, f"{c.sent_mb:.2f}", f"{c.peak_mb:.0f}")
    Console().print(table)


def measure(way: str, world: int, sizes: tuple[int, int, int, int], timeout_s: float) -> Cost:
    """A process for each rank, fresh ones for each way, so that memory and DeepSpeed start anew.

    `sizes`: microbatches, samples of each, rank of the adapters, repeats. Raises RuntimeError with what a
    failed rank says, TimeoutError after `timeout_s`.
    """
    store = open_store("127.0.0.1", world)  # here, where it outlives a rank that fails
    arguments = [(way, rank, world, store.port, *sizes, timeout_s) for rank in range(world)]
    rows = in_processes(steps, arguments, timeout_s)
    seconds = median(max(times) for times in zip(*(row[0] for row in rows), strict=True))
    return Cost(way, world, seconds, rows[0][1], max(row[2] for row in rows))


def steps(
    way: str,
    rank: int,
    world: int,
    port: int,
    micro_batches: int,
    samples: int,
    lora: int,
    repeats: int,
    timeout_s: float,
) -> tuple[list[float], float, float]:
    """Of one rank: seconds of each step, MB sent in one, MB held at most."""
    torch.set_num_threads(1)
    device = torch.device("cpu")
    join(rank, world, device, address=("127.0.0.1", port), timeout_s=timeout_s)
    sent = SentBytes()
    sent.count()
    model = ModelConfig()
    base = load_transformer(resolve(model.path), torch.float32, "cpu")
    arch = base.architecture
    policies = with_policies(base, LoraConfig(rank=lora, alpha=lora), None, seed=0, reference="start")
    work = [
        microbatch(model, arch.in_channels, (arch.text_len, arch.text_dim), seed, samples)
        for seed in range(rank * micro_batches, (rank + 1) * micro_batches)
    ]
    context = ContextRule(model.chunk_frames, model.window_frames, model.sink_frames, model.rope)
    is_plain = way == "plain"
    engine = PlainEngine(policies) if is_plain else engine_of(policies, int(way.split()[-1]), device)
    predict, times = predictor(engine, context, model.context_timestep), list[float]()
    for number in range(repeats + 1):
        sent.total = 0
        dist.barrier()
        began = time.perf_counter()
        for place, (batch, at) in enumerate(work):
            losses = nft_step(
                predict,
                batch,
                at,
                algorithm=ALGORITHM,
                on_policy=not is_plain,
                reference_rows=range(samples),
            )
            engine.backward(losses.total.mean() / micro_batches, last=place == micro_batches - 1)
        engine.step(1e-5)
        if number:
            times.append(time.perf_counter() - began)
    return times, sent.total / 1e6, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def microbatch(
    model: ModelConfig, channels: int, text: tuple[int, int], seed: int, number: int
) -> tuple[Samples, Draw]:
    """Random samples of the model's size at one draw of noise."""
    generator = torch.Generator().manual_seed(seed)
    shape = (model.num_latent_frames, channels, model.height // 8, model.width // 8)
    batch = Samples(
        torch.randn(number, *shape, generator=generator),
        torch.randn(number, *text, generator=generator),
        torch.randn(number, generator=generator),
        torch.ones(number),
        0,
    )
    seeds = [seed * number + i for i in range(number)]
    return batch, draw(seeds, shape, noise_levels(model, ALGORITHM), 1)[0]


def engine_of(policies: nn.Module, stage: int, device: torch.device) -> Engine:
    return Engine(cast("Any", policies), LearnerConfig(zero_stage=cast("Any", stage)), device)


class PlainEngine:
    """Data parallel by hand: an all-reduce of every gradient after every microbatch."""

    def __init__(self, policies: Any) -> None:
        self.model = policies
        self._trained = list(adapter_tensors(policies, "default").values())
        self._adam = torch.optim.AdamW(self._trained, lr=1e-5, betas=(0.9, 0.999), weight_decay=1e-4)
        self._sums = [torch.zeros_like(p) for p in self._trained]

    def __call__(self, *args: Any) -> Tensor:
        return self.model(*args)

    @contextmanager
    def using(self, policy: str) -> Iterator[None]:
        if policy == "old":
            self.model.set_adapter("old", inference_mode=True)
            yield
            self.model.set_adapter("default")
            return
        with self.model.disable_adapter():
            yield

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()
        for parameter, total in zip(self._trained, self._sums, strict=True):
            assert parameter.grad is not None
            dist.all_reduce(parameter.grad)
            total += parameter.grad / dist.get_world_size()
            parameter.grad = total.clone() if last else None

    def step(self, lr: float) -> None:
        nn.utils.clip_grad_norm_(self._trained, 1.0)
        self._adam.step()
        self._adam.zero_grad()
        for total in self._sums:
            total.zero_()


if __name__ == "__main__":
    typer.run(main)
