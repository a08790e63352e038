"""Presets are found by path, overridden by key, and every mistake gets one clear line."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from astrolabe_ray.config.keys import all_keys
from astrolabe_ray.config.loader import load, presets_in
from astrolabe_ray.config.overrides import apply_overrides, describe
from astrolabe_ray.config.schema import RewardConfig, RunConfig
from astrolabe_ray.errors import ConfigError

ROOT = Path(__file__).parents[2]
TINY = f"{ROOT / 'configs' / 'nft_tiny.py'}:tiny_sprites"

PRESET = """
from astrolabe_ray.config.schema import RewardConfig, RunConfig

def good() -> RunConfig:
    return RunConfig(name="good", rewards=(RewardConfig(key="a"), RewardConfig(key="b")))

def bad() -> RunConfig:
    return RunConfig(name="bad", num_steps=0, rewards=())

def needs_an_argument(steps: int) -> RunConfig:
    return RunConfig(name="x", num_steps=steps, rewards=())

def _private() -> RunConfig:
    return good()

def returns_a_number() -> int:
    return 3
"""


@pytest.fixture
def preset_file(tmp_path: Path) -> Path:
    file = tmp_path / "mine.py"
    file.write_text(PRESET)
    return file


def error_of(spec: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(spec, overrides)
    return str(caught.value)


def test_every_shipped_preset_loads_and_is_named_after_its_function() -> None:
    """A preset that no longer fits the schema would be found by its first user."""
    files = sorted((ROOT / "configs").glob("*.py"))
    assert files
    for file in files:
        presets = presets_in(file)
        assert presets, file
        for name in presets:
            assert load(f"{file}:{name}").name == name


def test_overrides_change_exactly_the_named_options() -> None:
    """An override that is parsed wrongly, or that touches its neighbours, trains something else."""
    before = load(TINY)
    after = load(
        TINY,
        [
            "--config.rollout.group_size=16",
            "--config.model.window_frames=none",
            "--config.model.denoising_steps=1000,500",
            "--config.rewards.1.weight=0.25",
            "--config.algorithm.clean_context=false",
            "--config.learner.lr=3e-4",
            "--config.learner.zero_stage=1",
            "--config.name=77",
            "--config.rollout.group_size=4",
        ],
    )
    changed = {new for old, new in zip(describe(before), describe(after), strict=True) if old != new}
    assert changed == {
        "rollout.group_size = 4",  # the last one wins
        "model.window_frames = none",
        "model.denoising_steps = 1000,500",
        "rewards.1.weight = 0.25",
        "algorithm.clean_context = false",
        "learner.lr = 0.0003",
        "learner.zero_stage = 1",
        "name = 77",
    }
    assert after.name == "77"
    assert after.model.window_frames is None
    assert after.algorithm.clean_context is False


def test_a_list_of_one_needs_no_comma() -> None:
    """`denoising_steps=1000` would be refused for not being a list."""
    assert load(TINY, ["model.denoising_steps=1000"]).model.denoising_steps == (1000,)


def test_a_config_printed_as_overrides_gives_the_same_config() -> None:
    """`configs show` would print lines that can't be typed back."""
    config = load(TINY, ["model.window_frames=none", "learner.adam_betas=0.8,0.9", "cluster.address=local"])
    typed = [line.replace(" = ", "=", 1) for line in describe(config)]
    assert load(TINY, typed) == config
    assert {
        line.split(" = ")[0].replace(".1.", ".0.").replace(".2.", ".0.") for line in describe(config)
    } == set(all_keys())


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("rollout.groupsize=3", "config has no key 'rollout.groupsize'; did you mean 'rollout.group_size'?"),
        ("group_size=3", "config has no key 'group_size'; did you mean 'rollout.group_size'?"),
        ("rolout.group_size=3", "config has no key 'rolout.group_size'; did you mean 'rollout.group_size'?"),
        ("rewards.1.wieght=3", "config has no key 'rewards.1.wieght'; did you mean 'rewards.1.weight'?"),
        ("lora.qqq=3", "config has no key 'lora.qqq'; lora has: alpha, dtype, rank"),
        (
            "rewards.3.weight=1",
            "config has no key 'rewards.3.weight': '3' is not one of its entries 0 (tiny_clip), "
            "1 (motion_quality), 2 (image_quality)",
        ),
        ("rollout.group_size", "'rollout.group_size' has no value; write --config.rollout.group_size=VALUE"),
        ("rollout.group_size=0", "command line: rollout.group_size = 0: must be at least 1"),
        ("learner.lr=fast", "command line: learner.lr = 'fast': must be a number"),
        (
            "algorithm.window_start=first",
            "command line: algorithm.window_start = 'first': must be one of 'last' or 'random' or a whole "
            "number",
        ),
        ("num_steps=2.5", "command line: num_steps = 2.5: must be a whole number"),
        ("model.dtype=fp8", "command line: model.dtype = 'fp8': must be one of 'float32' or 'bfloat16'"),
        (
            "lora=16",
            "command line: lora = 16: must be a section; set its options one by one: --config.lora.KEY=VALUE",
        ),
    ],
)
def test_a_wrong_override_says_what_would_be_right(override: str, message: str) -> None:
    """A typing mistake must not be ignored, nor end in a page of validation output."""
    assert error_of(TINY, override) == message


