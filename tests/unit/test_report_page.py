"""The page of a small run, read as HTML: one file that holds everything and asks nobody for more."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from astrolabe_ray.cli.report import report
from astrolabe_ray.errors import ConfigError
from astrolabe_ray.report.curves import reward_charts
from astrolabe_ray.report.gradient_map import gradient_map
from astrolabe_ray.report.page import build_report
from astrolabe_ray.report.page_videos import video_pairs
from astrolabe_ray.report.run_dir import RunDir
from tests.small_run import CONFIG, HOSTILE, PROMPTS, write_run

LOADING = ("src", "href", "srcset", "poster", "data", "action", "xlink:href")
VOID = {"meta", "link", "br", "img", "input", "hr"}


class Page(HTMLParser):
    """All elements with their attributes and the text inside; fails where tags do not match."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None], list[str]]] = []
        self._open: list[tuple[str, dict[str, str | None], list[str]]] = []
        self.feed(html)
        self.close()
        assert not self._open, f"never closed: {[tag for tag, *_ in self._open]}"

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))
        if tag not in VOID:
            self._open.append(self.elements[-1])

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs), []))

    def handle_endtag(self, tag: str) -> None:
        assert self._open and self._open.pop()[0] == tag, f"</{tag}> closes another element"

    def handle_data(self, data: str) -> None:
        for _, _, text in self._open:
            text.append(data)

    def texts(self, tag: str) -> list[str]:
        return ["".join(text) for name, _, text in self.elements if name == tag]

    def attributes(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes, _ in self.elements if name == tag]


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    run_dir = write_run(tmp_path_factory.mktemp("logs"))
    assert build_report(run_dir) == run_dir.report
    return run_dir


@pytest.fixture(scope="module")
def page(run_dir: RunDir) -> Page:
    return Page(run_dir.report.read_text())


def test_the_page_loads_nothing_from_anywhere(run_dir: RunDir, page: Page) -> None:
    """A report that is mailed to someone and shows holes, or tells a server who reads it."""
    for tag, attributes, _ in page.elements:
        for name in LOADING:
            value = attributes.get(name)
            assert value is None or value.startswith("data:"), f"{tag} loads {value}"
    html = run_dir.report.read_text()
    assert not re.search(r"@import|url\(|fetch\(|import\(|XMLHttpRequest", html)
    (policy,) = (m["content"] for m in page.attributes("meta") if "http-equiv" in m)
    assert policy is not None and "default-src 'none'" in policy


def test_prompts_are_shown_and_never_run(page: Page) -> None:
    """A prompt file from the web that runs a script in the reader's browser."""
    assert HOSTILE in page.texts("h3")
    assert not page.attributes("img")
    assert not page.attributes("b") or HOSTILE not in page.texts("b")
    assert len(page.attributes("script")) == 1, "our own"
    for video in page.attributes("video"):
        assert video.keys() == {"src", "controls", "loop", "muted", "autoplay", "playsinline", "aria-label"}


def test_each_prompt_has_its_video_before_and_after_byte_for_byte(run_dir: RunDir, page: Page) -> None:
    """Videos in the wrong pair, or an evaluation in between that passes for the last."""
    videos = page.attributes("video")
    expected = [(phase, number) for number in (0, 1) for phase in ("before", "after")]
    assert [video["aria-label"] for video in videos] == [f"{p}: {PROMPTS[n]}" for p, n in expected]
    for video, (phase, number) in zip(videos, expected, strict=True):
        kind, data = (video["src"] or "").split(",", 1)
        assert kind == "data:video/mp4;base64"
        assert base64.b64decode(data) == (run_dir.eval_videos / phase / f"{number:03d}.mp4").read_bytes()


def test_a_prompt_that_one_evaluation_left_out_stands_alone(tmp_path: Path) -> None:
    """Paired by number, the first policy's video of one prompt stood beside the last one's of another."""
    run_dir = write_run(tmp_path)
    index_file = run_dir.eval_videos / "index.json"
    index = json.loads(index_file.read_text())
    kept = [e for e in index if (e["phase"], e["prompt"]) != ("after", HOSTILE)]
    for entry in kept:
        entry["number"] = 0 if entry["phase"] == "after" else entry["number"]
    index_file.write_text(json.dumps(kept))
    cards = video_pairs(run_dir).split("<article>")[1:]
    assert [re.findall(r"<figcaption><span>(\S+)</span>", card) for card in cards] == [
        ["before"],
        ["before", "after"],
    ]
    assert [PROMPTS[1] in card for card in cards] == [False, True]


