"""The part of the page that people look at first: videos of the first and the last policy, side by side."""

from __future__ import annotations

import base64
from html import escape

from astrolabe_ray.report.run_dir import Json, RunDir, read_json


def video_pairs(run_dir: RunDir) -> str:
    """A card for each prompt with its videos of the first and the last evaluation, as data in the page."""
    index_file = run_dir.eval_videos / "index.json"
    index: list[Json] = read_json(index_file) if index_file.exists() else []
    if not index:
        return '<p class="nothing">No videos were written.</p>'
    first, last = index[0]["phase"], index[-1]["phase"]
    videos: dict[tuple[str, int], list[Json]] = {}
    for entry in index:
        if entry["phase"] in (first, last):
            videos.setdefault((entry["prompt"], entry["seed"]), []).append(entry)
    cards = []
    for shown in videos.values():
        pair = "".join(_video(run_dir, entry) for entry in shown)
        cards.append(
            f'<article><h3>{escape(shown[0]["prompt"])}</h3><div class="pair">{pair}</div></article>'
        )
    return f'<div class="cards">{"".join(cards)}</div>'


def _video(run_dir: RunDir, entry: Json) -> str:
    data = base64.b64encode((run_dir.eval_videos / entry["file"]).read_bytes()).decode()
    scores = ", ".join(f"{key} {value:.3f}" for key, value in entry["scores"].items())
    return (
        f'<figure><video src="data:video/mp4;base64,{data}" controls loop muted autoplay playsinline '
        f'aria-label="{escape(entry["phase"])}: {escape(entry["prompt"])}"></video>'
        f"<figcaption><span>{escape(entry['phase'])}</span> <b>{entry['total']:.3f}</b>"
        f"<small>{escape(scores)}</small></figcaption></figure>"
    )
