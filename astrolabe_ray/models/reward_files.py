"""Whether the files of a reward are here; looked at before a GPU is taken, without torch."""

from __future__ import annotations

from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path

from astrolabe_ray.config.reward_files import REWARD_DIR, REWARD_MODELS, FileNeed
from astrolabe_ray.config.scorer_cards import ScorerCard
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.models.published_texts import read_texts


def file_problems(
    card: ScorerCard, folder: Path, options: Mapping[str, str], *, runs_here: bool = True
) -> list[str]:
    """A line for the absent files of a scorer, one for each wrong one, one for absent packages.

    Packages are not looked for if the scorer does not run in this environment.
    """
    lines = []
    named = [options[name] for name in card.file_options if options[name]]
    absent = [need.path for need in card.files if not _fulfilled(folder, need)]
    absent += [path for path in named if not _found(folder, path)]
    if absent:
        listed = ", ".join(str(folder / path) for path in absent)
        lines.append(f"scorer {card.name} lacks {listed}; {_way_out(card, folder)}")
    for need in card.files:
        if need.texts and need.path not in absent:
            try:
                read_texts(folder / need.path, need.texts)
            except ConfigError as error:
                lines.append(str(error))
    missing = [name for name in card.packages if runs_here and find_spec(name) is None]
    if missing:
        lines.append(
            f"scorer {card.name} needs the package {', '.join(missing)}: pip install {' '.join(missing)}"
        )
    return lines


def _fulfilled(folder: Path, need: FileNeed) -> bool:
    instead = bool(need.instead) and all(_found(folder, path) for path in need.instead)
    return instead or _found(folder, need.path)


def _found(folder: Path, path: str) -> bool:
    return any(folder.glob(path)) if "*" in path else (folder / path).exists()


def _way_out(card: ScorerCard, folder: Path) -> str:
    if card.name in REWARD_MODELS and folder.resolve() == Path(REWARD_DIR).resolve():
        return f"fetch them with `python launch.py models download {card.name}`"
    return "put them there, or name their folder with --config.rewards.N.folder=FOLDER"