def test_the_result_stands_above_everything(page: Page) -> None:
    """A reader who has to look for the answer. Numbers as in test_summary."""
    (tiles,) = ("".join(t) for tag, a, t in page.elements if a.get("class") == "tiles")
    assert "1.000 → 1.200" in tiles
    assert "+0.2000 ± 0.1000 over 4 videos, 2.0 standard errors" in tiles
    assert "75 %" in tiles
    assert "0.84 ×" in tiles  # diversity 0.21 / 0.25
    assert "5.00 / s" in tiles
    assert page.texts("h2")[:2] == ["Before and after", "Held-out rewards"]


def test_the_page_says_what_was_trained(page: Page) -> None:
    """A report that can't be told from the one of another run."""
    assert page.texts("h1") == ["small"]
    (header,) = page.texts("header")
    for part in (
        "9 frames of 32×32",
        "4 steps of 8 prompts × 8 rollouts",
        "2 × tiny_clip + 1 × image_quality",
    ):
        assert part in header


def test_tables_hold_the_numbers_of_the_files(page: Page) -> None:
    """A column that slips by one; the norm of a skipped step is a dash."""
    rows = page.texts("tr")
    assert "total1.00001.2000+0.20000.1000± 1.270675 %4" in rows  # t of one degree of freedom is 12.706
    assert "step-21.1500+0.1500± 0.635388 %" in rows
    assert "image_quality0.50000.5000+0.00000.0000± 0.000050 %4" in rows
    assert "2zero_groups0.750.5share of groups with equal rewards; look at <b>the scorers</b>" in rows
    cells = page.texts("td")
    assert "–" in cells and "nan" not in cells and "None" not in cells


def test_every_reward_has_a_chart_with_training_and_held_out_curves(page: Page) -> None:
    """A reward that falls while the total rises, unseen."""
    rewards = [a["data-reward"] for a in page.attributes("article") if "data-reward" in a]
    assert rewards == ["total", "tiny_clip", "image_quality"]
    titles = page.texts("title")
    assert "held-out: 0.25 at 0" in titles and "held-out: 0.35 at 4" in titles
    assert "training: 0.25 at 0" in titles, "step 1 trained on rollouts of policy 0"
    assert "grad_norm: 0.5 at 4" in titles and not any("grad_norm: nan" in title for title in titles)


def test_every_module_of_the_adapter_has_a_cell_and_a_dead_one_another_colour(page: Page) -> None:
    """A layer that is not connected, among 300 that are, or one that broke in the last steps."""
    (section,) = (text for text in page.texts("section") if text.startswith("Gradients of the adapter"))
    assert "ffn.0 of block 0: median 0, zero in 3 of 3; steps 1 to 4" in section
    assert "ffn.0 of block 1: median 0.247; steps 1 to 4" in section
    assert "median of steps 1 to 4 without 1 in which no norm was above 0" in section
    cells = [
        a for a in page.attributes("rect") if (a["class"] or "").endswith("fill") and a["height"] == "20"
    ]
    assert [cell["class"] for cell in cells] == ["series-1 fill", "series-0 fill"]
    assert cells[1]["fill-opacity"] == "1.00"


@pytest.mark.parametrize(
    ("norms", "told", "colour"),
    [
        ([1.0, 3.0], "median 2", "series-0"),
        ([1.0] * 18 + [None] * 2, "median 1, not finite in 2 of 20", "series-1"),
        ([1.0] * 10 + [0.0] * 10, "median 0.5, zero in 10 of 20", "series-1"),
        ([5.0] + [1.0] * 20, "median 1", "series-0"),  # the last 20 count
        ([None, None], "not finite in 2 of 2", "series-1"),
        ([0.0, None], "median 0, zero in 1 of 2, not finite in 1 of 2", "series-1"),
    ],
)
def test_a_cell_tells_the_last_steps(norms: list[float | None], told: str, colour: str) -> None:
    """A median alone hides what broke last; of an even count it lies between the middle two."""
    svg = gradient_map([{"step": step, "ffn.0": [norm, 1.0]} for step, norm in enumerate(norms)])
    assert f"ffn.0 of block 0: {told}; steps" in svg and f'class="{colour} fill"' in svg


def test_a_run_without_any_gradient_is_shown_as_that() -> None:
    svg = gradient_map([{"step": step, "ffn.0": [norm]} for step, norm in enumerate([None, 0.0])])
    assert "ffn.0 of block 0: median 0, zero in 1 of 2, not finite in 1 of 2; steps 0 to 1" in svg


