"""Packing and unpacking of published weights, and every way in which a buffer can be wrong."""

from __future__ import annotations

import dataclasses
import hashlib

import numpy as np
import pytest
import torch

from astrolabe_ray.errors import WeightMismatch
from astrolabe_ray.types import PolicyVersion
from astrolabe_ray.weights.manifest import require_same_tensors
from astrolabe_ray.weights.pack import pack, unpack

TENSORS = {
    "blocks.0.q.lora_A": torch.arange(6.0).reshape(2, 3),
    "blocks.0.q.lora_B": torch.tensor([1.0, -2.5, 3.0], dtype=torch.bfloat16),  # 6 bytes: padding follows
    "blocks.1.q.lora_A": torch.tensor([[float("nan"), float("inf")]]),
}


def packed():
    return pack(TENSORS, version=PolicyVersion(1, 7), lora_scale=0.5)


def test_what_is_unpacked_is_bitwise_what_was_packed() -> None:
    """Order, shapes, dtypes and bits, NaN included."""
    manifest, buffer = packed()
    got = unpack(manifest, buffer)
    assert list(got) == list(TENSORS)
    for name, tensor in TENSORS.items():
        assert got[name].dtype == tensor.dtype
        assert got[name].contiguous().view(torch.uint8).tolist() == tensor.view(torch.uint8).tolist()
    assert (manifest.version, manifest.lora_scale) == (PolicyVersion(1, 7), 0.5)


def test_the_buffer_is_laid_out_as_its_manifest_says() -> None:
    """Worked out by hand: 24 bytes, padded to 32; 6 bytes, padded to 48; 8 bytes, padded to 64."""
    manifest, buffer = packed()
    assert [(e.offset, e.num_bytes) for e in manifest.tensors] == [
        (0, 24),
        (32, 6),
        (48, 8),
    ]
    assert buffer.dtype == np.uint8 and buffer.nbytes == manifest.num_bytes == 64
    assert buffer[:24].view(np.float32).tolist() == [0, 1, 2, 3, 4, 5]
    assert manifest.checksum == hashlib.sha256(buffer.tobytes()).hexdigest()


def test_unpacked_tensors_share_the_buffers_memory() -> None:
    """A copy of 1.4 GB for each actor of a node would defeat the object store."""
    manifest, buffer = packed()
    assert unpack(manifest, buffer)["blocks.0.q.lora_A"].data_ptr() == buffer.ctypes.data


def test_a_read_only_buffer_unpacks_without_a_warning(recwarn) -> None:
    """Arrays out of the object store are read-only; torch warns once a process about them."""
    manifest, buffer = packed()
    buffer.flags.writeable = False
    assert unpack(manifest, buffer)["blocks.0.q.lora_A"].sum() == 15
    assert not recwarn.list


@pytest.mark.parametrize("position", [0, 33, 63])
def test_one_flipped_bit_is_noticed(position) -> None:
    """Also in the padding: the checksum covers the whole buffer."""
    manifest, buffer = packed()
    buffer[position] ^= 1
    with pytest.raises(WeightMismatch, match="sha256"):
        unpack(manifest, buffer)


def test_a_truncated_buffer_is_refused() -> None:
    """A view past the end would read foreign memory."""
    manifest, buffer = packed()
    with pytest.raises(WeightMismatch, match="48 bytes arrived, 64"):
        unpack(manifest, buffer[:48].copy())


def test_a_buffer_of_another_dtype_is_refused() -> None:
    """float32 would be read as bytes."""
    manifest, buffer = packed()
    with pytest.raises(WeightMismatch, match="flat uint8"):
        unpack(manifest, buffer.view(np.float32))


@pytest.mark.parametrize(
    "change",
    [
        {"offset": 8},
        {"offset": 64},
        {"shape": (3, 3)},
        {"dtype": "float64"},
        {"num_bytes": 20},
    ],
)
def test_an_entry_that_does_not_fit_is_refused(change) -> None:
    """A manifest from elsewhere must not make tensors overlap or leave the buffer."""
    manifest, buffer = packed()
    first, *rest = manifest.tensors
    bad = dataclasses.replace(manifest, tensors=(dataclasses.replace(first, **change), *rest))
    with pytest.raises(WeightMismatch, match="does not fit"):
        unpack(bad, buffer)


def test_publishing_nothing_is_an_error_at_both_ends() -> None:
    """A sync of zero adapters looks exactly like a policy that never improves."""
    with pytest.raises(ValueError, match="no adapter"):
        pack({}, version=PolicyVersion(), lora_scale=1.0)
    manifest, buffer = packed()
    with pytest.raises(WeightMismatch, match="no tensors"):
        unpack(dataclasses.replace(manifest, tensors=()), buffer)


def test_a_receiver_with_other_tensors_is_told_which() -> None:
    """Half an adapter loaded without complaint is worse than none."""
    manifest, _ = packed()
    require_same_tensors(manifest, TENSORS)
    fewer = dict(list(TENSORS.items())[:2])
    with pytest.raises(WeightMismatch, match=r"blocks.1.q.lora_A is published but unknown here"):
        require_same_tensors(manifest, fewer)
    with pytest.raises(WeightMismatch, match=r"extra is expected here but not published"):
        require_same_tensors(manifest, {**TENSORS, "extra": torch.zeros(1)})
    with pytest.raises(WeightMismatch, match=r"\(2, 3\), here it is \(3, 2\)"):
        require_same_tensors(manifest, {**TENSORS, "blocks.0.q.lora_A": torch.zeros(3, 2)})


def test_float64_weights_are_refused() -> None:
    """The wire format has two dtypes; a silent cast would change the checksum's meaning."""
    with pytest.raises(ValueError, match="float64"):
        pack(
            {"a": torch.zeros(1, dtype=torch.float64)},
            version=PolicyVersion(),
            lora_scale=1.0,
        )
