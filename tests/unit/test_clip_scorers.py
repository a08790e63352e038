"""HPSv2.1, the aesthetic predictor and CLIP score at a tiny size against open_clip, Pillow and numpy."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from astrolabe_ray.config.reward_files import AESTHETIC_HEAD, CLIP_L14, HPSV2_WEIGHTS
from astrolabe_ray.errors import ConfigError
from reward_servers.clip_scorers import AestheticScorer, ClipScorer, HPSv2Scorer
from reward_servers.scorers import ScorerSetup

SIZE = 32
CONFIG = {
    "embed_dim": 24,
    "vision_cfg": {"image_size": SIZE, "layers": 2, "width": 32, "head_width": 16, "patch_size": 8},
    "text_cfg": {"context_length": 20, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 2},
}
PROMPTS = ("a red kite", "two dogs on a beach")
MEAN, STD = np.array([0.48145466, 0.4578275, 0.40821073]), np.array([0.26862954, 0.26130258, 0.27577711])


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> open_clip.CLIP:
    path = tmp_path_factory.mktemp("open_clip") / "tiny-reward-test.json"
    path.write_text(json.dumps(CONFIG))
    open_clip.add_model_config(path)
    torch.manual_seed(0)
    model = open_clip.CLIP(**CONFIG).eval()
    for parameter in model.parameters():
        parameter.data += 0.1 * torch.randn_like(parameter)
    return model


def setup(folder: Path) -> ScorerSetup:
    return ScorerSetup(folder, frames_per_forward=3, options={"architecture": "tiny-reward-test"})


@pytest.fixture(scope="module")
def videos() -> np.ndarray:
    small = np.random.default_rng(0).integers(0, 256, (2 * 7, 5, 8, 3), dtype=np.uint8)
    frames = [np.asarray(Image.fromarray(f).resize((80, 48), Image.Resampling.BICUBIC)) for f in small]
    return np.stack(frames).transpose(0, 3, 1, 2).reshape(2, 7, 3, 48, 80)


def padded(frame: np.ndarray) -> np.ndarray:
    """48 x 80 -> 19 x 32 in the middle of a black square of 32: 6 rows above, 7 below."""
    small = np.asarray(Image.fromarray(frame.transpose(1, 2, 0)).resize((32, 19), Image.Resampling.BICUBIC))
    square = np.zeros((SIZE, SIZE, 3), np.uint8)
    square[6:25] = small
    return square


def cropped(frame: np.ndarray) -> np.ndarray:
    """48 x 80 -> 32 x 53, and of these columns 10 to 41."""
    small = np.asarray(Image.fromarray(frame.transpose(1, 2, 0)).resize((53, 32), Image.Resampling.BICUBIC))
    return small[:, 10:42]


def image_feature(model: open_clip.CLIP, picture: np.ndarray) -> np.ndarray:
    pixels = ((picture / 255 - MEAN) / STD).transpose(2, 0, 1).astype(np.float32)
    with torch.no_grad():
        feature = model.encode_image(torch.from_numpy(pixels)[None])[0].numpy()
    return feature / np.linalg.norm(feature)


def text_feature(model: open_clip.CLIP, text: str) -> np.ndarray:
    with torch.no_grad():
        feature = model.encode_text(open_clip.get_tokenizer("tiny-reward-test")([text]))[0].numpy()
    return feature / np.linalg.norm(feature)


def test_hpsv2_is_the_cosine_with_the_best_frames(
    tmp_path: Path, model: open_clip.CLIP, videos: np.ndarray
) -> None:
    """Margins are black before normalising, and of 7 frames the best int(0.3 x 7) = 2 count."""
    torch.save({"state_dict": model.state_dict(), "epoch": 3}, tmp_path / HPSV2_WEIGHTS)
    scores = HPSv2Scorer(setup(tmp_path)).score(videos, PROMPTS)["video_hpsv2_local"]
    for i, prompt in enumerate(PROMPTS):
        text = text_feature(model, prompt)
        cosines = sorted(float(image_feature(model, padded(frame)) @ text) for frame in videos[i])
        assert np.ptp(cosines) > 0.01, "frames that score alike could not tell"
        assert scores[i] == pytest.approx(np.mean(cosines[-2:]), abs=2e-3)


def write_clip(folder: Path, model: open_clip.CLIP) -> None:
    (folder / CLIP_L14).parent.mkdir(parents=True)
    save_file(model.state_dict(), folder / CLIP_L14)


def test_clip_score_is_the_mean_cosine(tmp_path: Path, model: open_clip.CLIP, videos: np.ndarray) -> None:
    """Features that are not of length 1 would make it depend on the picture's norm."""
    write_clip(tmp_path, model)
    scores = ClipScorer(setup(tmp_path)).score(videos, PROMPTS)["clip_score"]
    for i, prompt in enumerate(PROMPTS):
        text = text_feature(model, prompt)
        cosines = [float(image_feature(model, cropped(frame)) @ text) for frame in videos[i]]
        assert scores[i] == pytest.approx(np.mean(cosines), abs=2e-3)


