"""`generate`: check everything, leave out what is done, make the rest."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import typer

from astrolabe_ray.cli.generate_done import Done, draw_missing_sheets, sort_out
from astrolabe_ray.cli.generate_plan import GeneratePlan, chosen_lora, plan_generate
from astrolabe_ray.cli.wiring import Wiring, WorkerRoom
from astrolabe_ray.config.base_models import BASE_MODELS
from astrolabe_ray.config.generate_options import GenerateOptions
from astrolabe_ray.config.plan import Need, server_needs
from astrolabe_ray.config.schema import ClusterConfig, ModelConfig
from astrolabe_ray.errors import ConfigError, DataFailure
from astrolabe_ray.models.files import absolute
from astrolabe_ray.report.run_dir import read_json, read_lines
from astrolabe_ray.video_folder import VideoFolder
from astrolabe_ray.video_tasks import VideoModelSpec, VideoPlan, VideoTask

FEWER_WORKERS = "Use fewer --workers, or less of --cpus-per-worker and --gpus-per-worker (0: on the CPU)"


def generate(options: GenerateOptions, wiring: Wiring) -> None:
    """Make all videos that are not done. Raises ConfigError, before Ray starts, for what can't work."""
    plan = plan_generate(options, wiring)
    folder = VideoFolder(_writable(options.output_dir), options.samples_per_prompt)
    done = sort_out(plan.tasks, folder, with_sheets=options.contact_sheets)
    typer.echo("\n".join(plan_lines(plan, options, done.todo, folder)))
    for line in done.lines():
        typer.echo(line)
    draw_missing_sheets(done, folder, plan.spec.model, wiring)
    if done.todo:
        try:
            (_make_here if options.local else _make_on_ray)(plan, options, done, folder, wiring)
        except KeyboardInterrupt:
            typer.echo("Stopped. The same command goes on with what is not done.", err=True)
            raise
        except DataFailure:
            _say_results(folder)
            raise
    else:
        folder.begin(done.records)
    _say_results(folder)


def _say_results(folder: VideoFolder) -> None:
    """Where they are, and their average scores."""
    typer.echo(f"Results: {folder.results}")
    if folder.average_scores.exists():
        means = read_json(folder.average_scores)
        typer.echo(
            f"Average of {len(read_lines(folder.results))}: "
            + ", ".join(f"{key} {value:.4f}" for key, value in means.items())
        )


def plan_lines(
    plan: GeneratePlan, options: GenerateOptions, todo: Sequence[VideoTask], folder: VideoFolder
) -> list[str]:
    """What will be made, aligned in two columns."""
    m, longest = plan.spec.model, max((task.plan for task in plan.tasks), key=lambda plan: plan.num_chunks)
    num_frames = _num_made(longest, longest.num_chunks, plan.spec)
    window = "all" if m.window_frames is None else m.window_frames
    rows = {
        "model": f"{m.base_model} in {m.path}, {m.dtype}"
        + (f", LoRA {plan.spec.lora}" if plan.spec.lora else ""),
        "videos": f"{len(plan.tasks)}, up to {num_frames} frames ({num_frames / m.fps:.2f} s) of "
        f"{m.height}x{m.width} at {m.fps} fps in {longest.num_chunks} chunks",
        "go on from": plan.spec.initial or "",
        "sampling": f"steps {','.join(map(str, m.denoising_steps))}, shift {m.timestep_shift:g}, chunks of "
        f"{m.chunk_frames}, window {window}, sink {m.sink_frames}, {m.rope} positions",
        "folder": str(folder.path),
    }
    lines = [f"{name:>10}  {text}" for name, text in rows.items() if text]
    lines += [f"{'note':>10}  {note}" for note in _notes(options, m, longest.num_chunks, num_frames)]
    if todo and len(todo[0].plan.scenes) > 1:
        lines += _scene_lines(todo[0], plan)
    return lines


