"""Where prompts come from: text files and the lists of the sprite world."""

from __future__ import annotations

from pathlib import Path

import pytest

from astrolabe_ray.data.prompts import load_prompts
from astrolabe_ray.errors import ConfigError


def test_a_file_gives_one_prompt_a_line_without_blank_lines_and_margins(tmp_path: Path) -> None:
    """An empty prompt would be rolled out like any other."""
    file = tmp_path / "prompts.txt"
    file.write_bytes("a red  circle \n\n   \n\tein grüner Kreis\r\na red  circle\n一只猫".encode())
    assert load_prompts(str(file)) == ["a red  circle", "ein grüner Kreis", "a red  circle", "一只猫"]


def test_a_byte_order_mark_is_no_part_of_the_first_prompt(tmp_path: Path) -> None:
    """Editors on Windows write one; the first prompt would start with a character nobody sees."""
    file = tmp_path / "prompts.txt"
    file.write_bytes(b"\xef\xbb\xbfa red circle\na blue star\n")
    assert load_prompts(str(file)) == ["a red circle", "a blue star"]


@pytest.mark.parametrize("mark", ["\u2028", "\x85", "\x0b", "\x0c", "\x1d"])
def test_only_line_ends_separate_prompts(tmp_path: Path, mark: str) -> None:
    """Prompts copied from web pages contain Unicode separators, which would cut them in two."""
    file = tmp_path / "prompts.txt"
    file.write_text(f"a red{mark}circle\na blue star\n", encoding="utf-8")
    assert load_prompts(str(file)) == [f"a red{mark}circle", "a blue star"]


def test_a_file_in_the_home_folder_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A shell does not expand `~` inside --config.data.train_prompts=~/prompts.txt."""
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    assert load_prompts("~/prompts.txt") == ["a red circle"]


def message_of(source: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load_prompts(source)
    return str(caught.value)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("missing.txt", None),
        ("folder", "folder"),
        ("latin1.txt", "ein grüner Kreis\n".encode("latin-1")),
        ("empty.txt", b""),
        ("blank.txt", b" \n\n\t\n"),
    ],
)
def test_a_file_without_prompts_is_named_with_the_way_out(
    tmp_path: Path, name: str, content: bytes | str | None
) -> None:
    """The run would stop minutes later inside a worker, or divide by the number of prompts."""
    file = tmp_path / name
    if content == "folder":
        file.mkdir()
    elif isinstance(content, bytes):
        file.write_bytes(content)
    message = message_of(str(file))
    assert str(file) in message
    assert "one prompt a line" in message


def test_the_home_of_an_unknown_user_is_an_error_of_the_config() -> None:
    """Path.expanduser raises RuntimeError, which would show as a traceback."""
    message = message_of("~nobody_has_this_name/prompts.txt")
    assert "~nobody_has_this_name/prompts.txt" in message


def test_the_lists_of_the_sprite_world_are_complete() -> None:
    """A run of the demo needs no file."""
    train, heldout = load_prompts("builtin:sprites/train"), load_prompts("builtin:sprites/heldout")
    assert (len(train), len(heldout)) == (1672, 248)
    assert len({*train, *heldout}) == 1920
    assert "a small red star moves left on a black background" in {*train, *heldout}


def test_an_unknown_list_is_refused_with_the_known_ones() -> None:
    """It would be looked for as a file called `builtin:...`."""
    message = message_of("builtin:sprites/test")
    assert all(word in message for word in ("builtin:sprites/test", "builtin:sprites/train", "heldout"))
