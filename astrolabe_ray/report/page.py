"""`report.html`: one file that shows what a run did, from the files in its folder alone."""

from __future__ import annotations

import base64
import json
import math
from html import escape
from pathlib import Path
from statistics import fmean, pstdev
from typing import Any

from astrolabe_ray.report.charts import Line, bar_chart, line_chart, timeline_chart
from astrolabe_ray.report.run_dir import RunDir, read_json, read_lines, write_bytes

Json = dict[str, Any]
STYLE = Path(__file__).with_name("page.css")


def build_report(run_dir: RunDir) -> Path:
    """Write the page; parts whose files are missing say so."""
    summary = read_json(run_dir.summary) if run_dir.summary.exists() else {}
    steps, evaluations = read_lines(run_dir.metrics), read_lines(run_dir.evaluations)
    sections = [
        _headline(run_dir, summary),
        _section("Before and after", _videos(run_dir), "Same prompt, same noise seed, other policy."),
        _section("Rewards", _reward_charts(steps, evaluations), REWARD_NOTE),
        _section("Held-out results", _results(summary), RESULT_NOTE),
        _section("Timeline of the roles", timeline_chart(_spans(run_dir)), TIMELINE_NOTE),
        _section(
            "Policy age", _ages(summary), "Steps between the policy that made a rollout and the trained one."
        ),
        _section("Steps", _step_table(steps)),
        _section("Configuration", _folded("config.json", run_dir.config)),
        _section("Environment", _folded("environment.json", run_dir.environment)),
    ]
    title = escape(run_dir.path.name)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE.read_text()}</style></head><body><main>{''.join(sections)}</main></body></html>"
    )
    write_bytes(run_dir.report, page.encode())
    return run_dir.report


REWARD_NOTE = (
    "Curves: mean over the rollouts of a step; the band is one standard error of the mean. "
    "Points: held-out prompts with fixed seeds, with one standard error."
)
RESULT_NOTE = "The difference is paired by video; SE is the standard error of its mean."
TIMELINE_NOTE = "Who worked when. Rollouts, scores and training overlap as far as the policy age allows."


def _section(title: str, body: str, note: str = "") -> str:
    note = f'<p class="note">{escape(note)}</p>' if note else ""
    return f"<section><h2>{escape(title)}</h2>{note}{body}</section>"


def _headline(run_dir: RunDir, summary: Json) -> str:
    total = summary.get("heldout", {}).get("total")
    if total is None:
        text = "This run ended before its last evaluation, so there is no before-and-after comparison."
        return f"<header><h1>{escape(run_dir.path.name)}</h1><p>{text}</p></header>"
    errors = total["paired_diff_mean"] / total["paired_diff_se"] if total["paired_diff_se"] else math.inf
    return (
        f"<header><h1>{escape(run_dir.path.name)}</h1>"
        f'<p class="headline"><b>{total["reward_before"]:.3f}</b> → <b>{total["reward_after"]:.3f}</b></p>'
        f"<p>Held-out reward over {total['num_videos']} videos: {total['paired_diff_mean']:+.4f} "
        f"± {total['paired_diff_se']:.4f} ({errors:.1f} standard errors); "
        f"{100 * total['win_rate']:.0f} % of the videos got better. "
        f"{summary['num_rollouts']} rollouts were trained on, {summary['rollouts_per_s']:.2f} a second.</p></header>"
    )


def _videos(run_dir: RunDir) -> str:
    index_file = run_dir.eval_videos / "index.json"
    index: list[Json] = read_json(index_file) if index_file.exists() else []
    if not index:
        return '<p class="nothing">No videos were written.</p>'
    cards = []
    for number in dict.fromkeys(entry["number"] for entry in index):
        shown = [e for e in index if e["number"] == number and e["phase"] in ("before", "after")]
        if shown:
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
        f"<figcaption><b>{escape(entry['phase'])}</b> {entry['total']:.3f}<br><small>{escape(scores)}</small>"
        "</figcaption></figure>"
    )


