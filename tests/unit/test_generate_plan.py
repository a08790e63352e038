"""What `generate` plans: which files decide what a video is, and which LoRA belongs to which checkpoint."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

import launch
from actors.video_pool import RayVideoPool
from astrolabe_ray.cli.generate_plan import GeneratePlan, chosen_lora, plan_generate
from astrolabe_ray.cli.wiring import WorkerRoom
from astrolabe_ray.config.base_models import BASE_MODELS
from astrolabe_ray.config.generate_options import GenerateOptions
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models import stamps
from astrolabe_ray.models.files import BUILTIN, resolve
from tests.published_layouts import write_original_base
from tests.tiny_model import write_tiny_model


def planned(**options: object) -> GeneratePlan:
    return plan_generate(GenerateOptions.model_validate({"prompt": "a"} | options), launch.WIRING)


def fingerprint(**options: object) -> str:
    return planned(**options).tasks[0].fingerprint


def split_in_shards(folder: Path) -> list[Path]:
    """Write the weights of `folder` as two shards with an index."""
    stem = "diffusion_pytorch_model"
    tensors = load_file(folder / f"{stem}.safetensors")
    (folder / f"{stem}.safetensors").unlink()
    names, weight_map = sorted(tensors), {}
    for number, part in enumerate((names[:3], names[3:]), start=1):
        file = f"{stem}-{number:05d}-of-00002.safetensors"
        save_file({name: tensors[name] for name in part}, folder / file)
        weight_map |= dict.fromkeys(part, file)
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps({"weight_map": weight_map}))
    return sorted(folder.glob("*-of-*"))


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return write_tiny_model(tmp_path / "model")


def test_a_change_of_any_file_of_a_model_makes_its_videos_anew(root: Path) -> None:
    """Videos of the VAE, text encoder or shard of last week would be kept as those of this week."""
    split_in_shards(root / "transformer")
    files = [path for path in sorted(root.rglob("*")) if path.is_file()]
    decide = [path for path in files if not path.name.endswith(".index.json")]
    assert sum(path.name.endswith("-of-00002.safetensors") for path in decide) == 2
    assert {path.parent.name for path in decide} == {"transformer", "vae", "text_encoder", "tokenizer"}
    known = {fingerprint(model_path=str(root))}
    for path in decide:
        os.utime(path, ns=(0, path.stat().st_mtime_ns + 10**9))
        changed = fingerprint(model_path=str(root))
        assert changed not in known, path
        known.add(changed)
    assert fingerprint(model_path=str(root)) in known, "nothing changed since"


def test_the_same_files_give_the_same_fingerprint_however_they_are_named(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Everything would be made again from another folder."""
    torch.save({}, root.parent / "own.pt")
    monkeypatch.chdir(root)
    monkeypatch.setenv("HOME", str(root.parent))
    names = ((str(root), str(root.parent / "own.pt")), (".", "../own.pt"), ("~/model", "~/own.pt"))
    prints = [fingerprint(model_path=path, checkpoint=checkpoint) for path, checkpoint in names]
    assert prints == prints[:1] * 3


