"""VideoReward at a tiny size against transformers' video processor, PEFT's merged LoRA and plain numpy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2.functional import resize
from transformers import AutoTokenizer, Qwen2VLVideoProcessor

from astrolabe_ray.config.reward_files import VIDEOREWARD, VIDEOREWARD_BASE
from astrolabe_ray.config.scorer_cards import BY_KEY, BY_NAME, TEN_FRAMES, TEN_GRAY_FRAMES, Reading
from astrolabe_ray.errors import ConfigError, DataFailure
from astrolabe_ray.models.reward_files import file_problems
from reward_servers.frame_pictures import fit_pixels
from reward_servers.scorers import ScorerSetup
from reward_servers.videoreward_scorer import VideoRewardScorer
from tests.tiny_qwen import DETAILED, RELEASED, TEXT, TinyVideoReward, split, write_videoreward

BUDGET = 16 * 28 * 28
PROMPTS = ("a red kite", "two dogs that run along a long, long beach")
TOKENS = ("<|VQ_reward|>", "<|MQ_reward|>", "<|TA_reward|>")


def scorer(folder: Path) -> VideoRewardScorer:
    return VideoRewardScorer(ScorerSetup(folder), text=TEXT, num_pixels=BUDGET)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyVideoReward:
    return write_videoreward(tmp_path_factory.mktemp("videoreward"))


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    return np.random.default_rng(3).integers(0, 256, (2, 10, 3, 48, 64), dtype=np.uint8)


def held_at_tokens(tiny: TinyVideoReward, video: np.ndarray, prompt: str) -> np.ndarray:
    """What the language model holds at VQ, MQ and TA, [3, 32]: torchvision, processor, one at a time."""
    height, width = fit_pixels(*video.shape[2:], BUDGET)
    small = resize(torch.from_numpy(video), [height, width], InterpolationMode.BICUBIC, antialias=True)
    processor = Qwen2VLVideoProcessor(do_resize=False, do_sample_frames=False)
    pictures = processor(videos=[small], return_tensors="pt", do_resize=False, do_sample_frames=False)
    seen = "<|video_pad|>" * int(pictures["video_grid_thw"].prod() // 4)
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder / VIDEOREWARD_BASE)
    tokenizer.add_special_tokens({"additional_special_tokens": list(TOKENS)})
    turn = (
        "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n"
        f"<|vision_start|>{seen}<|vision_end|>{DETAILED.replace('{text_prompt}', prompt)}<|im_end|>\n"
        "<|im_start|>assistant\n"
    )
    ids = tokenizer(turn, return_tensors="pt").input_ids
    positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
    pixels = {
        "pixel_values_videos": pictures["pixel_values_videos"],
        "video_grid_thw": pictures["video_grid_thw"],
    }
    with torch.no_grad():
        held = tiny.backbone(input_ids=ids, position_ids=positions, **pixels).last_hidden_state[0]
    return held[[ids[0].tolist().index(tokenizer.convert_tokens_to_ids(token)) for token in TOKENS]].numpy()


def normed(raw: np.ndarray) -> np.ndarray:
    """VQ, MQ, TA by the released constants, typed here a second time."""
    return (raw - np.array([3.6757, 1.1646, 2.8105])) / np.array([2.2476, 1.3811, 2.5121])


@pytest.mark.parametrize("is_split", [False, True])
@pytest.mark.parametrize(("layout", "num_outputs"), [("old", 1), ("new", 1), ("old", 3)])
def test_scores_are_those_of_transformers_with_pefts_merged_lora(
    tmp_path: Path, videos: np.ndarray, layout: str, num_outputs: int, is_split: bool
) -> None:
    """Swapped tokens, a lost LoRA or another frame order give plausible scores of something else.

    A head with one output is read at each token, one with three gives each token its own.
    """
    tiny = write_videoreward(tmp_path, layout, num_outputs)
    if is_split:
        split(tiny)
    scores = scorer(tiny.folder).score(videos, PROMPTS)
    assert list(scores) == ["vq", "mq", "ta", "overall"]
    head = tiny.head.numpy()
    for i, prompt in enumerate(PROMPTS):
        held = held_at_tokens(tiny, videos[i], prompt)
        raw = [held[k] @ head[k if num_outputs == 3 else 0] for k in range(3)]
        expected = normed(np.array(raw))
        assert [scores[side][i] for side in ("vq", "mq", "ta")] == pytest.approx(expected, abs=5e-3)
        assert scores["overall"][i] == pytest.approx(expected.mean(), abs=5e-3)
        assert np.ptp(expected) > 0.05, "sides that are alike could not tell"


def test_a_score_depends_neither_on_its_batch_nor_on_its_place(
    tiny: TinyVideoReward, videos: np.ndarray
) -> None:
    """Padding beside a longer prompt must not be read."""
    ours = scorer(tiny.folder)
    together, turned = ours.score(videos, PROMPTS), ours.score(videos[::-1].copy(), PROMPTS[::-1])
    for name, column in together.items():
        alone = [ours.score(videos[i : i + 1], PROMPTS[i : i + 1])[name][0] for i in range(2)]
        np.testing.assert_allclose(column, alone, atol=2e-5)
        np.testing.assert_allclose(column, turned[name][::-1], atol=2e-5)


def test_motion_quality_is_of_gray_frames_and_the_rest_of_colour() -> None:
    """The paper's motion quality ignores colour; `mq_rgb` is the other one."""
    readings = {key: BY_KEY[key].reading(key) for key in BY_KEY if key.startswith("videoalign")}
    assert readings == {
        "videoalign_vq_score": Reading(TEN_FRAMES, "vq"),
        "videoalign_mq_score": Reading(TEN_GRAY_FRAMES, "mq"),
        "videoalign_mq_rgb_score": Reading(TEN_FRAMES, "mq"),
        "videoalign_ta_score": Reading(TEN_FRAMES, "ta"),
        "videoalign_score": Reading(TEN_FRAMES, "overall"),
    }


