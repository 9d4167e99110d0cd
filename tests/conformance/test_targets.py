"""What a place can't do is named in one list, which the docs print; many cases run where it makes a difference."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Set

import pytest

from tests.conformance.targets import CHOICE, PLACES, UNMET, Target, all_targets, fewer

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


def kinds(target: Target) -> Set[str]:
    return {target.place, target.format, target.colour, "gzip" if target.compression else "plain"}


@pytest.mark.parametrize("places", ["", *PLACES, "valkey,gateways"])
def test_a_test_of_many_cases_meets_each_two_kinds_of_target_together_that_there_are(
    monkeypatch: pytest.MonkeyPatch, places: str
) -> None:
    monkeypatch.setenv(CHOICE, places)
    met = [kinds(target) for target in fewer(all_targets())]
    for target in all_targets():
        for pair in itertools.combinations(kinds(target), 2):
            assert any(found.issuperset(pair) for found in met), pair
