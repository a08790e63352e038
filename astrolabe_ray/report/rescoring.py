"""What scoring a folder's videos anew leaves beside them: every score, and how far rewards agree.

rescored.jsonl    a line for each video: file, sha256, phase, prompt, scores (then), rescored (now)
agreement.json    the same as agreement.md, for programs
agreement.md      changes of each reward, and rank correlations of every two
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

from astrolabe_ray.report.agreement import Agreement, agreement, agreements
from astrolabe_ray.report.run_dir import Json, RunDir, read_lines, write_bytes, write_json, write_lines
from astrolabe_ray.report.statistics import paired
from astrolabe_ray.saved_videos import SavedVideo

RESCORED, AGREEMENT, TABLE = "rescored.jsonl", "agreement.json", "agreement.md"
NOW = " (now)"
"""Behind a reward that was scored then as well: what the file lost by compression shows there."""


def merged(folder: Path, videos: Sequence[SavedVideo], now: Sequence[Mapping[str, float]]) -> list[Json]:
    """Records of `videos` with what they were scored `now` and in earlier calls. Written to the folder.

    One whose file is gone keeps the record that it has.
    """
    before = read_lines(folder / RESCORED)
    earlier = {(r["file"], r["sha256"]): r["rescored"] for r in before}
    here = [(video, scores) for video, scores in zip(videos, now, strict=True) if video.file.is_file()]
    gone = {video.name for video in videos} - {video.name for video, _ in here}
    digests = [hashlib.sha256(video.file.read_bytes()).hexdigest() for video, _ in here]
    records = [record for record in before if record["file"] in gone]
    records += [
        {
            "file": video.name,
            "sha256": digest,
            "phase": video.phase,
            "prompt": video.prompt,
            "scores": video.scores,
            "rescored": {**earlier.get((video.name, digest), {}), **scores},
        }
        for (video, scores), digest in zip(here, digests, strict=True)
    ]
    write_lines(folder / RESCORED, records)
    return records


def write_agreement(folder: Path, records: Sequence[Json]) -> Path:
    """Write both files of the comparison; returns the table."""
    content = {
        "changes": _changes(records),
        "rescored": {
            phase or "all": _plain(_compared([r for r in records if r["phase"] == phase]))
            for phase in dict.fromkeys(record["phase"] for record in records)
        },
        "evaluations": {
            line["phase"]: _plain(agreements(*_columns(line["records"])))
            for line in read_lines(RunDir(folder).evaluations)
        },
    }
    write_json(folder / AGREEMENT, content)
    write_bytes(folder / TABLE, table(content).encode())
    return folder / TABLE


def _compared(records: Sequence[Json]) -> list[Agreement]:
    """Every two rewards, of which those that were scored twice count as they were then; and then with now."""
    rows, prompts = [_row(record) for record in records], [record["prompt"] for record in records]
    twice = list(dict.fromkeys(key for row in rows for key in row if key.endswith(NOW)))
    once = [{key: value for key, value in row.items() if key not in twice} for row in rows]
    repeated = [agreement(key.removesuffix(NOW), key, rows, prompts) for key in twice]
    return [*agreements(once, prompts), *repeated]


def _columns(records: Sequence[Json]) -> tuple[list[dict[str, float]], list[str]]:
    return [record["scores"] for record in records], [record["prompt"] for record in records]


def _row(record: Json) -> dict[str, float]:
    """All scores of a video by name; those of now are marked where there is one of then."""
    then: dict[str, float] = record["scores"]
    return then | {key + NOW if key in then else key: value for key, value in record["rescored"].items()}


def _changes(records: Sequence[Json]) -> dict[str, dict[str, float]]:
    """Each reward's paired difference from the first phase to the last; none with a single phase."""
    phases = list(dict.fromkeys(record["phase"] for record in records))
    if len(phases) < 2:
        return {}
    first, last = (
        {_place(record): record for record in records if record["phase"] == phase}
        for phase in (phases[0], phases[-1])
    )
    places = [place for place in first if place in last]
    keys = dict.fromkeys(key for place in places for key in _row(last[place]))
    found = {}
    for key in keys:
        both = [p for p in places if key in _row(first[p]) and key in _row(last[p])]
        if len(both) > 1:
            before, after = ([_row(side[place])[key] for place in both] for side in (first, last))
            found[key] = asdict(paired(before, after, [prompt for prompt, _ in both]))
    return found


def _place(record: Json) -> tuple[str, str]:
    """What a video has in common with its counterpart of another phase."""
    return record["prompt"], record["file"].rpartition("/")[2]


def _plain(found: Sequence[Agreement]) -> list[Json]:
    return [asdict(each) for each in found]


def table(content: Json) -> str:
    """The comparison as Markdown. Example of its input: what `agreement.json` holds."""
    parts = ["# How far rewards agree\n"]
    if content["changes"]:
        parts.append("## From the first evaluation to the last, same prompts and seeds\n")
        rows = [
            (
                key,
                f"{change['reward_before']:.4f}",
                f"{change['reward_after']:.4f}",
                f"{change['paired_diff_mean']:+.4f} ± {change['paired_diff_se']:.4f}",
                str(change["num_videos"]),
            )
            for key, change in content["changes"].items()
        ]
        parts.append(_markdown(("reward", "before", "after", "difference (SE)", "videos"), rows))
    head = ("videos of", "reward", "reward", "over all", "videos", "within prompts", "prompts")
    titles = {
        "rescored": "Rank correlation over the saved videos",
        "evaluations": "Rank correlation over all videos of the evaluations",
    }
    for name, title in titles.items():
        rows = [_agreement_row(phase, each) for phase, found in content[name].items() for each in found]
        if rows:
            parts += [f"## {title}\n", _markdown(head, rows)]
    return "\n".join(parts)


def _agreement_row(phase: str, each: Json) -> tuple[str, ...]:
    over_all, within = (
        "-" if each[name] is None else f"{each[name]:+.2f}" for name in ("over_all", "within_prompts")
    )
    videos, prompts = str(each["num_videos"]), str(each["num_prompts"])
    return phase, each["first"], each["second"], over_all, videos, within, prompts


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    widths = [max(len(row[column]) for row in (head, *rows)) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
        for row in (head, *rows)
    ]
    rule = "| " + " | ".join("-" * width for width in widths) + " |"
    return "\n".join([lines[0], rule, *lines[1:]]) + "\n"
