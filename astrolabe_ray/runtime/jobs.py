"""How a run is asked to stop: SIGTERM and Ctrl-C become an event, so that it can save and exit 0.

`ray job stop` sends SIGTERM to the driver and all its children, and SIGKILL when they are still
there after a grace of 3 s. A step in progress is finished first, which may take longer: submit with
`--runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}'` (Ray reads it in the job's
own supervisor). Between steps saving starts at once.
"""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

DEFAULT_STOP_GRACE_S = 3
"""Ray's own default of RAY_JOB_STOP_WAIT_TIME_S."""
ENOUGH_GRACE_S = 60
"""From here on nobody is told that it is short."""


def stop_grace_s() -> int | None:
    """Seconds between SIGTERM and SIGKILL of `ray job stop`; None outside of a Ray job."""
    if "RAY_JOB_CONFIG_JSON_ENV_VAR" not in os.environ:
        return None
    return int(os.environ.get("RAY_JOB_STOP_WAIT_TIME_S", DEFAULT_STOP_GRACE_S))


def job_notes(log_dir: str) -> list[str]:
    """What whoever submitted this as a Ray job should know; nothing outside of a job."""
    grace, notes = stop_grace_s(), []
    if grace is None:
        return notes
    if not Path(log_dir).is_absolute():
        notes.append(
            "inside a Ray job this folder is a temporary copy; submit with an absolute "
            "--config.logging.log_dir"
        )
    if grace < ENOUGH_GRACE_S:
        notes.append(
            f"`ray job stop` kills this job after {grace} s; for time to end the step and to save, "
            'submit with --runtime-env-json \'{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "600"}}\''
        )
    return notes


@contextmanager
def stop_on_signals() -> Iterator[asyncio.Event]:
    """An event of the running loop that the first SIGTERM or SIGINT sets.

    A second SIGINT interrupts as usual; further SIGTERMs change nothing. Enter after `ray.init`,
    which installs a SIGTERM handler of its own that would end the run at once; it is put back at exit.
    """
    loop, event = asyncio.get_running_loop(), asyncio.Event()
    previous = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}

    def asked_to_stop(number: signal.Signals) -> None:
        event.set()
        if number == signal.SIGINT:
            loop.remove_signal_handler(number)
            signal.signal(number, signal.default_int_handler)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked_to_stop, number)
    try:
        yield event
    finally:
        for number, handler in previous.items():
            loop.remove_signal_handler(number)
            signal.signal(number, handler)
