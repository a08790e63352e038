"""One rank's DeepSpeed engine around a PEFT model: gradients, optimizer, flat access to adapters.

The base is frozen in the config's dtype; adapters, gradients, optimizer and clipping are float32
whatever the base is (bfloat16 where `lora.dtype` asks for it), so DeepSpeed runs in its float32 mode and
casts nothing. ZeRO 0-3 differ in where things lie; every method here means the same for all of them.
A flat vector holds an adapter's tensors one after the other, in the order of `adapter_tensors`, in
host memory.
"""

from __future__ import annotations

import logging
import math
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from peft import PeftModel
from torch import Tensor, nn

from astrolabe_ray.config.memory import LARGEST_BUCKET
from astrolabe_ray.config.schema import LearnerConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.lora import adapter_tensors

AdapterName = Literal["default", "old", "reference"]
MOMENTS = ("exp_avg", "exp_avg_sq")


class Engine:
    """Trains the adapter `default` of `model`; those beside it are written to and never trained.

    All ranks must call every method, in the same order. Needs a process group (`process_group.join`).
    """

    def __init__(self, model: PeftModel, config: LearnerConfig, device: torch.device) -> None:
        self.model, self.device, self.stage = model, device, config.zero_stage
        self._tensors = {name: adapter_tensors(model, name) for name in model.peft_config}
        self._shapes = {name: p.shape for name, p in self._tensors["default"].items()}
        self._numels = [shape.numel() for shape in self._shapes.values()]
        optimizer = torch.optim.AdamW(
            list(self._tensors["default"].values()),
            lr=config.lr,
            betas=config.adam_betas,
            eps=config.adam_eps,
            weight_decay=config.weight_decay,
            fused=device.type == "cuda" and not config.offload_optimizer,
        )
        self._engine: Any = _initialize(model, optimizer, config, device)
        self._adam = optimizer
        self._create_adam_state()

    def __call__(self, *args: Any, **kwargs: Any) -> Tensor:
        """The forward whose result `backward` may be called on."""
        return self._engine(*args, **kwargs)

    def backward(self, loss: Tensor, *, last: bool) -> None:
        """Add the gradients of the scalar `loss`; `last` marks the last call before `step`.

        Gradients are averaged over the ranks: scale a rank's loss by their number for a sum.
        """
        self._engine.set_gradient_accumulation_boundary(last)
        self._engine.backward(loss)
        if not last:
            self._engine.step()  # moves on to the next microbatch; updates nothing

    def gradient(self, loss: Tensor, *, keep_graph: bool = False) -> list[Tensor]:
        """Gradient of the scalar `loss` on this rank, tensor by tensor; nothing is added up or reduced.

        `loss` must come from a forward of `model`, not of the engine. Not under ZeRO 3.
        """
        params = self._params("default")
        found = torch.autograd.grad(loss, params, retain_graph=keep_graph, allow_unused=True)
        pairs = zip(params, found, strict=True)
        return [torch.zeros_like(p) if gradient is None else gradient for p, gradient in pairs]

    def take_gradients(self, gradients: Sequence[Tensor]) -> None:
        """As the last `backward`, of a loss with these gradients on this rank. Not under ZeRO 3."""
        pairs = zip(self._params("default"), gradients, strict=True)
        loss = torch.stack([(param * gradient).sum() for param, gradient in pairs]).sum()
        self._engine.set_gradient_accumulation_boundary(True)
        self._engine.backward(loss)

    def gradients(self) -> Iterator[tuple[str, Tensor]]:
        """Each tensor's gradient over all ranks, not clipped; between the last `backward` and `step`.

        Zero, without its shape, for a tensor that the loss does not depend on.
        """
        from deepspeed.utils import safe_get_full_grad

        for name, param in self._tensors["default"].items():
            gradient = param.grad if self.stage == 0 else safe_get_full_grad(param)
            yield name, torch.zeros((), device=self.device) if gradient is None else gradient

    def step(self, lr: float) -> float | None:
        """Clip and update. Returns the gradient norm before clipping, or None if it was not finite
        and nothing was changed."""
        for group in self._adam.param_groups:
            group["lr"] = lr
        if self.stage == 0:
            return self._step_without_zero()
        self._engine.step()
        return None if self._engine.optimizer.overflow else float(self._engine.get_global_grad_norm())

    def _step_without_zero(self) -> float | None:
        """ZeRO 0 has no check of its own: look at the gradients, which are averaged by now, first."""
        norm = float(nn.utils.get_total_norm([p.grad for p in self._params("default") if p.grad is not None]))
        if math.isfinite(norm):
            self._engine.step()
            return norm
        self._engine.zero_grad()
        return None

    @torch.no_grad()
    def read(self, name: AdapterName) -> Tensor:
        """Copy of an adapter as a flat float32 vector in host memory."""
        flat = torch.empty(sum(self._numels))
        with self._whole(name):
            for param, piece in zip(self._params(name), flat.split(self._numels), strict=True):
                piece.copy_(param.flatten())
        return flat

    @torch.no_grad()
    def write(self, name: AdapterName, flat: Tensor) -> None:
        """Copy `flat` into an adapter in place; the optimizer's own copy of `default` follows.

        Raises ValueError when `flat` has another size.
        """
        if flat.numel() != sum(self._numels):
            raise ValueError(f"adapter {name} has {sum(self._numels)} numbers, got {flat.numel()}")
        with self._whole(name, modify=True):
            for param, value in zip(self._params(name), flat.split(self._numels), strict=True):
                param.copy_(value.view_as(param))
        if name == "default" and self.stage > 0:
            self._engine.optimizer.refresh_fp32_params()

    def named(self, flat: Tensor) -> dict[str, Tensor]:
        """Views of a flat vector by tensor name, in the published order and shapes."""
        pieces = zip(self._shapes.items(), flat.split(self._numels), strict=True)
        return {name: piece.view(shape) for (name, shape), piece in pieces}

    def flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """Inverse of `named`. Raises ConfigError when names or shapes are not this adapter's."""
        found = {name: tensor.shape for name, tensor in tensors.items()}
        if found != self._shapes:
            odd = sorted(
                name for name in {*found, *self._shapes} if found.get(name) != self._shapes.get(name)
            )[0]
            raise ConfigError(
                f"the adapter's {odd} is {found.get(odd, 'missing')}, this model's is "
                f"{self._shapes.get(odd, 'missing')}; use the lora.rank and model it was trained with."
            )
        return torch.cat([tensors[name].flatten().float() for name in self._shapes])

    def optimizer_state(self) -> tuple[dict[str, Tensor], int]:
        """Adam's moments as flat vectors of the whole adapter, and its number of updates.

        Independent of the number of ranks and of the ZeRO stage.
        """
        moments = {
            key: torch.cat([self._moment(p, key).cpu() for p in self._params("default")]) for key in MOMENTS
        }
        return moments, int(next(iter(self._adam.state.values()))["step"])

    def load_optimizer_state(self, moments: dict[str, Tensor], num_updates: int) -> None:
        """Inverse of `optimizer_state`."""
        from deepspeed.utils import safe_set_full_optimizer_state

        for key in MOMENTS:
            pieces = moments[key].split(self._numels)
            for param, piece in zip(self._params("default"), pieces, strict=True):
                if self.stage == 0:
                    self._adam.state[param][key].copy_(piece.view_as(param))
                else:
                    safe_set_full_optimizer_state(param, piece.to(self.device), key)
        for state in self._adam.state.values():
            state["step"].fill_(float(num_updates))

    @contextmanager
    def using(self, policy: Literal["old", "reference"]) -> Iterator[None]:
        """Inside, `model` is the behaviour policy or the reference: its adapter if there is one, else the
        base without adapters. Only for forwards without gradients, and not between a forward of `default`
        and its backward."""
        tuner: Any = (
            self.model.base_model
        )  # `model.disable_adapter()` first walks all modules to look at them
        is_bare = policy not in self.model.peft_config
        if is_bare:
            tuner.disable_adapter_layers()
        else:
            self.model.set_adapter(policy, inference_mode=True)
        try:
            yield
        finally:
            if is_bare:
                tuner.enable_adapter_layers()
            else:
                self.model.set_adapter("default")

    def _moment(self, param: Tensor, key: str) -> Tensor:
        from deepspeed.utils import safe_get_full_optimizer_state

        if self.stage == 0:
            return self._adam.state[param][key].flatten().float()
        moment = safe_get_full_optimizer_state(param, key)
        assert moment is not None, "a trained parameter has moments"
        return moment.flatten()

    def _create_adam_state(self) -> None:
        """Adam's zeros from the start on, so that saving and loading before an update are no special case."""
        zero = self._engine.optimizer
        if self.stage == 0:
            owned = self._params("default")
        elif self.stage == 3:
            owned = zero.fp32_partitioned_groups_flat
        else:
            owned = zero.single_partition_of_fp32_groups
        for part in owned:
            self._adam.state[part] = adam_zeros(part, fused=self._adam.defaults["fused"])
        if self.stage in (1, 2):
            zero._lazy_init_hp_params_optimizer_state()  # lets `safe_*_optimizer_state` find them

    def _params(self, name: AdapterName) -> list[Tensor]:
        return list(self._tensors[name].values())

    @contextmanager
    def _whole(self, name: AdapterName, *, modify: bool = False) -> Iterator[None]:
        """Under ZeRO 3 a rank holds a part of each parameter; inside, it holds all of it."""
        if self.stage < 3:
            yield
            return
        from deepspeed.runtime.zero import GatheredParameters

        with GatheredParameters(self._params(name), modifier_rank=0 if modify else None):
            yield