def _notes(options: GenerateOptions, m: ModelConfig, num_chunks: int, num_frames: int) -> Iterator[str]:
    """What someone may not expect."""
    base = BASE_MODELS[options.base_model]
    if options.lora is None and base.lora is not None and chosen_lora(options, base) is None:
        yield f"without the LoRA of {options.base_model}, which belongs to its own checkpoint; see --lora"
    if options.num_frames not in (None, num_frames):
        yield f"not {options.num_frames} frames: the nearest whole number of chunks"
    if options.seconds is not None and abs(options.seconds * m.fps - num_frames) > 0.5:
        yield f"not {options.seconds:g} s: whole chunks, less three frames wherever the decoder starts"
    if m.window_frames is None and num_chunks * m.chunk_frames > m.num_latent_frames:
        yield "every chunk sees all earlier ones, so memory grows; see --window-frames"


def _scene_lines(task: VideoTask, plan: GeneratePlan) -> list[str]:
    """When each scene of a video starts."""
    m = plan.spec.model
    lines = []
    for scene in task.plan.scenes:
        start_s = _num_made(task.plan, scene.start_chunk, plan.spec) / m.fps
        how = "start" if scene.start_chunk == 0 else "cut" if scene.is_cut else "soft"
        lines.append(f"{'scene':>10}  {start_s:7.2f} s  {how:5}  {scene.prompt}")
    return lines


def _num_made(plan: VideoPlan, end_chunk: int, spec: VideoModelSpec) -> int:
    """Frames that are made before a chunk; what the video goes on from is not counted."""
    c = spec.model.chunk_frames
    given = 0 if spec.initial is None else c  # any number of whole chunks gives the same difference
    return plan.first_frame(end_chunk, c, given) - plan.first_frame(0, c, given)


def _writable(output_dir: str) -> Path:
    folder = absolute(output_dir)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / ".writable").touch()
        (folder / ".writable").unlink()
    except OSError as error:
        raise ConfigError(
            f"--output-dir {output_dir} can't be written: {error.strerror}; name another"
        ) from None
    return folder


def _make_here(
    plan: GeneratePlan,
    options: GenerateOptions,
    done: Done,
    folder: VideoFolder,
    wiring: Wiring,
) -> None:
    asyncio.run(_make(plan, options, done, folder, wiring, room=None))


def _make_on_ray(
    plan: GeneratePlan,
    options: GenerateOptions,
    done: Done,
    folder: VideoFolder,
    wiring: Wiring,
) -> None:
    import ray

    from astrolabe_ray.runtime.cluster import connect
    from astrolabe_ray.runtime.preflight import cluster_room, require_one_checkout, require_room

    require_one_checkout()
    num_workers = min(options.workers, len(done.todo))
    room = WorkerRoom(num_workers, options.cpus_per_worker, plan.num_gpus, options.chunk_timeout_s)
    workers = Need("video worker", room.num_workers, room.num_cpus, room.num_gpus)
    needs = [workers, *server_needs(plan.rewards)]
    cluster = connect(ClusterConfig(), min_cpus=sum(need.count * need.num_cpus for need in needs))
    try:
        running = wiring.running_rewards(plan.rewards) if plan.rewards else ()
        needs = [need for need in needs if need.reward is None or need.reward not in running]
        require_room(needs, 0, *cluster_room(), way_out=FEWER_WORKERS)
        typer.echo(f"{'cluster':>10}  {cluster.address}, dashboard {cluster.dashboard_url or 'off'}")
        asyncio.run(_make(plan, options, done, folder, wiring, room))
    finally:
        ray.shutdown()


async def _make(
    plan: GeneratePlan,
    options: GenerateOptions,
    done: Done,
    folder: VideoFolder,
    wiring: Wiring,
    room: WorkerRoom | None,
) -> None:
    """`room`: of workers on Ray; None: everything in this process."""
    from astrolabe_ray.metrics.video_console import VideoConsole
    from astrolabe_ray.video_run import VideoRun

    cluster = None if room is None else ClusterConfig()
    rewards = wiring.make_video_rewards(plan.rewards, cluster) if plan.rewards else None
    spec = plan.spec if rewards is None else replace(plan.spec, views=rewards.views)
    pool = wiring.make_video_pool(spec, room)
    with VideoConsole(len(done.todo), sum(task.plan.num_chunks for task in done.todo)) as console:
        try:
            if rewards is not None:
                await rewards.start()
            await pool.start()
            run = VideoRun(pool, folder, console, spec.model.fps, spec.with_files, spec.is_stream, rewards)
            await run.make(done.todo, options.batch_size, done.records)
        finally:
            await pool.stop()
            if rewards is not None:
                await rewards.stop()
