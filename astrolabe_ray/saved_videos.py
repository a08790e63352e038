"""Videos that a run or `generate` left behind, with their prompts and the scores that they got then.

No torch here.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from astrolabe_ray.errors import ConfigError
from astrolabe_ray.report.run_dir import RunDir, read_json, read_lines


@dataclass(frozen=True)
class SavedVideo:
    """Example: `SavedVideo(Path("a.mp4"), "a red circle")`."""

    file: Path
    prompt: str
    name: str = ""  # within its folder, e.g. "after/003.mp4"
    phase: str = ""  # of the evaluation: "before", "step-<n>", "after"
    scores: dict[str, float] = field(default_factory=dict)  # that it got when it was made


def videos_of(folder: Path) -> list[SavedVideo]:
    """Of a run of `train`, or of what `generate` wrote; some files may be gone. Raises ConfigError where
    there are none."""
    run, results = RunDir(folder), folder / "results.jsonl"
    try:
        if (run.eval_videos / "index.json").is_file():
            found = _of_run(run)
        elif results.is_file():
            found = _of_generate(folder, read_lines(results))
        else:
            raise ConfigError(
                f"{folder} has no videos with prompts: neither eval_videos/index.json, as `train` writes it, "
                "nor results.jsonl, as `generate` does"
            )
    except (KeyError, TypeError, ValueError) as reason:
        raise ConfigError(f"the records in {folder} can't be read: {reason!r}") from None
    if not any(video.file.is_file() for video in found):
        what = f"all {len(found)} videos are gone" if found else "there is no video"
        raise ConfigError(f"{folder}: {what}; `train` writes evaluation.num_shown_videos of each evaluation")
    return found


def _of_run(run: RunDir) -> list[SavedVideo]:
    return [
        SavedVideo(run.eval_videos / e["file"], e["prompt"], e["file"], e["phase"], e["scores"])
        for e in read_json(run.eval_videos / "index.json")
    ]


def _of_generate(folder: Path, records: Sequence[dict[str, Any]]) -> list[SavedVideo]:
    return [
        SavedVideo(folder / r["video"], r["prompt"], r["video"], scores=r.get("scores", {}))
        for r in records
        if r["video"] is not None
    ]


def prompt_of(file: Path) -> str:
    """What an mp4 of `generate` or `train` says that it shows. Raises ConfigError if it says nothing."""
    comment = comment_of(file)
    prompt = _facts(comment).get("prompt")
    if isinstance(prompt, str):
        return prompt
    prompt, seed, _ = comment.rpartition(" | seed ")
    if not seed:
        raise ConfigError(f"{file} does not say what it shows; give --prompt TEXT")
    return prompt


def comment_of(file: Path) -> str:
    """Of an mp4 file; empty where there is none."""
    import av
    from av.error import FFmpegError

    if file.suffix != ".mp4":
        return ""
    try:
        with av.open(str(file), format="mov") as container:
            return container.metadata.get("comment", "")
    except (FFmpegError, OSError):
        return ""  # whoever decodes it says what is wrong


def _facts(comment: str) -> dict[str, Any]:
    """Of the JSON that `generate` writes."""
    try:
        found = json.loads(comment)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}