def adam_zeros(param: Tensor, *, fused: bool) -> dict[str, Tensor]:
    """What torch's AdamW holds of a parameter before the first update.

    A fused update reads the number of updates on the parameter's device, others on the host.
    """
    zeros = {key: torch.zeros_like(param, requires_grad=False) for key in MOMENTS}
    return {"step": torch.zeros((), device=param.device if fused else "cpu"), **zeros}


def _initialize(
    model: nn.Module, optimizer: torch.optim.Optimizer, config: LearnerConfig, device: torch.device
):
    """DeepSpeed's engine for the trainable parameters of `model`."""
    if device.type == "cpu":
        os.environ["DS_ACCELERATOR"] = "cpu"
    import deepspeed
    import deepspeed.ops

    logging.getLogger("DeepSpeed").setLevel(logging.WARNING)
    if device.type == "cpu":  # else it compiles an all-reduce through shared memory, which needs ninja
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    num_trained = sum(p.numel() for group in optimizer.param_groups for p in group["params"])
    offload = {"offload_optimizer": {"device": "cpu"}} if config.offload_optimizer else {}
    settings = {
        "train_micro_batch_size_per_gpu": 1,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": config.max_grad_norm,
        "zero_optimization": {
            "stage": config.zero_stage,
            "reduce_bucket_size": min(num_trained, LARGEST_BUCKET),  # reserved whatever is in it
        }
        | offload,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
        "steps_per_print": 2**31,
    }
    with _without_dynamo():
        engine, *_ = deepspeed.initialize(model=model, optimizer=optimizer, config=settings)
    return engine


@contextmanager
def _without_dynamo() -> Iterator[None]:
    """DeepSpeed imports its Muon optimizer to see that ours is another one, and that import compiles
    kernels for two seconds; with dynamo off it takes none."""
    before = os.environ.get("TORCHDYNAMO_DISABLE")
    os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        yield
    finally:
        if before is None:
            del os.environ["TORCHDYNAMO_DISABLE"]
        else:
            os.environ["TORCHDYNAMO_DISABLE"] = before
