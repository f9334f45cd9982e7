"""What README and the evidence page say of the race is what its file says."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path

import pytest

from foresight.lab.release.published import PAGES, SOURCE, filled


@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.name)
def test_the_page_says_what_the_file_says(path):
    name, write = PAGES[path]
    page = path.read_text(encoding="utf-8")
    document = json.loads(SOURCE.read_text(encoding="utf-8"))
    assert filled(page, name, write(document)) == page, "run python -m foresight.lab.release.published"
    document["tables"]["yield"]["rows"][0]["good"]["value"] += 0.01  # plain sampling's share stands on both
    assert filled(page, name, write(document)) != page


def test_a_page_without_the_marks_is_refused():
    with pytest.raises(ValueError, match="no marks"):
        filled("nothing here", "yield", "text")


ROOT = Path(__file__).resolve().parent.parent


def test_the_readme_is_one_screen_and_has_what_a_newcomer_needs():
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert len(page.splitlines()) <= 60
    address = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["urls"]["Repository"]
    commands = (f"git clone {address}", "python dev.py demo", "python dev.py serve")
    told = ("docs/images/drop_in.jpg", "1_start_here", "ComfyUI-Manager", *commands)
    assert [each for each in told if each not in page] == []
    first = page.splitlines()[:20]
    assert any("drop_in.jpg" in line for line in first) and any("right clips" in line for line in first)
    picture = ROOT / "docs" / "images" / "drop_in.jpg"
    assert picture.stat().st_size < 200_000 and (ROOT / "workflows" / "1_start_here.json").exists()
