"""The command line as people use it: every mistake ends in one clear line and exit code 2."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from astrolabe_ray.config.loader import presets_in
from astrolabe_ray.config.scorer_cards import BY_KEY

ROOT = Path(__file__).parents[2]
TINY = "configs/nft_tiny.py:tiny_sprites"

LOUD_LAUNCH = """
import sys
sys.argv = ["launch.py", *sys.argv[1:]]
import launch
try:
    launch.main()
finally:
    print("LOADED", *sorted({"torch", "ray"} & set(sys.modules)))
"""


def run(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """`python launch.py ARGUMENTS`; its last line of stdout names heavy packages that were loaded."""
    return subprocess.run(
        [sys.executable, "-c", LOUD_LAUNCH, *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=60,
    )


def errors_of(done: subprocess.CompletedProcess[str]) -> list[str]:
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--config", "configs/nft_tiny.py:tiny_sprite"],
            "error: configs/nft_tiny.py has no preset 'tiny_sprite'; did you mean 'tiny_sprites'? "
            "It has: tiny_sprites, tiny_sprites_two_ranks",
        ),
        (
            ["--config", "configs/nft_tyni.py:tiny_sprites"],
            "error: no config file configs/nft_tyni.py; did you mean configs/nft_tiny.py?",
        ),
        (
            ["--config", TINY, "--config.rollout.groupsize=4"],
            "error: config has no key 'rollout.groupsize'; did you mean 'rollout.group_size'?",
        ),
        (
            ["--config", TINY, "--config.learner.zero_stage", "4"],
            "error: command line: learner.zero_stage = 4: must be one of 0, 1, 2 or 3",
        ),
        (
            ["--config", TINY, "--config.rollout.batch_size=3"],
            "error: rollout.batch_size 3 does not divide rollout.group_size 8. "
            "Try --config.rollout.batch_size=2 or 4.",
        ),
        (
            ["--config", TINY, "--config.name=../mine"],
            "error: command line: name = '../mine': must be a name of letters, digits, '.', '_' and '-', "
            "for a folder is called by it",
        ),
        (["--config", TINY, "--dryrun"], "error: there is no option '--dryrun'; did you mean --dry-run?"),
        (
            ["--config", TINY, "--config.rewards.0.key=tiny_clap"],
            "error: rewards.0.key: there is no scorer 'tiny_clap'; did you mean 'tiny_clip'? "
            f"There are: {', '.join(sorted(BY_KEY))}, or MODULE:CLASS",
        ),
    ],
)
def test_a_mistake_in_the_config_ends_in_one_line_before_anything_heavy_loads(
    arguments: list[str], message: str
) -> None:
    """A typing mistake would cost half a minute of start-up, or show as a page of traceback."""
    done = run("train", *arguments)
    assert errors_of(done) == [message]
    assert done.stdout.splitlines()[-1] == "LOADED"


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("data.train_prompts", "nowhere.txt", ["nowhere.txt", "one prompt a line"]),
        ("data.heldout_prompts", "latin1.txt", ["latin1.txt", "UTF-8"]),
        ("data.train_prompts", "builtin:sprits/train", ["builtin:sprites/train"]),
        ("data.heldout_prompts", "short.txt", ["short.txt", "has 1 prompts", "evaluation.num_prompts", "96"]),
        ("model.path", "no_model", ["no_model", "transformer"]),
        ("model.checkpoint", "no_weights.pt", ["no_weights.pt"]),
        ("model.lora_init", "lora_of_rank_4", ["--config.lora.rank=4 --config.lora.alpha=8"]),
        ("checkpoint.resume", "no_checkpoint", ["no_checkpoint", "no such folder"]),
        ("checkpoint.resume", "torn_checkpoint", ["torn_checkpoint", "manifest.json is missing"]),
        ("logging.log_dir", "latin1.txt", ["latin1.txt", "--config.logging.log_dir="]),
    ],
)
def test_a_missing_or_unreadable_input_is_named_before_anything_heavy_loads(
    tmp_path: Path, key: str, value: str, words: list[str]
) -> None:
    """The run would fail minutes later inside a worker, or train on nothing."""
    (tmp_path / "latin1.txt").write_bytes("ein grüner Kreis\n".encode("latin-1"))
    (tmp_path / "short.txt").write_text("a green circle\n")
    (tmp_path / "torn_checkpoint").mkdir()
    (tmp_path / "lora_of_rank_4").mkdir()
    (tmp_path / "lora_of_rank_4" / "adapter_model.bin").touch()
    (tmp_path / "lora_of_rank_4" / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    done = run("train", "--config", str(ROOT / TINY), f"--config.{key}={value}", cwd=tmp_path)
    (line,) = errors_of(done)
    assert all(word in line for word in words), line
    assert done.stdout.splitlines()[-1] == "LOADED"


FAILS = """
import sys
import launch
from astrolabe_ray.errors import InfraFailure
def app():
    raise InfraFailure("a learner rank failed: ActorDiedError: killed")
