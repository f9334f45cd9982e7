"""What docs/other_packs.md says of other packs is what the last run of lab/release/packs.py found."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch

from foresight.evaluation.server import ExecutionFailed
from foresight.lab.release import pack_checks, pack_graphs, packs
from foresight.lab.release.published import filled

FOUND = json.loads(packs.RESULTS.read_text(encoding="utf-8"))


@pytest.mark.parametrize("name", packs.REPOSITORIES)
def test_the_page_says_what_was_found(name):
    """If this fails: run python -m foresight.lab.release.packs FOLDER, on both versions."""
    page = packs.PAGE.read_text(encoding="utf-8")
    assert filled(page, name, "\n".join(packs.table(name, FOUND))) == page
    for version, found in FOUND.items():
        assert found[name]["checks"].keys() == pack_checks.TRIED[name].keys(), version
        assert len(found[name]["commit"]) == 40


def test_a_failure_is_told_in_one_line_of_a_table():
    def fails(_):
        raise ExecutionFailed({"node_id": 1, "node_type": "A", "exception_message": "a | b\n\nc", "traceback": []})

    assert pack_checks.tried(fails, None) == "fails: node 1 (A): a / b c"
    assert pack_checks.every(["x", "y", "z"], lambda name: name == "x" or fails(name)) == (
        "1 of 3 samplers; not: y, z: node 1 (A): a / b c")  # fmt: skip


def test_a_check_fails_where_foresight_changes_a_clip(monkeypatch):
    """Each clip that the graphs make differs from the one before."""
    made = iter(range(9))
    bench = pack_graphs.Bench(SimpleNamespace(object_info=dict), "pack", None)
    monkeypatch.setattr(bench, "reported", lambda *_, **__: (torch.tensor([next(made)]), {"trials": []}))
    for check in (pack_checks.beside, lambda bench: pack_checks.watching(bench, pack_graphs.sampled({}))):
        assert "differs" in pack_checks.tried(check, bench)
