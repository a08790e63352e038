"""The base models that presets build on: where their files lie, where they are published, how they sample.

Paths are relative to the working directory. The addresses are those that the publishers name.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from astrolabe_ray.config.schema import ModelConfig
from astrolabe_ray.models.wan.architecture import WAN_1_3B, WAN_14B, WanArchitecture

WAN_1_3B_DIR = "wan_models/Wan2.1-T2V-1.3B"
WAN_14B_DIR = "wan_models/Wan2.1-T2V-14B"
TEXT_ENCODER_FILE = "models_t5_umt5-xxl-enc-bf16.pth"
VAE_FILE = "Wan2.1_VAE.pth"
TOKENIZER_DIR = "google/umt5-xxl"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json")
"""Of what lies in it, the files that are read."""


@dataclass(frozen=True)
class HubFiles:
    """Files of one hub repository and the folder that they are put in, under their names in the repository.

    Example: `HubFiles("gdhe17/Self-Forcing", ("checkpoints/self_forcing_dmd.pt",), ".")`.
    """

    repo_id: str
    names: tuple[str, ...]  # a name that ends in `/*` stands for all files of a folder
    folder: str

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the files are expected; a folder for a name that ends in `/*`."""
        return tuple(Path(self.folder, name.removesuffix("/*")) for name in self.names)


@dataclass(frozen=True)
class ModelSizes:
    """Numbers of parameters of a base model's parts, to count memory before anything is loaded."""

    transformer: WanArchitecture
    text_encoder: int
    vae: int
    vae_channels: int  # of the decoder's last stage, at full resolution


def full_size(transformer: WanArchitecture) -> ModelSizes:
    """With the text encoder UMT5-XXL and the VAE that all models of the Wan 2.1 family share."""
    return ModelSizes(transformer, text_encoder=5_680_910_336, vae=126_892_531, vae_channels=96)


@dataclass(frozen=True)
class PublishedModel:
    """A distilled causal video model that others trained, and how it is meant to be sampled."""

    summary: str
    config: ModelConfig
    sources: tuple[HubFiles, ...] = ()  # empty: it is published nowhere, or comes with this repository
    sizes: ModelSizes | None = None  # None: `--dry-run` can't count its memory
    lora: str | None = None  # that its publishers sample it with
    licence: str = "see the publisher"

    def model_config(self, **changes: Any) -> ModelConfig:
        """The config section of this model; `changes` replace single options and are checked."""
        return ModelConfig.model_validate(self.config.model_dump() | changes)


def _wan_base(repo_id: str, folder: str) -> HubFiles:
    """What a checkpoint needs beside it: sizes, text encoder, VAE and tokenizer."""
    tokenizer = (f"{TOKENIZER_DIR}/{name}" for name in (*TOKENIZER_FILES, "*"))
    return HubFiles(repo_id, ("config.json", TEXT_ENCODER_FILE, VAE_FILE, *tokenizer), folder)


_WAN_1_3B = _wan_base("Wan-AI/Wan2.1-T2V-1.3B", WAN_1_3B_DIR)
_WAN_14B = _wan_base("Wan-AI/Wan2.1-T2V-14B", WAN_14B_DIR)


def _few_step(base_model: str, path: str, **options: Any) -> ModelConfig:
    """What all of them share: 81 frames of 480 x 832, four warped steps, chunks of three, all frames seen."""
    shared: dict[str, Any] = {
        "num_latent_frames": 21,
        "height": 480,
        "width": 832,
        "fps": 16,
        "chunk_frames": 3,
        "window_frames": None,
        "sink_frames": 0,
        "denoising_steps": (1000, 750, 500, 250),
        "timestep_shift": 5.0,
        "context_timestep": 0.0,
        "rope": "absolute",
        "dtype": "bfloat16",
    }
    return ModelConfig(base_model=base_model, path=path, **(shared | options))


