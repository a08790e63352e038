"""What an error of Ray means for us: try elsewhere, or stop."""

from __future__ import annotations

import asyncio

from ray import exceptions as rx

from astrolabe_ray.errors import AstrolabeError, InfraFailure

INFRA_ERRORS = (
    rx.RayActorError,  # died or unavailable
    rx.WorkerCrashedError,
    rx.NodeDiedError,
    rx.LocalRayletDiedError,
    rx.OutOfMemoryError,  # a worker was killed to save its node
    rx.ObjectStoreFullError,
    rx.OutOfDiskError,
    rx.ObjectLostError,  # and its children: the owner died, a fetch timed out
    rx.TaskPlacementGroupRemoved,
    rx.ActorPlacementGroupRemoved,
    rx.ActorUnschedulableError,
    rx.RpcError,
    rx.GetTimeoutError,
    asyncio.TimeoutError,
    TimeoutError,
)
GPU_FAULTS = ("CUDA error", "cuDNN error")
"""What torch says, in a RuntimeError, when a GPU or its driver failed (ECC, Xid, a lost device). The process
is of no use afterwards, another one may be."""


def as_failure(error: BaseException, doing: str) -> BaseException:
    """What to raise for `error`, which came out of a Ray task or a timeout while `doing` something.

    Our own errors come back as they were raised in the task, deaths, timeouts and faults of a GPU as
    InfraFailure, everything else unchanged: it is a fault in the program and should be seen with its
    traceback.
    """
    cause = error.cause if isinstance(error, rx.RayTaskError) else error
    if isinstance(cause, AstrolabeError):
        return cause
    if isinstance(cause, INFRA_ERRORS) or _is_gpu_fault(cause):
        said = " ".join(str(cause).split()) or "no answer in time"
        return InfraFailure(f"{doing}: {type(cause).__name__}: {said}")
    return error


def _is_gpu_fault(error: BaseException) -> bool:
    return isinstance(error, RuntimeError) and any(words in str(error) for words in GPU_FAULTS)
