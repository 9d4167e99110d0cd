"""The README's figures are some of those in docs/benchmarks.md: of the same run, each beside the case it is of."""

from __future__ import annotations

from pathlib import Path
from typing import List, Tuple

ROOT = Path(__file__).resolve().parents[2]
HEAD = "| | Synap | peer in the same run | ratio |"

Row = Tuple[str, str]
"""A row as it stands there, and the case it is of: a second peer's row leaves the name out."""


def rows(page: str) -> List[Row]:
    lines = (ROOT / page).read_text("utf-8").partition(HEAD)[2].partition("\n\n")[0].splitlines()[2:]
    found: List[Row] = []
    for line in lines:
        name = line.split("|")[1].strip()
        found.append((line, name or found[-1][1]))
    return found


def test_a_row_of_the_readme_stands_in_the_whole_table_for_the_same_case() -> None:
    shown, every = rows("README.md"), rows("docs/benchmarks.md")
    assert len(shown) > 10
    assert [row for row in shown if row not in every] == []
    assert [row for row in every if row in shown] == shown, "another order, or a row twice"


def test_the_readme_has_each_row_in_which_others_are_faster_and_all_peers_of_its_cases() -> None:
    shown, every = rows("README.md"), rows("docs/benchmarks.md")
    names = {name for _, name in shown}
    assert [line for line, name in every if "**" in line and (line, name) not in shown] == []
    assert [line for line, name in every if name in names and (line, name) not in shown] == []


def test_both_tables_are_of_one_run() -> None:
    said = [
        [line for line in (ROOT / page).read_text("utf-8").splitlines() if line.startswith("Medians of up to")]
        for page in ("README.md", "docs/benchmarks.md")
    ]
    assert said[0] == said[1]
    assert len(said[0]) == 1