def test_aesthetic_is_linear_layers_on_the_feature(
    tmp_path: Path, model: open_clip.CLIP, videos: np.ndarray
) -> None:
    """The published head has no activation, though it looks as if it should."""
    write_clip(tmp_path, model)
    rng = np.random.default_rng(1)
    widths = {0: (1024, 24), 2: (128, 1024), 4: (64, 128), 6: (16, 64), 7: (1, 16)}
    head = {
        f"layers.{n}.weight": rng.normal(0, w[1] ** -0.5, w).astype(np.float32) for n, w in widths.items()
    }
    head |= {f"layers.{n}.bias": rng.normal(0, 1, w[0]).astype(np.float32) for n, w in widths.items()}
    torch.save({name: torch.from_numpy(value) for name, value in head.items()}, tmp_path / AESTHETIC_HEAD)
    scores = AestheticScorer(setup(tmp_path)).score(videos, PROMPTS)["aesthetic"]
    for i in range(2):
        rated = []
        for frame in videos[i]:
            x = image_feature(model, cropped(frame))
            for n in widths:
                x = head[f"layers.{n}.weight"] @ x + head[f"layers.{n}.bias"]
            rated.append(x[0])
        assert scores[i] == pytest.approx(np.mean(rated), abs=5e-3)


def test_a_score_depends_neither_on_its_batch_nor_on_its_place(
    tmp_path: Path, model: open_clip.CLIP, videos: np.ndarray
) -> None:
    """Frames of several videos share a forward."""
    write_clip(tmp_path, model)
    scorer = ClipScorer(setup(tmp_path))
    together = scorer.score(videos, PROMPTS)["clip_score"]
    turned = scorer.score(videos[::-1].copy(), PROMPTS[::-1])["clip_score"]
    alone = [scorer.score(videos[i : i + 1], PROMPTS[i : i + 1])["clip_score"][0] for i in range(2)]
    np.testing.assert_allclose(together, alone, atol=1e-6)
    np.testing.assert_allclose(together, turned[::-1], atol=1e-6)


def test_weights_that_do_not_fit_are_refused(tmp_path: Path, model: open_clip.CLIP) -> None:
    """Random layers give scores, too."""
    partly = {name: tensor for name, tensor in model.state_dict().items() if name != "text_projection"}
    torch.save({"state_dict": partly}, tmp_path / HPSV2_WEIGHTS)
    with pytest.raises(ConfigError, match="missing: text_projection"):
        HPSv2Scorer(setup(tmp_path))
    torch.save(partly, tmp_path / HPSV2_WEIGHTS)
    with pytest.raises(ConfigError, match="holds no 'state_dict'"):
        HPSv2Scorer(setup(tmp_path))
    torch.save({"state_dict": model.state_dict()}, tmp_path / HPSV2_WEIGHTS)
    with pytest.raises(ConfigError, match="no architecture 'ViT-Q'"):
        HPSv2Scorer(ScorerSetup(tmp_path, options={"architecture": "ViT-Q"}))
