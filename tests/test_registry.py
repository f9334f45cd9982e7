"""What the Comfy registry asks of a pack: its addresses, its pictures, and the workflow that publishes it."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from PIL import Image

from foresight.evaluation.graph_settings import PACK
from foresight.lab.release import brand

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
COMFY, URLS = PROJECT["tool"]["comfy"], PROJECT["project"]["urls"]
OWNER, NAME = URLS["Repository"].removeprefix("https://github.com/").split("/")


def test_every_address_is_of_the_one_repository():
    assert OWNER == COMFY["PublisherId"]
    assert all(url.startswith(URLS["Repository"]) for url in URLS.values())
    assert (ROOT / URLS["Documentation"].rpartition("/tree/main/")[2]).is_dir()

PICTURES = {"Icon": (brand.icon, (400, 400)), "Banner": (brand.banner, (1260, 540))}  # no larger, and 21:9


@pytest.mark.parametrize("field", PICTURES)
def test_the_pictures_are_where_their_addresses_say(field):
    drawn, size = PICTURES[field]
    address = f"https://raw.githubusercontent.com/{OWNER}/{NAME}/main/"
    assert COMFY[field].startswith(address)
    with Image.open(ROOT / COMFY[field].removeprefix(address)) as picture:
        assert picture.format == "PNG" and picture.size == drawn().size == size


def test_the_name_and_the_version_are_as_the_registry_takes_them():
    assert re.fullmatch(r"[a-z][a-z0-9]*([-_.][a-z0-9]+)*", PACK["cnr_id"]) and "comfyui" not in PACK["cnr_id"]
    assert re.fullmatch(r"\d+\.\d+\.\d+", PACK["ver"])
    assert (PROJECT["project"]["name"], PROJECT["project"]["version"]) == (PACK["cnr_id"], PACK["ver"])


def test_a_new_version_is_published_from_the_repository_only_and_by_its_secret():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "publish.yml").read_text(encoding="utf-8"))
    push = workflow[True]["push"]  # YAML reads the word "on" as a truth
    assert push == {"branches": ["main"], "paths": ["pyproject.toml"]} and "workflow_dispatch" in workflow[True]
    assert workflow["permissions"] == {"contents": "read"}
    (job,) = workflow["jobs"].values()
    assert f"github.repository_owner == '{OWNER}'" in job["if"]
    *_, published = job["steps"]
    assert published["uses"].startswith("Comfy-Org/publish-node-action@")
    assert published["with"] == {"personal_access_token": "${{ secrets.REGISTRY_ACCESS_TOKEN }}"}
