"""`generate` as it can be typed: every flag and what its help says. Defaults stand in `GenerateOptions`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from astrolabe_ray.cli.wiring import Wiring
from astrolabe_ray.config.generate_options import generate_options, option_name

EPILOG = """
Examples:

  python launch.py generate --prompt "a small red circle moves left on a black background"

  python launch.py generate --prompt-file prompts.txt --samples-per-prompt 4 --workers 2 --rewards tiny_clip

  python launch.py generate --prompt "a large red circle bounces around on a black background[15s] | a small green square moves left on a white background[15s#]"

  python launch.py generate --prompt-file prompts.txt --lora logs/nft/tiny_sprites/RUN/checkpoints/checkpoint-44

Scenes: | separates them, [5s] is a duration, [5s#] or \\[#] starts with a hard cut, others take over softly.
Names with _ work as well as those with -. Run it again to go on where it stopped: what is done is kept.
"""  # noqa: E501

CONTEXT = {"token_normalize_func": option_name}

WHAT, MODEL, LENGTH, SAMPLING, OUTPUT, WORK = (
    "What to show", "Model", "Size and length", "Sampling", "What is written", "Who works",
)  # fmt: skip


def _flag(panel: str, text: str, *names: str, default: str | None = None, **more: Any) -> Any:
    said = text if default is None else f"{text} Default: {default}."
    return typer.Option(*names, help=said, rich_help_panel=panel, show_default=False, **more)


Prompt = Annotated[str | None, _flag(WHAT, "Text of one video; may have several scenes.")]
PromptFile = Annotated[
    str | None, _flag(WHAT, "Text file with a prompt a line, or builtin:sprites/heldout.", metavar="FILE")
]
NumPrompts = Annotated[int | None, _flag(WHAT, "Only the first so many prompts of the file; -1: all.")]
Samples = Annotated[int | None, _flag(WHAT, "Videos of each prompt.", default="1")]
Seed = Annotated[
    int | None,
    _flag(
        WHAT,
        "A video's noise follows from this, its prompt's number and its sample's, whoever makes it.",
        default="0",
    ),
]
BaseModel = Annotated[
    str | None,
    _flag(MODEL, "Name of a base model; it brings the defaults of sampling.", default="tiny_sprites"),
]
ModelPath = Annotated[str | None, _flag(MODEL, "Model directory instead of the base model's.", metavar="DIR")]
Checkpoint = Annotated[
    str | None,
    _flag(
        MODEL,
        "File with the transformer's weights, in place of the base model's and its own LoRA.",
        metavar="FILE",
    ),
]
CheckpointKey = Annotated[str | None, _flag(MODEL, "Which weights of a checkpoint that holds several.")]
Lora = Annotated[
    str | None,
    _flag(
        MODEL,
        "LoRA (folder, file, a run's checkpoint) in place of the base model's own; `none`: without it, too.",
        metavar="DIR",
    ),
]
NumFrames = Annotated[int | None, _flag(LENGTH, "Length; becomes the nearest whole number of chunks.")]
Seconds = Annotated[float | None, _flag(LENGTH, "The same in seconds.")]
Height = Annotated[int | None, _flag(LENGTH, "Pixels, a multiple of 16, 8192 at most.")]
Width = Annotated[int | None, _flag(LENGTH, "Pixels, a multiple of 16, 8192 at most.")]
Fps = Annotated[int | None, _flag(LENGTH, "Frames a second, 240 at most.")]
InitialVideo = Annotated[
    str | None,
    _flag(LENGTH, "A video (.mp4) or latents (.safetensors) that every video goes on from.", metavar="FILE"),
]
Steps = Annotated[str | None, _flag(SAMPLING, "Few-step schedule, like 1000,750,500,250.", metavar="N,N,..")]
Shift = Annotated[float | None, _flag(SAMPLING, "How strongly the schedule is warped towards noise.")]
Warp = Annotated[
    bool | None,
    _flag(
        SAMPLING, "Warp the schedule, or use its numbers as timesteps.", "--warp/--no-warp", default="warp"
    ),
]
ChunkFrames = Annotated[int | None, _flag(SAMPLING, "Latent frames made together, 240 at most.")]
Window = Annotated[
    str | None,
    _flag(
        SAMPLING,
        "Latent frames that can be seen, sink and chunk included; `all`: memory then grows with the length.",
    ),
]
Sink = Annotated[int | None, _flag(SAMPLING, "First latent frames, never forgotten.")]
Rope = Annotated[
    str | None,
    _flag(SAMPLING, "absolute or relative (to the window) positions in time; relative for long videos."),
]
ContextTimestep = Annotated[float | None, _flag(SAMPLING, "Timestep at which finished chunks are seen.")]
Dtype = Annotated[str | None, _flag(SAMPLING, "float32 or bfloat16.")]
Attention = Annotated[str | None, _flag(SAMPLING, "auto, sdpa, flash2 or flash3.")]
OutputDir = Annotated[
    str | None, _flag(OUTPUT, "Folder of the results.", metavar="DIR", default="logs/generate")
]
SaveVideos = Annotated[
    bool | None, _flag(OUTPUT, "Write mp4 files.", "--save-videos/--no-save-videos", default="save-videos")
]
Stream = Annotated[
    bool | None, _flag(OUTPUT, "Write each chunk at once, into files that play while they grow.", "--stream")
]
Sheets = Annotated[
    bool | None,
    _flag(
        OUTPUT,
        "Draw each video on one picture.",
        "--contact-sheets/--no-contact-sheets",
        default="contact-sheets",
    ),
]
Rewards = Annotated[
    str | None,
    _flag(OUTPUT, "Score with these rewards; their servers start if they do not run.", metavar="KEY,KEY.."),
]
BatchSize = Annotated[
    int | None,
    _flag(WORK, "Videos that a worker makes together, if they have scenes of the same lengths.", default="1"),
]
Workers = Annotated[int | None, _flag(WORK, "Ray actors that make videos.", default="1")]
Cpus = Annotated[float | None, _flag(WORK, "CPUs of each.", default="1")]
Gpus = Annotated[float | None, _flag(WORK, "GPUs of each.", default="0 for tiny_sprites, else 1")]
ChunkTimeout = Annotated[
    float | None,
    _flag(
        WORK,
        "Seconds that a worker may take to load its models, or to make a chunk; not with --local.",
        default="900",
    ),
]
LowMemory = Annotated[
    bool | None, _flag(WORK, "Text encoder and VAE wait on the CPU and visit the GPU.", "--low-memory")
]
Local = Annotated[bool | None, _flag(WORK, "In this process, without Ray.", "--local")]
ConfigFile = Annotated[
    Path | None, _flag(WORK, "YAML or JSON file of these options; what is typed counts more.", metavar="FILE")
]


def add_generate(app: typer.Typer, wiring: Wiring) -> None:
    """The command, declared flag by flag; `GenerateOptions` checks the values."""

    # fmt: off
    @app.command(context_settings=CONTEXT, epilog=EPILOG)
    def generate(
        context: typer.Context,
        prompt: Prompt = None, prompt_file: PromptFile = None, num_prompts: NumPrompts = None,
        samples_per_prompt: Samples = None, seed: Seed = None,
        base_model: BaseModel = None, model_path: ModelPath = None, checkpoint: Checkpoint = None,
        checkpoint_key: CheckpointKey = None, lora: Lora = None,
        num_frames: NumFrames = None, seconds: Seconds = None, height: Height = None, width: Width = None,
        fps: Fps = None, initial_video: InitialVideo = None,
        denoising_steps: Steps = None, timestep_shift: Shift = None, warp: Warp = None,
        chunk_frames: ChunkFrames = None, window_frames: Window = None, sink_frames: Sink = None,
        rope: Rope = None, context_timestep: ContextTimestep = None, dtype: Dtype = None,
        attention: Attention = None,
        output_dir: OutputDir = None, save_videos: SaveVideos = None, stream: Stream = None,
        contact_sheets: Sheets = None, rewards: Rewards = None,
        batch_size: BatchSize = None, workers: Workers = None, cpus_per_worker: Cpus = None,
        gpus_per_worker: Gpus = None, chunk_timeout_s: ChunkTimeout = None, low_memory: LowMemory = None,
        local: Local = None,
        config_file: ConfigFile = None,
    ) -> None:
        """Make videos from prompts, also long ones with several scenes, with a base model or a LoRA."""
        from astrolabe_ray.cli.generate import generate as run

        typed = {name: value for name, value in context.params.items() if name != "config_file"}
        run(generate_options(typed, config_file), wiring)
    # fmt: on
