"""What a place can't do is named in one list, which the docs print."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.conformance.targets import UNMET

FOLDER = Path(__file__).parent
PAGE = (FOLDER.parent.parent / "docs" / "cluster.md").read_text("utf-8")


@pytest.mark.parametrize("place", UNMET)
def test_each_thing_that_is_unmet_is_a_test_or_a_module_of_tests(place: str) -> None:
    source = "\n".join(path.read_text("utf-8") for path in FOLDER.glob("test_*.py"))
    for name in UNMET[place]:
        assert f"def {name}(" in source or (FOLDER / f"{name}.py").exists(), name


@pytest.mark.parametrize("place", UNMET)
def test_the_manual_prints_each_reason(place: str) -> None:
    printed = " ".join(PAGE.split())
    for reason in UNMET[place].values():
        assert f"`{place}` | {reason}" in printed
