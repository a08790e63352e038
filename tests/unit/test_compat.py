"""The release's options all at once, and rules between options."""

from __future__ import annotations

import math
import re
from pathlib import Path

import pytest

from astrolabe_ray.algorithms.lr_schedule import lr_factor
from astrolabe_ray.cli.selection import selected
from astrolabe_ray.config.algorithm_rules import algorithm_rules
from astrolabe_ray.config.compat import ASTROLABE
from astrolabe_ray.config.loader import load
from astrolabe_ray.config.overrides import describe
from astrolabe_ray.config.schema import RewardConfig, RunConfig
from astrolabe_ray.data.group_sampler import GroupSampler

ROOT = Path(__file__).parents[2]
TINY = f"{ROOT / 'configs' / 'nft_tiny.py'}:tiny_sprites"


def values(overrides: list[str], *, small: bool = False) -> dict[str, str]:
    return dict(line.split(" = ", 1) for line in describe(selected(TINY, overrides, small=small)))


@pytest.mark.parametrize("small", [False, True])
def test_compat_sets_every_option_of_its_table_and_nothing_else(small: bool) -> None:
    """A run that is called comparable and differs in one option."""
    plain, compat = values([], small=small), values(["algorithm.compat=astrolabe"], small=small)
    assert {key: compat[key] for key in ASTROLABE} == {
        key: f"{float(text):g}" if text == "0.1" else text for key, text in ASTROLABE.items()
    }
    changed = {key for key in plain if plain[key] != compat[key]}
    assert changed <= ASTROLABE.keys() | {"algorithm.compat"}


def test_an_option_set_by_hand_wins_over_compat_wherever_it_stands() -> None:
    """Taking one deviation back is how they are compared one by one."""
    for overrides in (
        ["--config.algorithm.compat=astrolabe", "--config.lora.dtype=float32"],
        ["--config.lora.dtype=float32", "--config.algorithm.compat=astrolabe"],
    ):
        config = load(TINY, overrides)
        assert config.lora.dtype == "float32" and config.algorithm.kl_rule == "release"


def test_the_guide_names_every_option_of_the_table_with_both_values() -> None:
    """A deviation that nobody can read about."""
    page = (ROOT / "docs" / "algorithm.md").read_text()
    rows = dict(re.findall(r"^\| `([\w.]+)` \| ([^|]+ \| [^|]+) \|", page, flags=re.MULTILINE))
    defaults = RunConfig(name="run", rewards=(RewardConfig(key="any"),))
    plain = dict(line.split(" = ", 1) for line in describe(defaults))
    assert rows.keys() == ASTROLABE.keys()
    for key, text in ASTROLABE.items():
        assert rows[key] == f"{plain[key]} | {text}", key


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["lora.dtype=bfloat16", "learner.zero_stage=2"], "learner.zero_stage=0"),
        (["algorithm.context_mask=frame"], "clean_context=false"),
        (["data.prompts_per_step=3"], "rollout.num_groups=9"),
        (["rollout.group_size=1", "algorithm.reward_scale=group"], "reward_scale=raw"),
        (["algorithm.advantage_peers=prompt", "algorithm.reward_scale=group"], "would do nothing"),
        (["algorithm.prompt_history=8", "algorithm.reward_scale=group"], "would do nothing"),
        (["learner.offload_optimizer=true", "learner.zero_stage=0"], "zero_stage=2"),
    ],
)
def test_options_that_contradict_each_other_are_one_line_with_a_way_out(overrides, words) -> None:
    """An option without effect, or a crash in the first step on the cluster."""
    config = load(TINY, ["rollout.num_groups=8", *overrides])
    (line,) = algorithm_rules(config)
    assert words in line
    assert not list(algorithm_rules(load(TINY, ["algorithm.compat=astrolabe"])))


def test_groups_of_a_step_share_prompts_and_the_next_step_has_others() -> None:
    """The release gives one prompt to a whole epoch; fresh ones must still come in the next."""
    prompts = [f"p{i}" for i in range(6)]
    plain = GroupSampler(prompts, 3)
    shared = GroupSampler(prompts, 3, shared=(4, 2))
    order = [plain.prompt(i) for i in range(6)]
    got = [[shared.prompt(4 * step + i) for i in range(4)] for step in range(3)]
    assert got == [order[2 * step : 2 * step + 2] * 2 for step in range(3)]


def test_learning_rates_follow_their_schedule() -> None:
    """Off by one at the ends, or a warm-up that starts at 0 and wastes a batch. By hand."""
    shape = {"warmup_steps": 3, "decay_steps": 4, "final_share": 0.2}
    constant = [lr_factor(step, schedule="constant", **shape) for step in (0, 1, 2, 3, 900)]
    assert constant == pytest.approx([0.25, 0.5, 0.75, 1, 1])
    linear = [lr_factor(step, schedule="linear", **shape) for step in (2, 3, 5, 7, 50)]
    assert linear == pytest.approx([0.75, 1, 0.6, 0.2, 0.2])
    cosine = [lr_factor(step, schedule="cosine", **shape) for step in (3, 4, 5, 7)]
    assert cosine == pytest.approx([1, 0.2 + 0.8 * (1 + math.sqrt(0.5)) / 2, 0.6, 0.2])
