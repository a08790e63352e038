"""HPSv3 at a tiny size against transformers, one frame at a time through its own processor and Pillow."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from astrolabe_ray.config.reward_files import HPSV3_BASE, HPSV3_TEXT, HPSV3_WEIGHTS
from astrolabe_ray.errors import ConfigError, DataFailure
from reward_servers.hpsv3_scorer import HPSv3Scorer
from reward_servers.scorers import ScorerSetup
from tests.tiny_qwen import CLOSING, INSTRUCTION, TEXTS, TinyHPSv3, write_hpsv3

BUDGET = 16 * 28 * 28
"""Pixels of a frame: 16 tokens in place of 256."""
PROMPTS = ("a red kite", "two dogs that run along a long, long beach", "rain")


def scorer(folder: Path, frames_per_forward: int = 4) -> HPSv3Scorer:
    return HPSv3Scorer(
        ScorerSetup(folder, frames_per_forward=frames_per_forward), texts=TEXTS, num_pixels=BUDGET
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> TinyHPSv3:
    return write_hpsv3(tmp_path_factory.mktemp("hpsv3"))


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    """Smooth random pictures, 7 frames of 40 x 64."""
    rng = np.random.default_rng(0)
    small = rng.integers(0, 256, (3 * 7, 5, 8, 3), dtype=np.uint8)
    frames = [np.asarray(Image.fromarray(f).resize((64, 40), Image.Resampling.BICUBIC)) for f in small]
    return np.stack(frames).transpose(0, 3, 1, 2).reshape(3, 7, 3, 40, 64)


def plain_ratings(tiny: TinyHPSv3, video: np.ndarray, prompt: str) -> np.ndarray:
    """mu and sigma [F, 2]: Pillow, transformers' image processor, one frame a forward, the head in numpy."""
    processor = Qwen2VLImageProcessorPil(size={"shortest_edge": BUDGET, "longest_edge": BUDGET})
    tokenizer = AutoTokenizer.from_pretrained(tiny.folder / HPSV3_BASE)
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|Reward|>"]})
    found = []
    for frame in video:
        picture = processor(images=Image.fromarray(frame.transpose(1, 2, 0)), return_tensors="pt")
        seen = "<|image_pad|>" * int(picture["image_grid_thw"].prod() // 4)
        text = INSTRUCTION.replace("{text_prompt}", prompt) + CLOSING
        turn = (
            "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n"
            f"<|im_start|>user\n<|vision_start|>{seen}<|vision_end|>{text}<|im_end|>\n<|im_start|>assistant\n"
        )
        ids = tokenizer(turn, return_tensors="pt").input_ids
        positions = torch.arange(ids.shape[1]).expand(3, 1, -1)
        with torch.no_grad():
            held = tiny.backbone(input_ids=ids, position_ids=positions, **picture).last_hidden_state
        x = held[0, ids[0].tolist().index(tokenizer.convert_tokens_to_ids("<|Reward|>"))].numpy()
        head = {name: tensor.numpy() for name, tensor in tiny.head.items()}
        for layer in ("0", "3"):
            x = np.maximum(head[f"{layer}.weight"] @ x + head[f"{layer}.bias"], 0)
        found.append(head["5.weight"] @ x + head["5.bias"])
    return np.array(found)


def test_scores_are_those_of_transformers_frame_by_frame(tiny: TinyHPSv3, videos: np.ndarray) -> None:
    """Other positions, another resize, padding or token would shift every score a little, unseen.

    Of 7 frames the best int(0.3 x 7) = 2 make the score.
    """
    scores = scorer(tiny.folder).score(videos, PROMPTS)
    for i, prompt in enumerate(PROMPTS):
        mu, sigma = plain_ratings(tiny, videos[i], prompt).T
        assert mu.std() > 0.01, "frames that rate alike could not tell"
        assert scores["video_hpsv3_local"][i] == pytest.approx(np.sort(mu)[-2:].mean(), abs=2e-3)
        assert scores["video_hpsv3_mean"][i] == pytest.approx(mu.mean(), abs=2e-3)
        assert scores["video_hpsv3_sigma"][i] == pytest.approx(sigma.mean(), abs=2e-3)
    assert all(column.dtype == np.float32 and column.shape == (3,) for column in scores.values())


def test_a_score_depends_neither_on_its_batch_nor_on_its_place(tiny: TinyHPSv3, videos: np.ndarray) -> None:
    """Servers mix frames of several runs, with prompts of other lengths, in a forward."""
    together = scorer(tiny.folder, frames_per_forward=5).score(videos, PROMPTS)
    alone = [
        scorer(tiny.folder, frames_per_forward=1).score(videos[i : i + 1], [p]) for i, p in enumerate(PROMPTS)
    ]
    turned = scorer(tiny.folder, frames_per_forward=16).score(videos[::-1].copy(), PROMPTS[::-1])
    for name, column in together.items():
        np.testing.assert_allclose(column, [each[name][0] for each in alone], atol=2e-5)
        np.testing.assert_allclose(column, turned[name][::-1], atol=2e-5)


def test_one_frame_is_its_own_best(tiny: TinyHPSv3, videos: np.ndarray) -> None:
    """30 % of one frame is none, and the mean of none is NaN."""
    scores = scorer(tiny.folder).score(videos[:1, :1], PROMPTS[:1])
    assert scores["video_hpsv3_local"] == scores["video_hpsv3_mean"]


def test_files_of_old_and_new_transformers_are_the_same_model(
    tiny: TinyHPSv3, videos: np.ndarray, tmp_path: Path
) -> None:
    """A part that is not found keeps its random weights where loading is not strict."""
    new = write_hpsv3(tmp_path / "new", layout="new")
    for ours, theirs in zip(tiny.backbone.parameters(), new.backbone.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    names = load_file(new.folder / HPSV3_WEIGHTS).keys()
    assert any(name.startswith("model.language_model.layers") for name in names)
    one = scorer(new.folder).score(videos[:1, :2], PROMPTS[:1])
    assert one["video_hpsv3_mean"] == pytest.approx(
        plain_ratings(new, videos[0, :2], PROMPTS[0])[:, 0].mean(), abs=2e-3
    )


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model.norm.weight": None}, "missing: backbone.language_model.norm.weight"),
        ({"rm_head.5.bias": torch.zeros(3)}, r"head.5.bias is \(3,\), should be \(2,\)"),
        ({"score.weight": torch.zeros(2)}, "unexpected: score.weight"),
        ({"model.embed_tokens.weight": torch.zeros(264, 32)}, "embed_tokens"),
    ],
)
def test_a_file_that_does_not_fit_is_refused(
    tmp_path: Path, change: dict[str, torch.Tensor | None], words: str
) -> None:
    """The first release lost the weights of a whole language model in silence."""
    tiny = write_hpsv3(tmp_path)
    tensors = {**load_file(tiny.folder / HPSV3_WEIGHTS), **change}
    kept = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    save_file(kept, tiny.folder / HPSV3_WEIGHTS)
    with pytest.raises(ConfigError, match=words):
        scorer(tiny.folder)


def test_a_prompt_with_a_mark_of_the_model_is_refused_by_name(tiny: TinyHPSv3, videos: np.ndarray) -> None:
    """It would move the place that is read, or end the turn."""
    for mark in ("<|Reward|>", "<|im_end|>", "<|image_pad|>"):
        with pytest.raises(DataFailure, match=mark.replace("|", r"\|")):
            scorer(tiny.folder).score(videos[:1, :1], [f"a dog {mark}"])
    braces = scorer(tiny.folder).score(videos[:1, :1], ["a {dog} in {} braces"])
    assert np.isfinite(braces["video_hpsv3_local"]).all()


def test_a_changed_prompt_text_is_refused(tmp_path: Path) -> None:
    """Scores move with every character of the text that the model was trained with."""
    tiny = write_hpsv3(tmp_path)
    path = tiny.folder / HPSV3_TEXT
    path.write_text(path.read_text().replace("Rate", "rate"))
    with pytest.raises(
        ConfigError, match=r"INSTRUCTION in .* is not the text that the model was trained with"
    ):
        scorer(tiny.folder)
