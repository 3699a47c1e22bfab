"""The pages: what they link to exists, and architecture.md names each file once."""

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])


def text_of(page):
    """A page without its blocks of code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.S | re.M)


def anchors(page):
    """Those of its headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", text_of(page), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.strip().lower()).replace(" ", "-") for heading in headings}


def broken(page):
    """The relative links of a page to files or headings that there are not."""
    links = re.findall(r"\]\(([^)\s]+)\)", text_of(page)) + re.findall(r'(?:src|href)="([^"]+)"', text_of(page))
    found = []
    for link in links:
        if re.match(r"\w+:", link):  # https, mailto
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        if not target.exists() or (anchor and anchor not in anchors(target)):
            found.append(link)
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    assert broken(page) == []


def test_a_broken_link_would_be_found(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("# One: *two*\n[a](page.md#one-two) [b](#three) [c](no.md) [d](https://x.y)\n```\n[e](f)\n```\n")
    assert broken(page) == ["#three", "no.md"]


def named_files():
    """Those of the table of files in architecture.md: a name without folder is in that of the name before it."""
    text = (ROOT / "docs" / "architecture.md").read_text()
    table = text.partition("## The files, in ten minutes")[2].partition("\n## ")[0]
    found = []
    for row in re.findall(r"^\| (`.*?) \|", table, re.M):
        folder = ""
        for name in re.findall(r"`([^`]+)`", row):
            folder = name.rpartition("/")[0] if "/" in name else "" if (ROOT / name).exists() else folder
            if not name.endswith("/"):  # a whole folder
                found.append(f"{folder}/{name.rpartition('/')[2]}".lstrip("/"))
    return found


def test_architecture_names_each_module_once_and_no_other():
    packages = [path.parent for path in ROOT.glob("*/__init__.py")]
    there = [path for folder in (ROOT, *packages) for path in folder.glob("*.py") if path.name != "__init__.py"]
    named = named_files()
    assert [name for name, times in Counter(named).items() if times > 1] == []
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert sorted({str(path.relative_to(ROOT)) for path in there} - set(named)) == []
