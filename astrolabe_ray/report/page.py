"""`report.html`: one file that shows what a run did, from the files in its folder alone."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

from astrolabe_ray.report.charts import timeline_chart
from astrolabe_ray.report.curves import reward_charts, training_charts
from astrolabe_ray.report.gradient_map import gradient_map
from astrolabe_ray.report.page_videos import video_pairs
from astrolabe_ray.report.run_dir import Json, RunDir, read_json, read_lines, write_bytes
from astrolabe_ray.types import Span

HERE = Path(__file__).parent
POLICY = (
    "default-src 'none'; media-src data:; img-src data:; "
    "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
)
"""The page may load nothing from anywhere, whatever a prompt contains."""


def build_report(run_dir: RunDir) -> Path:
    """Write the page; parts whose files are missing say so."""
    config, summary = (read_json(file) if file.exists() else {} for file in (run_dir.config, run_dir.summary))
    steps, evaluations = read_lines(run_dir.metrics), read_lines(run_dir.evaluations)
    sections = [
        _header(run_dir, config),
        _result(summary),
        _section("Before and after", video_pairs(run_dir), VIDEO_NOTE),
        _section("Held-out rewards", _results(summary) + _progress(summary), RESULT_NOTE),
        _section("Alarms", _alarms(run_dir), ALARM_NOTE),
        _section("Rewards over training", reward_charts(steps, evaluations), REWARD_NOTE),
        _section("Optimization", training_charts(steps, summary), AGE_NOTE),
        _section("Gradients of the adapter", _gradients(run_dir), GRADIENT_NOTE),
        _section("Timeline of the roles", _timeline(run_dir, summary), TIMELINE_NOTE),
        _section("Details", _details(run_dir, steps)),
    ]
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<title>{escape(run_dir.path.name)}</title><style>{(HERE / 'page.css').read_text()}</style></head>"
        f"<body><main>{''.join(sections)}</main>"
        f"<script>{(HERE / 'page.js').read_text()}</script></body></html>"
    )
    write_bytes(run_dir.report, page.encode())
    return run_dir.report


VIDEO_NOTE = "Same prompt, same noise seed, other policy. The two videos of a pair play in step."
RESULT_NOTE = (
    "Means over the same prompts and noise seeds before and after. The difference is paired by video; "
    "SE is the standard error of its mean, with the videos of one prompt as one cluster, 95 % half the width "
    "of its confidence interval; a video that did not change counts half as better. Below, every evaluation "
    "against the first."
)
REWARD_NOTE = (
    "Training: mean over the rollouts of a step. Held-out: prompts that are never trained on, with fixed "
    "seeds. Bands are one standard error of the mean; in training as if rollouts of one prompt were "
    "independent, on held-out prompts with the videos of a prompt as one cluster. Held-out points in the "
    "middle are of the policy that samples; the last is of the EMA weights, which are what is saved. At the "
    "first point both are the same."
)
ALARM_NOTE = (
    "Signs that training did nothing, ran away or gamed its rewards; the limits are those of config.health."
)
GRADIENT_NOTE = (
    "Norm of the gradient of every adapter module, before clipping. A module whose gradient was zero or not "
    "finite in a step in which others had one stands out in the other colour, and so do all when half of the "
    "last steps or more had none. Point at one for its numbers."
)
TIMELINE_NOTE = "Rollouts, scores and training overlap as far as the largest policy age allows."
AGE_NOTE = "Policy age: steps between the policy that made a rollout and the policy that was trained on it."


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def _header(run_dir: RunDir, config: Json) -> str:
    """What was trained, in one sentence."""
    text = "Its configuration is missing."
    if config:
        model, rollout, frames = config["model"], config["rollout"], config["model"]["num_latent_frames"]
        rewards = " + ".join(f"{reward['weight']:g} × {reward['key']}" for reward in config["rewards"])
        text = (
            f"{model['base_model']} ({4 * (frames - 1) + 1} frames of {model['width']}×{model['height']} at "
            f"{model['fps']} fps) trained with DiffusionNFT on LoRA of rank {config['lora']['rank']} "
            f"for {config['num_steps']} steps of {rollout['num_groups']} prompts × {rollout['group_size']} "
            f"rollouts. Reward: {rewards}. Seed {config['seed']}."
        )
    if run_dir.origin.exists():
        origin = read_json(run_dir.origin)
        text += f" Steps up to {origin['step']} are those of {origin['run']}, which has their timeline."
    return (
        f'<header><p class="eyebrow">Astrolabe-Ray training report · {escape(run_dir.path.name)}</p>'
        f"<h1>{escape(config.get('name', run_dir.path.name))}</h1><p>{escape(text)}</p></header>"
    )


def _result(summary: Json) -> str:
    """The large numbers."""
    total = summary.get("heldout", {}).get("total")
    if total is None:
        text = (
            "No before-and-after comparison: the run ended before its last evaluation, or goes on from one "
            "with other held-out prompts, seeds or rewards."
        )
        return f'<p class="nothing">{text}</p>'
    change, error = total["paired_diff_mean"], total["paired_diff_se"]
    errors = f", {change / error:.1f} standard errors" if error else ""
    diversity = summary["diversity"]
    tiles = [
        (
            f"{total['reward_before']:.3f} → {total['reward_after']:.3f}",
            f"held-out reward: {change:+.4f} ± {error:.4f} over {total['num_videos']} videos{errors}",
        ),
        (f"{100 * total['win_rate']:.0f} %", "of the held-out videos got better"),
        (
            f"{diversity['after'] / diversity['before']:.2f} ×" if diversity["before"] else "–",
            f"diversity of the videos of one prompt ({diversity['before']:.3f} → {diversity['after']:.3f})",
        ),
        (
            f"{summary['rollouts_per_s']:.2f} / s",
            f"{summary['num_rollouts']} rollouts trained on in {summary['seconds']['train'] / 60:.1f} min",
        ),
    ]
    cells = (f"<div><b>{escape(number)}</b><span>{escape(label)}</span></div>" for number, label in tiles)
    return f'<div class="tiles">{"".join(cells)}</div>'


def _results(summary: Json) -> str:
    rows = [
        [
            key,
            *(f"{value[name]:.4f}" for name in ("reward_before", "reward_after")),
            f"{value['paired_diff_mean']:+.4f}",
            f"{value['paired_diff_se']:.4f}",
            f"± {value['paired_diff_ci95']:.4f}",
            f"{100 * value['win_rate']:.0f} %",
            str(value["num_videos"]),
        ]
        for key, value in summary.get("heldout", {}).items()
    ]
    return _table(["reward", "before", "after", "difference", "SE", "95 %", "better", "videos"], rows)


def _alarms(run_dir: RunDir) -> str:
    rows = [
        [str(alarm["step"]), alarm["guard"], _cell(alarm["value"]), _cell(alarm["limit"]), alarm["text"]]
        for alarm in read_lines(run_dir.alarms)
    ]
    head = ["step", "guard", "value", "limit", "what it means"]
    return _table(head, rows) if rows else '<p class="nothing">None.</p>'


def _progress(summary: Json) -> str:
    """The total of every evaluation against the first."""
    rows = [
        [
            evaluation["phase"],
            f"{total['reward_after']:.4f}",
            f"{total['paired_diff_mean']:+.4f}",
            f"± {total['paired_diff_ci95']:.4f}",
            f"{100 * total['win_rate']:.0f} %",
        ]
        for evaluation in summary.get("evaluations", [])
        if (total := evaluation["heldout"].get("total"))
    ]
    return _table(["evaluation", "held-out reward", "difference", "95 %", "better"], rows) if rows else ""


def _gradients(run_dir: RunDir) -> str:
    lines = read_lines(run_dir.gradients)
    return f"<article>{gradient_map(lines)}</article>" if lines else '<p class="nothing">No data.</p>'


def _timeline(run_dir: RunDir, summary: Json) -> str:
    chart = timeline_chart([Span(**line) for line in read_lines(run_dir.timeline)])
    phases = " · ".join(f"{name} {seconds:.1f} s" for name, seconds in summary.get("seconds", {}).items())
    return f'<article>{chart}</article><p class="note">{escape(phases)}</p>'


def _details(run_dir: RunDir, steps: list[Json]) -> str:
    names = [name for name in dict.fromkeys(name for row in steps for name in row) if name != "time"]
    table = _table(names, [[_cell(row.get(name)) for name in names] for row in steps])
    return (
        _folded(f"All numbers of {len(steps)} steps", table)
        + _folded("Configuration", _json(run_dir.config))
        + _folded("Environment", _json(run_dir.environment))
    )


def _cell(value: float | None) -> str:
    return "–" if value is None else f"{value:.4g}"


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return '<p class="nothing">No data.</p>'
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _folded(title: str, content: str) -> str:
    return f"<details><summary>{escape(title)}</summary>{content}</details>"


def _json(file: Path) -> str:
    if not file.exists():
        return f'<p class="nothing">{escape(file.name)} is missing.</p>'
    return f"<pre>{escape(json.dumps(read_json(file), indent=2))}</pre>"
