"""Every Python block of the pages about integrations runs, top to bottom, in a process of its own.

Frameworks keep settings for the life of a process, so that one page must not see another's.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.patience import PATIENCE

PAGES_FOLDER = Path(__file__).resolve().parents[2] / "docs" / "integrations"
PAGES = sorted(page for page in PAGES_FOLDER.glob("*.md") if page.name != "README.md")
NEEDS = {"flask": "flask_caching"}
"""What has to be installed where it isn't named like the page."""

RUN = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from tests.docs.test_guide_pages import run_page
run_page(Path(sys.argv[2]), sys.argv[3])
"""


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_as_printed(page: Path, synap_url: str) -> None:
    if importlib.util.find_spec(NEEDS.get(page.stem, page.stem)) is None:
        pytest.skip(f"{NEEDS.get(page.stem, page.stem)} is not installed")
    root = str(PAGES_FOLDER.parents[1])
    command = [sys.executable, "-c", RUN, root, str(page), synap_url]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("SYNAP_")}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_page_is_in_the_table() -> None:
    contents = (PAGES_FOLDER / "README.md").read_text("utf-8")
    assert all(page.name in contents for page in PAGES)
