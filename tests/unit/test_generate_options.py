"""The options of `generate` by all their names."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from astrolabe_ray.cli.generate_plan import model_config
from astrolabe_ray.config.base_models import BASE_MODELS
from astrolabe_ray.config.generate_options import (
    OTHER_NAMES,
    GenerateOptions,
    generate_options,
    option_name,
)
from astrolabe_ray.errors import ConfigError


@pytest.mark.parametrize(
    ("written", "ours"),
    [
        ("--prompt_file", "prompt-file"),
        ("num_frame_per_block", "chunk-frames"),
        ("local-attn-size", "window-frames"),
        ("max_samples", "num-prompts"),
        ("mixed_precision", "dtype"),
        ("prompt", "prompt"),
    ],
)
def test_options_are_known_by_the_names_of_other_programs(written: str, ours: str) -> None:
    """Scripts that were written for them would end at the first flag."""
    assert option_name(written) == ours


def test_every_other_name_stands_for_an_option() -> None:
    """A name in the table that leads nowhere."""
    ours = {name.replace("_", "-") for name in GenerateOptions.model_fields}
    assert {name for name in OTHER_NAMES.values() if name not in ours} == {"config-file", "no-save-videos"}
    assert not ours & OTHER_NAMES.keys()


def test_an_option_that_would_do_nothing_is_refused_with_the_reason() -> None:
    """Somebody would tune a scale that is not looked at."""
    with pytest.raises(ConfigError, match=r"--guidance-scale .* without guidance"):
        option_name("--guidance_scale")


def test_a_checkpoint_of_ones_own_does_not_have_the_keys_of_the_base_models() -> None:
    """A file with one set of weights could not be tried over a base model whose file holds several."""
    typed = {"base_model": "self_forcing", "checkpoint": "mine.safetensors"}
    base = BASE_MODELS["self_forcing"]
    assert model_config(generate_options({"base_model": "self_forcing"}), base).checkpoint_key is not None
    assert model_config(generate_options(typed), base).checkpoint_key is None
    chosen = model_config(generate_options(typed | {"checkpoint_key": "generator"}), base)
    assert chosen.checkpoint_key == "generator"


def test_the_guide_says_how_each_base_model_is_sampled() -> None:
    """Who compares with the release would look for a difference where there is none, or miss one."""
    guide = (Path(__file__).parents[2] / "docs" / "generate.md").read_text()
    for name, base in BASE_MODELS.items():
        m = model_config(generate_options({"base_model": name}), base)
        window = "all" if m.window_frames is None else m.window_frames
        assert f"| `{name}` | {window} | {m.sink_frames} | {m.rope} | {m.chunk_frames} |\n" in guide


@pytest.mark.parametrize(
    ("in_file", "typed", "expected"),
    [
        ({"prompt_file": "many.txt", "max_samples": 3}, {"prompt": "one"}, {"prompt": "one"}),
        ({"prompt": "one"}, {"prompt_file": "many.txt"}, {"prompt_file": "many.txt"}),
        ({"seconds": 5}, {"num_frames": 81}, {"num_frames": 81}),
        ({"num_frames": 81}, {"seconds": 5.0}, {"seconds": 5.0}),
        ({"checkpoint": "a.pt", "checkpoint_key": "ema"}, {"checkpoint": "b.pt"}, {"checkpoint": "b.pt"}),
        ({"save_videos": False}, {"stream": True}, {"stream": True}),
        ({"prompt": "one", "seconds": 5}, {"seed": 3}, {"prompt": "one", "seconds": 5, "seed": 3}),
    ],
)
def test_what_is_typed_takes_the_place_of_its_alternative_in_the_file(
    tmp_path: Path, in_file: dict[str, object], typed: dict[str, object], expected: dict[str, object]
) -> None:
    """A file of defaults with a prompt in it could be used for that prompt only."""
    file = tmp_path / "options.json"
    file.write_text(json.dumps(in_file))
    assert generate_options(typed, file) == GenerateOptions(**expected)  # type: ignore[arg-type]


def test_minus_one_prompts_are_all_of_them() -> None:
    """Other programs have it as the default of their --max_samples."""
    assert generate_options({"num_prompts": -1}).num_prompts is None
    with pytest.raises(ConfigError, match="num_prompts"):
        generate_options({"num_prompts": -2})


@pytest.mark.parametrize("suffix", [".json", ".yaml"])
def test_what_is_typed_counts_more_than_what_a_file_says(tmp_path: Path, suffix: str) -> None:
    """The command line would be ignored without a word."""
    values = {"seed": 3, "num_frame_per_block": 2, "denoising-steps": [1000, 500], "mixed_precision": "bf16"}
    file = tmp_path / f"options{suffix}"
    lines = "\n".join(f"{name}: {value}" for name, value in values.items())
    file.write_text(json.dumps(values) if suffix == ".json" else lines)
    options = generate_options({"prompt": "a", "seed": 5, "window_frames": "all", "height": None}, file)
    assert options == GenerateOptions(
        prompt="a",
        seed=5,
        chunk_frames=2,
        denoising_steps=(1000, 500),
        dtype="bfloat16",
        window_frames=-1,
    )


def test_options_in_a_group_of_another_program_are_read(tmp_path: Path) -> None:
    """Its files would have to be written anew."""
    file = tmp_path / "options.yaml"
    file.write_text(
        "prompt: a\ndenoising_step_list: [1000, 500]\nwarp_denoising_step: false\n"
        "mixed_precision: no\ntimestep_shift: 3.0\n"
        "model_kwargs:\n  timestep_shift: 3.0\n  local_attn_size: 12\n  sink_size: 3\n"
    )
    assert generate_options({}, file) == GenerateOptions(
        prompt="a",
        denoising_steps=(1000, 500),
        warp=False,
        dtype="float32",
        timestep_shift=3.0,
        window_frames=12,
        sink_frames=3,
    )


@pytest.mark.parametrize(
    ("content", "name", "value"),
    [
        ("dtype: bf16\nmixed_precision: bfloat16", "dtype", "bfloat16"),
        ("dtype: float32\nmixed_precision: no", "dtype", "float32"),
        ("window_frames: all\nlocal_attn_size: -1", "window_frames", -1),
        ("window_frames: 12\nmodel_kwargs: {local_attn_size: '12'}", "window_frames", 12),
        ("window_frames: 12\nmodel_kwargs: {local_attn_size: null}", "window_frames", 12),
        ("window_frames: null\nmodel_kwargs: {local_attn_size: 12}", "window_frames", 12),
        ("denoising_steps: '1000,500'\ndenoising_step_list: [1000, 500]", "denoising_steps", (1000, 500)),
    ],
)
def test_one_value_under_two_names_is_one(tmp_path: Path, content: str, name: str, value: object) -> None:
    """Written in the words of two programs."""
    file = tmp_path / "options.yaml"
    file.write_text(f"prompt: a\n{content}")
    assert getattr(generate_options({}, file), name) == value


@pytest.mark.parametrize(
    ("content", "typed"),
    [
        ("dtype: fp16\nmixed_precision: fp16", {"dtype": "bfloat16"}),
        ("rewards: {a: 1}\nreward_models: {a: 1}", {"rewards": "b"}),
        ("denoising_steps: a,b\ndenoising_step_list: a,b", {"denoising_steps": "1000"}),
    ],
)
def test_what_is_typed_counts_more_than_any_mistake_of_the_file(
    tmp_path: Path, content: str, typed: dict[str, str]
) -> None:
    (tmp_path / "options.yaml").write_text(f"prompt: a\n{content}")
    generate_options(typed, tmp_path / "options.yaml")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("sed: 3", "no option 'sed'; did you mean 'seed'?"),
        ("guidance_scale: 3", "without guidance"),
        ("seed: [", "can't read the options"),
        ("- seed", "holds no options"),
        ("window_frames: 9\nmodel_kwargs: {local_attn_size: 12}", "'window_frames' twice: 9 and 12"),
        ("timestep_shift: .nan", "must be a finite number"),
        ("dtype: fp16\nmixed_precision: fp16", "overflows"),
        ("dtype: fp16\nmixed_precision: bf16", "'dtype' twice: fp16 and bf16"),
        ("model_kwargs: 3", "model_kwargs holds no options"),
        ("model_kwargs: {is_causal: true}", "every model here is causal"),
        ("reward_models: {video_hpsv3_local: 1}", "write a list of the keys, without weights"),
        ("seed: many", "seed = 'many': must be a whole number"),
    ],
)
def test_a_mistake_in_a_file_is_named(tmp_path: Path, content: str, words: str) -> None:
    """An option that is spelt wrong has no effect."""
    (tmp_path / "options.yaml").write_text(content)
    with pytest.raises(ConfigError) as caught:
        generate_options({}, tmp_path / "options.yaml")
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ({"denoising_steps": "1000;500"}, "is no list of numbers"),
        ({"denoising_steps": "1000,5²"}, "is no list of numbers"),
        ({"seconds": float("inf")}, "a finite number"),
        ({"timestep_shift": float("inf")}, "a finite number"),
        ({"gpus_per_worker": float("inf")}, "a finite number"),
        ({"dtype": "fp16"}, "overflows"),
        ({"dtype": "int8"}, "one of 'float32' or 'bfloat16'"),
        ({"rewards": '{"tiny_clip": 1.0}'}, "without weights"),
        ({"batch_size": 0}, "greater than 0"),
        ({"height": 8208}, "height = 8208: must be at most 8192"),
        ({"width": 10**9}, "at most 8192"),
        ({"fps": 241}, "at most 240"),
        ({"chunk_frames": 10**6}, "at most 240"),
        ({"window_frames": "some"}, "a whole number"),
    ],
)
def test_a_value_out_of_range_is_named(typed: dict[str, object], words: str) -> None:
    """It would be found minutes later inside a worker."""
    with pytest.raises(ConfigError) as caught:
        generate_options(typed)
    assert words in str(caught.value)
