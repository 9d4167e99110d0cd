"""Every Python block of the guide's pages runs, top to bottom, against a real server."""

from __future__ import annotations

import ast
import asyncio
import inspect
import re
import subprocess
import sys
import types
from pathlib import Path
from typing import Any, Dict, List

import pytest

from tests.helpers.patience import PATIENCE

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide"
PAGES = sorted(GUIDE.glob("*.md"))
EXTRAS = {"worker": ("croniter", "watchfiles"), "cluster": ("hiredis",)}
"""What isn't there for a page, unless it says that the extra is needed."""
WAIT = re.compile(r"(\b(?:get|result|wait_result)\(timeout=)\d+")
"""How long a page waits for a result; a busy machine may take longer than a reader's."""
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def blocks(page: Path) -> List[str]:
    """Cut the Python blocks out of a page, each on the lines it has there so that a failure names the place."""
    text = page.read_text("utf-8")
    return ["\n" * text.count("\n", 0, match.start(1)) + match.group(1) for match in BLOCK.finditer(text)]


def run_page(page: Path, synap_url: str) -> None:
    """Run the blocks of a page one after the other, with `await` where they like, against the service at a URL."""
    module = types.ModuleType(f"page_{page.stem.replace('-', '_')}", page.stem)

    async def read() -> None:
        names: Dict[str, Any] = module.__dict__
        for block in blocks(page):
            source = WAIT.sub(rf"\g<1>{PATIENCE:g}", block.replace("http://localhost:15500", synap_url))
            code = compile(source, str(page), "exec", ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
            result = eval(code, names)
            if inspect.isawaitable(result):
                await result

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(sys.modules, module.__name__, module)  # dataclasses look there for what annotations name
        for extra, libraries in EXTRAS.items():
            for library in libraries if f"extra `{extra}`" not in page.read_text("utf-8") else ():
                patch.setitem(sys.modules, library, None)
        asyncio.run(read())


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_blocks_of_a_page_run_as_printed(page: Path, synap_url: str) -> None:
    run_page(page, synap_url)


@pytest.mark.parametrize("page", sorted(GUIDE.glob("coming-from-*.md")), ids=lambda page: page.stem)
def test_what_a_porting_page_says_to_write_is_in_its_blocks(page: Path) -> None:
    """The blocks run; so each call, and each argument by name, of the tables' right column has to be in one."""
    code = "\n".join(blocks(page))
    rows = [line.strip("| ").rpartition(" | ")[2] for line in page.read_text("utf-8").splitlines() if line[:1] == "|"]
    snippets = [snippet for right in rows for snippet in re.findall(r"`([^`]+)`", right)]
    calls = {name.rpartition(".")[2] for snippet in snippets for name in re.findall(r"([A-Za-z_][\w.]*)\(", snippet)}
    arguments = {name for snippet in snippets for name in re.findall(r"\b(\w+)=", snippet)}
    assert len(calls) >= 5
    assert {name for name in calls if not re.search(rf"\b{name}\(", code)} == set()
    assert {name for name in arguments if f"{name}=" not in code} == set()


def test_a_block_that_says_which_file_it_is_can_be_that_file() -> None:
    files = [block for page in PAGES for block in blocks(page) if re.match(r"# \S+\.py\n", block.lstrip())]
    assert files
    for block in files:
        compile(block, "file", "exec", dont_inherit=True)  # an `await` in no function is an error there


def test_every_page_is_in_the_table_of_contents() -> None:
    contents = (GUIDE / "README.md").read_text("utf-8")
    assert all(page.name in contents for page in PAGES if page.name != "README.md")


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_program_of_a_front_page_runs_as_printed(page: str, synap_url: str) -> None:
    (program,) = blocks(GUIDE.parents[1] / page)
    for url in (synap_url, "memory://"):
        command = [sys.executable, "-c", program.replace("http://localhost:15500", url)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE, check=False)
        assert (done.returncode, done.stderr) == (0, "")
        assert "hello" in done.stdout or page != "README.md"
