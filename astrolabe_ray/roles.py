"""What the controller knows of the three roles: protocols, fulfilled with Ray and without it.

The controller only awaits these methods. It never touches a payload: blobs go from the role that
made them to the role that needs them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

from astrolabe_ray.errors import PayloadsLost
from astrolabe_ray.types import (
    Alarm,
    Blob,
    ControllerState,
    Evaluation,
    FrameSpec,
    PublishedPolicy,
    Rollout,
    RolloutRequest,
    Scores,
    Span,
    StepResult,
    TrainBatch,
    TrainPart,
    WeightAck,
)


class RolloutPool(Protocol):
    """Elastic set of rollout actors behind one door."""

    @property
    def capacity(self) -> int:
        """Requests that can run at the same time."""
        ...

    async def start(self) -> None: ...

    async def generate(
        self, request: RolloutRequest, *, pinned: PublishedPolicy | None = None
    ) -> list[Rollout]:
        """Run `request` on a free actor that holds the newest policy; retries what infra broke.

        `pinned`: sample with exactly this policy instead, and let requests for the newest go first.
        Raises InfraFailure when retries are used up and DataFailure for a bad input.
        """
        ...

    async def set_policy(self, policy: PublishedPolicy) -> None:
        """Make `policy` the newest; each actor takes it before its next request."""
        ...

    async def sync(self) -> list[WeightAck]:
        """Bring every idle actor to the newest policy now and return what each one holds."""
        ...

    async def probe(self, seed: int) -> list[float]:
        """Output of one actor's policy on a fixed input, to compare with the learner's."""
        ...

    async def stop(self) -> None: ...


class RewardPool(Protocol):
    """Client of the reward servers a run needs."""

    @property
    def views(self) -> tuple[FrameSpec, ...]:
        """The distinct views that the scorers need; requests must ask for exactly these."""
        ...

    async def start(self) -> None: ...

    async def score(self, rollouts: Sequence[Rollout]) -> list[Scores]:
        """Score each rollout with every scorer; one finite float per key.

        Raises InfraFailure when no server answers, PayloadsLost when the videos can't be read any more,
        DataFailure when a score is not a finite number.
        """
        ...

    async def stop(self) -> None: ...


class Learner(Protocol):
    """Owner of the weights."""

    async def start(self) -> None: ...

    async def accumulate(self, part: TrainPart) -> None:
        """Add the gradients of one group to those that the next `train` may take instead of computing them.

        Raises PayloadsLost when latents can't be read any more. Nothing of the group was added then.
        """
        ...

    async def train(self, batch: TrainBatch) -> StepResult:
        """One optimizer step on `batch`; afterwards the old policy has been mixed, too.

        Takes what was accumulated if that is exactly what `batch.streamed` says; forgets it in any case.
        Raises PayloadsLost, naming the rollouts, when latents can't be read any more. Nothing has changed
        then, and the step can be tried again with others.
        """
        ...

    async def publish(self, adapter: Literal["old", "ema"] = "old") -> PublishedPolicy:
        """The behaviour policy as of now, or the EMA policy (evaluated and saved)."""
        ...

    async def probe(self, seed: int) -> list[float]:
        """Output of the published policy on a fixed input (see `weights.probe`)."""
        ...

    async def save(self, directory: Path, controller_state: ControllerState) -> None:
        """Write a checkpoint atomically: all that a later run needs, `controller_state` included."""
        ...

    async def load(self, directory: Path) -> ControllerState:
        """Continue from a checkpoint; returns its `controller_state`."""
        ...

    async def stop(self) -> None: ...


class BlobStore(Protocol):
    """Turns a blob into its array; the only way a role reads a payload."""

    def get(self, blob: Blob) -> object: ...

    def get_all(self, blobs: Sequence[Blob]) -> list[object | PayloadsLost]:
        """Arrays in the order of `blobs`, with one time limit for all, and PayloadsLost in the place of each
        that can't be read."""
        ...


class Gallery(Protocol):
    """Looks at videos on behalf of the controller, which never holds pixels."""

    async def start(self) -> None: ...

    async def encode(self, video: Blob, *, fps: int, comment: str) -> bytes:
        """`video` uint8 [F, 3, H, W] as an mp4 file."""
        ...

    async def looks(self, videos: Sequence[Blob]) -> dict[str, float]:
        """Means over the videos of one prompt: motion, brightness, saturation."""
        ...

    async def diversity(self, videos: Sequence[Blob]) -> float:
        """Mean RMS distance between the videos of one prompt, frames in [0, 1]."""
        ...


class RunObserver(Protocol):
    """Shows a run to people: progress, one row of numbers per step, the timeline of the roles."""

    def phase(self, name: str, total: int) -> None:
        """A new phase of `total` items begins (total 0: unknown length)."""
        ...

    def advance(self, count: int = 1) -> None: ...

    def step(self, metrics: Mapping[str, float]) -> None: ...

    def evaluated(self, evaluation: Evaluation) -> None: ...

    def alarmed(self, alarm: Alarm) -> None: ...

    def note(self, text: str) -> None:
        """A line that people should see."""
        ...

    def span(self, span: Span) -> None: ...
