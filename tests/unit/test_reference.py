"""The reference page says what the schema says, the page of presets what they are."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

from astrolabe_ray.config.keys import all_keys
from astrolabe_ray.config.loader import presets_in

DOCS = Path(__file__).parents[2] / "docs"


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, DOCS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_page_is_current() -> None:
    """People would set options that no longer exist, or miss new ones."""
    assert (DOCS / "reference.md").read_text() == script("write_reference").reference(), "run `make docs`"


def test_the_tables_of_presets_are_current() -> None:
    """People would plan a cluster for numbers that no longer hold."""
    written = (DOCS / "presets.md").read_text()
    assert written == script("write_presets").page(written), "run `make docs`"


def test_the_tables_name_every_full_size_preset() -> None:
    """A file that the tables forget would be current for ever."""
    page = (DOCS / "presets.md").read_text()
    presets = [name for file in (DOCS.parent / "configs").glob("nft_[!t]*.py") for name in presets_in(file)]
    assert len(presets) == 74
    assert [name for name in presets if f"| `{name}` |" not in page] == []


def test_the_reference_page_has_a_row_for_every_key() -> None:
    """A section that the page forgets would be current for ever."""
    page = (DOCS / "reference.md").read_text()
    assert [key for key in all_keys() if f"| `{key}` |" not in page] == []
