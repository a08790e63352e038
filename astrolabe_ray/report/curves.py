"""Curves of a run: each reward in training and on held-out prompts, and what the optimizer saw."""

from __future__ import annotations

import math
from html import escape
from statistics import fmean

from astrolabe_ray.metrics.names import metric
from astrolabe_ray.report.charts import Line, bar_chart, line_chart
from astrolabe_ray.report.run_dir import Json
from astrolabe_ray.report.statistics import clustered_se

TRAINING = ("loss", "kl_loss", "old_deviation", "grad_norm", "rollouts_per_s")
STEPS = "optimizer steps"


def reward_charts(steps: list[Json], evaluations: list[Json]) -> str:
    """A chart for the total, and one for each reward."""
    names = ["total", *evaluations[0]["records"][0]["scores"]] if evaluations else []
    articles = []
    for name in names or [name[7:] for row in steps[:1] for name in row if name.startswith("reward/")]:
        lines = [_trained(name, steps), _heldout(name, evaluations)]
        chart = line_chart(lines, x_label=STEPS, y_label=name)
        articles.append(f'<article data-reward="{escape(name)}"><h3>{escape(name)}</h3>{chart}</article>')
    return _grid(articles)


def training_charts(steps: list[Json], summary: Json) -> str:
    """A chart for each number that tells how the optimizer and the pipeline did."""
    articles = []
    for name in TRAINING:
        rows = [row for row in steps if row.get(name) is not None]
        line = Line(name, tuple(row["step"] for row in rows), tuple(row[name] for row in rows))
        known = metric(name)
        assert known is not None
        title = f"{escape(name)} <small>{escape(known.meaning)}</small>"
        chart = line_chart([line], x_label=STEPS, y_label=name)
        articles.append(f"<article><h3>{title}</h3>{chart}</article>")
    ages = list(summary.get("policy_age", {}).items())
    chart = bar_chart(ages, x_label="policy age (steps)", y_label="rollouts")
    return _grid([*articles, f"<article><h3>policy age</h3>{chart}</article>"])


def _grid(articles: list[str]) -> str:
    return f'<div class="charts">{"".join(articles)}</div>' if articles else '<p class="nothing">No data.</p>'


def _trained(name: str, steps: list[Json]) -> Line:
    """Mean of a reward over each step's rollouts; the policy that made them is one step older."""
    return Line(
        "training",
        tuple(row["step"] - 1 for row in steps),
        tuple(row[f"reward/{name}"] for row in steps),
        tuple(row[f"reward_std/{name}"] / math.sqrt(row["num_rollouts"] - 1) for row in steps),
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
        tuple(
            clustered_se(row, [record["prompt"] for record in evaluation["records"]]) if len(row) > 1 else 0.0
            for row, evaluation in zip(values, evaluations, strict=True)
        ),
    )