def _reward_charts(steps: list[Json], evaluations: list[Json]) -> str:
    names = [name[7:] for name in (steps[0] if steps else {}) if name.startswith("reward/")]
    if not names and evaluations:
        names = ["total", *evaluations[0]["records"][0]["scores"]]
    charts = []
    for name in names:
        lines = [_trained(name, steps), _heldout(name, evaluations)]
        chart = line_chart(lines, x_label="optimizer steps", y_label=name)
        charts.append(f'<article data-reward="{escape(name)}"><h3>{escape(name)}</h3>{chart}</article>')
    return f'<div class="charts">{"".join(charts)}</div>'


def _trained(name: str, steps: list[Json]) -> Line:
    """Mean of a reward over each step's rollouts; the policy that made them is one step older."""
    return Line(
        "training rollouts",
        tuple(row["step"] - 1 for row in steps),
        tuple(row[f"reward/{name}"] for row in steps),
        tuple(row[f"reward_std/{name}"] / math.sqrt(row["num_rollouts"]) for row in steps),
    )


def _heldout(name: str, evaluations: list[Json]) -> Line:
    values = [
        [record["total"] if name == "total" else record["scores"][name] for record in evaluation["records"]]
        for evaluation in evaluations
    ]
    return Line(
        "held-out",
        tuple(evaluation["step"] for evaluation in evaluations),
        tuple(fmean(row) for row in values),
        tuple(pstdev(row) / math.sqrt(len(row)) for row in values),
        marks_only=True,
    )


def _results(summary: Json) -> str:
    rows = [
        [
            key,
            *(f"{value[k]:.4f}" for k in ("reward_before", "reward_after")),
            f"{value['paired_diff_mean']:+.4f}",
        ]
        + [f"{value['paired_diff_se']:.4f}", f"{100 * value['win_rate']:.0f} %", str(value["num_videos"])]
        for key, value in summary.get("heldout", {}).items()
    ]
    spread = summary.get("diversity", {})
    if "before" in spread and "after" in spread:
        change = spread["after"] - spread["before"]
        rows.append(
            ["diversity", f"{spread['before']:.4f}", f"{spread['after']:.4f}", f"{change:+.4f}", "", "", ""]
        )
    return _table(["reward", "before", "after", "difference", "SE", "better", "videos"], rows)


def _ages(summary: Json) -> str:
    counts = [(age, count) for age, count in summary.get("policy_age", {}).items()]
    return f'<div class="charts"><article>{bar_chart(counts, x_label="policy age (steps)", y_label="rollouts")}</article></div>'


def _spans(run_dir: RunDir) -> list[tuple[str, str, float, float, str]]:
    spans = read_lines(run_dir.timeline)
    return [
        (
            s["stage"],
            s["who"],
            s["start_s"],
            s["end_s"],
            ", ".join(f"{k} {v}" for k, v in s["detail"].items()),
        )
        for s in spans
    ]


def _step_table(steps: list[Json]) -> str:
    if not steps:
        return '<p class="nothing">No step was finished.</p>'
    names = [name for name in steps[-1] if name != "time"]
    table = _table(names, [[f"{row.get(name, math.nan):.4g}" for name in names] for row in steps])
    return f"<details><summary>All numbers of {len(steps)} steps</summary>{table}</details>"


def _table(head: list[str], rows: list[list[str]]) -> str:
    if not rows:
        return '<p class="nothing">No data.</p>'
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in row) + "</tr>" for row in rows)
    return f'<div class="scroll"><table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table></div>'


def _folded(name: str, file: Path) -> str:
    if not file.exists():
        return f'<p class="nothing">{escape(name)} is missing.</p>'
    content = json.dumps(read_json(file), indent=2)
    return f"<details><summary>{escape(name)}</summary><pre>{escape(content)}</pre></details>"
