"""Checkpoints of the first Astrolabe release: what can be taken from one, and what not.

`astrolabe_ray.models.first_release` has their files. Their LoRA is the EMA of the trained policy.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from astrolabe_ray.algorithms.lagging_reference import LaggingReference
from astrolabe_ray.checkpoint_folders import step_of
from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.lora_files import read_lora
from astrolabe_ray.models.weight_files import read_pickled
from astrolabe_ray.types import PolicyVersion
from learner.state_files import LearnerState

MOMENTS = ("exp_avg", "exp_avg_sq")
NOT_THERE = (
    "not in such a file, and begun anew: the trained weights before their average, the behaviour policy, the "
    "average's own history, the reference that moves and the share of penalised samples, the place in the "
    "prompts (it follows from the step), metrics, evaluations and the W&B run"
)


def read_seed_state(
    folder: Path,
    lora: LoraConfig,
    *,
    flat: Callable[[Mapping[str, Tensor]], Tensor],
    fresh: dict[str, Tensor],
    reference: Callable[[Tensor], tuple[Tensor, LaggingReference] | None],
) -> LearnerState:
    """Its average as all policies, and Adam's moments where they fit; `controller["notes"]` tell people.

    `flat` joins named tensors and raises ConfigError if they are not this model's. `fresh`: moments of an
    Adam that begins anew. `reference`: of the KL penalty, for a policy to start from.
    """
    read = read_lora(folder)
    if (read.rank, read.alpha) != (lora.rank, lora.alpha):
        raise ConfigError(
            f"checkpoint.resume {folder} has a LoRA of rank {read.rank} and alpha {read.alpha:g}, but "
            f"lora.rank is {lora.rank} and lora.alpha {lora.alpha}. Use --config.lora.rank={read.rank} "
            f"--config.lora.alpha={read.alpha:g}."
        )
    policy, step = flat(read.tensors), step_of(folder)
    found = _optimizer(folder / "optimizer.pt", read.tensors)
    if isinstance(found, str):
        moments, num_updates = fresh, 0
        told = f"not taken: optimizer.pt ({found}); Adam begins anew"
    else:
        states, num_updates = found
        moments = {key: flat({name: state[key] for name, state in states.items()}) for key in MOMENTS}
        told = f"taken: optimizer.pt, Adam's moments after {num_updates} updates"
    notes = [
        f"{folder} is a checkpoint of the first Astrolabe release, step {step}",
        f"taken: the LoRA of rank {read.rank} as trained, behaviour and EMA policy",
        told,
        NOT_THERE,
    ]
    return LearnerState(
        version=PolicyVersion(step=step),
        default=policy,
        ema=policy.clone(),
        ring=((step, policy),),
        old_is_default=True,
        moments=moments,
        num_updates=num_updates,
        num_skipped=0,
        skips_in_a_row=0,
        probe=None,
        reference_probe=None,
        reference=reference(policy),
        controller={"first_release_step": step, "notes": notes},
    )


def _optimizer(file: Path, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Mapping[str, Any]], int] | str:
    """Adam's state by tensor name and its number of updates, or why it can't be taken.

    Parameters are numbered in the order of the model, which is that of the adapter's file.
    """
    if not file.exists():
        return "there is none"
    loaded = read_pickled(file)
    try:
        numbers = [number for group in loaded["param_groups"] for number in group["params"]]
        states = [loaded["state"][number] for number in numbers]
        shapes = [{key: state[key].shape for key in MOMENTS} for state in states]
        updates = {int(state["step"]) for state in states}
    except (KeyError, TypeError, AttributeError) as odd:
        return f"it is not the state of an AdamW that has made a step: {odd!r}"
    if len(states) != len(tensors):
        return f"it has {len(states)} parameters, the LoRA has {len(tensors)}"
    misfit = _misfit(shapes, tensors)
    if misfit is not None:
        return misfit
    if len(updates) != 1:
        return f"its parameters have made {sorted(updates)} updates"
    return dict(zip(tensors, states, strict=True)), updates.pop()


def _misfit(shapes: Sequence[Mapping[str, Any]], tensors: Mapping[str, Tensor]) -> str | None:
    for (name, tensor), found in zip(tensors.items(), shapes, strict=True):
        for key, shape in found.items():
            if shape != tensor.shape:
                return f"its {key} of {name} is {list(shape)}, the LoRA's tensor is {list(tensor.shape)}"
    return None
