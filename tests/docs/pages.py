"""The pages that users and contributors read, and what they print as code."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Iterator, List, Tuple

ROOT = Path(__file__).resolve().parents[2]
PAGES = [
    page
    for page in sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
    if page.name != "CHANGELOG.md" and page.parent.name != "decisions"  # both tell of what was
]
FENCED = re.compile(r"^```(?!python)\w*\n(.*?)^```$", re.MULTILINE | re.DOTALL)
INDENTED = re.compile(r"^ {4}(\S.*)$", re.MULTILINE)
INLINE = re.compile(r"`([^`\n]+)`")


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def lines(page: Path) -> Iterator[str]:
    """Return the lines of blocks that aren't Python, comments cut off, and the code within sentences."""
    text = page.read_text("utf-8")
    without = re.sub(r"^```python\n.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    found: List[str] = [line for block in FENCED.findall(without) for line in block.splitlines()]
    found += INDENTED.findall(FENCED.sub("", without))
    found += INLINE.findall(FENCED.sub("", without))
    for line in found:
        yield re.split(r"\s{2,}(?=\S)|\s+#", line.strip())[0]


def commands(page: Path, first: str) -> Iterator[str]:
    """Return what a page prints to be run that begins with a word, variables before it and what is piped left out."""
    for line in lines(page):
        for part in re.split(r"\s(?:&&|\|)\s", line):
            found = re.match(rf"(?:[A-Z_]+=\S+ )*({re.escape(first)}\b.*)$", part.strip())
            if found:
                yield found.group(1)


def options(page: Path) -> Iterator[Tuple[str, str]]:
    """Return the options that a page names in code, each with the line it stands in."""
    for line in lines(page):
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]*", line):
            yield option, line