def test_what_can_not_be_judged_is_refused_by_name(tiny: TinyVideoReward, videos: np.ndarray) -> None:
    """A mark in a prompt moves the places that are read."""
    with pytest.raises(DataFailure, match=r"contains <\|MQ_reward\|>"):
        scorer(tiny.folder).score(videos[:1], ["a dog <|MQ_reward|>"])
    with pytest.raises(DataFailure, match="frames in pairs, the videos have 9"):
        scorer(tiny.folder).score(videos[:1, :9], PROMPTS[:1])


@pytest.mark.parametrize(
    ("drop", "words"),
    [
        ("base_model.model.model.layers.1.self_attn.q_proj.lora_B.default.weight", "half of a LoRA pair"),
        ("base_model.model.model.norm.weight", "missing: backbone.language_model.norm.weight"),
        ("base_model.model.rm_head.weight", "rm_head.weight is None; it must have 1 or 3 rows"),
    ],
)
def test_a_checkpoint_with_a_hole_is_refused(tmp_path: Path, drop: str, words: str) -> None:
    """The first release scored with an untrained language model for want of this."""
    tiny = write_videoreward(tmp_path)
    path = tiny.folder / VIDEOREWARD / "checkpoint-120" / "model.pth"
    tensors = torch.load(path, weights_only=True)
    del tensors[drop]
    torch.save(tensors, path)
    with pytest.raises(ConfigError, match=words):
        scorer(tiny.folder)


def test_constants_that_the_released_file_does_not_name_are_not_made_up(tmp_path: Path) -> None:
    """Scores without their mean and std are another reward."""
    tiny = write_videoreward(tmp_path)
    path = tiny.folder / VIDEOREWARD / "model_config.json"
    constants = {name: value for name, value in RELEASED.items() if name != "TA_std"}
    path.write_text(json.dumps({"peft_lora_config": {"lora_alpha": 8}, "inference_config": constants}))
    with pytest.raises(ConfigError, match="TA_std"):
        scorer(tiny.folder)