@pytest.mark.parametrize("nothing", [None, 0.0])
@pytest.mark.parametrize("where", [0, 1, 3])
def test_a_step_without_gradients_hides_no_dead_module(nothing: float | None, where: int) -> None:
    """One that overflowed and was skipped would paint all 300 in the other colour, for 20 steps."""
    steps = [[nothing, nothing] if step == where else [0.0, 1.0] for step in range(4)]
    svg = gradient_map([{"step": step, "ffn.0": norms} for step, norms in enumerate(steps)])
    assert "ffn.0 of block 0: median 0, zero in 3 of 3; steps 0 to 3" in svg
    assert "ffn.0 of block 1: median 1; steps 0 to 3" in svg
    assert (svg.count('class="series-0 fill"'), svg.count('class="series-1 fill"')) == (1, 1)
    assert "median of steps 0 to 3 without 1 in which no norm was above 0" in svg


def test_a_run_that_stopped_learning_looks_like_none_that_learns() -> None:
    """Left out as skipped steps, they would leave a healthy map."""
    norms = [1.0] * 10 + [0.0] * 10
    svg = gradient_map([{"step": step, "ffn.0": [norm, norm]} for step, norm in enumerate(norms)])
    assert svg.count('class="series-1 fill"') == 2 and "without" not in svg


@pytest.mark.parametrize(("norm", "opacity"), [(1.0, 1.0), (1e-2, 0.54), (1e-4, 0.08), (1e-9, 0.08)])
def test_the_colour_is_even_in_the_logarithm(norm: float, opacity: float) -> None:
    """Norms span decades: in a linear scale all but a few are white."""
    svg = gradient_map([{"step": 1, "ffn.0": [1.0, norm]}])
    assert [float(found) for found in re.findall(r'fill-opacity="([^"]*)"', svg)] == [1.0, opacity]


def test_the_band_of_held_out_rewards_takes_the_videos_of_a_prompt_as_one_cluster() -> None:
    """A band half as wide as it should be, because four videos of one prompt pass for four witnesses."""
    scores = {"x": 0.0, "y": 1.0}  # all videos of a prompt alike: two witnesses, however many videos
    records = [{"prompt": p, "total": t, "scores": {}} for p, t in scores.items() for _ in range(8)]
    chart = reward_charts([], [{"step": step, "records": records} for step in (0, 4)])
    (points,) = re.findall(r'class="series-0 band" points="([^"]*)"', chart)
    heights = [float(point.split(",")[1]) for point in points.split()]
    centre = float(re.findall(r'<circle [^>]*cy="([^"]*)"', chart)[0])
    ticks = re.findall(r'<text [^>]*y="([^"]*)" class="tick end">([^<]*)<', chart)
    (top, high), (bottom, low) = [(float(y), float(value)) for y, value in (ticks[-1], ticks[0])]
    unit = (bottom - top) / (high - low)
    assert (centre - heights[0]) / unit == pytest.approx(0.5, abs=0.01)  # sd of (0, 1) is 0.71, / sqrt(2)


def test_configuration_is_folded_and_complete(page: Page) -> None:
    """A page that shows 120 lines of JSON first, or a number that nobody can reproduce."""
    details = page.attributes("details")
    assert len(details) == 3 and not any("open" in attributes for attributes in details)
    assert json.loads(page.texts("pre")[0]) == json.loads(CONFIG.model_dump_json())


def test_an_unfinished_run_shows_what_it_has(tmp_path: Path) -> None:
    """A run that failed after hours, and a report that fails on top of it."""
    run_dir = write_run(tmp_path, finished=False)
    page = Page(build_report(run_dir).read_text())
    assert any("No before-and-after comparison" in text for text in page.texts("p"))
    labels = [video["aria-label"] for video in page.attributes("video")]
    assert labels[:2] == [f"before: {HOSTILE}", f"step-2: {HOSTILE}"]
    assert "held-out: 0.325 at 2" in page.texts("title")


def test_a_run_that_ended_before_its_first_step_has_a_page(tmp_path: Path) -> None:
    """Setup failed: the reader wants the configuration, not a traceback of the report."""
    run_dir = RunDir.create(str(tmp_path), "tiny", "empty")
    page = Page(build_report(run_dir).read_text())
    assert "No videos were written." in page.texts("p")
    assert "config.json is missing." in page.texts("p")
    assert len(page.texts("h2")) == 8


def test_the_command_writes_the_page_again_and_refuses_other_folders(
    run_dir: RunDir, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A page of nothing for a path with a typing mistake."""
    written = run_dir.report.read_bytes()
    run_dir.report.unlink()
    report(run_dir.path)
    assert run_dir.report.read_bytes() == written
    assert str(run_dir.report) in capsys.readouterr().out
    with pytest.raises(ConfigError, match=r"is not the folder of a run: it has no config\.json"):
        report(tmp_path)
