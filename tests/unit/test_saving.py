"""Where checkpoints are written: what the file system can do to them, said in one line."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError

from astrolabe_ray.config.schema import LoraConfig
from astrolabe_ray.errors import AstrolabeError, ConfigError
from astrolabe_ray.types import PolicyVersion
from learner.saving import save_checkpoint
from learner.shared_folder import leave_mark, require_seen
from learner.state_files import LearnerState


def state(step: int) -> LearnerState:
    flat = torch.zeros(2)
    return LearnerState(
        version=PolicyVersion(0, step),
        default=flat,
        ema=flat,
        ring=((step, flat),),
        old_is_default=True,
        moments={"exp_avg": flat},
        num_updates=step,
        num_skipped=0,
        skips_in_a_row=0,
        probe=[0.0],
        reference_probe=[0.0],
        reference=None,
        controller={},
    )


def named(flat: torch.Tensor) -> dict[str, torch.Tensor]:
    return {"blocks.0.ffn.0.lora_A": flat[:1].view(1, 1), "blocks.0.ffn.0.lora_B": flat[1:].view(1, 1)}


def save(directory: Path, step: int = 1, names=named) -> None:
    save_checkpoint(state(step), directory, named=names, lora=LoraConfig(rank=1, alpha=1))


@pytest.mark.parametrize("reason", [OSError(28, "No space left on device"), SafetensorError("I/O error")])
def test_a_checkpoint_that_cannot_be_written_names_its_folder_and_the_reason(
    tmp_path: Path, reason: Exception
) -> None:
    """A page of traceback out of another process at the end of a run of days."""

    def full(flat: torch.Tensor) -> dict[str, torch.Tensor]:
        raise reason

    with pytest.raises(AstrolabeError) as caught:
        save(tmp_path / "checkpoint-1", names=full)
    assert type(caught.value) is AstrolabeError, "the same work would fail elsewhere, too"
    assert f"checkpoint {tmp_path / 'checkpoint-1'} can't be written: {reason}. " in str(caught.value)
    assert list(tmp_path.iterdir()) == []


async def test_a_file_that_appears_late_is_seen(tmp_path: Path) -> None:
    """NFS shows other nodes' files after seconds, in folders that are new, too."""
    late = tmp_path / "checkpoint-1" / "manifest.json"

    def write() -> None:
        late.parent.mkdir()
        leave_mark(late)

    timer = threading.Timer(0.2, write)
    timer.start()
    await asyncio.wait_for(require_seen(late), 10)
    timer.join()


def test_a_folder_that_is_not_on_the_rank_s_node_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"away is not the same folder .*log_dir"):
        leave_mark(tmp_path / "away" / ".mark")
    assert not (tmp_path / "away").exists(), "one that is made there would be another one"