Change = Callable[[dict[str, Tensor]], object]
Q_PROJ = "base_model.model.model.layers.1.self_attn.q_proj"


def rewritten(path: Path, change: Change) -> None:
    """A file of tensors, changed in place."""
    is_safe = path.suffix == ".safetensors"
    tensors = load_file(path) if is_safe else torch.load(path, weights_only=True)
    change(tensors)
    save_file(tensors, path) if is_safe else torch.save(tensors, path)


@pytest.mark.parametrize(
    ("file", "change", "words"),
    [
        ("adapter_model", lambda t: t.pop(f"{Q_PROJ}.lora_A.weight"), "half of a LoRA pair: .*q_proj"),
        ("adapter_model", lambda t: t.pop(f"{Q_PROJ}.lora_B.weight"), "half of a LoRA pair: .*q_proj"),
        (
            "adapter_model",
            lambda t: [t.pop(f"{Q_PROJ}.lora_{side}.weight") for side in "AB"],
            r"has no LoRA for backbone.language_model.layers.1.self_attn.q_proj; fetch",
        ),
        (
            "adapter_model",
            lambda t: t.update({f"{Q_PROJ}.lora_magnitude_vector.weight": torch.ones(3)}),
            "lora_magnitude_vector",
        ),
        ("adapter_model", lambda t: t.update({"a.weight": torch.ones(3)}), "a.weight is in the file of the"),
        (
            "non_lora_state_dict",
            lambda t: t.pop("base_model.model.visual.blocks.1.attn.qkv.weight"),
            "non_lora_state_dict.pth lacks backbone.visual.blocks.1.attn.qkv.weight; fetch",
        ),
        ("non_lora_state_dict", lambda t: t.pop("base_model.model.rm_head.weight"), "lacks head.weight"),
        (
            "non_lora_state_dict",
            lambda t: t.update({"base_model.model.extra": torch.ones(3)}),
            "unexpected: extra",
        ),
    ],
)
def test_a_split_checkpoint_with_a_hole_is_refused(
    tmp_path: Path, file: str, change: Change, words: str
) -> None:
    """What is not there would be taken from the base model, which was not trained to rate."""
    folder = split(write_videoreward(tmp_path))
    (path,) = folder.glob(f"{file}.*")
    rewritten(path, change)
    with pytest.raises(ConfigError, match=words):
        scorer(tmp_path)


def test_a_layer_whose_whole_lora_is_lost_is_missed(tmp_path: Path) -> None:
    """Its weights alone are those of the base model, and fit."""
    tiny = write_videoreward(tmp_path)
    drop = [f"{Q_PROJ}.lora_{side}.default.weight" for side in "AB"]
    path = tiny.folder / VIDEOREWARD / "checkpoint-120" / "model.pth"
    rewritten(path, lambda tensors: [tensors.pop(name) for name in drop])
    with pytest.raises(ConfigError, match=r"has no LoRA for .*layers.1.self_attn.q_proj; fetch"):
        scorer(tmp_path)


def test_a_split_checkpoint_needs_its_base_and_its_alpha(tmp_path: Path) -> None:
    """Another alpha, or random weights below a LoRA, are another model."""
    folder = split(write_videoreward(tmp_path))
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({"r": 4, "lora_alpha": 16}))
    with pytest.raises(ConfigError, match=r"says lora_alpha 16, model_config\.json says 8"):
        scorer(tmp_path)
    config.unlink()
    scorer(tmp_path)
    (line,) = file_problems(BY_NAME["videoreward"], tmp_path, {})
    assert "prompt_template.py" in line and "lacks" not in line, "only the tiny text is another"
    for path in (tmp_path / VIDEOREWARD_BASE).glob("model-*.safetensors"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"only what was trained, .*model-00001-of-00002.safetensors"):
        scorer(tmp_path)
    (folder.parent / "checkpoint-9" / "model.pth").unlink()
    assert "checkpoint-*/model.pth" in file_problems(BY_NAME["videoreward"], tmp_path, {})[0]
