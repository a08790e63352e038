"""Writes the table of docs/rewards.md from the scorers' cards: `make docs`."""

from __future__ import annotations

from pathlib import Path

from astrolabe_ray.config.scorer_cards import CARDS, GB, Reading, ScorerCard

PAGE = Path(__file__).with_name("rewards.md")
START, END = "<!-- table: written by `make docs` -->", "<!-- end of table -->"
HEAD = ("keys", "model", "frames", "files", "options", "memory", "licence", "tried")
EMBEDDED = ("tiny_clip", "motion_quality", "image_quality")


def page(current: str) -> str:
    """`current` with its table as the cards are now."""
    before, _, rest = current.partition(START)
    _, _, after = rest.partition(END)
    rows = [HEAD, ("---",) * len(HEAD), *(cells(card) for card in CARDS)]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{before}{START}\n\n{table}\n\n{END}{after}"


def cells(card: ScorerCard) -> tuple[str, ...]:
    memory = sum(card.memory.values()) / GB
    return (
        ", ".join(f"`{key}`" for key in card.keys),
        card.summary,
        "; ".join(dict.fromkeys(frames(reading) for reading in card.keys.values())),
        ", ".join(f"`{need.path}`" for need in card.files) or "none",
        ", ".join(f"`{name}={value}`" for name, value in card.options.items()) or "none",
        f"{memory:.1f} GB" if memory >= 0.05 else "little",
        card.licence,
        tried(card.name),
    )


def frames(reading: Reading) -> str:
    """Example: `10 gray`."""
    spec = reading.frames
    size = f" of {spec.height} x {spec.width}" if spec.height else ""
    return f"{spec.num_frames or 'all'}{' gray' if spec.grayscale else ''}{size}"


def tried(name: str) -> str:
    if name in EMBEDDED:
        return "trained with"
    return {
        "optical_flow": "DIS on drawn motion, RAFT with random weights",
        "unifiedreward": "against a stand-in endpoint",
    }.get(name, "tiny, random weights, CPU")


if __name__ == "__main__":
    PAGE.write_text(page(PAGE.read_text()))
    print(f"wrote {PAGE}")
