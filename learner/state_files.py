"""What a learner must remember to continue as if it had never stopped, and how it lies in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from safetensors.torch import load_file, save_file
from torch import Tensor

from astrolabe_ray.algorithms.lagging_reference import LaggingReference
from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.lora_files import Lora, write_lora
from astrolabe_ray.types import ControllerState, PolicyVersion

Named = Callable[[Tensor], dict[str, Tensor]]
"""Views of a flat vector by tensor name."""


@dataclass(frozen=True)
class LearnerState:
    """Flat vectors as in `engine`; nothing depends on the number of ranks or on the ZeRO stage."""

    version: PolicyVersion
    default: Tensor
    ema: Tensor
    ring: tuple[tuple[int, Tensor], ...]  # (step, behaviour policy), oldest first
    old_is_default: bool  # the newest behaviour policy has bitwise the weights of `default`
    moments: dict[str, Tensor]  # of Adam
    num_updates: int  # that Adam has made; less than the step if some were skipped
    num_skipped: int  # updates left out because a gradient was not finite
    skips_in_a_row: int
    probe: list[float] | None  # output of `default`, which tells another base model; None: not known
    reference_probe: list[float] | None  # output of the reference policy, which tells another initial LoRA
    reference: tuple[Tensor, LaggingReference] | None  # of a reference that moves
    controller: ControllerState


def write_state(state: LearnerState, folder: Path, *, named: Named, lora: LoraConfig) -> None:
    """Write everything but the manifest."""
    for name in ("lora", "adapters", "learner"):
        (folder / name).mkdir()
    write_lora(Lora(named(state.ema), lora.rank, lora.alpha), folder / "lora")
    *earlier, (_, newest) = state.ring
    flats = {"default": state.default, "ema": state.ema, "old": newest} | {
        f"old-{step}": f for step, f in earlier
    }
    if state.reference is not None:
        flats["reference"] = state.reference[0]
    for name, flat in flats.items():
        save_file(named(flat), folder / "adapters" / f"{name}.safetensors")
    save_file(state.moments, folder / "learner" / "optimizer.safetensors")
    facts = {
        "step": state.version.step,
        "incarnation": state.version.incarnation,
        "earlier_steps": [step for step, _ in earlier],
        "newest_step": state.ring[-1][0],
        "old_is_default": state.old_is_default,
        "num_updates": state.num_updates,
        "num_skipped": state.num_skipped,
        "skips_in_a_row": state.skips_in_a_row,
        "probe": state.probe,
        "reference_probe": state.reference_probe,
        "reference": None if state.reference is None else asdict(state.reference[1]),
        "controller": state.controller,
    }
    (folder / "state.json").write_text(json.dumps(facts, indent=1))


def read_state(folder: Path, *, flat: Callable[[Mapping[str, Tensor]], Tensor]) -> LearnerState:
    """Inverse of `write_state`; `flat` joins named tensors. Raises ConfigError for missing files."""

    def adapter(name: str) -> Tensor:
        return flat(load_file(folder / "adapters" / f"{name}.safetensors"))

    try:
        facts = json.loads((folder / "state.json").read_text())
        earlier = [(step, adapter(f"old-{step}")) for step in facts["earlier_steps"]]
        lagging = facts["reference"]
        return LearnerState(
            version=PolicyVersion(facts["incarnation"], facts["step"]),
            default=adapter("default"),
            ema=adapter("ema"),
            ring=(*earlier, (facts["newest_step"], adapter("old"))),
            old_is_default=facts["old_is_default"],
            moments=load_file(folder / "learner" / "optimizer.safetensors"),
            num_updates=facts["num_updates"],
            num_skipped=facts.get("num_skipped", 0),  # checkpoints of the first version did not tell
            skips_in_a_row=facts.get("skips_in_a_row", 0),
            probe=facts["probe"],
            reference_probe=facts["reference_probe"],
            reference=None if lagging is None else (adapter("reference"), LaggingReference(**lagging)),
            controller=facts["controller"],
        )
    except (FileNotFoundError, KeyError) as missing:
        raise ConfigError(f"{folder} is not a checkpoint of this project: {missing} is missing.") from None
