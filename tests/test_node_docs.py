"""Each node has a help page, and the page names what the node really takes and gives."""

import re
from pathlib import Path

PAGES = Path(__file__).resolve().parent.parent / "web" / "docs"


def listed(page: str, section: str) -> list[str]:
    """First cells of the table in a section, "a, b" counted as two."""
    body = re.split(r"^## ", page, flags=re.MULTILINE)
    table = next(part for part in body if part.startswith(section))
    return [name for cell in re.findall(r"^\| ([^|]+) \|", table, re.MULTILINE)[1:] for name in cell.split(", ")]


def test_help_pages_name_every_input_and_output(comfy_server):
    ours = {name: info for name, info in comfy_server.object_info().items() if name.startswith("Foresight")}
    assert set(ours) == {path.stem for path in PAGES.glob("*.md")}
    for name, info in ours.items():
        page = (PAGES / f"{name}.md").read_text(encoding="utf-8")
        assert page.startswith(f"# {info['display_name']}\n")
        inputs = [key for group in ("required", "optional") for key in info["input"].get(group, {})]
        # In the page's own order: ComfyUI lists optional inputs last, the page where they belong.
        assert sorted(listed(page, "Inputs")) == sorted(inputs), name
        assert listed(page, "Outputs") == list(info["output_name"])


def test_help_pages_show_their_node():
    for page in PAGES.glob("*.md"):
        (picture,) = re.findall(r"^!\[.+\]\((images/.+)\)$", page.read_text(encoding="utf-8"), re.MULTILINE)
        assert picture == f"images/{page.stem}.png" and (PAGES / picture).stat().st_size > 1000
