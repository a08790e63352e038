"""The reference page says what the schema says."""

from __future__ import annotations

import importlib.util
from pathlib import Path

from astrolabe_ray.config.keys import all_keys

DOCS = Path(__file__).parents[2] / "docs"


def test_the_reference_page_is_current() -> None:
    """People would set options that no longer exist, or miss new ones."""
    spec = importlib.util.spec_from_file_location("write_reference", DOCS / "write_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (DOCS / "reference.md").read_text() == module.reference(), "run `make docs`"


def test_the_reference_page_has_a_row_for_every_key() -> None:
    """A section that the page forgets would be current for ever."""
    page = (DOCS / "reference.md").read_text()
    assert [key for key in all_keys() if f"| `{key}` |" not in page] == []
