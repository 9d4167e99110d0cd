"""Links between pages lead somewhere, anchors included. The site's build says the same, later."""

from __future__ import annotations

import re
import unicodedata
from pathlib import Path
from typing import Iterator, Set

import pytest

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)(?:\s+\"[^\"]*\")?\)")
HEADING = re.compile(r"^#+ +(.+?)\s*#*$", re.MULTILINE)


def prose(page: Path) -> str:
    """Return a page without its blocks, where brackets mean other things."""
    return FENCE.sub("", page.read_text("utf-8"))


def anchors(page: Path) -> Set[str]:
    """Return the anchors of a page's headings, as the site makes them."""
    found: Set[str] = set()
    for heading in HEADING.findall(prose(page)):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)|[`*]", r"\1", heading)
        text = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
        found.add(re.sub(r"[-\s]+", "-", re.sub(r"[^\w\s-]", "", text).strip().lower()))
    return found


def broken(page: Path) -> Iterator[str]:
    for target in LINK.findall(prose(page)):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        place = (page.parent / path).resolve() if path else page
        if not place.exists():
            yield f"{target}: there is no {place.relative_to(ROOT)}"
        elif anchor and place.suffix == ".md" and anchor not in anchors(place):
            yield f"{target}: {place.relative_to(ROOT)} has no such heading"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert list(broken(page)) == []


def test_every_decision_is_in_the_table() -> None:
    folder = ROOT / "docs" / "decisions"
    table = (folder / "README.md").read_text("utf-8")
    assert [note.name for note in sorted(folder.glob("0*.md")) if note.name not in table] == []


def test_the_readme_leads_nowhere_on_pypi_that_only_a_checkout_has() -> None:
    """PyPI shows it without the repository around it, so what names files of that is substituted."""
    shown = (ROOT / "README.md").read_text("utf-8")
    project = (ROOT / "pyproject.toml").read_text("utf-8")
    for pattern, replacement in re.findall(r"\{ pattern = '(.*)', replacement = '(.*)' \}", project):
        shown, found = re.subn(pattern, replacement, shown)
        assert found, pattern
    assert [target for target in LINK.findall(shown) if not target.startswith("https://")] == []
    assert re.findall(r"pip install .*", shown)
    assert [line for line in re.findall(r"pip install .*", shown) if "synap-client" not in line] == []