BASE_MODELS: dict[str, PublishedModel] = {
    "self_forcing": PublishedModel(
        "Self-Forcing, Wan 2.1 1.3B: chunks of 3 latent frames, sees all earlier ones",
        _few_step(
            "self_forcing",
            WAN_1_3B_DIR,
            checkpoint="checkpoints/self_forcing_dmd.pt",
            checkpoint_key="generator_ema",
        ),
        (_WAN_1_3B, HubFiles("gdhe17/Self-Forcing", ("checkpoints/self_forcing_dmd.pt",), ".")),
        full_size(WAN_1_3B),
    ),
    "causal_forcing": PublishedModel(
        "Causal-Forcing, Wan 2.1 1.3B: chunks of 3 latent frames, sees all earlier ones",
        _few_step(
            "causal_forcing",
            WAN_1_3B_DIR,
            checkpoint="checkpoints/casualforcing/chunkwise/causal_forcing.pt",
            checkpoint_key="generator",
        ),
        (
            _WAN_1_3B,
            HubFiles("zhuhz22/Causal-Forcing", ("chunkwise/causal_forcing.pt",), "checkpoints/casualforcing"),
        ),
        full_size(WAN_1_3B),
    ),
    "causal_forcing_framewise": PublishedModel(
        "Causal-Forcing, Wan 2.1 1.3B: frame by frame, sees all earlier ones",
        _few_step(
            "causal_forcing_framewise",
            WAN_1_3B_DIR,
            checkpoint="checkpoints/casualforcing/framewise/causal_forcing.pt",
            checkpoint_key="generator_ema",
            chunk_frames=1,
        ),
        (
            _WAN_1_3B,
            HubFiles("zhuhz22/Causal-Forcing", ("framewise/causal_forcing.pt",), "checkpoints/casualforcing"),
        ),
        full_size(WAN_1_3B),
    ),
    "longlive": PublishedModel(
        "LongLive, Wan 2.1 1.3B for long videos: a window of 12 latent frames with 3 sink frames",
        _few_step(
            "longlive",
            WAN_1_3B_DIR,
            checkpoint="checkpoints/longlive_models/models/longlive_base.pt",
            checkpoint_key="generator",
            window_frames=12,
            sink_frames=3,
        ),
        (
            _WAN_1_3B,
            HubFiles(
                "Efficient-Large-Model/LongLive-1.3B",
                ("models/longlive_base.pt", "models/lora.pt"),
                "checkpoints/longlive_models",
            ),
        ),
        full_size(WAN_1_3B),
        lora="checkpoints/longlive_models/models/lora.pt",
    ),
    "krea14b": PublishedModel(
        "Krea Realtime, Wan 2.1 14B: chunks of 3 latent frames, sees all earlier ones",
        _few_step("krea14b", WAN_14B_DIR, checkpoint="checkpoints/krea-realtime-video-14b.safetensors"),
        (
            _WAN_14B,
            HubFiles("krea/krea-realtime-video", ("krea-realtime-video-14b.safetensors",), "checkpoints"),
        ),
        full_size(WAN_14B),
    ),
    "tiny_sprites": PublishedModel(
        "the embedded world of moving shapes, 32 x 32 pixels; comes with this repository",
        ModelConfig(),
        sizes=ModelSizes(
            WanArchitecture(128, 4, 4, 512, 64, 64, 16), text_encoder=84_672, vae=668_043, vae_channels=8
        ),
        licence="Apache-2.0",
    ),
}
"""By the names that `model.base_model` takes in presets."""


def kin_of(base_model: str, checkpoint: str | None) -> str | None:
    """Name of the published model that is meant, also where its files lie elsewhere than `models download`
    puts them: `base_model`, or that of a checkpoint of this name. None for the user's own."""
    for name, model in BASE_MODELS.items():
        published = model.config.checkpoint
        is_its_checkpoint = None not in (checkpoint, published) and _ends_in(str(checkpoint), str(published))
        if model.sources and (name == base_model or is_its_checkpoint):
            return name
    return None


def _ends_in(path: str, end: str) -> bool:
    return Path(path).parts[-len(Path(end).parts) :] == Path(end).parts


def owner_of(path: str, checkpoint: str | None) -> str | None:
    """Name of the model that belongs there and can be fetched, or None: then it is the user's own."""
    return next(
        (
            name
            for name, model in BASE_MODELS.items()
            if model.sources and (model.config.path, model.config.checkpoint) == (path, checkpoint)
        ),
        None,
    )