launch.make_app = lambda wiring: app
launch.main()
"""


@pytest.mark.parametrize("wants_traceback", [False, True])
def test_a_run_that_fails_says_why_in_one_line(wants_traceback: bool) -> None:
    """A page of traceback for a node that died; and none for whoever looks for the fault."""
    done = subprocess.run(
        [sys.executable, "-c", FAILS],
        cwd=ROOT,
        env={**os.environ, "ASTROLABE_TRACEBACK": "1" if wants_traceback else ""},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    if wants_traceback:
        assert "Traceback" in done.stderr and "in app" in done.stderr
    else:
        assert done.stderr == "error: a learner rank failed: ActorDiedError: killed\n"


@pytest.mark.parametrize("command", ["up", "status", "down"])
def test_reward_servers_without_a_cluster_are_refused_at_once(tmp_path: Path, command: str) -> None:
    """A whole cluster was started, for 20 s, just to refuse."""
    environment = {**os.environ, "RAY_TMPDIR": str(tmp_path)} | {"RAY_ADDRESS": ""}
    done = subprocess.run(
        [sys.executable, "launch.py", "rewards", command, "--config", TINY],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=60,
    )
    (line,) = errors_of(done)
    assert line.startswith("error: there is no running Ray cluster")
    assert list(tmp_path.iterdir()) == [], "a cluster writes its session there"


def test_a_dry_run_prints_the_plan_and_starts_nothing(tmp_path: Path) -> None:
    """A check that starts Ray would disturb a cluster that is in use."""
    done = run("train", "--config", str(ROOT / TINY), "--config.num_steps=7", "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "tiny_sprites, seed 0, 7 steps" in done.stdout
    assert "Everything is there. Nothing was started." in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_configs_show_prints_overrides_that_can_be_typed_back() -> None:
    """What is shown must be what would run."""
    done = run("configs", "show", TINY, "--config.rollout.group_size=16")
    assert done.returncode == 0, done.stderr
    assert "rollout.group_size = 16" in done.stdout.splitlines()


def test_configs_list_names_every_preset_once() -> None:
    """A preset that is not listed, or that is cut off in a pipe, is not found."""
    done = run("configs", "list")
    files = sorted((ROOT / "configs").glob("*.py"))
    expected = [name for file in files for name in presets_in(file)]
    rows = [line.split() for line in done.stdout.splitlines()[:-1]]
    assert [row[0] for row in rows if row[0] in expected] == expected
    assert [row[0] for row in rows if row[0].endswith(".py")] == [f"configs/{file.name}" for file in files]
    row = next(row for row in rows if row[0] == "longlive_video_multi_reward_16gpu")
    assert row[1:7] == ["16", "longlive", "1", "video_hpsv3_local,", "1", "videoalign_mq_score"]
    assert done.stdout.splitlines()[-1] == "LOADED"


def test_configs_diff_prints_what_differs_and_nothing_else() -> None:
    """A difference between two runs that is not shown is looked for in the wrong place."""
    preset = "configs/nft_self_forcing.py:self_forcing_video_hpsv3"
    done = run("configs", "diff", f"{preset}_16gpu", f"{preset}_24gpu")
    assert done.stdout.splitlines()[:-1] == [
        "name: self_forcing_video_hpsv3_16gpu -> self_forcing_video_hpsv3_24gpu",
        "rollout.num_groups: 16 -> 48",
        "rollout.group_size: 16 -> 24",
        "rollout.batch_size: 2 -> 4",
        "rollout.min_actors: 6 -> 9",
        "rollout.max_actors: 6 -> 9",
        "rewards.0.min_replicas: 4 -> 7",
        "rewards.0.max_replicas: 4 -> 7",
        "learner.num_ranks: 6 -> 8",
    ]
    assert run("configs", "diff", preset, preset).stdout.splitlines()[0] == "They do not differ."


def test_configs_diff_marks_a_reward_that_one_side_lacks() -> None:
    """A reward that only one preset has would be left out."""
    presets = [f"configs/nft_longlive.py:longlive_video_{name}" for name in ("hpsv3", "multi_reward")]
    done = run("configs", "diff", *presets)
    assert "rewards.1.key: - -> videoalign_mq_score" in done.stdout.splitlines()


def test_configs_schema_is_a_json_schema_with_the_meaning_of_each_option() -> None:
    """Editors complete and check presets with it."""
    done = run("configs", "schema")
    schema = json.loads(done.stdout.rpartition("LOADED")[0])
    nft_beta = schema["$defs"]["AlgorithmConfig"]["properties"]["nft_beta"]
    assert nft_beta["exclusiveMinimum"] == 0
    assert nft_beta["maximum"] == 1
    assert nft_beta["description"].startswith("Mixing weight")
    assert schema["required"] == ["name", "rewards"]


FULL_SIZE = "configs/nft_longlive.py:longlive_video_hpsv3_with_lora_init"


def test_a_dry_run_of_a_full_size_preset_works_without_its_files(tmp_path: Path) -> None:
    """Who plans a cluster has neither GPUs nor checkpoints on the laptop."""
    done = run("train", "--config", str(ROOT / FULL_SIZE), "--dry-run", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert "placement  node 1, 8 GPUs: 3 x learner rank, 3 x rollout actor, 2 x reward server" in done.stdout
    assert any("KV cache 9.6" in line for line in lines)  # 3 x 12 frames x 1560 tokens x 184,320 bytes
    assert any(line.startswith("fullest GPU") for line in lines)
    missing = [line for line in lines if line.startswith("not here: ")]
    files = ("dataset/vidprom/train.txt", "dataset/vidprom/test.txt", "wan_models/Wan2.1-T2V-1.3B")
    for what in (*files, "reward_ckpts/HPSv3.safetensors", "`python launch.py models download hpsv3`"):
        assert any(what in line for line in missing), what
    assert lines[-2:] == ["Nothing was started.", "LOADED"]


def test_without_dry_run_everything_that_is_not_here_gets_a_line(tmp_path: Path) -> None:
    """People would have to start once per missing file."""
    done = run("train", "--config", str(ROOT / FULL_SIZE), "--config.rewards.0.key=nobody", cwd=tmp_path)
    lines = errors_of(done)
    assert len(lines) == 4
    for what, line in zip(("nobody", "train.txt", "test.txt", "Wan2.1"), lines, strict=True):
        assert what in line


def test_rewards_up_looks_for_its_files_before_it_looks_for_a_gpu(tmp_path: Path) -> None:
    """A server without its weights would hold a GPU while it fails to load them three times."""
    key = "--config.rewards.0.key=videoalign_ta_score"
    done = run("rewards", "up", "--config", str(ROOT / TINY), key, cwd=tmp_path)
    (line,) = errors_of(done)
    assert "checkpoint-*/model.pth" in line and "models download videoreward" in line
    options = "--config.rewards.0.options=tempo=3"
    (line,) = errors_of(run("rewards", "up", "--config", str(ROOT / TINY), options, cwd=tmp_path))
    assert line.endswith("'tempo=3' is no option of the scorer tiny_clip; it has: compile=no")
    assert line.startswith("error: rewards.0.options: ")


def test_keys_of_the_first_release_are_translated_aloud() -> None:
    """A command line that people have would be refused, or change its meaning in silence."""
    done = run(
        "configs", "show", FULL_SIZE, "--config.beta=0.5", "--config.sample.num_image_per_prompt", "12"
    )
    assert {"algorithm.nft_beta = 0.5", "rollout.group_size = 12"} <= set(done.stdout.splitlines())
    assert done.stderr.splitlines() == [
        "note: beta=0.5 is taken for --config.algorithm.nft_beta=0.5",
        "note: sample.num_image_per_prompt=12 is taken for --config.rollout.group_size=12",
    ]


def test_overrides_apply_after_shrinking() -> None:
    """What someone types is what runs, also in a shrunk run."""
    done = run("configs", "show", FULL_SIZE, "--shrink", "--config.rollout.group_size=6")
    lines = done.stdout.splitlines()
    assert "rollout.group_size = 6" in lines
    assert "model.path = builtin:sprites" in lines
    assert any(line.startswith("    shrunk  without the LoRA") for line in lines)


def test_models_are_listed_before_anything_heavy_loads(tmp_path: Path) -> None:
    """Whoever only wants to know what to download should not wait for torch."""
    done = run("models", "list", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "absent  checkpoints/self_forcing_dmd.pt" in done.stdout
    assert done.stdout.splitlines()[-1] == "LOADED"


@pytest.mark.parametrize(
    "command",
    [
        ["--help"],
        ["train", "--help"],
        ["pretrain", "--help"],
        ["rewards", "up", "--help"],
        ["report", "--help"],
        ["models", "download", "--help"],
        ["models", "export-lora", "--help"],
        ["configs", "diff", "--help"],
    ],
)
def test_every_command_explains_itself(command: list[str]) -> None:
    """Help that fails to load is no help."""
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "Usage" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("train --confg x", "there is no option '--confg' of train; did you mean --config?"),
        ("train", "train needs --config FILE.py:PRESET; see `python launch.py train --help`"),
        ("generate --promt x", "there is no option '--promt' of generate; did you mean --prompt?"),
        (
            "generate --prompt a red circle",
            "generate has no place for 'red circle'; a text with spaces needs quotes; see ",
        ),
        ("generate --seed", "generate: --seed needs a value; see `python launch.py generate --help`"),
        ("generate --seed x --prompt a", "generate: --seed: "),
        ("rewards upp", "there is no command 'rewards upp'; did you mean up? There are: up, status, down"),
        (
            "rewards status --confg x",
            "there is no option '--confg' of rewards status; did you mean --config?",
        ),
        (
            "models chekc longlive",
            "there is no command 'models chekc'; did you mean check? There are: list, ",
        ),
        (
            "models list --all",
            "there is no option '--all' of models list; see `python launch.py models list ",
        ),
        ("models check", "models check needs NAME; see "),
        ("configs show", "configs show needs FILE.py:PRESET; see "),
        ("configs diff a b c", "configs diff has no place for 'c'; "),
        ("gnerate", "there is no command 'gnerate'; did you mean generate? There are: train, generate, "),
        ("--version", "there is no option '--version'; see `python launch.py --help`"),
    ],
)
def test_what_no_command_knows_ends_in_one_line(arguments: str, message: str) -> None:
    """A box that is drawn around half a sentence, in the middle of a log, without what was meant."""
    (line,) = errors_of(run(*arguments.split()))
    assert line.startswith(f"error: {message}"), line


def test_a_group_of_commands_alone_shows_its_help() -> None:
    """An empty error, for whoever only looks around."""
    done = run("rewards")
    assert (done.returncode, done.stderr) == (2, "")
    assert "Usage" in done.stdout and "status" in done.stdout


def test_a_report_of_a_folder_that_is_no_run_says_so(tmp_path: Path) -> None:
    """An empty page would be written where no run is."""
    done = run("report", str(tmp_path))
    assert errors_of(done) == [f"error: {tmp_path} is not the folder of a run: it has no config.json"]


def test_an_unknown_part_to_pretrain_names_the_parts() -> None:
    """An hour of training would start with the wrong thing, or end in a traceback."""
    done = run("pretrain", "transfromer", "--out", "nowhere")
    (line,) = errors_of(done)
    assert line.startswith("error: there is no part 'transfromer'")
    assert "text_encoder, vae, clip, transformer, all" in line
