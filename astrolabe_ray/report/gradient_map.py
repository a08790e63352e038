"""Gradient norms of all adapter modules at once: a row for each kind of layer, a column for each block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

from astrolabe_ray.report.run_dir import Json

LAST_STEPS = 20
DECADES = 4
"""A norm of 10**-DECADES of the largest one, or less, has the faintest colour."""
LEFT, TOP, WIDTH, ROW = 110, 4, 960, 22


def gradient_map(lines: Sequence[Json]) -> str:
    """Medians of the last steps; `lines` are those of `gradients.jsonl`, of which there is at least one."""
    lines = lines[-LAST_STEPS:]
    medians = {kind: _medians([line[kind] for line in lines]) for kind in lines[-1] if kind != "step"}
    top = max((norm for row in medians.values() for norm in row if norm is not None), default=0.0)
    steps = f"steps {lines[0]['step']:g} to {lines[-1]['step']:g}"
    rows = "".join(_row(i, kind, row, top, steps) for i, (kind, row) in enumerate(medians.items()))
    height = TOP + ROW * len(medians) + 34
    middle, bottom = (LEFT + WIDTH) / 2, height - 6
    return (
        f'<div class="scroll wide"><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="gradient norm of each adapter module">{rows}{_numbers(medians, height - 22)}'
        f'<text x="{middle:.1f}" y="{bottom}" class="label middle">block; median of {steps}, '
        f"strongest colour {top:.3g}, faintest {top / 10**DECADES:.1g} and less</text></svg></div>"
    )


def _medians(steps: Sequence[Sequence[float | None]]) -> list[float | None]:
    """Of each block over the steps, without those in which it was not a finite number."""
    found = []
    for values in zip(*steps, strict=True):
        known = sorted(value for value in values if value is not None)
        found.append(known[len(known) // 2] if known else None)
    return found


def _row(number: int, kind: str, norms: Sequence[float | None], top: float, steps: str) -> str:
    y, width = TOP + ROW * number, (WIDTH - LEFT) / len(norms)
    cells = [f'<text x="{LEFT - 8}" y="{y + 15}" class="tick end">{escape(kind)}</text>']
    for block, norm in enumerate(norms):
        told = "not a finite number" if norm is None else f"{norm:.3g}"
        style = (
            'class="series-1 fill"'
            if not norm
            else f'class="series-0 fill" fill-opacity="{_shade(norm, top)}"'
        )
        title = f"{kind} of block {block}: {told}, median of {steps}"
        cells.append(
            f'<rect {style} x="{LEFT + width * block + 1:.1f}" y="{y + 1}" width="{width - 2:.1f}" '
            f'height="{ROW - 2}"><title>{escape(title)}</title></rect>'
        )
    return "".join(cells)


def _shade(norm: float, top: float) -> str:
    """From 0.08 to 1, even in the logarithm of the norm."""
    decades = min(DECADES, math.log10(top / norm))
    return f"{1 - 0.92 * decades / DECADES:.2f}"


def _numbers(rows: Mapping[str, Sequence[float | None]], y: float) -> str:
    count = max(len(row) for row in rows.values())
    every = max(1, count // 20)
    width = (WIDTH - LEFT) / count
    return "".join(
        f'<text x="{LEFT + width * (block + 0.5):.1f}" y="{y}" class="tick middle">{block}</text>'
        for block in range(0, count, every)
    )
