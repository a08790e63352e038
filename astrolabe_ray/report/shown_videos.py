"""The held-out videos that people get to see, before and after, on the same prompts and seeds."""

from __future__ import annotations

from pathlib import Path

from astrolabe_ray.report.run_dir import RunDir, read_json, write_bytes, write_json
from astrolabe_ray.roles import Gallery
from astrolabe_ray.types import Evaluation


async def write_shown_videos(
    run_dir: RunDir, evaluation: Evaluation, gallery: Gallery, *, fps: int
) -> dict[str, Path]:
    """Write `eval_videos/<phase>/<number>.mp4` and add them to `eval_videos/index.json`.

    Returns the files by prompt. Each entry of the index has phase, number, file, prompt, seed, scores
    and total.
    """
    index_file = run_dir.eval_videos / "index.json"
    index = read_json(index_file) if index_file.exists() else []
    files: dict[str, Path] = {}
    for number, record in enumerate(r for r in evaluation.records if r.video is not None):
        name = f"{evaluation.phase}/{number:03d}.mp4"
        comment = f"{record.prompt} | seed {record.seed} | policy {evaluation.version} | {evaluation.phase}"
        content = await gallery.encode(record.video, fps=fps, comment=comment)
        files[record.prompt] = run_dir.eval_videos / name
        write_bytes(files[record.prompt], content)
        index.append(
            {
                "phase": evaluation.phase,
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
