"""The held-out videos that people get to see, before and after, on the same prompts and seeds."""

from __future__ import annotations

from pathlib import Path

from astrolabe_ray.report.run_dir import RunDir, read_json, write_bytes, write_json
from astrolabe_ray.types import Evaluation


def write_shown_videos(run_dir: RunDir, evaluation: Evaluation) -> dict[str, Path]:
    """Write `eval_videos/<phase>/<number>.mp4` and enter them in `eval_videos/index.json`.

    Returns the files by caption. Each entry of the index has phase, step, number, file, prompt, seed,
    scores and total. An evaluation of the same phase is replaced.
    """
    index_file = run_dir.eval_videos / "index.json"
    index = read_json(index_file) if index_file.exists() else []
    index = [entry for entry in index if entry["phase"] != evaluation.phase]
    files: dict[str, Path] = {}
    shown = [(record, record.video) for record in evaluation.records if record.video is not None]
    for number, (record, video) in enumerate(shown):
        name = f"{evaluation.phase}/{number:03d}.mp4"
        write_bytes(run_dir.eval_videos / name, video)
        files[f"{record.prompt} (reward {record.total:.3f})"] = run_dir.eval_videos / name
        index.append(
            {
                "phase": evaluation.phase,
                "step": evaluation.version.step,
                "number": number,
                "file": name,
                "prompt": record.prompt,
                "seed": record.seed,
                "scores": record.scores,
                "total": record.total,
            }
        )
    write_json(index_file, index)
    return files