def test_two_wrong_values_get_a_line_each() -> None:
    """People would have to run once per mistake."""
    lines = error_of(TINY, "num_steps=0", "seed=-1").splitlines()
    assert lines == [
        "command line: seed = -1: must be at least 0",
        "command line: num_steps = 0: must be greater than 0",
    ]


def test_a_wrong_preset_name_lists_the_presets(preset_file: Path) -> None:
    """Helpers, private functions and functions with arguments must not be offered as presets."""
    assert error_of(f"{preset_file}:god") == (
        f"{preset_file} has no preset 'god'; did you mean 'good'? It has: bad, good"
    )
    assert error_of(str(preset_file)).endswith(f"write {preset_file}:NAME. It has: bad, good")


def test_a_preset_with_a_value_out_of_range_is_named(preset_file: Path) -> None:
    """The line must point to the preset, not to the command line."""
    message = error_of(f"{preset_file}:bad")
    assert message == f"{preset_file}:bad: num_steps = 0: must be greater than 0"


def test_a_missing_file_names_its_neighbours(preset_file: Path) -> None:
    """`no such file` alone leaves people guessing where the program looked."""
    assert "did you mean" in error_of(f"{preset_file.parent / 'mime.py'}:good")
    assert "has: " in error_of(f"{preset_file.parent / 'other_name_entirely.py'}:good")
    assert "current folder" in error_of("no/such/folder/x.py:good")


def test_a_file_that_does_not_run_says_where(preset_file: Path) -> None:
    """A syntax error in a preset would look like a crash of the program."""
    preset_file.write_text("x = 1\ndef broken(:\n")
    assert f"{preset_file}, line 2: " in error_of(f"{preset_file}:good")
    preset_file.write_text("import a_module_that_is_not_there\n")
    assert "a_module_that_is_not_there" in error_of(f"{preset_file}:good")


@given(st.sampled_from(sorted(all_keys())), st.text(max_size=12))
def test_any_text_for_any_key_is_a_config_or_a_config_error(key: str, text: str) -> None:
    """Odd input must never end in a traceback."""
    with contextlib.suppress(ConfigError):
        assert isinstance(load(TINY, [f"{key}={text}"]), RunConfig)


def test_a_list_of_words_is_typed_with_commas() -> None:
    """`--config.health.stop_on=pull,diversity` was refused, and a word that is none of them must be."""
    config = RunConfig(name="x", rewards=(RewardConfig(key="tiny_clip"),))
    for text, want in (("pull,diversity", ("pull", "diversity")), ("pull", ("pull",)), ("", ())):
        assert apply_overrides(config, [f"health.stop_on={text}"]).health.stop_on == want
    with pytest.raises(ConfigError, match=r"health\.stop_on"):
        apply_overrides(config, ["health.stop_on=pull,everything"])
