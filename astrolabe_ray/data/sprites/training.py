"""The loop that all embedded models are trained with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from torch import Tensor, nn


class Trainer:
    """Adam with a short warm-up and a linear fall to zero, and an average of the weights.

    After `run` the modules hold the averaged weights.
    """

    def __init__(
        self, title: str, modules: Sequence[nn.Module], *, lr: float, ema_decay: float = 0.0
    ) -> None:
        self.title, self.lr, self.ema_decay = title, lr, ema_decay
        self.params = [p for module in modules for p in module.parameters() if p.requires_grad]

    def run(self, loss: Callable[[], Tensor], *, num_steps: int) -> None:
        """`num_steps` updates on what `loss` returns."""
        optimizer = torch.optim.AdamW(self.params, lr=self.lr, betas=(0.9, 0.99), weight_decay=0.0)
        average = [p.detach().clone() for p in self.params]
        with _progress() as progress:
            bar = progress.add_task(self.title, total=num_steps, loss=float("nan"))
            for step in range(num_steps):
                factor = min(1.0, (step + 1) / 50) * (1 - step / num_steps)
                optimizer.param_groups[0]["lr"] = self.lr * factor
                value = loss()
                optimizer.zero_grad()
                value.backward()
                nn.utils.clip_grad_norm_(self.params, 1.0)
                optimizer.step()
                decay = min(self.ema_decay, step / (step + 10))
                for mean, param in zip(average, self.params, strict=True):
                    mean.lerp_(param.detach(), 1 - decay)
                progress.update(bar, advance=1, loss=float(value.detach()))
        with torch.no_grad():
            for mean, param in zip(average, self.params, strict=True):
                param.copy_(mean)


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:>14}"),
        BarColumn(),
        TextColumn("step {task.completed}/{task.total}  loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