def test_workers_get_paths_that_mean_the_same_in_their_folder(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker starts in Ray's folder and would not find the model, or find another one."""
    torch.save({}, root.parent / "own.pt")
    monkeypatch.chdir(root.parent)
    model = planned(model_path="model", checkpoint="own.pt").spec.model
    assert (model.path, model.checkpoint) == (str(root), str(root.parent / "own.pt"))
    assert planned().spec.model.path == "builtin:sprites"


def test_the_embedded_model_is_known_by_its_content(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job works in a new copy of the repository each time, and would keep nothing."""
    before = fingerprint()
    copy = tmp_path / "weights"
    shutil.copytree(BUILTIN["builtin:sprites"], copy, copy_function=shutil.copyfile)
    monkeypatch.setitem(BUILTIN, "builtin:sprites", copy)
    assert fingerprint() == before
    vae = copy / "vae" / "diffusion_pytorch_model.safetensors"
    content = bytearray(vae.read_bytes())
    content[-1] ^= 1
    vae.write_bytes(content)
    assert fingerprint() != before


def test_an_original_directory_counts_with_its_own_files_only(tmp_path: Path) -> None:
    """Wan's folder holds images and a readme, too; and a checkpoint takes the place of its weights."""
    base = write_original_base(tmp_path / "wan", weights=True)
    (base / "README.md").write_text("about Wan")
    torch.save({}, tmp_path / "own.pt")
    found, with_own = (
        {path.name for path in stamps.model_paths(resolve(str(base), checkpoint=checkpoint))}
        for checkpoint in (None, str(tmp_path / "own.pt"))
    )
    weights = {name for name in found if name.startswith("diffusion_pytorch_model")}
    assert weights and "README.md" not in found
    assert {"config.json", "Wan2.1_VAE.pth", "models_t5_umt5-xxl-enc-bf16.pth"} < found
    assert with_own == found - weights | {"own.pt"}


def test_the_settings_beside_a_lora_file_count(tmp_path: Path) -> None:
    """They hold alpha: with another one the same file makes other videos."""
    file, settings = tmp_path / "adapter_model.safetensors", tmp_path / "adapter_config.json"
    file.touch()
    alone = stamps.lora_stamps(file)
    settings.write_text('{"lora_alpha": 8}')
    with_settings = stamps.lora_stamps(file)
    settings.write_text('{"lora_alpha": 16}')
    assert alone == with_settings[:1] and len(with_settings) == 2
    assert stamps.lora_stamps(file) != with_settings
    assert stamps.lora_stamps(tmp_path) == stamps.file_stamps(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seconds": 1e300}, "seconds"),
        ({"num_frames": 10**12}, "num_frames"),
    ],
)
def test_a_video_is_no_longer_than_a_day(options: dict[str, object], message: str) -> None:
    """Planning 1e300 s took for ever."""
    with pytest.raises(ValueError, match=message):
        planned(**options)


def test_a_prompt_that_is_no_utf8_is_refused() -> None:
    """It would end in a traceback of the tokenizer, after the models were loaded."""
    typed = "a grüner circle".encode("latin-1").decode("utf-8", "surrogateescape")  # as Python does
    with pytest.raises(ConfigError, match=r"--prompt holds no UTF-8 at character 5: '\\udcfc'; type it anew"):
        planned(prompt=typed)


def test_a_number_of_prompts_needs_a_file_of_them() -> None:
    with pytest.raises(ConfigError, match="--num-prompts is how many of --prompt-file are made"):
        planned(num_prompts=2)


def test_no_video_takes_the_place_of_what_it_goes_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The source would be lost, and the same command would go on from what it made, again and again."""
    monkeypatch.chdir(tmp_path)
    Path("out/videos").mkdir(parents=True)
    Path("link").symlink_to("out")
    for name in ("00000.mp4", "00001.mp4"):
        Path("out/videos", name).touch()

    def going_on_from(name: str, **more: object) -> GeneratePlan:
        return planned(initial_video=name, **({"output_dir": "out"} | more))

    own = "--initial-video {} would be written over: .* give another --output-dir"
    with pytest.raises(ConfigError, match=own.format("out/videos/00000.mp4")):
        going_on_from("out/videos/00000.mp4")
    with pytest.raises(ConfigError, match=own.format("link/videos/00000.mp4")):
        going_on_from("link/videos/00000.mp4")
    going_on_from("out/videos/00001.mp4")  # of a second prompt, which there is not
    going_on_from("out/videos/00000.mp4", output_dir="other")
    going_on_from("out/videos/00000.mp4", samples_per_prompt=2)  # 00000-00.mp4, 00000-01.mp4
    going_on_from("out/videos/00000.mp4", save_videos=False)


def test_a_folder_without_a_name_is_refused() -> None:
    """An unset variable in a script, and the videos lie in whatever folder it was started in."""
    with pytest.raises(ConfigError, match="--output-dir is empty; name a folder"):
        planned(output_dir="")


def test_a_published_lora_belongs_to_the_published_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """LongLive's LoRA, merged into a checkpoint that was trained without it, spoils both."""
    monkeypatch.chdir(tmp_path)
    base = BASE_MODELS["longlive"]
    assert base.lora is not None and base.config.checkpoint is not None
    for name in (base.lora, "mine.pt"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()

    def lora(**options: str) -> str | None:
        return chosen_lora(GenerateOptions.model_validate({"base_model": "longlive"} | options), base)

    own = str(tmp_path / base.lora)
    assert lora() == own
    assert lora(checkpoint=f"./{base.config.checkpoint}") == own
    assert lora(checkpoint="mine.pt") is None
    assert lora(checkpoint="mine.pt", lora=base.lora) == own
    assert lora(lora="mine.pt") == str(tmp_path / "mine.pt")
    assert lora(lora="none") is None
    with pytest.raises(ConfigError, match="--lora is empty"):
        lora(lora="")
    Path(base.lora).unlink()
    with pytest.raises(ConfigError, match=r"not here: fetch it with `.*models download longlive`, or write"):
        lora()
    assert lora(checkpoint="mine.pt") is None


def test_the_limit_for_a_chunk_reaches_the_workers() -> None:
    """An option that is declared and dropped: a slow disk would still end the command after 900 s."""
    pool = launch.make_video_pool(planned().spec, WorkerRoom(1, 1, 0, chunk_timeout_s=7.0))
    assert isinstance(pool, RayVideoPool)
    assert pool._hiring.answer_timeout_s == 7.0
