"""One run on Ray: connect, look for room, record, train, report. Imports Ray, so it comes last."""

from __future__ import annotations

import asyncio
import traceback
from pathlib import Path

import ray
import typer

from astrolabe_ray.cli.wiring import Wiring
from astrolabe_ray.config.memory import object_store_need
from astrolabe_ray.config.plan import Plan
from astrolabe_ray.config.schema import RunConfig
from astrolabe_ray.errors import AstrolabeError
from astrolabe_ray.metrics.console import RunConsole
from astrolabe_ray.metrics.recorder import MetricsSink, RunRecorder
from astrolabe_ray.metrics.wandb_sink import WandbSink
from astrolabe_ray.report.continued import WANDB_ID, Earlier, take_over
from astrolabe_ray.report.environment import environment
from astrolabe_ray.report.page import build_report
from astrolabe_ray.report.run_dir import RunDir, write_bytes, write_json
from astrolabe_ray.report.summary import summarise
from astrolabe_ray.run import run_training
from astrolabe_ray.runtime.cluster import connect
from astrolabe_ray.runtime.jobs import job_notes, stop_on_signals
from astrolabe_ray.runtime.preflight import cluster_room, require_one_checkout, require_room
from astrolabe_ray.runtime.ray_metrics import RayMetrics
from astrolabe_ray.types import ControllerState


def run_on_ray(config: RunConfig, plan: Plan, wiring: Wiring, resume_from: Path | None) -> RunDir:
    """Train on the cluster that the config names; returns the folder of the run.

    Raises ConfigError, with no Ray actor started, for a mixed installation or a cluster without room.
    """
    require_one_checkout()
    cluster = connect(config.cluster, min_cpus=plan.num_cpus)
    try:
        _require_room(config, plan, wiring)
        run_dir = RunDir.create(config.logging.log_dir, config.model.base_model, config.name)
        typer.echo(f"{'folder':>10}  {run_dir.path}")
        typer.echo(f"{'cluster':>10}  {cluster.address}, dashboard {cluster.dashboard_url or 'off'}")
        for note in job_notes(config.logging.log_dir):
            typer.echo(f"{'note':>10}  {note}")
        if resume_from is not None:
            typer.echo(f"{'resume':>10}  {resume_from}")
        asyncio.run(_record(config, wiring, run_dir, resume_from))
    finally:
        ray.shutdown()
    return run_dir


def _require_room(config: RunConfig, plan: Plan, wiring: Wiring) -> None:
    """Reward servers that run already need no more room."""
    running = wiring.running_rewards(config.rewards)
    needs = [need for need in plan.needs if need.reward is None or need.reward not in running]
    require_room(needs, object_store_need(config, plan), *cluster_room())


async def _record(config: RunConfig, wiring: Wiring, run_dir: RunDir, resume_from: Path | None) -> None:
    """Run, with everything that it tells going to its folder; the page is written in any case.

    Where an error came from goes there, too: people are told its message only. Signals are caught from here
    on, since loading the roles takes seconds.
    """
    write_json(run_dir.config, config.model_dump(mode="json"))
    try:
        with stop_on_signals() as stop, RunConsole() as console:
            write_json(run_dir.environment, environment())
            earlier = take_over(resume_from, run_dir) if resume_from is not None else Earlier()
            roles = wiring.make_roles(config)
            sinks, notes = _sinks(config, run_dir, earlier)
            recorder = RunRecorder(run_dir, console, sinks, earlier.evaluations)
            try:
                outcome = await run_training(
                    config,
                    roles,
                    run_dir,
                    recorder,
                    stop,
                    resume_from=resume_from,
                    earlier=earlier.evaluations,
                    notes=notes,
                )
            finally:
                recorder.close()
        write_json(run_dir.summary, summarise(outcome))
        if outcome.stopped_by is not None:
            typer.echo(f"Ended by health.stop_on: {outcome.stopped_by}. The last checkpoint is saved.")
        elif outcome.stopped_early:
            typer.echo("Stopped as asked. To go on: the same command with --config.checkpoint.resume=auto")
    except BaseException as error:
        if isinstance(error, AstrolabeError):
            write_bytes(run_dir.failure, traceback.format_exc().encode())
            typer.echo(f"Failure: {run_dir.failure}")
        _report_failed_run(run_dir)
        raise
    typer.echo(f"Report: {build_report(run_dir)}")


def _report_failed_run(run_dir: RunDir) -> None:
    """The page, unless the fault is in what it is made of: what ended the run is more important."""
    try:
        typer.echo(f"Report: {build_report(run_dir)}")
    except (OSError, ValueError, KeyError, TypeError) as reason:
        typer.echo(f"no report: {reason!r}")


def _sinks(config: RunConfig, run_dir: RunDir, earlier: Earlier) -> tuple[list[MetricsSink], ControllerState]:
    """Who else is told the numbers of a run, and what its checkpoints say of them."""
    sinks: list[MetricsSink] = [RayMetrics(run_dir.path.name)]
    if config.logging.wandb == "disabled":
        return sinks, {}
    settings = config.model_dump(mode="json")
    wandb = WandbSink(config.logging, run_dir.path, settings, run_id=earlier.wandb_id)
    write_bytes(run_dir.wandb_id, wandb.run_id.encode())
    return [*sinks, wandb], {WANDB_ID: wandb.run_id}
