"""The planted bugs still fit the code they are planted in."""

from __future__ import annotations

import pytest

from tests.seeded import SEEDS
from tests.seeded.seed import ROOT, Seed


@pytest.mark.parametrize("seed", SEEDS, ids=lambda seed: seed.name)
def test_a_seed_fits_the_code(seed: Seed) -> None:
    text = (ROOT / "src" / "synap" / seed.file).read_text(encoding="utf-8")
    assert text.count(seed.old) == 1
    assert (ROOT / seed.tests.split()[0].partition("::")[0]).exists()


def test_names_are_unique() -> None:
    assert len({seed.name for seed in SEEDS}) == len(SEEDS)
