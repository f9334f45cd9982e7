"""What README and the evidence page say of the race is what its file says."""

from __future__ import annotations

import json

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
