"""Gradient norms of all adapter modules at once: a row for each kind of layer, a column for each block."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from statistics import median

from astrolabe_ray.report.run_dir import Json

LAST_STEPS = 20
DECADES = 4
"""A norm of 10**-DECADES of the largest one, or less, has the faintest colour."""
LEFT, TOP, WIDTH, ROW = 110, 4, 960, 22


def gradient_map(lines: Sequence[Json]) -> str:
    """Medians of the last steps; `lines` are those of `gradients.jsonl`, of which there is at least one.

    Steps in which no module has a norm above zero are left out if they are fewer than the others: such a
    step, skipped for a gradient that overflowed, says nothing of one module.
    """
    last = lines[-LAST_STEPS:]
    steps = f"steps {last[0]['step']:g} to {last[-1]['step']:g}"
    telling = [line for line in last if _has_norms(line)]
    num_left_out = len(last) - len(telling)
    lines, left_out = telling, f" without {num_left_out} in which no norm was above 0" * (num_left_out > 0)
    if num_left_out * 2 >= len(last):
        lines, left_out = last, ""
    kinds = [kind for kind in lines[-1] if kind != "step"]
    rows = {
        kind: [_Cell.of(norms) for norms in zip(*(line[kind] for line in lines), strict=True)]
        for kind in kinds
    }
    top = max(cell.median for row in rows.values() for cell in row)
    drawn = "".join(_row(i, kind, row, top, steps) for i, (kind, row) in enumerate(rows.items()))
    height = TOP + ROW * len(rows) + 34
    middle, bottom = (LEFT + WIDTH) / 2, height - 6
    return (
        f'<div class="scroll wide"><svg viewBox="0 0 {WIDTH} {height}" role="img" '
        f'aria-label="gradient norm of each adapter module">{drawn}{_numbers(rows, height - 22)}'
        f'<text x="{middle:.1f}" y="{bottom}" class="label middle">block; median of {steps}{left_out}, '
        f"strongest colour {top:.3g}, faintest {top / 10**DECADES:.1g} and less</text></svg></div>"
    )


def _has_norms(line: Json) -> bool:
    return any(norm for kind, norms in line.items() if kind != "step" for norm in norms)


@dataclass(frozen=True)
class _Cell:
    """A module over the last steps. `is_odd`: in one of them at least its norm was zero or not finite."""

    median: float  # of the finite norms; 0 if there are none
    told: str
    is_odd: bool

    @classmethod
    def of(cls, norms: Sequence[float | None]) -> _Cell:
        finite = [norm for norm in norms if norm is not None]
        middle, num_zero = median(finite) if finite else 0.0, finite.count(0)
        told = [f"median {middle:.3g}"] if finite else []
        told += [f"zero in {num_zero} of {len(norms)}"] * (num_zero > 0)
        told += [f"not finite in {len(norms) - len(finite)} of {len(norms)}"] * (len(finite) < len(norms))
        return cls(middle, ", ".join(told), num_zero > 0 or len(finite) < len(norms))


def _row(number: int, kind: str, cells: Sequence[_Cell], top: float, steps: str) -> str:
    y, width = TOP + ROW * number, (WIDTH - LEFT) / len(cells)
    parts = [f'<text x="{LEFT - 8}" y="{y + 15}" class="tick end">{escape(kind)}</text>']
    for block, cell in enumerate(cells):
        shade = f'class="series-0 fill" fill-opacity="{_shade(cell.median, top)}"'
        style = 'class="series-1 fill"' if cell.is_odd else shade
        title = f"{kind} of block {block}: {cell.told}; {steps}"
        parts.append(
            f'<rect {style} x="{LEFT + width * block + 1:.1f}" y="{y + 1}" width="{width - 2:.1f}" '
            f'height="{ROW - 2}"><title>{escape(title)}</title></rect>'
        )
    return "".join(parts)


def _shade(norm: float, top: float) -> str:
    """From 0.08 to 1, even in the logarithm of the norm."""
    decades = min(DECADES, math.log10(top / norm)) if norm else DECADES
    return f"{1 - 0.92 * decades / DECADES:.2f}"


def _numbers(rows: Mapping[str, Sequence[_Cell]], y: float) -> str:
    count = max(len(row) for row in rows.values())
    every = max(1, count // 20)
    width = (WIDTH - LEFT) / count
    return "".join(
        f'<text x="{LEFT + width * (block + 0.5):.1f}" y="{y}" class="tick middle">{block}</text>'
        for block in range(0, count, every)
    )
